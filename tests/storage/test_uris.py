"""URIs as text: secrets are removed before a URI is stored or printed; the home folder in a path."""

import pytest

from kasthuri_ray.errors import InputError
from kasthuri_ray.storage.folder import open_storage
from kasthuri_ray.storage.uris import absolute_uri, expand_home, redact_secrets
from kasthuri_ray.volumes.opening import open_volume


@pytest.mark.parametrize(
    ("uri", "redacted"),
    [
        ("https://me:secret@lab.org/em/|zarr3:?X-Amz-Signature=secret", "https://lab.org/em/|zarr3:"),
        ("http://lab.org/em.zarr?token=secret|zarr3:s1", "http://lab.org/em.zarr|zarr3:s1"),
        ("s3://bucket/em.zarr", "s3://bucket/em.zarr"),
        ("phantom://em?shape=4,64,64&seed=1", "phantom://em?shape=4,64,64&seed=1"),
        ("bossdb://Kasthuri/ac4/em/0", "bossdb://Kasthuri/ac4/em/0"),
        ("/data/em.zarr#mip=1", "/data/em.zarr#mip=1"),
    ],
)
def test_secrets_are_removed_from_urls_and_other_uris_are_unchanged(uri, redacted):
    assert redact_secrets(uri) == redacted


def open_hdf5(path):
    open_volume(f"{path}/x.h5:em")


@pytest.mark.usefixtures("without_home")
@pytest.mark.parametrize("use", [expand_home, absolute_uri, open_storage, open_volume, open_hdf5])
def test_without_a_home_folder_a_path_below_it_is_refused_and_others_are_not(use, monkeypatch):
    with pytest.raises(InputError, match=r"~/em\S*: there is no home folder for the ~; give an absolute path, or set"):
        use("~/em")
    assert expand_home("/data/~em") == "/data/~em"
    monkeypatch.setenv("HOME", "/home/me")
    assert expand_home("~/em") == "/home/me/em"

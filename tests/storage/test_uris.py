"""URIs as text: secrets are removed before a URI is stored or printed."""

import pytest

from kasthuri_ray.storage.uris import redact_secrets


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

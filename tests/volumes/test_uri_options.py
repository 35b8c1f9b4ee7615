"""Options at the end of a volume's URI."""

import pytest

from kasthuri_ray.errors import InputError
from kasthuri_ray.storage.uris import redact_secrets
from kasthuri_ray.volumes.opening import VolumeOpener, open_volume
from kasthuri_ray.volumes.place import Place
from kasthuri_ray.volumes.uri_options import split_uri_options


@pytest.mark.parametrize(
    ("uri", "rest", "text"),
    [
        ("x.zarr/em?axes=zcyx&voxel_size_nm=40,4,4#mip=2", "x.zarr/em#mip=2", "?axes=zcyx&voxel_size_nm=40,4,4"),
        ("file:///d/x.zarr/|zarr3:em?offset_nm=-1,2,3", "file:///d/x.zarr/|zarr3:em", "?offset_nm=-1,2,3"),
        ("x.h5:a/b?dtype=uint8", "x.h5:a/b", "?dtype=uint8"),
        ("https://h/x.zarr?sig=a&axes=zyx", "https://h/x.zarr?sig=a", "?axes=zyx"),
        ("https://h/x.zarr?sig=a", "https://h/x.zarr?sig=a", ""),
        ("https://h/x?sig=1|zarr3:em", "https://h/x?sig=1|zarr3:em", ""),
        ("phantom://em?shape=1,2,3&offset_nm=1,2,3", "phantom://em?shape=1,2,3", "?offset_nm=1,2,3"),
        ("sections/em_????.tif", "sections/em_????.tif", ""),
        ("sections/em_????.tif?offset_nm=0,0,0", "sections/em_????.tif", "?offset_nm=0,0,0"),
    ],
)
def test_options_are_split_from_what_else_a_uri_holds(uri, rest, text):
    found, options = split_uri_options(uri)
    assert (found, options.text) == (rest, text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("axis=zyx", r"'axis=zyx' is not an option of a volume; the options are axes, voxel_size_nm, offset_nm, dtype"),
        ("axes=zzyx", r"axes=zzyx does not name each stored axis by a letter of its own"),
        ("axes=z1x", r"axes=z1x does not name"),
        ("voxel_size_nm=4,4", r"voxel_size_nm=4,4 is not three positive numbers in nm, z,y,x"),
        ("voxel_size_nm=0,4,4", r"is not three positive numbers"),
        ("offset_nm=a,b,c", r"offset_nm=a,b,c is not three numbers in nm"),
        ("offset_nm=1,2,nan", r"is not three numbers"),
        ("dtype=grey", r"dtype=grey is not a type of voxels"),
        ("axes=yx&axes=xy", r"gives an option twice"),
    ],
)
def test_a_wrong_option_is_refused_with_those_that_exist(options, message):
    with pytest.raises(InputError, match=message):
        split_uri_options(f"x.tif?{options}")


def test_the_uri_of_a_volume_opens_it_again_with_its_options():
    volume = open_volume("phantom://em?shape=4,64,64&voxel_size_nm=40,4,4&offset_nm=0,-8,100")
    assert volume.uri == "phantom://em?shape=4,64,64&seed=0&voxel_size_nm=40,4,4&offset_nm=0,-8,100"
    assert (volume.voxel_size_nm, volume.place) == ((40, 4, 4), Place((0, -8, 100), "corner", "?offset_nm"))
    assert open_volume(volume.uri) == volume
    with pytest.raises(InputError, match="axes and dtype are options of stores and files"):
        open_volume("phantom://em?axes=xyz")


def test_an_offset_is_that_of_the_first_voxel_also_where_voxels_are_not_counted_from_0(array_volume):
    import numpy as np

    volume = array_volume(np.zeros((2, 8, 8), np.uint8), voxel_size_nm=(30.0, 4.0, 4.0), offset=(1, -2, 10))
    _, options = split_uri_options("x?offset_nm=60,0,0")
    assert options.apply_to(volume).place.origin_nm == (30, 8, -40)
    with pytest.raises(InputError, match=r"offset_nm needs a voxel size, since the first voxel is \(1, -2, 10\)"):
        options.apply_to(array_volume(np.zeros((2, 8, 8), np.uint8), voxel_size_nm=None, offset=(1, -2, 10)))


def test_secrets_are_removed_from_a_url_and_options_are_kept():
    text = "s3://user:password@bucket/x.zarr?signature=1&axes=zyx&offset_nm=0,0,0#mip=1 and https://host/x?signature=2"
    assert redact_secrets(text) == "s3://bucket/x.zarr?axes=zyx&offset_nm=0,0,0#mip=1 and https://host/x"


def test_an_opener_collects_the_notes_of_its_volumes_once_each(monkeypatch, array_volume):
    import numpy as np

    volumes = [array_volume(np.zeros((1, 2, 2), np.uint8), notes=notes) for notes in (("a",), ("b", "a"))]
    monkeypatch.setattr("kasthuri_ray.volumes.opening.open_volume", lambda uri, **more: volumes[int(uri)])
    opener = VolumeOpener(None, "none", "1GB")
    for uri in ("0", "1", "0"):
        opener.open(uri)
    assert opener.notes == ["a", "b"]

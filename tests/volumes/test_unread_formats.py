"""Files and folders of formats that are not read: refused by name, with what to do."""

from pathlib import Path

import pytest

from kasthuri_ray.errors import InputError
from kasthuri_ray.volumes.opening import open_volume


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("em.nii.gz", "is a NIfTI file, which is not read; load it with nibabel"),
        ("em.nrrd", "is an NRRD file, which is not read; load it with pynrrd"),
        ("em.dm4", "is a file of a microscope or its software, which is not read; open it in Fiji"),
        ("em.npy", "is a file of arrays, which is not read"),
        ("em.raw", "is a file without a header, which is not read; import it in Fiji"),
        ("em.bmp", "is a picture, which is not read; convert it to PNG or TIFF"),
        ("em.xml", "is an XML file, which is not read; if it is BigDataViewer's, name the .h5 or .n5"),
        ("em.mrc.gz", "is a packed file, which is not read; unpack it"),
        ("em.xyz", "is a file; a zarr, N5 or precomputed volume is a folder"),
    ],
)
def test_a_file_is_named_with_what_to_do(tmp_path, name, message):
    (tmp_path / name).write_bytes(bytes(100))
    with pytest.raises(InputError, match=f"{name} {message}"):
        open_volume(str(tmp_path / name))


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["color/1/header.wkw", "color/1/z0/y0/x0.wkw"], "em holds WKW, which is not read; .*copy_dataset"),
        (["1/header.wkw"], "em holds WKW"),
        (["header.wkw"], "em holds WKW"),
        (["mag1/knossos.conf", "mag1/x0000/y0000/z0000/em.raw"], "em holds cubes of KNOSSOS, which are not read"),
        (["knossos.conf"], "em holds cubes of KNOSSOS"),
        (["s1.bmp", "s2.bmp", "notes.md"], "em holds 2 .bmp files, which are not read; convert them to TIFF or PNG"),
        (["notes.md"], "em is not an array or a pyramid"),
    ],
)
def test_a_folder_is_named_with_what_to_do(tmp_path, files, message):
    for name in files:
        touch(tmp_path / "em" / name)
    with pytest.raises(InputError, match=message):
        open_volume(str(tmp_path / "em"))

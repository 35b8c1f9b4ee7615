"""The order of sections where names do not make it plain, links to missing files, and orientations of EXIF."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kasthuri_ray.errors import InputNotFound
from kasthuri_ray.volumes.opening import open_volume


def write(folder: Path, voxels: np.ndarray, names: list[str], **more: object) -> str:
    for name, section in zip(names, voxels, strict=False):
        Image.fromarray(section).save(folder / name, **more)
    return str(folder)


@pytest.mark.parametrize(
    ("names", "order"),
    [
        (["z-1.png", "z-2.png", "z0.png"], "z0.png, z-1.png, z-2.png"),
        (["s0.5.png", "s1.png", "s1.5.png"], "s0.5.png, s1.5.png, s1.png"),
        (["S1.PNG", "s2.png", "S3.Png"], "S1.PNG, S3.Png, s2.png"),
        (["a1_c0.png", "a1_c1.png", "a2_c0.png"], "a1_c0.png, a1_c1.png, a2_c0.png"),
    ],
)
def test_the_order_of_names_that_differ_in_more_than_one_number_is_said(tmp_path, voxels, check_file, names, order):
    """https://github.com/SlicerMorph/SlicerMorph/issues/453: a stack in a wrong order loads without a word."""
    volume = open_volume(write(tmp_path, voxels, names))
    (note,) = volume.notes
    assert note.endswith(
        f"the names of the sections differ in more than one number; they are read in this order: {order}"
    )
    check_file(volume, voxels[[names.index(name) for name in order.split(", ")]])


def test_long_orders_are_shortened(tmp_path, voxels):
    write(tmp_path, voxels, [f"a{n}_c{n % 2}.png" for n in range(12)])
    (note,) = open_volume(str(tmp_path)).notes
    assert note.endswith("in this order: a0_c0.png, a1_c1.png, a2_c0.png, ..., a11_c1.png")


def test_numbers_in_parentheses_are_numbers(tmp_path, voxels, check_file):
    """https://github.com/Kitware/dive/issues/494."""
    volume = open_volume(write(tmp_path, voxels, [f"em ({n}).png" for n in range(1, 13)]))
    check_file(volume, voxels)
    assert volume.notes == ()


@pytest.mark.parametrize("name", ["", "/*.png"])
def test_a_link_to_a_missing_file_is_a_missing_section(tmp_path, voxels, name):
    write(tmp_path, voxels[:2], ["s1.png", "s2.png"])
    (tmp_path / "s3.png").symlink_to(tmp_path / "moved.png")
    with pytest.raises(InputNotFound, match=r"1 of 3 sections are not there: .*s3.png"):
        open_volume(f"{tmp_path}{name}")


@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_an_orientation_of_exif_is_said_and_not_applied(tmp_path, voxels, ending):
    exif = Image.Exif()
    exif[274] = 6
    volume = open_volume(write(tmp_path, voxels[:2], [f"s1.{ending}", f"s2.{ending}"], exif=exif))
    assert volume.shape == (2, 40, 50)
    assert (
        "2 of 2 sections: an orientation is stated (6); rows and columns are read as they are stored" in volume.notes[0]
    )

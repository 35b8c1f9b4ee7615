"""One image in every file format: the same voxels, and the size and place that the format or the URI states."""

import h5py
import mrcfile
import numpy as np
import pytest
import tifffile
from PIL import Image

from kasthuri_ray.volumes.opening import open_volume

SIZE, CORNER = (40.0, 4.0, 4.0), (400.0, 800.0, 1200.0)
OPTIONS = "?voxel_size_nm=40,4,4&offset_nm=400,800,1200"


@pytest.fixture
def folder(tmp_path, voxels):
    """Write the image in all formats."""
    with h5py.File(tmp_path / "em.h5", "w") as file:
        file["em"] = voxels
        file["em"].attrs.update(resolution=SIZE, offset=CORNER)
    metadata = {"axes": "ZYX", "spacing": 40.0, "unit": "nm", "xorigin": -300, "yorigin": -200, "zorigin": -10}
    tifffile.imwrite(tmp_path / "ij.tif", voxels, imagej=True, resolution=(0.25, 0.25), metadata=metadata)
    with mrcfile.new(tmp_path / "em.mrc") as file:
        file.set_data(voxels)  # as uint16
        file.voxel_size, file.header.origin = tuple(10 * n for n in SIZE[::-1]), tuple(10 * n for n in CORNER[::-1])
    for kind in ("tif", "png"):
        (tmp_path / kind).mkdir()
        for number, section in enumerate(voxels):
            path = tmp_path / kind / f"s{number}.{kind}"
            tifffile.imwrite(path, section) if kind == "tif" else Image.fromarray(section).save(path)
    return tmp_path


@pytest.mark.parametrize("name", ["em.h5:em", "ij.tif", "em.mrc", "tif" + OPTIONS, "png" + OPTIONS])
def test_voxels_size_and_place_are_the_same_in_every_format(folder, voxels, name):
    volume = open_volume(f"{folder}/{name}")
    np.testing.assert_array_equal(volume.read(volume.bounds), voxels)
    assert volume.voxel_size_nm == pytest.approx(SIZE)
    assert volume.place.corner_nm(volume.voxel_size_nm) == pytest.approx(CORNER)
    assert volume.notes == ()

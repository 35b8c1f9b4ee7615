"""What TIFF files state besides their pixels: voxel size, place, units, a calibration, an orientation."""

import logging

import numpy as np
import pytest
import tifffile

from kasthuri_ray.volumes.opening import open_volume
from kasthuri_ray.volumes.place import Place

SHAPE = (6, 300, 210)
GREY = {"photometric": "minisblack"}


@pytest.fixture
def voxels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 60_000, SHAPE, dtype=np.uint16)


@pytest.fixture(autouse=True)
def without_warnings_of_tifffile(caplog):
    caplog.set_level(logging.CRITICAL, "tifffile")


def test_the_voxel_size_is_read_from_imagej_ome_and_our_metadata(tmp_path, voxels, check_file):
    metadata = {"spacing": 0.03, "unit": "um", "axes": "ZYX"}
    tifffile.imwrite(tmp_path / "ij.tif", voxels, imagej=True, resolution=(1 / 0.004, 1 / 0.005), metadata=metadata)
    metadata = {"axes": "ZYX"} | {f"PhysicalSize{axis}": size for axis, size in zip("XYZ", (4, 5, 0.03), strict=True)}
    metadata |= {"PhysicalSizeXUnit": "nm", "PhysicalSizeYUnit": "nm"}
    tifffile.imwrite(tmp_path / "x.ome.tif", voxels, metadata=metadata)
    tifffile.imwrite(tmp_path / "zyx.tif", voxels, metadata={"voxel_size_nm_zyx": [30, 5, 4]})
    tifffile.imwrite(tmp_path / "dpi.tif", voxels, resolution=(300, 300))
    for name, size in {"ij.tif": (30, 5, 4), "x.ome.tif": (30, 5, 4), "zyx.tif": (30, 5, 4), "dpi.tif": None}.items():
        volume = open_volume(str(tmp_path / name))
        check_file(volume, voxels)
        assert volume.voxel_size_nm == (size and pytest.approx(size, rel=1e-6))


def test_the_place_is_read_from_ome_positions_and_the_origin_of_imagej(tmp_path, voxels):
    plane = {f"Position{axis}": [value] * 6 for axis, value in zip("XYZ", (1.5, -2.0, 300.0), strict=True)}
    units = {"PositionXUnit": ["µm"] * 6, "PositionYUnit": ["µm"] * 6, "PositionZUnit": ["nm"] * 6}
    tifffile.imwrite(tmp_path / "x.ome.tif", voxels, metadata={"axes": "ZYX", "Plane": plane | units})
    tifffile.imwrite(tmp_path / "frame.ome.tif", voxels, metadata={"axes": "ZYX", "Plane": plane})
    metadata = {"spacing": 30.0, "unit": "nm", "axes": "ZYX", "xorigin": -10, "yorigin": -20, "zorigin": 3}
    tifffile.imwrite(tmp_path / "ij.tif", voxels, imagej=True, resolution=(1 / 4, 1 / 5), metadata=metadata)
    places = {name: open_volume(str(tmp_path / name)).place for name in ("x.ome.tif", "frame.ome.tif", "ij.tif")}
    assert places == {
        "x.ome.tif": Place((300, -2000, 1500), "middle", "OME PositionX/Y/Z"),
        "frame.ome.tif": None,
        "ij.tif": Place((-90, 100, 40), "corner", "ImageJ's origin"),
    }


@pytest.mark.parametrize(
    ("unit", "factor"), [("nm", 1), ("\\u00B5m", 1000), ("micron", 1000), ("\\u00C5", 0.1), ("inch", 2.54e7)]
)
def test_units_of_imagej_are_read_as_it_writes_them(tmp_path, voxels, unit, factor):
    metadata = {"axes": "ZYX", "spacing": 30, "unit": unit}
    tifffile.imwrite(tmp_path / "x.tif", voxels, imagej=True, resolution=(1 / 4, 1 / 6), metadata=metadata)
    size = open_volume(str(tmp_path / "x.tif")).voxel_size_nm
    assert size == pytest.approx((30 * factor, 6 * factor, 4 * factor))


def test_the_calibration_of_imagejs_signed_images_is_said(tmp_path, voxels, check_file):
    text = "ImageJ=1.54f\nimages=6\nslices=6\nunit=nm\ncf=0\nc0=-32768\nc1=1\nspacing=30\n"
    tifffile.imwrite(tmp_path / "x.tif", voxels, description=text, metadata=None, **GREY)
    volume = open_volume(str(tmp_path / "x.tif"))
    check_file(volume, voxels)
    assert "ImageJ shows a value v as -32768 + 1 v; the values are read as they are stored" in volume.notes[0]


def test_an_orientation_is_said_and_not_applied(tmp_path, voxels, check_file):
    tifffile.imwrite(tmp_path / "x.tif", voxels[0], extratags=[(274, "H", 1, 6, True)])
    volume = open_volume(str(tmp_path / "x.tif"))
    check_file(volume, voxels[:1])
    assert "an orientation is stated (6); rows and columns are read as they are stored" in volume.notes[0]

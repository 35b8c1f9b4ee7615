"""Which axis of a TIFF stack is which: by its pages, its metadata, and the names in the URI."""

import logging

import numpy as np
import pytest
import tifffile

from kasthuri_ray.volumes.file_formats import open_file_volume
from kasthuri_ray.volumes.opening import open_volume

SHAPE = (6, 300, 210)
GREY = {"photometric": "minisblack"}


@pytest.fixture
def voxels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 60_000, SHAPE, dtype=np.uint16)


@pytest.fixture(autouse=True)
def without_warnings_of_tifffile(caplog):
    caplog.set_level(logging.CRITICAL, "tifffile")


@pytest.mark.parametrize(
    "more",
    [
        {"imagej": True, "metadata": {"axes": "CYX"}},
        {"imagej": True, "metadata": {"axes": "TYX"}},
        {"ome": True, "metadata": {"axes": "CYX"}},
        {"ome": True, "metadata": {"axes": "TYX"}},
        {"metadata": {"axes": "SYX"}},
        {"metadata": {"axes": "IYX"}},
    ],
)
def test_the_only_long_axis_beside_y_and_x_is_z(tmp_path, voxels, check_file, more):
    tifffile.imwrite(tmp_path / "x.tif", voxels, **GREY, **more)
    volume = open_volume(str(tmp_path / "x.tif"))
    check_file(volume, voxels)
    assert ("is read as z" in " ".join(volume.notes)) == (more["metadata"]["axes"] != "IYX")


def test_two_long_axes_beside_y_and_x_are_refused(tmp_path, voxels):
    tifffile.imwrite(tmp_path / "x.tif", voxels.reshape(3, 2, 300, 210), imagej=True, metadata={"axes": "ZCYX"})
    with pytest.raises(ValueError, match=r"has 2 channels, shape \(3, 2, 300, 210\); a volume has one channel"):
        open_volume(str(tmp_path / "x.tif"))


def test_axes_of_the_uri_win_over_the_file(tmp_path, voxels, check_file):
    tifffile.imwrite(tmp_path / "x.tif", voxels, **GREY)
    for order in ("zxy", "xyz", "yzx"):
        turned = voxels.transpose([order.index(axis) for axis in "zyx"])
        check_file(open_volume(f"{tmp_path}/x.tif?axes={order}"), turned)
        assert open_volume(f"{tmp_path}/x.tif?axes={order}").uri.endswith(f"x.tif?axes={order}")
    tifffile.imwrite(tmp_path / "one.tif", voxels[0])
    check_file(open_volume(f"{tmp_path}/one.tif?axes=xy"), voxels[:1].transpose(0, 2, 1))
    with pytest.raises(ValueError, match=r"axes=tzyx names 4 axes, but the shape is \(6, 300, 210\)"):
        open_volume(f"{tmp_path}/x.tif?axes=tzyx")


def test_one_page_is_one_section(tmp_path, voxels, check_file):
    tifffile.imwrite(tmp_path / "one.tif", voxels[0])
    check_file(open_file_volume(str(tmp_path / "one.tif")), voxels[:1])


def test_a_single_channel_is_dropped(tmp_path, voxels, check_file):
    tifffile.imwrite(tmp_path / "c.ome.tif", voxels[:, None], metadata={"axes": "ZCYX"})
    check_file(open_file_volume(str(tmp_path / "c.ome.tif")), voxels)


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("order", ["XYZ", "YXZ", "ZXY", "YZX", "XZY"])
def test_pages_of_other_axes_than_y_and_x_are_read_by_the_names_in_the_file(tmp_path, check_file, order, compression):
    voxels = np.arange(6 * 20 * 30, dtype=np.uint16).reshape(6, 20, 30)
    stored = voxels.transpose(["ZYX".index(axis) for axis in order])
    metadata = {"axes": order, "voxel_size_nm_zyx": [40, 5, 4]}
    tifffile.imwrite(tmp_path / "x.tif", stored, metadata=metadata, compression=compression, **GREY)
    for options in ("", f"?axes={order.lower()}"):
        volume = open_volume(f"{tmp_path}/x.tif{options}")
        check_file(volume, voxels)
        assert volume.stored_axes == ",".join(order.lower())
        assert volume.voxel_size_nm == (40, 5, 4)
    plain = open_volume(f"{tmp_path}/x.tif?axes=zyx")  # the first stored axis is z, whatever the file says
    check_file(plain, stored)
    assert plain.voxel_size_nm == tuple({"Z": 40, "Y": 5, "X": 4}[axis] for axis in order)


def test_one_page_with_the_axes_x_and_y_is_one_section(tmp_path, voxels, check_file):
    tifffile.imwrite(tmp_path / "x.tif", voxels[0].T, metadata={"axes": "XY"}, **GREY)
    check_file(open_volume(str(tmp_path / "x.tif")), voxels[:1])


@pytest.mark.parametrize("kind", ["ome", "imagej"])
def test_size_and_place_go_with_their_axis_where_the_uri_names_the_axes(tmp_path, voxels, check_file, kind):
    if kind == "ome":
        sizes = {"PhysicalSizeZ": 4, "PhysicalSizeY": 5, "PhysicalSizeX": 40}
        more = {f"{name}Unit": "nm" for name in sizes}
        plane = {f"Position{axis}": [n] * 210 for axis, n in (("Z", 1), ("Y", 2), ("X", 3))}
        plane |= {f"Position{axis}Unit": ["nm"] * 210 for axis in "ZYX"}
        options = {"metadata": {"axes": "ZYX", **sizes, **more, "Plane": plane}}
        origin = (3, 2, 1)
    else:
        place = {"zorigin": -1, "yorigin": -2, "xorigin": -3}
        metadata = {"axes": "ZYX", "unit": "nm", "spacing": 4, **place}
        options = {"resolution": (1 / 40, 1 / 5), "metadata": metadata}
        origin = (120, 10, 4)
    tifffile.imwrite(tmp_path / "x.tif", voxels.T, **{kind: True}, **GREY, **options)
    volume = open_volume(f"{tmp_path}/x.tif?axes=xyz")
    check_file(volume, voxels)
    assert volume.voxel_size_nm == pytest.approx((40, 5, 4))
    assert volume.place.origin_nm == pytest.approx(origin)
    assert open_volume(f"{tmp_path}/x.tif").voxel_size_nm == pytest.approx((4, 5, 40))


@pytest.mark.parametrize(
    ("stored", "shape"),
    [((6, 20, 30, 1), (6, 20, 30)), ((6, 20, 1), (1, 6, 20)), ((6, 1, 1), (1, 6, 1)), ((6, 1, 30), (6, 1, 30))],
)
def test_axes_of_length_1_beside_those_of_a_page_are_dropped(tmp_path, stored, shape):
    voxels = np.arange(np.prod(stored), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "x.tif", voxels.reshape(stored), **GREY)
    volume = open_volume(str(tmp_path / "x.tif"))
    assert volume.shape == shape
    np.testing.assert_array_equal(volume.read(volume.bounds).ravel(), voxels)

"""Arrays become volumes that other processes can open."""

import numpy as np
import pytest
import zarr

from kasthuri_ray.errors import InputError
from kasthuri_ray.volumes.array_volume import array_uri, volume_uri
from kasthuri_ray.volumes.opening import open_volume


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int16", "uint64", "float32"])
def test_an_array_is_read_back_equal_and_equal_arrays_are_written_once(tmp_path, dtype):
    voxels = (np.random.default_rng(0).random((20, 30, 300)) * 3).astype(dtype)
    uri = array_uri(voxels, "image", str(tmp_path))
    assert uri.startswith(f"{tmp_path}/arrays/image-")
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert array_uri(voxels.copy(order="F"), "image", str(tmp_path)) == uri
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == written
    np.testing.assert_array_equal(open_volume(uri)[:], voxels)
    assert array_uri(~voxels if dtype == "bool" else voxels + 1, "image", str(tmp_path)) != uri


def test_a_copy_of_an_earlier_version_which_has_no_name_is_used_by_any_name(tmp_path):
    voxels = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    digest = array_uri(voxels, "image", str(tmp_path)).rpartition("-")[2]
    (tmp_path / "arrays" / f"image-{digest}").rename(tmp_path / "arrays" / digest)
    for name in ("image", "annotation"):
        assert array_uri(voxels, name, str(tmp_path)) == f"{tmp_path}/arrays/{digest}"
    assert [path.name for path in (tmp_path / "arrays").iterdir()] == [digest]


def test_a_path_is_no_array_and_an_opened_volume_is_refused(tmp_path):
    assert volume_uri(tmp_path / "x.zarr", "image", str(tmp_path)) == str(tmp_path / "x.zarr")
    with pytest.raises(InputError, match="image is an opened volume"):
        volume_uri(open_volume("phantom://em?shape=2,8,8"), "image", str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_an_array_is_written_to_s3(s3):
    voxels = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    uri = array_uri(voxels, "mask", "s3://some-bucket/runs")
    assert uri.startswith("s3://some-bucket/runs/arrays/")
    np.testing.assert_array_equal(open_volume(uri)[:], voxels)


def test_a_zarr_array_on_disk_is_not_copied(tmp_path):
    array = zarr.create_array(str(tmp_path / "x.zarr"), name="em", shape=(4, 5, 6), dtype="uint8")
    array[:] = 7
    assert array_uri(array, "image", str(tmp_path / "out")) == str(tmp_path / "x.zarr" / "em")
    assert not (tmp_path / "out").exists()


def test_a_zarr_array_in_memory_keeps_its_voxel_size(tmp_path):
    array = zarr.create_array({}, shape=(4, 5, 6), dtype="uint8", attributes={"voxel_size_nm_zyx": [30, 6, 6]})
    assert open_volume(array_uri(array, "image", str(tmp_path))).voxel_size_nm == (30, 6, 6)


@pytest.mark.parametrize("array", [np.zeros((3, 4)), np.zeros((0, 4, 4)), np.array([[["a"]]])])
def test_an_array_that_is_no_volume_is_refused(tmp_path, array):
    with pytest.raises(InputError, match="expected numbers with axes z, y, x"):
        array_uri(array, "image", str(tmp_path))

"""Resampling: whole factors equal block means, any factor equals a plain loop, and blocks equal the whole."""

import numpy as np
import pytest

from kasthuri_ray.errors import InputError
from kasthuri_ray.geometry import Box
from kasthuri_ray.volumes.alignment import align_volumes
from kasthuri_ray.volumes.place import Place
from kasthuri_ray.volumes.resampled_volume import resample_image, resample_onto


@pytest.fixture
def placed(array_volume):
    """Return `placed(voxels, size, origin)`, which makes a volume at a place."""

    def make(voxels, size, origin=(0.0, 0.0, 0.0), **more):
        return array_volume(voxels, voxel_size_nm=size, place=Place(origin, "corner", "offset"), **more)

    return make


def random_voxels(shape, dtype=np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 250, shape).astype(dtype)


def mean_of_lengths(values: np.ndarray, axis: int, corner: float, step: float, count: int) -> np.ndarray:
    """Return the mean over each new voxel's length along an axis, by one loop over all pairs of voxels."""
    length = values.shape[axis]
    weights = np.zeros((count, length))
    for new in range(count):
        for old in range(length):
            overlap = min(old + 1, corner + (new + 1) * step) - max(old, corner + new * step)
            weights[new, old] = max(0.0, overlap)
    weights /= weights.sum(1, keepdims=True)
    return np.moveaxis(np.tensordot(weights, values, (1, axis)), 0, axis)


def test_whole_factors_are_means_of_blocks_and_inherit_the_place(placed):
    voxels = random_voxels((6, 40, 36))
    image = resample_image(placed(voxels, (30.0, 4.0, 4.0), (60.0, 8.0, 12.0)), (60.0, 8.0, 16.0))
    expected = np.rint(voxels.reshape(3, 2, 20, 2, 9, 4).mean((1, 3, 5)))
    assert image.voxel_size_nm == (60, 8, 16)
    assert image.place == Place((60.0, 8.0, 12.0), "corner", "offset")
    np.testing.assert_array_equal(image.read(image.bounds), expected.astype(np.uint8))


def test_the_middle_of_the_first_voxel_moves_with_its_size(array_volume):
    place = Place((15.0, 2.0, 102.0), "middle", "OME translation")
    image = array_volume(random_voxels((2, 8, 8)), voxel_size_nm=(30.0, 4.0, 4.0), place=place)
    assert resample_image(image, (30.0, 8.0, 8.0)).place == Place((15.0, 4.0, 104.0), "middle", "OME translation")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.int32])
def test_any_factor_equals_a_loop_over_all_voxels(placed, dtype):
    voxels = random_voxels((5, 30, 33), dtype)
    image = resample_image(placed(voxels, (30.0, 4.0, 4.0)), (30.0, 6.0, 7.3))
    expected = mean_of_lengths(mean_of_lengths(voxels, 1, 0, 1.5, 20), 2, 0, 7.3 / 4, 18)
    assert image.bounds == Box((0, 0, 0), (5, 20, 18))
    if dtype != np.float32:
        assert np.abs(image.read(image.bounds) - expected).max() <= 0.501
    else:
        np.testing.assert_allclose(image.read(image.bounds), expected, rtol=1e-5)


def test_smaller_voxels_are_interpolated_between_middles(placed):
    voxels = random_voxels((3, 10, 20), np.float32)
    image = resample_image(placed(voxels, (30.0, 4.0, 4.0)), (30.0, 4.0, 1.5))
    middles = (np.arange(image.shape[2]) + 0.5) * 1.5 / 4 - 0.5
    expected = np.apply_along_axis(lambda row: np.interp(middles, np.arange(20), row), 2, voxels)
    np.testing.assert_allclose(image.read(image.bounds), expected, rtol=1e-5)


@pytest.mark.parametrize("size", [(60.0, 9.0, 3.0), (30.0, 2.0, 8.1), (15.0, 4.0, 17.0)])
@pytest.mark.parametrize("resampling", ["nearest", "mean"])
def test_blocks_equal_the_whole_and_a_limited_number_of_voxels_is_read_at_once(placed, monkeypatch, size, resampling):
    source = placed(random_voxels((8, 30, 41)), (30.0, 4.0, 4.0), offset=(5, -7, 3))
    grid = placed(random_voxels((9, 90, 90)), size, (37.0, 5.0, 2.0), offset=(2, -5, 0))
    volume = resample_onto(source, grid, resampling)
    whole = volume.read(volume.bounds)
    for shape in ((1, 7, 5), (3, 100, 2)):
        for cell in volume.bounds.cells(shape):
            np.testing.assert_array_equal(volume.read(cell), whole[cell.slices(volume.bounds.start)])
    monkeypatch.setattr("kasthuri_ray.volumes.resampled_volume.MAX_SOURCE_VOXELS", 500)
    volume.source.reads.clear()
    np.testing.assert_array_equal(volume.read(volume.bounds), whole)
    assert len(volume.source.reads) > 10


@pytest.mark.parametrize("size", [(60.0, 9.0, 3.0), (30.0, 2.0, 8.1)])
def test_labels_are_those_of_the_voxel_in_which_the_middle_lies(placed, size):
    labels = placed(random_voxels((8, 30, 41), np.uint64) * np.uint64(2**50), (30.0, 4.0, 4.0), (30.0, 8.0, 4.0))
    grid = placed(random_voxels((9, 90, 90)), size)
    volume = align_volumes(grid, labels, resample="nearest").moving
    voxels = volume.read(volume.bounds)
    assert volume.dtype == np.uint64
    rng = np.random.default_rng(1)
    for _ in range(200):
        voxel = rng.integers(volume.bounds.start, volume.bounds.stop)
        middle_nm = (voxel + 0.5) * size
        old = np.floor((middle_nm - (30, 8, 4)) / (30.0, 4.0, 4.0)).astype(int).clip(0, np.subtract(labels.shape, 1))
        assert voxels[tuple(voxel - volume.bounds.start)] == labels.array[tuple(old)]


def test_a_resampled_volume_covers_what_the_source_covers(placed):
    grid = placed(random_voxels((4, 100, 100)), (30.0, 4.0, 4.0))
    coarse = placed(random_voxels((4, 10, 10)), (30.0, 8.0, 8.0), (30.0, 80.0, 160.0))
    aligned = align_volumes(grid, coarse, resample="nearest")
    assert aligned.moving.bounds == Box((1, 20, 40), (5, 40, 60))
    assert aligned.overlap == Box((1, 20, 40), (4, 40, 60))
    assert (aligned.moving.voxel_size_nm, aligned.moving.place) == (grid.voxel_size_nm, grid.place)
    expected = np.repeat(np.repeat(coarse.array, 2, 1), 2, 2)
    np.testing.assert_array_equal(aligned.moving.read(aligned.moving.bounds), expected)


def test_without_a_place_only_equal_extents_are_resampled(array_volume, placed):
    grid = placed(random_voxels((4, 20, 20)), (30.0, 4.0, 4.0), offset=(9, 8, 7))
    coarse = array_volume(random_voxels((4, 10, 10)), voxel_size_nm=(30.0, 8.0, 8.0))
    assert align_volumes(grid, coarse, resample="nearest").moving.bounds == grid.bounds
    other = array_volume(random_voxels((4, 10, 8)), voxel_size_nm=(30.0, 8.0, 8.0))
    with pytest.raises(InputError, match=r"different extents: .*states no place in nm.*\?offset_nm="):
        align_volumes(grid, other, resample="nearest")

"""The levels of a pyramid, and exact downsampling."""

import itertools
import math

import numpy as np
import pytest
import tensorstore as ts

from kasthuri_ray.geometry import Box
from kasthuri_ray.output.pyramid import downsample, downsample_ids, downsample_labels, plan_levels, source_box

KASTHURI = (1850, 26624, 21504)


def planned_factors(shape, voxel_size_nm):
    return [level.factors for level in plan_levels(shape, voxel_size_nm)]


def plain_mode(labels, factors):
    """Return the mode of each cell, voxel by voxel: the foreground where it has at least half, the lowest of equals."""
    shape = [-(-n // f) for n, f in zip(labels.shape, factors, strict=True)]
    modes = np.zeros(shape, labels.dtype)
    padded = np.pad(labels, [(0, s * f - n) for n, s, f in zip(labels.shape, shape, factors, strict=True)], mode="edge")
    for at in np.ndindex(*shape):
        cell = padded[tuple(slice(a * f, (a + 1) * f) for a, f in zip(at, factors, strict=True))].ravel()
        numbers, counts = np.unique(cell[cell > 0], return_counts=True)
        modes[at] = numbers[counts.argmax()] if 2 * counts.sum() >= cell.size else 0
    return modes


@pytest.mark.parametrize("factors", [(1, 2, 2), (2, 2, 2), (1, 1, 2), (1, 1, 1)])
def test_ids_of_objects_are_downsampled_to_the_mode(factors):
    rng = np.random.default_rng(0)
    for dtype, far in ((np.uint32, 1 << 30), (np.uint64, 1 << 40)):
        labels = rng.choice(np.array([0, 0, 3, 7, far], dtype), (5, 9, 7))
        found = downsample_ids(labels, factors)
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, plain_mode(labels, factors))
        few = rng.choice(4, (5, 9, 7)).astype(np.uint8)
        np.testing.assert_array_equal(downsample_ids(few, factors), downsample_labels(few, factors))
    assert not downsample_ids(np.zeros((2, 4, 4), np.uint32), factors).any()


def test_y_and_x_are_halved_until_voxels_are_about_isotropic():
    kasthuri = [(1, 1, 1), (1, 2, 2), (1, 4, 4), (2, 8, 8), (4, 16, 16), (8, 32, 32), (16, 64, 64)]
    assert planned_factors(KASTHURI, (30.0, 6.0, 6.0)) == kasthuri
    assert planned_factors((64, 2048, 1000), (8.0, 8.0, 8.0)) == [(1, 1, 1), (2, 2, 2), (4, 4, 4)]
    assert planned_factors((64, 900, 900), (4.0, 8.0, 8.0)) == [(1, 1, 1), (2, 1, 1), (4, 2, 2)]
    # 1.5 times the shortest is too long.
    assert planned_factors((64, 900, 900), (12.0, 8.0, 8.0)) == [(1, 1, 1), (1, 2, 2)]


def test_a_pyramid_ends_with_sections_of_at_most_512_voxels():
    assert planned_factors((1850, 512, 512), (30.0, 6.0, 6.0)) == [(1, 1, 1)]
    assert planned_factors((1850, 513, 100), (30.0, 6.0, 6.0)) == [(1, 1, 1), (1, 2, 2)]


def test_without_a_voxel_size_y_and_x_alone_are_halved_and_units_are_voxels():
    first, second = plan_levels((64, 900, 900), None, (1, 2, 3), (5.0, 5.0, 5.0))
    assert (first.scale, first.translation) == ((1.0, 1.0, 1.0), (1.0, 2.0, 3.0))
    assert (second.factors, second.scale, second.translation) == ((1, 2, 2), (1.0, 2.0, 2.0), (1.0, 2.5, 3.5))


def test_an_axis_of_one_voxel_is_never_halved():
    assert planned_factors((1, 2000, 1), (6.0, 30.0, 6.0)) == [(1, 1, 1), (1, 2, 1), (1, 4, 1)]


def test_the_middle_of_a_coarse_voxel_is_the_mean_of_the_middles_of_its_voxels():
    size, start, translation = (30.0, 6.0, 6.5), (3, 101, 7), (10.0, 0.0, -4.0)
    levels = plan_levels((40, 1500, 1024), size, start, translation)
    assert levels[0].translation == (10 + 3 * 30, 101 * 6.0, -4 + 7 * 6.5)
    for before, level in itertools.pairwise(levels):
        for axis in range(3):
            middles = [before.translation[axis] + i * before.scale[axis] for i in range(level.step[axis])]
            assert level.translation[axis] == pytest.approx(np.mean(middles))
            assert level.scale[axis] == before.scale[axis] * level.step[axis]
            assert level.shape[axis] == math.ceil(before.shape[axis] / level.step[axis])


def test_the_source_of_a_box_is_what_its_voxels_are_computed_from():
    levels = plan_levels((90, 2100, 1111), (30.0, 12.0, 12.0))
    assert [level.step for level in levels] == [(1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2)]
    box = Box((3, 10, 5), (12, 263, 139))
    assert source_box(levels, 3, box, 2) == Box((6, 20, 10), (24, 525, 278))
    assert source_box(levels, 3, box) == Box((12, 80, 40), (48, 2100, 1111))
    assert source_box(levels, 3, levels[3].box) == levels[0].box
    assert source_box(levels, 0, box) == box


@pytest.mark.parametrize("shape", [(4, 6, 8), (5, 7, 9), (1, 1, 1), (3, 2, 5)])
@pytest.mark.parametrize("factors", [(1, 2, 2), (2, 2, 2), (1, 1, 2), (2, 1, 1), (1, 1, 1)])
def test_downsampling_is_the_exact_mean_of_each_cell(shape, factors):
    voxels = np.random.default_rng(1).integers(0, 256, (2, *shape), dtype=np.uint8)
    expected = np.empty((2, *(-(-n // f) for n, f in zip(shape, factors, strict=True))), np.uint8)
    for index in np.ndindex(*expected.shape[1:]):
        cell = voxels[(..., *(slice(i * f, i * f + f) for i, f in zip(index, factors, strict=True)))]
        expected[(slice(None), *index)] = np.rint(cell.astype(float).mean(axis=(1, 2, 3)))
    result = downsample(voxels, factors)
    np.testing.assert_array_equal(result, expected)
    np.testing.assert_array_equal(result, ts.downsample(ts.array(voxels), [1, *factors], "mean").read().result())


def test_downsampling_has_no_bias():
    voxels = np.random.default_rng(1).integers(0, 256, (64, 64, 64), dtype=np.uint8)
    assert abs(downsample(voxels, (1, 2, 2)).mean() - voxels.mean()) < 0.01


@pytest.mark.parametrize("shape", [(4, 6, 8), (5, 7, 9)])
@pytest.mark.parametrize("max_label", [1, 3])
def test_downsampled_labels_are_the_majority_or_foreground_where_even(shape, max_label):
    labels = np.random.default_rng(1).integers(0, max_label + 1, shape, dtype=np.uint8)
    labels *= np.random.default_rng(2).random(shape) < 0.7
    result = downsample_labels(labels, (2, 2, 2))
    for index in np.ndindex(*result.shape):
        cell = labels[tuple(slice(2 * i, 2 * i + 2) for i in index)].ravel()
        counts = np.bincount(cell, minlength=2)
        expected = 0 if counts[0] > cell.size / 2 else 1 + counts[1:].argmax()
        assert result[index] == expected, (index, cell)

"""Adapted Rand error and variation of information from sums over blocks equal those of scikit-image on whole arrays."""

import numpy as np
import pytest
from skimage import metrics as sk
from skimage.measure import label

from kasthuri_ray.geometry import Box
from kasthuri_ray.metrics.instances import CellSums, PartitionSums, label_cells
from kasthuri_ray.metrics.matching import count_label_pairs
from kasthuri_ray.volumes.opening import open_volume


def expected(true, predicted):
    """Return the scores of scikit-image for the voxels where neither label is 0."""
    true = np.where(predicted == 0, 0, true)
    _, true = np.unique(true, return_inverse=True)
    true = true.reshape(predicted.shape)
    split, merge = sk.variation_of_information(true, predicted, ignore_labels=(0,))
    return {"arand": sk.adapted_rand_error(true, predicted)[0], "voi_split": split, "voi_merge": merge}


def distinct_by_section(labels):
    """Return labels that no two sections share."""
    return labels + np.where(labels > 0, np.arange(len(labels))[:, None, None] * 10_000, 0)


def label_whole_sections(inside):
    """Return the 4-connected components of each section, with distinct labels."""
    return distinct_by_section(np.stack([label(section, connectivity=1) for section in inside]))


def blockwise(inside, instances, block, start=(0, 0, 0)):
    bounds = Box.at(start, inside.shape)
    for own in bounds.cells(block):
        with_shell = Box(own.start, (own.stop[0], own.stop[1] + 1, own.stop[2] + 1)).intersect(bounds)
        yield label_cells(inside[with_shell.slices(start)], instances[own.slices(start)], own)


def sum_cells(blocks):
    sums = CellSums()
    for block in blocks:
        sums.add(block)
    return sums.total()


@pytest.mark.parametrize("seed", range(4))
def test_scores_equal_those_of_scikit_image(seed):
    rng = np.random.default_rng(seed)
    true, predicted = rng.integers(0, 6, (4, 30, 30)), rng.integers(0, 9, (4, 30, 30))
    predicted[rng.random(true.shape) < 0.7] = 0
    predicted = np.where(predicted == 0, true, predicted)
    sums = PartitionSums.from_pairs(count_label_pairs(true, predicted))
    assert sums.scores() == pytest.approx(expected(true, predicted))


def test_equal_segmentations_are_perfect_whatever_their_labels():
    true = np.arange(1, 10).repeat(5)
    for scores in (
        PartitionSums.from_pairs(count_label_pairs(true, 100 - true)).scores(),
        PartitionSums.from_pairs(count_label_pairs(np.arange(1, 9), np.arange(1, 9))).scores(),  # segments of one voxel
    ):
        assert scores == pytest.approx({"arand": 0, "voi_split": 0, "voi_merge": 0}, abs=1e-12)


def test_splits_and_merges_are_counted_separately():
    one, two = np.full(64, 7), np.arange(64) % 2 + 1
    split = PartitionSums.from_pairs(count_label_pairs(one, two)).scores()
    assert (split["voi_split"], split["voi_merge"]) == (pytest.approx(1), 0)
    merged = PartitionSums.from_pairs(count_label_pairs(two, one)).scores()
    assert (merged["voi_split"], merged["voi_merge"]) == (0, pytest.approx(1))


def test_without_cells_there_are_no_scores():
    sums = PartitionSums.from_pairs(count_label_pairs(np.zeros(5, int), np.ones(5, int)))
    assert sums.scores() == {"arand": None, "voi_split": None, "voi_merge": None}
    assert sum_cells([]).num_voxels == 0


@pytest.fixture(scope="module")
def cells():
    """Return the predicted inside of cells of a phantom, with holes in the membranes, and the true instances."""
    membrane = open_volume("phantom://membrane?shape=6,300,300&seed=2")
    wall = membrane.read(membrane.bounds) > 0
    rng = np.random.default_rng(0)
    instances = label_whole_sections(~wall).astype(np.uint64) + np.uint64(2**40) * (~wall)
    inside = ~wall | (rng.random(wall.shape) < 0.2)
    instances[:, :20, :20] = 0
    return inside, instances


@pytest.mark.parametrize("block", [(1, 300, 300), (6, 64, 64), (4, 1, 300), (5, 77, 13), (6, 300, 300)])
def test_scores_are_the_same_for_all_block_shapes(cells, block):
    inside, instances = cells
    sums = sum_cells(blockwise(inside, instances, block, (90, 10, 20)))
    predicted = label_whole_sections(inside)
    assert sums.scores() == pytest.approx(expected(instances, predicted))
    assert 0.05 < sums.scores()["arand"] < 1
    assert sums.num_voxels == ((predicted > 0) & (instances > 0)).sum()
    whole_sections = sum_cells(blockwise(inside, instances, (1, 300, 300), (90, 10, 20)))
    assert sums == whole_sections, "the same bits"


def test_cells_are_connected_by_faces_and_not_across_sections():
    inside = np.zeros((2, 2, 2), bool)
    inside[0, 0, 0] = inside[0, 1, 1] = inside[1, 0, 0] = True
    sums = sum_cells(blockwise(inside, np.full(inside.shape, 5), (2, 1, 1)))
    # Three cells of one voxel each; the instance 5 counts as one in each section.
    assert (sums.num_voxels, sums.squares) == (3, (3, 5, 3))

"""Counts of voxels are exact, and add up."""

import numpy as np
import pytest
from sklearn import metrics as sk

from kasthuri_ray.labels import IGNORE_LABEL
from kasthuri_ray.metrics import voxel_counts


def test_the_confusion_has_true_classes_in_rows(random_voxels, count_voxels):
    probability, predicted, labels = random_voxels(3)
    kept = labels != IGNORE_LABEL
    counts = count_voxels(probability, predicted, labels, 3)
    np.testing.assert_array_equal(counts.confusion, sk.confusion_matrix(labels[kept], predicted[kept]))


def test_probabilities_at_the_edges_of_bins_are_binned_exactly():
    edges = voxel_counts.histogram_edges().astype(np.float32)
    np.testing.assert_array_equal(voxel_counts.probability_bins(edges), np.arange(voxel_counts.BINS))
    below = np.nextafter(edges[1:], np.float32(0))
    np.testing.assert_array_equal(voxel_counts.probability_bins(below), np.arange(voxel_counts.BINS - 1))
    assert voxel_counts.probability_bins(np.ones(1)).item() == voxel_counts.BINS - 1


def test_counts_of_parts_add_up_and_survive_serialization(random_voxels, count_voxels):
    probability, predicted, labels = random_voxels(3)
    whole = count_voxels(probability, predicted, labels, 3)
    parts = [
        count_voxels(*part, 3)
        for part in zip(*(np.array_split(a, 7, axis=-1) for a in (probability, predicted, labels)), strict=True)
    ]
    assert sum(parts, voxel_counts.VoxelCounts.zeros(3)) == whole
    assert whole != parts[0]
    vector = sum(part.to_array() for part in parts)
    assert vector.dtype == np.int64
    assert voxel_counts.VoxelCounts.from_array(vector.astype(np.float64)) == whole
    with pytest.raises(ValueError, match=r"classes\*\*2 \+ 2048 \(classes - 1\) counts, got 2051"):
        voxel_counts.VoxelCounts.from_array(np.zeros(2051))


def test_bytes_of_a_block_are_counted_as_their_probabilities(random_voxels):
    probability, predicted, labels = random_voxels(3, num=4 * 10 * 12)
    stored = np.rint(probability * 255).astype(np.uint8).reshape(2, 4, 10, 12)
    predicted, labels = predicted.reshape(4, 10, 12), labels.reshape(4, 10, 12)
    counts = voxel_counts.count_block_voxels(stored, predicted, labels)
    assert counts == voxel_counts.count_block_voxels(stored / 255, predicted, labels)
    assert counts.num_foreground == ((labels > 0) & (labels != IGNORE_LABEL)).sum()


def test_ignored_voxels_are_not_counted(random_voxels, count_voxels):
    probability, predicted, labels = random_voxels()
    kept = labels != IGNORE_LABEL
    assert count_voxels(probability, predicted, labels) == count_voxels(
        probability[:, kept], predicted[kept], labels[kept]
    )
    probability = np.where(kept, probability, np.nan)
    assert count_voxels(probability, predicted, labels).num_voxels == kept.sum() == labels.size - (~kept).sum()


@pytest.mark.parametrize(
    ("probability", "predicted", "label", "message"),
    [
        (np.nan, 0, 0, "got nan to nan; nan or infinity here means that the training diverged"),
        (1.5, 0, 0, "between 0 and 1, got 1.5 to 1.5"),
        (0.5, 0, 2, r"a label must be a class from 0 to 1 \(or the label 255, ignored\), got 2 to 2"),
        (0.5, 3, 0, "a predicted class must be a class from 0 to 1"),
    ],
)
def test_wrong_values_are_refused(count_voxels, probability, predicted, label, message):
    with pytest.raises(ValueError, match=message):
        count_voxels(np.array([[probability]]), np.array([predicted]), np.array([label]))


def test_shapes_that_differ_are_refused(count_voxels):
    with pytest.raises(ValueError, match=r"probabilities \(1, 2\), predictions \(3,\) and labels \(3,\)"):
        count_voxels(np.zeros((1, 2)), np.zeros(3, int), np.zeros(3, int))

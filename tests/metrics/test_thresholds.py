"""Scores at a threshold equal those that scikit-learn computes from the voxels, and the best threshold is the best."""

import numpy as np
import pytest
from sklearn import metrics as sk

from kasthuri_ray.labels import IGNORE_LABEL
from kasthuri_ray.metrics import thresholds, voxel_counts


@pytest.mark.parametrize("threshold", [0.0, 0.125, 0.5, 0.75, 1023 / 1024])
def test_scores_at_a_bin_edge_are_exact_for_any_probabilities(random_voxels, count_voxels, threshold):
    probability, predicted, labels = random_voxels()
    kept = labels != IGNORE_LABEL
    (counts,) = count_voxels(probability, predicted, labels).by_class
    truth, marked, outcomes = labels[kept], probability[0, kept] >= threshold, thresholds.outcomes_at(counts, threshold)
    assert outcomes.f1 == pytest.approx(sk.f1_score(truth, marked), abs=1e-12)
    assert outcomes.iou == pytest.approx(sk.jaccard_score(truth, marked), abs=1e-12)
    assert outcomes.precision == pytest.approx(sk.precision_score(truth, marked, zero_division=0))
    assert outcomes.recall == pytest.approx(sk.recall_score(truth, marked))
    np.testing.assert_array_equal(outcomes.confusion, sk.confusion_matrix(truth, marked))


def test_each_of_several_classes_is_scored_against_all_others(random_voxels, count_voxels):
    probability, predicted, labels = random_voxels(4)
    kept = labels != IGNORE_LABEL
    for number, counts in enumerate(count_voxels(probability, predicted, labels, 4).by_class, start=1):
        truth, marked = labels[kept] == number, probability[number - 1, kept] >= 0.375
        outcomes = thresholds.outcomes_at(counts, 0.375)
        np.testing.assert_array_equal(outcomes.confusion, sk.confusion_matrix(truth, marked))
        _, f1 = thresholds.best_threshold(counts)
        assert f1 >= outcomes.f1


def test_the_best_threshold_has_the_highest_f1_of_all_bin_edges(random_voxels, count_voxels):
    probability, predicted, labels = random_voxels()
    kept = labels != IGNORE_LABEL
    threshold, f1 = thresholds.best_threshold(count_voxels(probability, predicted, labels).by_class[0])
    f1_at_edges = [sk.f1_score(labels[kept], probability[0, kept] >= t) for t in voxel_counts.histogram_edges()[1:]]
    assert f1 == pytest.approx(max(f1_at_edges))
    assert sk.f1_score(labels[kept], probability[0, kept] >= threshold) == pytest.approx(f1)


@pytest.mark.parametrize(("low", "high", "expected"), [(0.1, 0.9, 0.5), (0.6015, 0.9, 616 / 1024), (0.1, 0.25, 0.25)])
def test_of_equally_good_thresholds_the_nearest_to_a_half_is_chosen(count_voxels, low, high, expected):
    probability = np.array([low, low, high])
    counts = count_voxels(probability[None], probability >= 0.5, np.array([0, 0, 1]))
    assert thresholds.best_threshold(counts.by_class[0]) == (expected, 1.0)


def test_a_threshold_outside_of_0_to_1_is_refused():
    with pytest.raises(ValueError, match=r"between 0 and 1, got 1\.5"):
        thresholds.outcomes_at(voxel_counts.VoxelCounts.zeros().by_class[0], 1.5)

"""Scores from counts equal those that scikit-learn computes from the voxels."""

import json

import numpy as np
import pytest
from sklearn import metrics as sk

from kasthuri_ray.labels import IGNORE_LABEL
from kasthuri_ray.metrics import thresholds, voxel_counts, voxel_scores


@pytest.mark.parametrize("classes", [2, 4])
def test_scores_of_the_argmax_equal_those_of_scikit_learn(random_voxels, count_voxels, classes):
    probability, predicted, labels = random_voxels(classes)
    scores = voxel_scores.argmax_scores(count_voxels(probability, predicted, labels, classes))
    kept = labels != IGNORE_LABEL
    truth, argmax = labels[kept], predicted[kept]
    np.testing.assert_allclose(scores["f1"], sk.f1_score(truth, argmax, average=None))
    np.testing.assert_allclose(scores["iou"], sk.jaccard_score(truth, argmax, average=None))
    assert scores["mean_f1"] == pytest.approx(sk.f1_score(truth, argmax, average="macro"))
    assert scores["mean_iou"] == pytest.approx(sk.jaccard_score(truth, argmax, average="macro"))
    assert scores["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(truth > 0, argmax > 0))
    accuracy = [sk.accuracy_score(truth == c, argmax == c) for c in range(classes)]
    np.testing.assert_allclose(scores["accuracy"], accuracy)


def test_average_precision_is_exact_for_probabilities_on_bin_edges_and_close_for_others(random_voxels, count_voxels):
    for edges, tolerance in ((True, 1e-12), (False, 2e-3)):
        probability, predicted, labels = random_voxels(edges=edges)
        kept = labels != IGNORE_LABEL
        expected = sk.average_precision_score(labels[kept], probability[0, kept])
        (counts,) = count_voxels(probability, predicted, labels).by_class
        assert voxel_scores.average_precision(counts) == pytest.approx(expected, abs=tolerance)


def test_precision_and_recall_equal_those_of_scikit_learn_at_each_of_its_thresholds(random_voxels, count_voxels):
    probability, predicted, labels = random_voxels(edges=True)
    kept = labels != IGNORE_LABEL
    precision, recall, edges = voxel_scores.precision_recall_curve(
        count_voxels(probability, predicted, labels).by_class[0]
    )
    expected_precision, expected_recall, thresholds = sk.precision_recall_curve(labels[kept], probability[0, kept])
    at = np.searchsorted(edges, thresholds)
    np.testing.assert_array_equal(edges[at], thresholds)
    np.testing.assert_allclose(precision[at], expected_precision[:-1])
    np.testing.assert_allclose(recall[at], expected_recall[:-1])


def test_scores_with_nothing_to_divide_by_are_zero_and_never_nan(count_voxels):
    empty = voxel_scores.split_metrics(voxel_counts.VoxelCounts.zeros(), [0.5])
    assert empty["f1"] == [0.0, 0.0]
    background = np.zeros(10)
    scores = voxel_scores.split_metrics(count_voxels(background[None], background, background.astype(int)), [0.5])
    assert scores["f1"] == [1.0, 0.0]
    assert scores["average_precision"] == scores["foreground_f1"] == 0.0
    assert f"{scores['average_precision']:.4f}" == f"{empty['average_precision']:.4f}" == "0.0000"  # and not -0.0000
    for entry in (empty, scores):
        assert "NaN" not in json.dumps(entry)
    assert voxel_scores.best_thresholds(voxel_counts.VoxelCounts.zeros()) == ([0.5], 0.0)


def test_the_metrics_of_a_split_have_the_documented_keys_and_survive_json(random_voxels, count_voxels):
    probability, predicted, labels = random_voxels(edges=True)
    counts = count_voxels(probability, predicted, labels)
    scores = voxel_scores.split_metrics(counts, [0.25])
    assert json.loads(json.dumps(scores)) == scores
    assert set(scores) == {
        "f1", "mean_f1", "iou", "mean_iou", "accuracy", "balanced_accuracy", "foreground_f1", "foreground_iou",
        "precision", "recall", "average_precision", "threshold", "confusion", "argmax",
    }  # fmt: skip
    assert set(scores["argmax"]) == {"confusion", *voxel_scores.argmax_scores(counts)}
    assert [len(scores[key]) for key in ("f1", "iou", "accuracy", "confusion")] == [2, 2, 2, 2]
    assert scores["threshold"] == 0.25
    assert scores["foreground_f1"] == thresholds.outcomes_at(counts.by_class[0], 0.25).f1


def test_the_metrics_of_several_classes_are_means_and_hold_each_class_by_name(random_voxels, count_voxels):
    counts, names, at = count_voxels(*random_voxels(4), 4), ["membrane", "synapse", "mitochondrion"], [0.25, 0.5, 0.75]
    scores = voxel_scores.split_metrics(counts, at, names)
    assert json.loads(json.dumps(scores)) == scores
    assert scores["threshold"] == at
    assert list(scores["classes"]) == names
    for name, each, threshold in zip(names, counts.by_class, at, strict=True):
        assert scores["classes"][name] == voxel_scores.class_metrics(each, threshold)
        assert scores["classes"][name]["num_voxels"] == each.num_true
    for key in ("foreground_f1", "foreground_iou", "precision", "recall", "average_precision"):
        assert scores[key] == pytest.approx(np.mean([row[key] for row in scores["classes"].values()]))
    best, f1 = voxel_scores.best_thresholds(counts)
    assert f1 == voxel_scores.split_metrics(counts, best, names)["foreground_f1"] >= scores["foreground_f1"]
    assert voxel_scores.mean_average_precision(counts) == scores["average_precision"]


def test_a_network_that_predicts_only_background_is_recognized(count_voxels):
    labels = np.array([0] * 98 + [1] * 2)
    assert voxel_scores.predicts_only_background(count_voxels(np.full((1, 100), 0.3), np.zeros(100, int), labels))
    assert not voxel_scores.predicts_only_background(count_voxels(np.full((1, 100), 0.3), labels, labels))
    assert not voxel_scores.predicts_only_background(count_voxels(np.zeros((1, 9)), np.zeros(9, int), np.zeros(9, int)))
    assert not voxel_scores.predicts_only_background(voxel_counts.VoxelCounts.zeros())


def test_a_class_that_the_annotation_lacks_is_not_in_the_means(random_voxels, count_voxels):
    probability, predicted, labels = random_voxels(4)
    labels = np.where(labels == 2, 0, labels)
    scores = voxel_scores.split_metrics(count_voxels(probability, predicted, labels, 4), [0.3] * 3, ["a", "b", "c"])
    first, absent, third = scores["classes"].values()
    assert (absent["num_voxels"], absent["foreground_f1"]) == (0, 0.0)
    for key in voxel_scores.MEAN_SCORES:
        assert scores[key] == pytest.approx((first[key] + third[key]) / 2), key

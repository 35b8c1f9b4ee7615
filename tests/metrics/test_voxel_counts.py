"""Figures from counts are those that scikit-learn computes from the voxels."""

import json

import numpy as np
import pytest
from sklearn import metrics as sk

from kasthuri_ray import labels as metrics
from kasthuri_ray.metrics import voxel_counts
from kasthuri_ray.reports import rendering
from kasthuri_ray.reports import run_page as run_page_module


def voxels(classes=2, edges=False, num=4000, seed=0):
    """Foreground probability, argmax and labels with an ignored share; probabilities on bin edges if asked."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(classes, num, p=[0.8] + [0.2 / (classes - 1)] * (classes - 1)).astype(np.uint8)
    probability = np.clip(0.25 + 0.4 * (labels > 0) + rng.normal(0, 0.2, num), 0, 1).astype(np.float32)
    if edges:
        probability = (np.floor(probability * 1023) / voxel_counts.BINS).astype(np.float32)
    predicted = np.where(probability >= 0.5, rng.integers(1, classes, num), 0)
    labels[rng.random(num) < 0.1] = metrics.IGNORE_LABEL
    return probability, predicted, labels


def counted(probability, predicted, labels, classes=2):
    counts = voxel_counts.VoxelCounts.zeros(classes)
    counts.add(probability, predicted, labels)
    return counts


@pytest.mark.parametrize("classes", [2, 4])
def test_seed_metrics_are_those_of_scikit_learn(classes):
    probability, predicted, labels = voxels(classes)
    figures = voxel_counts.seed_metrics(counted(probability, predicted, labels, classes))
    kept = labels != metrics.IGNORE_LABEL
    truth, argmax = labels[kept], predicted[kept]
    np.testing.assert_allclose(figures["f1"], sk.f1_score(truth, argmax, average=None))
    np.testing.assert_allclose(figures["iou"], sk.jaccard_score(truth, argmax, average=None))
    assert figures["mean_f1"] == pytest.approx(sk.f1_score(truth, argmax, average="macro"))
    assert figures["mean_iou"] == pytest.approx(sk.jaccard_score(truth, argmax, average="macro"))
    assert figures["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(truth > 0, argmax > 0))
    accuracy = [sk.accuracy_score(truth == c, argmax == c) for c in range(classes)]
    np.testing.assert_allclose(figures["accuracy"], accuracy)


def test_confusion_has_truth_in_rows():
    probability, predicted, labels = voxels(3)
    kept = labels != metrics.IGNORE_LABEL
    counts = counted(probability, predicted, labels, 3)
    np.testing.assert_array_equal(counts.confusion, sk.confusion_matrix(labels[kept], predicted[kept]))


def test_average_precision_is_exact_on_bin_edges_and_close_between_them():
    for edges, tolerance in ((True, 1e-12), (False, 2e-3)):
        probability, predicted, labels = voxels(edges=edges)
        kept = labels != metrics.IGNORE_LABEL
        expected = sk.average_precision_score(labels[kept], probability[kept])
        counts = counted(probability, predicted, labels)
        assert voxel_counts.average_precision(counts) == pytest.approx(expected, abs=tolerance)


def test_precision_and_recall_are_those_of_scikit_learn_at_each_of_its_thresholds():
    probability, predicted, labels = voxels(edges=True)
    kept = labels != metrics.IGNORE_LABEL
    precision, recall, edges = voxel_counts.precision_recall_curve(counted(probability, predicted, labels))
    expected_precision, expected_recall, thresholds = sk.precision_recall_curve(labels[kept], probability[kept])
    at = np.searchsorted(edges, thresholds)
    np.testing.assert_array_equal(edges[at], thresholds)
    np.testing.assert_allclose(precision[at], expected_precision[:-1])
    np.testing.assert_allclose(recall[at], expected_recall[:-1])


@pytest.mark.parametrize("threshold", [0.0, 0.125, 0.5, 0.75, 1023 / 1024])
def test_f1_at_an_edge_is_exact_whatever_the_probabilities(threshold):
    probability, predicted, labels = voxels()
    kept = labels != metrics.IGNORE_LABEL
    called, truth = probability[kept] >= threshold, labels[kept]
    counts = counted(probability, predicted, labels)
    assert voxel_counts.foreground_f1(counts, threshold) == pytest.approx(sk.f1_score(truth, called), abs=1e-12)
    precision, recall = voxel_counts.precision_recall_at(counts, threshold)
    assert precision == pytest.approx(sk.precision_score(truth, called, zero_division=0))
    assert recall == pytest.approx(sk.recall_score(truth, called))
    (tp, fp), (fn, tn) = voxel_counts.foreground_counts(counts, threshold)
    np.testing.assert_array_equal([[tn, fp], [fn, tp]], sk.confusion_matrix(truth, called))


def test_bins_follow_the_rule_to_the_last_bit():
    edges = voxel_counts.histogram_edges().astype(np.float32)
    np.testing.assert_array_equal(voxel_counts.probability_bins(edges), np.arange(voxel_counts.BINS))
    below = np.nextafter(edges[1:], np.float32(0))
    np.testing.assert_array_equal(voxel_counts.probability_bins(below), np.arange(voxel_counts.BINS - 1))
    assert voxel_counts.probability_bins(np.ones(1)).item() == voxel_counts.BINS - 1


def test_best_threshold_is_the_best_of_all():
    probability, predicted, labels = voxels()
    kept = labels != metrics.IGNORE_LABEL
    threshold, f1 = voxel_counts.best_threshold(counted(probability, predicted, labels))
    by_hand = [sk.f1_score(labels[kept], probability[kept] >= t) for t in voxel_counts.histogram_edges()[1:]]
    assert f1 == pytest.approx(max(by_hand))
    assert sk.f1_score(labels[kept], probability[kept] >= threshold) == pytest.approx(f1)


@pytest.mark.parametrize(("low", "high", "expected"), [(0.1, 0.9, 0.5), (0.6015, 0.9, 616 / 1024), (0.1, 0.25, 0.25)])
def test_of_equally_good_thresholds_the_nearest_to_a_half_is_taken(low, high, expected):
    probability = np.array([low, low, high])
    counts = counted(probability, probability >= 0.5, np.array([0, 0, 1]))
    assert voxel_counts.best_threshold(counts) == (expected, 1.0)


def test_counts_add_up_whatever_the_cutting_and_travel_as_a_vector():
    probability, predicted, labels = voxels(3)
    whole = counted(probability, predicted, labels, 3)
    parts = [
        counted(*part, 3)
        for part in zip(*(np.array_split(a, 7) for a in (probability, predicted, labels)), strict=True)
    ]
    assert sum(parts, voxel_counts.VoxelCounts.zeros(3)) == whole
    assert whole != parts[0]
    vector = sum(part.to_array() for part in parts)
    assert vector.dtype == np.int64
    assert voxel_counts.VoxelCounts.from_array(vector.astype(np.float64)) == whole
    with pytest.raises(ValueError, match=r"classes \* classes \+ 2048 counts, got 2051"):
        voxel_counts.VoxelCounts.from_array(np.zeros(2051))


def test_ignored_voxels_count_nowhere():
    probability, predicted, labels = voxels()
    kept = labels != metrics.IGNORE_LABEL
    assert counted(probability, predicted, labels) == counted(probability[kept], predicted[kept], labels[kept])
    probability = np.where(kept, probability, np.nan)
    assert counted(probability, predicted, labels).num_voxels == kept.sum() == labels.size - (~kept).sum()


def test_nothing_to_divide_by_gives_zero_and_never_nan():
    empty = voxel_counts.split_metrics(voxel_counts.VoxelCounts.zeros(), 0.5)
    assert empty["f1"] == [0.0, 0.0]
    background = np.zeros(10)
    figures = voxel_counts.split_metrics(counted(background, background, background.astype(int)), 0.5)
    assert figures["f1"] == [1.0, 0.0]
    assert figures["average_precision"] == figures["foreground_f1"] == 0.0
    assert f"{figures['average_precision']:.4f}" == f"{empty['average_precision']:.4f}" == "0.0000"  # and not -0.0000
    for entry in (empty, figures):
        assert "NaN" not in json.dumps(entry)
    assert voxel_counts.best_threshold(voxel_counts.VoxelCounts.zeros()) == (0.5, 0.0)


def test_the_entry_of_a_split_has_the_agreed_shape_and_survives_json():
    probability, predicted, labels = voxels(edges=True)
    counts = counted(probability, predicted, labels)
    figures = voxel_counts.split_metrics(counts, 0.25)
    assert json.loads(json.dumps(figures)) == figures
    assert set(figures) == {
        "f1", "mean_f1", "iou", "mean_iou", "accuracy", "balanced_accuracy", "foreground_f1", "average_precision",
        "threshold", "confusion",
    }  # fmt: skip
    assert [len(figures[key]) for key in ("f1", "iou", "accuracy", "confusion")] == [2, 2, 2, 2]
    assert figures["threshold"] == 0.25
    assert figures["foreground_f1"] == voxel_counts.foreground_f1(counts, 0.25)


@pytest.mark.parametrize(
    ("probability", "predicted", "label", "words"),
    [
        (np.nan, 0, 0, "got nan to nan; nan or infinity here means that the training diverged"),
        (1.5, 0, 0, "between 0 and 1, got 1.5 to 1.5"),
        (0.5, 0, 2, r"a label is a class from 0 to 1 \(labels also 255, ignored\), got 2 to 2"),
        (0.5, 3, 0, "a predicted class is a class from 0 to 1"),
    ],
)
def test_values_that_are_wrong_are_refused_in_words(probability, predicted, label, words):
    with pytest.raises(ValueError, match=words):
        counted(np.array([probability]), np.array([predicted]), np.array([label]))


def test_shapes_and_thresholds_that_are_wrong_are_refused_in_words():
    with pytest.raises(ValueError, match=r"probabilities \(2,\), predictions \(3,\) and labels \(3,\)"):
        counted(np.zeros(2), np.zeros(3, int), np.zeros(3, int))
    with pytest.raises(ValueError, match=r"between 0 and 1, got 1\.5"):
        voxel_counts.foreground_f1(voxel_counts.VoxelCounts.zeros(), 1.5)


def test_a_network_that_answers_background_everywhere_is_called_so():
    labels = np.array([0] * 98 + [1] * 2)
    everywhere = counted(np.full(100, 0.3), np.zeros(100, int), labels)
    assert voxel_counts.predicts_only_background(everywhere)
    words = rendering.only_background_warning(everywhere, "synapse")
    assert "none of 100 voxels synapse, though 2 of them (2.00%) are" in words
    assert "accuracy of 98.00% says nothing" in words
    assert not voxel_counts.predicts_only_background(counted(np.full(100, 0.3), labels, labels))
    assert not voxel_counts.predicts_only_background(counted(np.zeros(9), np.zeros(9, int), np.zeros(9, int)))
    assert not voxel_counts.predicts_only_background(voxel_counts.VoxelCounts.zeros())


def test_the_report_shows_every_figure_aligned():
    figures = voxel_counts.split_metrics(counted(*voxels()), 0.375)
    text = run_page_module.metrics_report(figures, {"run": "mine", "network": "UNet_2D"}, ("background", "synapse"))
    assert "run      mine\nnetwork  UNet_2D\n" in text
    for key in ("balanced_accuracy", "foreground_f1", "average_precision", "threshold", "mean_f1", "mean_iou"):
        assert f"{figures[key]:.4f}" in text
    lines = text.splitlines()
    table = [line for line in lines if line.startswith(("background", "synapse"))]
    assert len(table) == 4
    assert len({len(line) for line in table[:2]}) == len({len(line) for line in table[2:]}) == 1
    assert f"{figures['confusion'][0][0]:,}" in text
    assert "class 2" in run_page_module.metrics_report(voxel_counts.split_metrics(counted(*voxels(3), 3), 0.5), {})


def test_the_report_without_an_annotation_says_so():
    assert "No annotation for test" in run_page_module.metrics_report(None, {"run": "mine"})

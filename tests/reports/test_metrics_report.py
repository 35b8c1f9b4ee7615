"""The text report of a test."""

import re

import numpy as np

from kasthuri_ray.metrics import voxel_scores
from kasthuri_ray.metrics.voxel_counts import VoxelCounts
from kasthuri_ray.reports.run_page import metrics_report


def random_counts(classes=2):
    rng = np.random.default_rng(0)
    labels = rng.choice(classes, 4000, p=[0.8] + [0.2 / (classes - 1)] * (classes - 1))
    own = labels == np.arange(1, classes)[:, None]
    probability = np.clip(0.25 + 0.4 * own + rng.normal(0, 0.2, own.shape), 0, 1)
    counts = VoxelCounts.zeros(classes)
    counts.add(probability, np.where(probability.max(0) >= 0.5, probability.argmax(0) + 1, 0), labels)
    return counts


def test_the_report_shows_every_score_in_aligned_columns():
    scores = voxel_scores.split_metrics(random_counts(), [0.375])
    text = metrics_report(scores, {"run": "mine", "network": "UNet_2D"}, ("background", "synapse"))
    assert "run      mine\nnetwork  UNet_2D\n" in text
    for key in ("balanced_accuracy", "foreground_f1", "average_precision", "threshold", "mean_f1", "mean_iou"):
        assert f"{scores[key]:.4f}" in text
    table = [line for line in text.splitlines() if line.startswith(("background", "synapse"))]
    assert len(table) == 4
    assert len({len(line) for line in table[:2]}) == len({len(line) for line in table[2:]}) == 1
    assert f"{scores['confusion'][0][0]:,}" in text
    several = voxel_scores.split_metrics(random_counts(3), [0.5, 0.25], ["membrane", "synapse"])
    assert "class 2" in metrics_report(several, {})
    text = metrics_report(several, {}, ("background", "membrane", "synapse"))
    assert re.search("threshold, chosen on val +0.5000, 0.2500\n", text)
    assert "membrane" in text


def test_the_report_without_an_annotation_says_so():
    assert "No annotation for test" in metrics_report(None, {"run": "mine"})

"""Scores of classes, computed from `VoxelCounts`, and the entry of a split in metrics.json."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kasthuri_ray.metrics.thresholds import best_threshold, outcomes_at
from kasthuri_ray.metrics.voxel_counts import ClassCounts, VoxelCounts, histogram_edges, safe_ratio

# Entries of a split that are of the most probable class, as in the challenge's report, and not at the threshold.
ARGMAX_SCORES = ("f1", "mean_f1", "iou", "mean_iou", "accuracy", "balanced_accuracy", "confusion")

# Scores of which a split with several foreground classes has the mean.
MEAN_SCORES = ("foreground_f1", "foreground_iou", "precision", "recall", "average_precision")


def argmax_scores(counts: VoxelCounts) -> dict[str, Any]:
    """Return the scores of the predicted classes, without a threshold.

    Parameters
    ----------
    counts : VoxelCounts
        Counts whose confusion is scored.

    Returns
    -------
    dict
        `f1`, `iou`, `accuracy` (float64 [classes]), `mean_f1`, `mean_iou` and `balanced_accuracy`. A score is 0 if
        there is nothing to divide by.

    Notes
    -----
    Each class is compared with the rest: F1 = 2 tp / (2 tp + fp + fn), IoU = tp / (tp + fp + fn), accuracy =
    (tp + tn) / all. Balanced accuracy = (sensitivity + specificity) / 2 of the foreground as a whole. The definitions
    are those of scikit-learn's f1_score, jaccard_score and balanced_accuracy_score with zero_division=0.
    """
    confusion = counts.confusion
    tp = np.diag(confusion)
    fp, fn = confusion.sum(0) - tp, confusion.sum(1) - tp
    f1, iou = safe_ratio(2 * tp, 2 * tp + fp + fn), safe_ratio(tp, tp + fp + fn)
    sensitivity = safe_ratio(confusion[1:, 1:].sum(), confusion[1:].sum())
    specificity = safe_ratio(confusion[0, 0], confusion[0].sum())
    return {
        "f1": f1,
        "mean_f1": float(f1.mean()),
        "iou": iou,
        "mean_iou": float(iou.mean()),
        "accuracy": safe_ratio(confusion.sum() - fp - fn, confusion.sum()),
        "balanced_accuracy": float((sensitivity + specificity) / 2),
    }


def precision_recall_curve(counts: ClassCounts) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the precision-recall curve of a class.

    A voxel is predicted as the class if p >= threshold.

    Parameters
    ----------
    counts : ClassCounts
        Counts whose histogram is scored.

    Returns
    -------
    precision : ndarray of float64, (BINS,)
        1 where nothing is predicted as the class, as in scikit-learn's precision_recall_curve.
    recall : ndarray of float64, (BINS,)
        0 if the class does not occur.
    threshold : ndarray of float64, (BINS,)
        Rising from 0 by 1 / BINS.
    """
    tp, fp = counts.positives_by_bin()
    precision = np.where(tp + fp > 0, safe_ratio(tp, tp + fp), 1.0)
    return precision, safe_ratio(tp, counts.num_true), histogram_edges()


def average_precision(counts: ClassCounts) -> float:
    """Return the average precision of a class, the sum of (R_n - R_{n-1}) P_n.

    Parameters
    ----------
    counts : ClassCounts
        Counts whose histogram is scored, as for `precision_recall_curve`.

    Returns
    -------
    float
        0 if the class does not occur.

    Notes
    -----
    Equals scikit-learn's average_precision_score of probabilities that are rounded down to the edges of the bins.
    """
    precision, recall, _ = precision_recall_curve(counts)
    return float(0.0 - np.sum(np.diff(recall, append=0.0) * precision))  # never -0.0


def mean_of_classes(scores: Sequence[float], counts: VoxelCounts) -> float:
    """Return the mean of a score over the foreground classes that occur in the annotation.

    Parameters
    ----------
    scores : sequence of float
        One for each foreground class.
    counts : VoxelCounts
        Counts of all classes.

    Returns
    -------
    float
        That of all classes if none occurs. A class without a voxel has no recall to speak of, and is left out.
    """
    occurring = [score for score, each in zip(scores, counts.by_class, strict=True) if each.num_true]
    return float(np.mean(occurring or scores))


def mean_average_precision(counts: VoxelCounts) -> float:
    """Return the mean of the foreground classes' average precision, see `mean_of_classes`.

    Parameters
    ----------
    counts : VoxelCounts
        Counts of all classes.

    Returns
    -------
    float
        That of the foreground if it is one class.
    """
    return mean_of_classes([average_precision(each) for each in counts.by_class], counts)


def best_thresholds(counts: VoxelCounts) -> tuple[list[float], float]:
    """Return the threshold of each foreground class with its highest F1.

    Parameters
    ----------
    counts : VoxelCounts
        Counts of all classes.

    Returns
    -------
    thresholds : list of float
        One for class 1, 2, ...; see `thresholds.best_threshold`.
    f1 : float
        Mean of the classes' F1 at these, see `mean_of_classes`.
    """
    thresholds, f1 = zip(*(best_threshold(each) for each in counts.by_class), strict=True)
    return list(thresholds), mean_of_classes(f1, counts)


def class_metrics(counts: ClassCounts, threshold: float) -> dict[str, float | int]:
    """Return the scores of one class, against all others.

    Parameters
    ----------
    counts : ClassCounts
        Counts of the class.
    threshold : float
        Probability from which a voxel is predicted as the class.

    Returns
    -------
    dict
        `foreground_f1`, `foreground_iou`, `precision` and `recall` at the threshold, `average_precision`, `threshold`
        and `num_voxels`, the voxels of the class in the annotation.
    """
    outcomes = outcomes_at(counts, threshold)
    return {
        "foreground_f1": outcomes.f1,
        "foreground_iou": outcomes.iou,
        "precision": outcomes.precision,
        "recall": outcomes.recall,
        "average_precision": average_precision(counts),
        "threshold": float(threshold),
        "num_voxels": counts.num_true,
    }


def split_metrics(counts: VoxelCounts, thresholds: Sequence[float], names: Sequence[str] = ()) -> dict[str, Any]:
    """Return the entry of a split ("test", "val") in metrics.json.

    Parameters
    ----------
    counts : VoxelCounts
        Counts of all voxels of the split.
    thresholds : sequence of float
        One for each foreground class.
    names : sequence of str
        Names of the foreground classes, of which there are several; not needed for one.

    Returns
    -------
    dict
        Floats and lists, for JSON. `f1`, `mean_f1`, `iou`, `mean_iou`, `accuracy`, `balanced_accuracy` and `confusion`
        are of the argmax (see `argmax_scores`), and `argmax` lists these names. `foreground_f1`, `foreground_iou`,
        `precision` and `recall` are at `threshold`, `average_precision` needs none. With several foreground classes
        these five are means over the classes that occur, `threshold` is a list, and `classes` holds the result of
        `class_metrics` by name.
    """
    scores = {key: np.asarray(value).tolist() for key, value in argmax_scores(counts).items()}
    rows = [class_metrics(each, threshold) for each, threshold in zip(counts.by_class, thresholds, strict=True)]
    means = {key: mean_of_classes([row[key] for row in rows], counts) for key in MEAN_SCORES}
    is_several = len(rows) > 1
    return {
        **scores,
        **means,
        "threshold": [float(threshold) for threshold in thresholds] if is_several else float(thresholds[0]),
        "confusion": counts.confusion.tolist(),
        "argmax": list(ARGMAX_SCORES),
        **({"classes": dict(zip(names, rows, strict=True))} if is_several else {}),
    }


def predicts_only_background(counts: VoxelCounts) -> bool:
    """Return whether the argmax predicts no foreground although there is some.

    Parameters
    ----------
    counts : VoxelCounts
        Counts whose confusion is checked.

    Returns
    -------
    bool
        False for counts of no voxels.
    """
    return bool(counts.confusion[1:].sum() > 0 and counts.confusion[:, 1:].sum() == 0)

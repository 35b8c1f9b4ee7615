"""Scores of voxels that need no threshold, computed from `VoxelCounts`, and the entry of a split in metrics.json."""

from __future__ import annotations

from typing import Any

import numpy as np

from kasthuri_ray.metrics.thresholds import foreground_f1
from kasthuri_ray.metrics.voxel_counts import VoxelCounts, histogram_edges, safe_ratio


def argmax_scores(counts: VoxelCounts) -> dict[str, Any]:
    """Return the scores of the predicted classes, without a threshold.

    They are `f1`, `iou`, `accuracy` (float64 [classes]), `mean_f1`, `mean_iou` and `balanced_accuracy`. Each class is
    compared with the rest: F1 = 2 tp / (2 tp + fp + fn), IoU = tp / (tp + fp + fn), accuracy = (tp + tn) / all.
    Balanced accuracy = (sensitivity + specificity) / 2 of the foreground as a whole. A score is 0 if there is nothing
    to divide by. The definitions are those of scikit-learn's f1_score, jaccard_score and balanced_accuracy_score with
    zero_division=0.
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


def precision_recall_curve(counts: VoxelCounts) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the precision-recall curve of the foreground.

    A voxel is predicted as foreground if p >= threshold.

    Parameters
    ----------
    counts : VoxelCounts
        Counts whose histogram is scored.

    Returns
    -------
    precision : ndarray of float64, (BINS,)
        1 where nothing is predicted as foreground, as in scikit-learn's precision_recall_curve.
    recall : ndarray of float64, (BINS,)
        0 if there is no foreground.
    threshold : ndarray of float64, (BINS,)
        Rising from 0 by 1 / BINS.
    """
    tp, fp = counts.positives_by_bin()
    precision = np.where(tp + fp > 0, safe_ratio(tp, tp + fp), 1.0)
    return precision, safe_ratio(tp, counts.histogram[1].sum()), histogram_edges()


def average_precision(counts: VoxelCounts) -> float:
    """Return the average precision of the foreground, the sum of (R_n - R_{n-1}) P_n.

    Parameters
    ----------
    counts : VoxelCounts
        Counts whose histogram is scored, as for `precision_recall_curve`.

    Returns
    -------
    float
        0 if there is no foreground.

    Notes
    -----
    Equals scikit-learn's average_precision_score of probabilities that are rounded down to the edges of the bins.
    """
    precision, recall, _ = precision_recall_curve(counts)
    return float(0.0 - np.sum(np.diff(recall, append=0.0) * precision))  # never -0.0


def split_metrics(counts: VoxelCounts, threshold: float) -> dict[str, Any]:
    """Return the entry of a split ("test", "val") in metrics.json.

    Parameters
    ----------
    counts : VoxelCounts
        Counts of all voxels of the split.
    threshold : float
        Threshold of `foreground_f1`.

    Returns
    -------
    dict
        Floats and lists, for JSON. `f1`, `mean_f1`, `iou`, `mean_iou`, `accuracy`, `balanced_accuracy` and `confusion`
        are of the argmax (see `argmax_scores`), `foreground_f1` is at `threshold`, `average_precision` needs none.
    """
    scores = {key: np.asarray(value).tolist() for key, value in argmax_scores(counts).items()}
    return scores | {
        "foreground_f1": foreground_f1(counts, threshold),
        "average_precision": average_precision(counts),
        "threshold": float(threshold),
        "confusion": counts.confusion.tolist(),
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

"""Scores of voxels, computed from `VoxelCounts`.

Scores of the foreground at a threshold are exact at the edges of the histogram's bins.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kasthuri_ray.metrics.voxel_counts import BINS, VoxelCounts, histogram_edges


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
    f1, iou = _ratio(2 * tp, 2 * tp + fp + fn), _ratio(tp, tp + fp + fn)
    sensitivity = _ratio(confusion[1:, 1:].sum(), confusion[1:].sum())
    specificity = _ratio(confusion[0, 0], confusion[0].sum())
    return {
        "f1": f1,
        "mean_f1": float(f1.mean()),
        "iou": iou,
        "mean_iou": float(iou.mean()),
        "accuracy": _ratio(confusion.sum() - fp - fn, confusion.sum()),
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
    tp, fp = _positives_by_bin(counts)
    precision = np.where(tp + fp > 0, _ratio(tp, tp + fp), 1.0)
    return precision, _ratio(tp, counts.histogram[1].sum()), histogram_edges()


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


def foreground_f1(counts: VoxelCounts, threshold: float) -> float:
    """Return the F1 score of the foreground at a threshold.

    Parameters
    ----------
    counts : VoxelCounts
        Counts of the voxels to score.
    threshold : float
        A voxel is predicted as foreground if p >= threshold. It is rounded to the nearest edge of a bin.

    Returns
    -------
    float
        0 if there is nothing to divide by.

    Raises
    ------
    ValueError
        If the threshold is not between 0 and 1.
    """
    return float(_f1_by_bin(counts)[_bin_of_threshold(threshold)])


def precision_recall_at(counts: VoxelCounts, threshold: float) -> tuple[float, float]:
    """Return precision and recall of the foreground at a threshold.

    Parameters
    ----------
    counts, threshold : VoxelCounts, float
        As for `foreground_f1`.

    Returns
    -------
    precision, recall : float
        0 if there is nothing to divide by.

    Raises
    ------
    ValueError
        As `foreground_f1`.
    """
    (true_positive, false_positive), (false_negative, _) = foreground_counts(counts, threshold)
    precision = _ratio(true_positive, true_positive + false_positive)
    return float(precision), float(_ratio(true_positive, true_positive + false_negative))


def foreground_counts(counts: VoxelCounts, threshold: float) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the confusion of the foreground at a threshold.

    Parameters
    ----------
    counts, threshold : VoxelCounts, float
        As for `precision_recall_at`, which is computed from the result.

    Returns
    -------
    predicted_foreground : tuple of int
        True positives, false positives.
    predicted_background : tuple of int
        False negatives, true negatives.

    Raises
    ------
    ValueError
        As `foreground_f1`.
    """
    edge = _bin_of_threshold(threshold)
    false_positives, true_positives = (int(row[edge:].sum()) for row in counts.histogram)
    num_background, num_foreground = (int(row.sum()) for row in counts.histogram)
    return (true_positives, false_positives), (num_foreground - true_positives, num_background - false_positives)


def best_threshold(counts: VoxelCounts) -> tuple[float, float]:
    """Return the threshold with the highest F1 score of the foreground.

    Parameters
    ----------
    counts : VoxelCounts
        Counts whose histogram is searched.

    Returns
    -------
    threshold : float
        An edge of a bin above 0; among equally good ones the nearest to 0.5.
    f1 : float
        F1 score at this threshold.
    """
    f1, edges = _f1_by_bin(counts)[1:], histogram_edges()[1:]
    ties = edges[f1 == f1.max()]
    return float(ties[np.argmin(np.abs(ties - 0.5))]), float(f1.max())


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


def _positives_by_bin(counts: VoxelCounts) -> tuple[np.ndarray, np.ndarray]:
    """Return the true positives and the false positives at the lower edge of each bin, int64 [BINS]."""
    false_positives, true_positives = np.cumsum(counts.histogram[:, ::-1], axis=1)[:, ::-1]
    return true_positives, false_positives


def _f1_by_bin(counts: VoxelCounts) -> np.ndarray:
    tp, fp = _positives_by_bin(counts)
    return _ratio(2 * tp, tp + fp + counts.histogram[1].sum())


def _bin_of_threshold(threshold: float) -> int:
    """Return the bin whose lower edge is nearest to `threshold`."""
    if not 0 <= threshold <= 1:
        raise ValueError(f"a threshold must be between 0 and 1, got {threshold}")
    return min(round(threshold * BINS), BINS - 1)


def _ratio(numerator: Any, denominator: Any) -> np.ndarray:
    """Return the quotient, 0 where the denominator is 0."""
    numerator, denominator = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    zeros = np.zeros(np.broadcast(numerator, denominator).shape)
    return np.divide(numerator, denominator, out=zeros, where=denominator != 0)

"""The threshold with the best F1, and the scores of the foreground at a threshold, computed from `VoxelCounts`.

They are exact at the edges of the histogram's bins.
"""

from __future__ import annotations

import numpy as np

from kasthuri_ray.metrics.voxel_counts import BINS, VoxelCounts, histogram_edges, safe_ratio


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
    precision = safe_ratio(true_positive, true_positive + false_positive)
    return float(precision), float(safe_ratio(true_positive, true_positive + false_negative))


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


def _f1_by_bin(counts: VoxelCounts) -> np.ndarray:
    tp, fp = counts.positives_by_bin()
    return safe_ratio(2 * tp, tp + fp + counts.histogram[1].sum())


def _bin_of_threshold(threshold: float) -> int:
    """Return the bin whose lower edge is nearest to `threshold`."""
    if not 0 <= threshold <= 1:
        raise ValueError(f"a threshold must be between 0 and 1, got {threshold}")
    return min(round(threshold * BINS), BINS - 1)

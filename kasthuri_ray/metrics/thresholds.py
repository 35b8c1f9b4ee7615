"""The threshold with the best F1, and the outcomes of a class at a threshold, computed from `ClassCounts`.

They are exact at the edges of the histogram's bins.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kasthuri_ray.metrics.voxel_counts import BINS, ClassCounts, VoxelCounts, histogram_edges, safe_ratio
from kasthuri_ray.metrics.voxel_outcomes import VoxelOutcomes


def best_threshold(counts: ClassCounts) -> tuple[float, float]:
    """Return the threshold with the highest F1 score of the class.

    Parameters
    ----------
    counts : ClassCounts
        Counts whose histogram is searched.

    Returns
    -------
    threshold : float
        An edge of a bin above 0; among equally good ones the nearest to 0.5.
    f1 : float
        F1 score at this threshold.
    """
    tp, fp = counts.positives_by_bin()
    f1, edges = safe_ratio(2 * tp, tp + fp + counts.num_true)[1:], histogram_edges()[1:]
    ties = edges[f1 == f1.max()]
    return float(ties[np.argmin(np.abs(ties - 0.5))]), float(f1.max())


def outcomes_at(counts: ClassCounts, threshold: float) -> VoxelOutcomes:
    """Return the voxels that are found, missed and wrongly marked at a threshold.

    Parameters
    ----------
    counts : ClassCounts
        Counts of the voxels to score.
    threshold : float
        A voxel is predicted as the class if p >= threshold. It is rounded to the nearest edge of a bin.

    Returns
    -------
    VoxelOutcomes
        Voxels by outcome, and their scores.

    Raises
    ------
    ValueError
        If the threshold is not between 0 and 1.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"a threshold must be between 0 and 1, got {threshold}")
    edge = min(round(threshold * BINS), BINS - 1)  # of the bin whose lower edge is nearest
    wrong, found = (int(row[edge:].sum()) for row in counts.histogram)
    num_other, num_true = (int(row.sum()) for row in counts.histogram)
    return VoxelOutcomes(found, num_true - found, wrong, num_other - wrong)


def class_outcomes(counts: VoxelCounts, thresholds: Sequence[float]) -> list[VoxelOutcomes]:
    """Return the outcomes of each foreground class at its threshold.

    Parameters
    ----------
    counts : VoxelCounts
        Counts of all classes.
    thresholds : sequence of float
        One for each foreground class.

    Returns
    -------
    list of VoxelOutcomes
        As of `outcomes_at`.
    """
    return [outcomes_at(each, threshold) for each, threshold in zip(counts.by_class, thresholds, strict=True)]

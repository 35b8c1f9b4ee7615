"""Signs that scores mean nothing: what a person must know before any praise. Each check returns a sentence or nothing.

The limits are rules of thumb for synapses and membranes in electron microscopy: membranes take 10 to 25% of the voxels,
synapses 0.1 to 3%.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from kasthuri_ray.metrics.intervals import Interval, TileSample
from kasthuri_ray.metrics.thresholds import best_threshold
from kasthuri_ray.metrics.voxel_counts import ClassCounts, VoxelCounts
from kasthuri_ray.metrics.voxel_outcomes import VoxelOutcomes
from kasthuri_ray.metrics.voxel_scores import average_precision

MAX_SHARE, MIN_SHARE = 0.9, 1e-4  # of foreground among the labelled voxels
MAX_RATIO = 2.0  # between the F1 of val and of test
NO_SKILL_RATIO = 1.01  # of the F1 to that of marking everything: a few voxels that are left out show no skill


def share_warning(num_foreground: int, num_labelled: int, where: str) -> str:
    """Return a warning if nearly all or nearly none of the labelled voxels are foreground.

    Parameters
    ----------
    num_foreground, num_labelled : int
        Voxels of the annotation.
    where : str
        Which voxels these are, such as "the test box".

    Returns
    -------
    str
        A sentence, or "".
    """
    if not num_labelled or not num_foreground:
        return ""  # `missing_class_warnings` says it
    share = num_foreground / num_labelled
    if share > MAX_SHARE:
        return (
            f"{share:.1%} of the labelled voxels of {where} are foreground, more than {MAX_SHARE:.0%}. A prediction "
            "that marks everything looks good there. Do voxels without a label count as foreground? Say which labels "
            "are ignored (task.ignore_label) or background (task.background)."
        )
    if share < MIN_SHARE:
        return (
            f"Only {num_foreground:,} of {num_labelled:,} labelled voxels of {where} are foreground, fewer than "
            f"{MIN_SHARE:.2%}: scores rest on few voxels."
        )
    return ""


def missing_class_warnings(voxels: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Return a warning for each split in which a class has no voxel.

    Parameters
    ----------
    voxels : mapping
        For each split ("train", "val", "test"), the labelled voxels of each class by its name. A name that begins with
        "train" is of training boxes.

    Returns
    -------
    list of str
        Sentences.
    """
    warnings = []
    for split, by_class in voxels.items():
        missing = [name for name, number in by_class.items() if not number]
        if missing and sum(by_class.values()):
            what = "a network cannot learn that" if split.startswith("train") else "its scores say nothing about that"
            warnings.append(f"No voxel of {split} is {' or '.join(missing)}: {what}.")
        elif missing:
            warnings.append(f"No voxel of {split} is labelled.")
    return warnings


def chance_warning(counts: ClassCounts, outcomes: VoxelOutcomes, interval: Interval, name: str) -> str:
    """Return a warning if scores are no better than those of a prediction that knows nothing.

    Parameters
    ----------
    counts : ClassCounts
        Counts of the class.
    outcomes : VoxelOutcomes
        Outcomes at the threshold.
    interval : tuple of float
        95% interval of the average precision.
    name : str
        Name of the class.

    Returns
    -------
    str
        A sentence, or "".
    """
    if not counts.num_true:
        return ""
    share = counts.num_true / counts.num_voxels
    of_everything = 2 * share / (1 + share)  # F1 of marking every voxel
    threshold, best_f1 = best_threshold(counts)
    has_better = best_f1 > NO_SKILL_RATIO * of_everything
    better = f" At a threshold of {threshold:.2f} its F1 would be {best_f1:.3f}: the threshold does not fit."
    if not outcomes.marked:
        other = (
            " Try a loss that gives the foreground more weight (network.loss), a higher task.foreground_share, or more "
            "epochs."
        )
        return (
            f"The prediction marks none of {counts.num_voxels:,} voxels as {name}, although {counts.num_true:,} of "
            f"them ({share:.2%}) are. Its accuracy of {1 - share:.2%} therefore means nothing."
            f"{better if has_better else other}"
        )
    if outcomes.f1 <= NO_SKILL_RATIO * of_everything:
        return (
            f"F1 {outcomes.f1:.3f} is {'no' if outcomes.f1 <= of_everything else 'hardly'} better than that of marking "
            f"every voxel as {name}, {of_everything:.3f}: the prediction shows no skill"
            f"{f' at this threshold.{better}' if has_better else '.'}"
        )
    low, high = interval
    if low <= share <= high:
        return (
            f"The average precision of {name} may be chance: its 95% interval {low:.3f} to {high:.3f} holds "
            f"{share:.3f}, the share of {name}, which a random prediction reaches. More epochs, or more labelled "
            "voxels, would tell."
        )
    return ""


def constant_warning(counts: ClassCounts, name: str) -> str:
    """Return a warning if the probability of a class is the same in all voxels.

    Parameters
    ----------
    counts : ClassCounts
        Counts of the class.
    name : str
        Name of the class.

    Returns
    -------
    str
        A sentence, or "".
    """
    used = np.flatnonzero(counts.histogram.any(0))
    if len(used) != 1:
        return ""
    return f"The probability of {name} is the same in all {counts.num_voxels:,} voxels: nothing was found out."


def count_warnings(
    counts: VoxelCounts, outcomes: Sequence[VoxelOutcomes], sample: TileSample, names: Sequence[str], where: str
) -> list[str]:
    """Return the warnings that follow from the voxels of a split.

    Parameters
    ----------
    counts : VoxelCounts
        Counts of the split.
    outcomes : sequence of VoxelOutcomes
        Those of each foreground class at its threshold.
    sample : TileSample
        The same voxels by tile.
    names : sequence of str
        Names of the foreground classes.
    where : str
        As of `share_warning`.

    Returns
    -------
    list of str
        Sentences.
    """
    warnings = [share_warning(counts.num_foreground, counts.num_voxels, where)]
    intervals = sample.class_average_precision_intervals([average_precision(each) for each in counts.by_class])
    for name, of_class, at_threshold, interval in zip(names, counts.by_class, outcomes, intervals, strict=True):
        constant = constant_warning(of_class, name)
        warnings.append(constant or chance_warning(of_class, at_threshold, interval, name))
    return [warning for warning in warnings if warning]


def is_better_than_chance(counts: VoxelCounts, sample: TileSample) -> bool | None:
    """Return whether a prediction finds any class better than a random one does.

    Parameters
    ----------
    counts : VoxelCounts
        Counts of a split.
    sample : TileSample
        The same voxels by tile.

    Returns
    -------
    bool or None
        Whether the 95% interval of the average precision of a class is above its share of the voxels; None if no class
        has a voxel.
    """
    scores = [average_precision(each) for each in counts.by_class]
    lows = [low for low, _ in sample.class_average_precision_intervals(scores)]
    pairs = [
        (each.num_true / each.num_voxels, low) for each, low in zip(counts.by_class, lows, strict=True) if each.num_true
    ]
    return any(low > share for share, low in pairs) if pairs else None


def difference_warning(val_f1: float, test_f1: float) -> str:
    """Return a warning if the F1 of val and of test differ by a factor of two.

    Parameters
    ----------
    val_f1, test_f1 : float
        F1 of the foreground.

    Returns
    -------
    str
        A sentence, or "".
    """
    low, high = sorted((val_f1, test_f1))
    if not high or high < MAX_RATIO * low:
        return ""
    return (
        f"F1 is {val_f1:.3f} on val and {test_f1:.3f} on test. They differ by a factor of two or more: the boxes show "
        "different tissue, or hold too little foreground for a score."
    )

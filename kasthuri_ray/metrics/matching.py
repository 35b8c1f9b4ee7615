"""Matching of predicted to true objects, one to one by overlap, and the precision, recall and F1 that follow.

The rule is that of panoptic quality (Kirillov et al., CVPR 2019, arXiv:1801.00868), as in MONAI's
`PanopticQualityMetric`: a predicted object is right if its intersection over union (IoU) with a true object is more
than a half. Above a half an object has at most one partner, so there is nothing to choose and nothing counts twice. One
object over the whole volume matches nothing. One that spans two true objects matches at most one of them, and of the
pieces of an object that was split at most one is right. Objects of all sizes count.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

SMALL_VOXELS = 10  # an object of fewer voxels is small: noise, at the resolutions of electron microscopy
MATCHING_IOU = 0.5  # objects match above it; below a half one would have to choose among pairs

LabelPairs = tuple[np.ndarray, np.ndarray, np.ndarray]
"""(one, other, voxels): how many voxels have the label `one` in one array and `other` in the other; sparse."""


def count_label_pairs(one: np.ndarray, other: np.ndarray) -> LabelPairs:
    """Count the pairs of labels of two arrays.

    Parameters
    ----------
    one, other : ndarray of int
        Labels, of the same shape. Voxels that are 0 in one of them do not count.

    Returns
    -------
    LabelPairs
        Each pair once, in the order of the labels.
    """
    both = np.flatnonzero((one != 0) & (other != 0))
    one, other = one.ravel()[both], other.ravel()[both]
    # Equal pairs form long runs along x; one entry for each run leaves less to sort.
    starts = np.flatnonzero(np.r_[both.size > 0, (one[1:] != one[:-1]) | (other[1:] != other[:-1])][: both.size])
    return merge_label_pairs([(one[starts], other[starts], np.diff(starts, append=both.size))])


def merge_label_pairs(parts: Iterable[LabelPairs]) -> LabelPairs:
    """Add up counts of label pairs.

    Parameters
    ----------
    parts : iterable of LabelPairs
        At least one.

    Returns
    -------
    LabelPairs
        Each pair once, in the order of the labels.
    """
    ones, others, voxels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    labels, one = np.unique(ones, return_inverse=True)
    other_labels, other = np.unique(others, return_inverse=True)
    if not ones.size:
        return labels, other_labels, voxels
    keys, pair = np.unique(one.astype(np.int64) * len(other_labels) + other, return_inverse=True)
    total = np.zeros(len(keys), np.int64)
    np.add.at(total, pair, voxels)
    return labels[keys // len(other_labels)], other_labels[keys % len(other_labels)], total


def match_objects(pairs: LabelPairs, true_voxels: np.ndarray, predicted_voxels: np.ndarray) -> dict[str, float | int]:
    """Match predicted objects to true ones and count the matches.

    Parameters
    ----------
    pairs : LabelPairs
        Voxels that each true and predicted object share, each pair once.
    true_voxels, predicted_voxels : ndarray of int, (objects,)
        Size of every object; the first is object 1.

    Returns
    -------
    dict
        `precision`, `recall`, `f1`, `num_true`, `num_predicted`, `num_small` (predicted objects of under SMALL_VOXELS)
        and `matching_iou`. A score is 0 if there are no objects to divide by.
    """
    true, predicted, shared = pairs
    iou = shared / (true_voxels[true - 1] + predicted_voxels[predicted - 1] - shared)
    num_small = int((predicted_voxels < SMALL_VOXELS).sum())
    return _match_scores(int((iou > MATCHING_IOU).sum()), len(true_voxels), len(predicted_voxels), num_small)


def pool_matches(results: Iterable[Mapping[str, float | int]]) -> dict[str, float | int]:
    """Return the scores of the objects of several classes together.

    Parameters
    ----------
    results : iterable of mapping
        Results of `match_objects`.

    Returns
    -------
    dict
        As of `match_objects`.
    """
    rows = list(results)
    matched = sum(round(row["recall"] * row["num_true"]) for row in rows)
    numbers = (sum(int(row[key]) for row in rows) for key in ("num_true", "num_predicted", "num_small"))
    return _match_scores(matched, *numbers)


def _match_scores(matched: int, num_true: int, num_predicted: int, num_small: int) -> dict[str, float | int]:
    return {
        "precision": matched / num_predicted if num_predicted else 0.0,
        "recall": matched / num_true if num_true else 0.0,
        "f1": 2 * matched / (num_true + num_predicted) if num_true + num_predicted else 0.0,
        "num_true": num_true,
        "num_predicted": num_predicted,
        "num_small": num_small,
        "matching_iou": MATCHING_IOU,
    }

"""Which predicted objects are right: one-to-one by overlap, and the precision, recall and F1 that follow.

The rule is that of panoptic quality (Kirillov et al., CVPR 2019, arXiv:1801.00868), which MONAI's
`PanopticQualityMetric` has too: a predicted object is right if what it shares with a true one is more than half of what
the two cover together (their intersection over union, IoU). Above a half no object has a second partner, so that
nothing need be chosen and nothing counts twice: one object over everything finds nothing, one that spans two true ones
finds at most one of them, and of the pieces of an object that fell apart at most one is right. No object is left out
for its size.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

MATCHING_IOU = 0.5  # two are paired above it; below a half, pairs would have to be chosen
Pairs = tuple[np.ndarray, np.ndarray, np.ndarray]
"""(one, other, voxels): how many voxels have one label in one array and the other in another; sparse."""


def count_pairs(one: np.ndarray, other: np.ndarray) -> Pairs:
    """The pairs of labels (integers of any type, 0 is none) of two arrays of one shape, where neither is 0."""
    both = np.flatnonzero((one != 0) & (other != 0))
    one, other = one.ravel()[both], other.ravel()[both]
    # Runs along x are long: there is less to sort.
    starts = np.flatnonzero(np.r_[both.size > 0, (one[1:] != one[:-1]) | (other[1:] != other[:-1])][: both.size])
    return merge_pairs([(one[starts], other[starts], np.diff(starts, append=both.size))])


def merge_pairs(many: Iterable[Pairs]) -> Pairs:
    """The sum of several: each pair once, in the order of the labels."""
    ones, others, voxels = (np.concatenate(arrays) for arrays in zip(*many, strict=True))
    names, one = np.unique(ones, return_inverse=True)
    other_names, other = np.unique(others, return_inverse=True)
    if not ones.size:
        return names, other_names, voxels
    keys, pair = np.unique(one.astype(np.int64) * len(other_names) + other, return_inverse=True)
    total = np.zeros(len(keys), np.int64)
    np.add.at(total, pair, voxels)
    return names[keys // len(other_names)], other_names[keys % len(other_names)], total


def match_objects(pairs: Pairs, true_voxels: np.ndarray, predicted_voxels: np.ndarray) -> dict[str, float | int]:
    """`precision`, `recall`, `f1`, `num_true`, `num_predicted`, `matching_iou` of objects; 0 for no objects.

    pairs: (true, predicted, voxels), each pair once. true_voxels, predicted_voxels: the size of every object; the first
    is that of object 1.
    """
    true, predicted, shared = pairs
    iou = shared / (true_voxels[true - 1] + predicted_voxels[predicted - 1] - shared)
    matched, num_true, num_predicted = int((iou > MATCHING_IOU).sum()), len(true_voxels), len(predicted_voxels)
    return {
        "precision": matched / num_predicted if num_predicted else 0.0,
        "recall": matched / num_true if num_true else 0.0,
        "f1": 2 * matched / (num_true + num_predicted) if num_true + num_predicted else 0.0,
        "num_true": num_true,
        "num_predicted": num_predicted,
        "matching_iou": MATCHING_IOU,
    }

"""Which predicted objects are right: one-to-one by overlap, and the precision, recall and F1 that follow.

The rule is that of VESICLE (Gray Roncal et al., BMVC 2015), which judges synapses in the same volumes: a predicted
synapse is right if it shares at least one voxel with a true one, and each counts once. Where several could be paired,
those that share most voxels are. So a prediction that spans two true synapses finds one of them, and of the pieces of
a synapse that fell apart one is right and the others are wrong. No object is left out for its size.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

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


def match_objects(pairs: Pairs, num_true: int, num_predicted: int) -> dict[str, float | int]:
    """`precision`, `recall`, `f1`, `num_true`, `num_predicted` of objects; 0 where there is nothing to divide by.

    pairs: (true, predicted, voxels), each pair once. Of pairs that share equally many voxels the lower ids win.
    """
    matched, taken_true, taken_predicted = 0, set[int](), set[int]()
    true, predicted, voxels = pairs
    for index in np.lexsort((predicted, true, -voxels)).tolist():
        one, other = int(true[index]), int(predicted[index])
        if one not in taken_true and other not in taken_predicted:
            matched += 1
            taken_true.add(one)
            taken_predicted.add(other)
    return {
        "precision": matched / num_predicted if num_predicted else 0.0,
        "recall": matched / num_true if num_true else 0.0,
        "f1": 2 * matched / (num_true + num_predicted) if num_true + num_predicted else 0.0,
        "num_true": num_true,
        "num_predicted": num_predicted,
    }

"""Pairs of labels of two arrays: how many voxels each two share; they add up over blocks."""

from __future__ import annotations

from collections.abc import Iterable

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


def label_pair_iou(pairs: LabelPairs, voxels: np.ndarray, other_voxels: np.ndarray) -> np.ndarray:
    """Return the intersection over union of each pair.

    Parameters
    ----------
    pairs : LabelPairs
        Each pair once.
    voxels, other_voxels : ndarray of int
        Size of every object; the first is object 1.

    Returns
    -------
    ndarray of float64
        Above 0, at most 1.
    """
    one, other, shared = pairs
    return shared / (voxels[one - 1] + other_voxels[other - 1] - shared)

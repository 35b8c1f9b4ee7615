"""Halving arrays for a pyramid, exactly: means of probabilities, majorities of labels. Needs numpy alone."""

from __future__ import annotations

import math

import numpy as np

from kasthuri_ray.geometry import Zyx


def downsample(array: np.ndarray, factors: Zyx) -> np.ndarray:
    """The mean of each cell of 1 or 2 voxels along z, y, x: uint8 [..., z, y, x] -> the same with ceil(n / factor).

    Exact, in integers; a half goes to the even neighbour, as numpy.rint and tensorstore's "mean" have it: always
    rounding halves up would add 0.13 grey levels at every step. A cell at an odd end averages what it has.
    """
    total, count = _sums(array, factors)
    shift = count.bit_length() - 1
    if shift == 0:
        return array.copy()
    odd = total >> shift
    odd &= 1
    total += count // 2 - 1
    total += odd
    total >>= shift
    return total.astype(np.uint8)


def downsample_labels(labels: np.ndarray, factors: Zyx) -> np.ndarray:
    """The label of most voxels of each cell, uint8 as `downsample`.

    Foreground wins where it has half of the cell: a membrane one voxel thick stays. Of several foreground labels the
    one with the most voxels wins, the lowest of equals.
    """
    covered, count = _sums((labels > 0).view(np.uint8), factors)
    foreground = covered * 2 >= count
    highest = int(labels.max(initial=0))
    if highest <= 1:
        return foreground.view(np.uint8)
    best = np.zeros(foreground.shape, np.uint8)
    most = np.zeros(foreground.shape, covered.dtype)
    for label in range(1, highest + 1):
        number, _ = _sums((labels == label).view(np.uint8), factors)
        better = number > most
        best[better], most[better] = label, number[better]
    return best * foreground


def _sums(array: np.ndarray, factors: Zyx) -> tuple[np.ndarray, int]:
    """The sums of the cells, uint16, and of how many voxels: at an odd end the last voxel counts twice."""
    assert array.dtype == np.uint8, array.dtype
    assert set(factors) <= {1, 2}, factors
    total = array
    for axis in (-3, -2, -1):
        if factors[axis] == 2:
            total = _pairs(total, axis)
    return total.astype(np.uint16, copy=False), math.prod(factors)


def _pairs(array: np.ndarray, axis: int) -> np.ndarray:
    """The sums of neighbours 0 and 1, 2 and 3, ... along an axis (negative), uint16; a last one alone counts twice."""
    length = array.shape[axis]
    shape = list(array.shape)
    shape[axis] = -(-length // 2)
    sums = np.empty(shape, np.uint16)
    source, along = np.moveaxis(array, axis, 0), np.moveaxis(sums, axis, 0)
    np.add(source[0 : length - 1 : 2], source[1::2], out=along[: length // 2], dtype=np.uint16)
    if length % 2:
        np.multiply(source[-1:], 2, out=along[-1:], dtype=np.uint16)
    return sums

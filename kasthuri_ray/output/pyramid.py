"""The levels of a pyramid, and exact downsampling: means of probabilities, majorities of labels. Needs numpy alone."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kasthuri_ray.geometry import Box, Nm, Zyx, ceil_div, per_axis

MAX_ANISOTROPY = 1.5  # an axis is halved if its voxels are shorter than this times the shortest
MAX_LAST_SECTION = 512  # voxels of the longer side of a section, at which a pyramid ends


def downsample(array: np.ndarray, factors: Zyx) -> np.ndarray:
    """Return the mean of each cell of 1 or 2 voxels along z, y, x.

    Parameters
    ----------
    array : ndarray of uint8, (..., z, y, x)
        Voxels.
    factors : tuple of int
        Shape of a cell, z, y, x.

    Returns
    -------
    ndarray of uint8, (..., z, y, x)
        ceil(n / factor) voxels along an axis.

    Notes
    -----
    Means are exact. Halves are rounded to even, as in numpy.rint and tensorstore's "mean"; rounding them up would add
    0.13 grey levels at every level. A cell at an odd end is the mean of the voxels that it has.
    """
    total, count = _cell_sums(array, factors)
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
    """Return the most frequent label of each cell, uint8, for cells as in `downsample`.

    Foreground wins if it has at least half of the cell, so that a membrane one voxel thick remains. Of several
    foreground labels the most frequent wins, and of equally frequent ones the lowest.
    """
    num_foreground, count = _cell_sums((labels > 0).view(np.uint8), factors)
    foreground = num_foreground * 2 >= count
    max_label = int(labels.max(initial=0))
    if max_label <= 1:
        return foreground.view(np.uint8)
    best = np.zeros(foreground.shape, np.uint8)
    num_best = np.zeros(foreground.shape, num_foreground.dtype)
    for label in range(1, max_label + 1):
        number, _ = _cell_sums((labels == label).view(np.uint8), factors)
        better = number > num_best
        best[better], num_best[better] = label, number[better]
    return best * foreground


def downsample_ids(labels: np.ndarray, factors: Zyx) -> np.ndarray:
    """Return the most frequent label of each cell, by the rule of `downsample_labels`, for any number of labels."""
    offsets = itertools.product(*map(range, factors))
    padded = np.pad(labels, [(0, -n % f) for n, f in zip(labels.shape, factors, strict=True)], mode="edge")
    parts = [padded[tuple(slice(at, None, f) for at, f in zip(offset, factors, strict=True))] for offset in offsets]
    best, num_best = np.zeros_like(parts[0]), np.zeros(parts[0].shape, np.uint8)
    num_foreground = sum((part > 0).astype(np.uint8) for part in parts)
    if not np.any(num_foreground):
        return best
    for label in parts:
        number = sum((part == label).astype(np.uint8) for part in parts)
        better = (label > 0) & ((number > num_best) | ((number == num_best) & (label < best)))
        best[better], num_best[better] = label[better], number[better]
    best[num_foreground * 2 < len(parts)] = 0
    return best


@dataclass(frozen=True)
class PyramidLevel:
    """A resolution level of the output, the array `s<number>`.

    Parameters
    ----------
    number : int
        0 is the finest.
    shape : tuple of int
        Number of voxels, z, y, x.
    factors, step : tuple of int
        Length of a voxel in voxels of s0, and in voxels of the level before, z, y, x.
    scale : tuple of float
        Length of a voxel, z, y, x, in nm, or in voxels of the image if their size is not known.
    translation : tuple of float
        Position of the middle of its first voxel, in the same unit, z, y, x. The middle of voxel 0 of the image is at 0
        unless the image has a translation itself.
    """

    number: int
    shape: Zyx
    factors: Zyx
    step: Zyx
    scale: Nm
    translation: Nm

    @property
    def name(self) -> str:
        """Name of the array, such as `s0`."""
        return level_name(self.number)

    @property
    def box(self) -> Box:
        """All voxels of the level; the first is 0, 0, 0."""
        return Box.at((0, 0, 0), self.shape)

    def source(self, box: Box) -> Box:
        """Return the voxels of the level before that a box of this level is computed from, not cut to that level."""
        return box.scaled(self.step)


def level_name(number: int) -> str:
    """Return the name of the array that holds a pyramid level.

    Parameters
    ----------
    number : int
        Number of the level; 0 is the finest.

    Returns
    -------
    str
        Such as `s0`.
    """
    return f"s{number}"


def plan_levels(
    shape: Zyx,
    voxel_size_nm: Nm | None,
    start: Zyx = (0, 0, 0),
    translation_nm: Nm = (0.0, 0.0, 0.0),
) -> list[PyramidLevel]:
    """Plan the pyramid of an output.

    Each level halves the axes whose voxels are less than 1.5 times as long as the shortest: y and x alone while
    sections are thick, then z too. If the voxel size is not known, y and x alone. The last level is the first one whose
    sections have at most 512 voxels along their longer side.

    Parameters
    ----------
    shape : tuple of int
        Of the finest level, z, y, x.
    voxel_size_nm : tuple of float or None
        Of the image, z, y, x; None if it is not known.
    start : tuple of int
        The image's voxel that is the first voxel of the finest level, z, y, x.
    translation_nm : tuple of float
        Position of voxel 0 of the image, z, y, x.

    Returns
    -------
    list of PyramidLevel
        The finest first.
    """
    size: Nm = (1.0, 1.0, 1.0) if voxel_size_nm is None else per_axis(float, voxel_size_nm)
    origin = translation_nm if voxel_size_nm is not None else (0.0, 0.0, 0.0)
    translation = per_axis(lambda t, a, n: t + a * n, origin, start, size)
    levels = [_level(0, shape, (1, 1, 1), (1, 1, 1), size, translation)]
    while max(levels[-1].shape[1:]) > MAX_LAST_SECTION:
        before = levels[-1]
        z, y, x = per_axis(operator.mul, size, before.factors)
        step = _next_step(before.shape, (math.inf if voxel_size_nm is None else z, y, x))
        factors = per_axis(operator.mul, before.factors, step)
        levels.append(_level(len(levels), shape, factors, step, size, translation))
    return levels


def source_box(levels: Sequence[PyramidLevel], level: int, box: Box, at: int = 0) -> Box:
    """Return the voxels of level `at` that `box` of the coarser level `level` is computed from, cut to level `at`."""
    for step in range(level, at, -1):
        box = levels[step].source(box)
    return box.intersect(levels[at].box)


def _next_step(shape: Zyx, lengths: Nm) -> Zyx:
    shortest = min(length for n, length in zip(shape, lengths, strict=True) if n > 1)
    return per_axis(lambda n, length: 2 if n > 1 and length < MAX_ANISOTROPY * shortest else 1, shape, lengths)


def _level(number: int, shape: Zyx, factors: Zyx, step: Zyx, size: Nm, translation: Nm) -> PyramidLevel:
    """Return a level from the shape, voxel size and translation of the finest one."""
    return PyramidLevel(
        number=number,
        shape=per_axis(ceil_div, shape, factors),
        factors=factors,
        step=step,
        scale=per_axis(lambda a, f: round(a * f, 9), size, factors),
        translation=per_axis(lambda t, a, f: round(t + a * (f - 1) / 2, 9), translation, size, factors),
    )


def _cell_sums(array: np.ndarray, factors: Zyx) -> tuple[np.ndarray, int]:
    """Return the sums of cells, uint16, and of how many voxels each is; at an odd end the last voxel counts twice."""
    assert array.dtype == np.uint8, array.dtype
    assert set(factors) <= {1, 2}, factors
    total = array
    for axis in (-3, -2, -1):
        if factors[axis] == 2:
            total = _pair_sums(total, axis)
    return total.astype(np.uint16, copy=False), math.prod(factors)


def _pair_sums(array: np.ndarray, axis: int) -> np.ndarray:
    """Return the sums of voxels 0 and 1, 2 and 3, ... along a negative axis, uint16; a single last one counts twice."""
    length = array.shape[axis]
    shape = list(array.shape)
    shape[axis] = ceil_div(length, 2)
    sums = np.empty(shape, np.uint16)
    source, along = np.moveaxis(array, axis, 0), np.moveaxis(sums, axis, 0)
    np.add(source[0 : length - 1 : 2], source[1::2], out=along[: length // 2], dtype=np.uint16)
    if length % 2:
        np.multiply(source[-1:], 2, out=along[-1:], dtype=np.uint16)
    return sums

"""Halving arrays for a pyramid, exactly: means of probabilities, majorities of labels. Needs numpy alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kasthuri_ray.geometry import AXES, Box, Nm, Zyx
from kasthuri_ray.output.block_grid import ArrayLayout, _nearest

SHARD: Zyx = (64, 1024, 1024)
CHUNK: Zyx = (64, 256, 256)
LEAST_CHUNK = 16  # a chunk found for a shard is not smaller, along an axis that has so many voxels


ALIKE = 1.5  # an axis is halved while its voxels are shorter than this times the shortest
SMALLEST_LEVEL = 512  # voxels of the longer side of a section, at which a pyramid ends


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


@dataclass(frozen=True)
class PyramidLevel:
    """One resolution of the output: the array `s<number>`.

    shape: its voxels. factors: how many voxels of s0 one of its voxels is long; step: how many of the level before.
    scale: the length of a voxel, translation: where the middle of its first voxel lies if that of voxel 0 of the
    image lies at 0; in nm, or in voxels of the image where their size is not known. All z, y, x.
    """

    number: int
    shape: Zyx
    factors: Zyx
    step: Zyx
    scale: Nm
    translation: Nm

    @property
    def name(self) -> str:
        return f"s{self.number}"

    @property
    def box(self) -> Box:
        """All its voxels, the first at 0."""
        return Box.at((0, 0, 0), self.shape)

    def source(self, box: Box) -> Box:
        """The voxels of the level before that the voxels `box` of this one are made of, uncut."""
        return box.scaled(self.step)


def plan_levels(
    shape: Zyx,
    voxel_size_nm: Nm | None,
    start: Zyx = (0, 0, 0),
    translation_nm: Nm = (0.0, 0.0, 0.0),
) -> list[PyramidLevel]:
    """The pyramid of a box of `shape` whose first voxel is the image's voxel `start`; the finest level first.

    A step halves every axis whose voxels are less than 1.5 times as long as the shortest: y and x alone while sections
    are thick, then z too. Where no voxel size is known y and x alone. It ends when no side of a section has more than
    512 voxels. translation_nm: where voxel 0 of the image lies.
    """
    known = voxel_size_nm is not None
    size = tuple(float(n) for n in voxel_size_nm or (1.0, 1.0, 1.0))
    moved = translation_nm if known else (0.0, 0.0, 0.0)
    first = tuple(t + a * n for t, a, n in zip(moved, start, size, strict=True))
    steps: list[Zyx] = [(1, 1, 1)]
    now = tuple(shape)
    while max(now[1:]) > SMALLEST_LEVEL:
        factors = _product(steps)
        lengths = [n * f if known or axis else math.inf for axis, (n, f) in enumerate(zip(size, factors, strict=True))]
        steps.append(_next_step(now, lengths))
        now = tuple(-(-n // f) for n, f in zip(now, steps[-1], strict=True))
    return [
        _level(number, shape, _product(steps[: number + 1]), step, size, first) for number, step in enumerate(steps)
    ]


def _next_step(shape: Sequence[int], lengths: Sequence[float]) -> Zyx:
    shortest = min(length for n, length in zip(shape, lengths, strict=True) if n > 1)
    return tuple(2 if n > 1 and a < ALIKE * shortest else 1 for n, a in zip(shape, lengths, strict=True))  # type: ignore[return-value]


def _product(steps: Sequence[Zyx]) -> Zyx:
    return tuple(math.prod(column) for column in zip(*steps, strict=True))  # type: ignore[return-value]


def _level(
    number: int, shape: Zyx, factors: Zyx, step: Zyx, size: Sequence[float], first: Sequence[float]
) -> PyramidLevel:
    return PyramidLevel(
        number=number,
        shape=tuple(-(-n // f) for n, f in zip(shape, factors, strict=True)),  # type: ignore[arg-type]
        factors=factors,
        step=step,
        scale=tuple(round(a * f, 9) for a, f in zip(size, factors, strict=True)),  # type: ignore[arg-type]
        translation=tuple(round(t + a * (f - 1) / 2, 9) for t, a, f in zip(first, size, factors, strict=True)),  # type: ignore[arg-type]
    )


def plan_layout(shape: Zyx, shard: Zyx | None = None, chunk: Zyx | None = None) -> ArrayLayout:
    """The shards and chunks of an array of `shape`: those asked for, else the defaults, cut to what the array needs.

    Along each axis: with a shard alone, the chunk is the largest divisor of it up to the default chunk; with a chunk
    alone, the shard is the default one rounded down to whole chunks. Then a chunk longer than the array is cut to it,
    and a shard that reaches beyond it to the whole chunks that it needs. Raises ValueError where the chunk does not
    divide the shard.
    """
    for name, sizes in (("shard", shard), ("chunk", chunk)):
        if sizes is not None and min(sizes) < 1:
            raise ValueError(f"{name} {tuple(sizes)}: expected three sizes z,y,x of at least 1")
    if shard is None:
        whole = SHARD if chunk is None else tuple(max(s // c, 1) * c for s, c in zip(SHARD, chunk, strict=True))
        parts = chunk or CHUNK
    else:
        whole, parts = shard, chunk or _chunk_for(shard)
    _check_divides(parts, whole)
    return fit_layout(ArrayLayout(tuple(whole), tuple(parts)), shape)  # type: ignore[arg-type]


def fit_layout(layout: ArrayLayout, shape: Zyx) -> ArrayLayout:
    """The layout of a smaller array of the same output: never longer than the array, the shard in whole chunks."""
    chunk = tuple(min(c, n) for c, n in zip(layout.chunk, shape, strict=True))
    shard = tuple(c if c == n else min(s, -(-n // c) * c) for s, c, n in zip(layout.shard, chunk, shape, strict=True))
    return ArrayLayout(shard, chunk)  # type: ignore[arg-type]


def _chunk_for(shard: Zyx) -> Zyx:
    chunk = []
    for axis, (size, most) in enumerate(zip(shard, CHUNK, strict=True)):
        found = next(n for n in range(min(size, most), 0, -1) if size % n == 0)
        if found < min(size, LEAST_CHUNK):
            raise ValueError(
                f"shard {tuple(shard)}: no chunk of {LEAST_CHUNK} to {most} divides it along {AXES[axis]}; "
                f"use {_nearest(size, most)}, or give a chunk"
            )
        chunk.append(found)
    return tuple(chunk)  # type: ignore[return-value]


def _check_divides(chunk: Sequence[int], shard: Sequence[int]) -> None:
    wrong = [
        f"{AXES[axis]}; use {_nearest(size, part)}"
        for axis, (size, part) in enumerate(zip(shard, chunk, strict=True))
        if size % part
    ]
    if wrong:
        where = ", nor along ".join(wrong)
        raise ValueError(f"shard {tuple(shard)} is not a multiple of the chunk {tuple(chunk)} along {where}")


def source_box(levels: Sequence[PyramidLevel], level: int, box: Box, at: int = 0) -> Box:
    """The voxels of level `at` that the voxels `box` of the coarser level `level` are made of, cut to what is there."""
    for step in range(level, at, -1):
        box = levels[step].source(box)
    return box.intersect(levels[at].box)

"""How arrays are stored: in shards, which are written at once, of chunks, which can be read alone."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass

from kasthuri_ray.errors import InputError
from kasthuri_ray.geometry import AXES, Zyx, ceil_div, per_axis

SHARD: Zyx = (64, 1024, 1024)
CHUNK: Zyx = (64, 256, 256)
MIN_CHUNK = 16  # of a chunk that is chosen for a shard, along axes that are not shorter


@dataclass(frozen=True)
class ArrayLayout:
    """Shape of the shards and chunks of an array.

    Parameters
    ----------
    shard, chunk : tuple of int
        Voxels along z, y, x; a shard is whole chunks.
    """

    shard: Zyx
    chunk: Zyx


def plan_layout(shape: Zyx, shard: Zyx | None = None, chunk: Zyx | None = None) -> ArrayLayout:
    """Choose the shards and chunks of an array.

    Parameters
    ----------
    shape : tuple of int
        Of the array, z, y, x.
    shard, chunk : tuple of int, optional
        Settings of the user, z, y, x. By default SHARD and CHUNK. For a shard alone, the chunk along each axis is its
        largest divisor up to the default chunk. For a chunk alone, the shard is the default one, rounded down to whole
        chunks.

    Returns
    -------
    ArrayLayout
        The layout, fitted to the array (`fit_layout`).

    Raises
    ------
    InputError
        If a size is less than 1, the chunk does not divide the shard, or no chunk is found for the shard.
    """
    for name, sizes in (("shard", shard), ("chunk", chunk)):
        if sizes is not None and min(sizes) < 1:
            raise InputError(f"{name} {tuple(sizes)}: expected three sizes z,y,x of at least 1")
    if shard is None:
        shard = SHARD if chunk is None else per_axis(lambda s, c: max(s // c, 1) * c, SHARD, chunk)
        chunk = chunk or CHUNK
    chunk = chunk or per_axis(lambda axis: _largest_chunk(shard, axis), range(3))
    check_multiple("shard", shard, "chunk", chunk)
    return fit_layout(ArrayLayout(per_axis(int, shard), per_axis(int, chunk)), shape)


def fit_layout(layout: ArrayLayout, shape: Zyx) -> ArrayLayout:
    """Return the layout of a smaller array: chunks no longer than it, and no more of them in a shard than it needs."""
    chunk = per_axis(min, layout.chunk, shape)
    shard = per_axis(lambda s, c, n: c if c == n else min(s, ceil_div(n, c) * c), layout.shard, chunk, shape)
    return ArrayLayout(shard, chunk)


def check_multiple(
    name: str, sizes: Zyx, part_name: str, part: Zyx, exempt: Sequence[bool] = (False, False, False)
) -> None:
    """Raise InputError, with the nearest good sizes, if `sizes` is not a multiple of `part` along an axis."""
    remainder = per_axis(operator.mod, sizes, part)
    wrong = [
        f"{AXES[axis]}; use {nearest_multiples(sizes[axis], part[axis])}"
        for axis in range(3)
        if remainder[axis] and not exempt[axis]
    ]
    if wrong:
        axes = ", nor along ".join(wrong)
        raise InputError(f"{name} {tuple(sizes)} is not a multiple of the {part_name} {tuple(part)} along {axes}")


def nearest_multiples(size: int, part: int) -> str:
    """Return the multiples of `part` on both sides of `size`, as text."""
    low = size // part * part
    return f"{low} or {low + part}" if low else str(part)


def _largest_chunk(shard: Zyx, axis: int) -> int:
    """Return the largest divisor of a shard along an axis, up to the default chunk."""
    size, max_chunk = shard[axis], CHUNK[axis]
    divisor = next(n for n in range(min(size, max_chunk), 0, -1) if size % n == 0)
    if divisor < min(size, MIN_CHUNK):
        raise InputError(
            f"shard {tuple(shard)}: no chunk of {MIN_CHUNK} to {max_chunk} divides it along {AXES[axis]}; "
            f"use {nearest_multiples(size, max_chunk)}, or set a chunk"
        )
    return divisor

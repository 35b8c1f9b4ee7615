"""How an output is cut: chunks in shards, shards in blocks, levels of a pyramid. Pure arithmetic on z, y, x."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from kasthuri_ray.geometry import AXES, Box, Zyx

Lengths = tuple[float, float, float]

SHARD: Zyx = (64, 1024, 1024)
CHUNK: Zyx = (64, 256, 256)
LEAST_CHUNK = 16  # a chunk found for a shard is not smaller, along an axis that has so many voxels
BLOCK_VOXELS = 64 * 2048 * 2048  # of a block nobody asked for, at most, unless one shard is larger
ALIKE = 1.5  # an axis is halved while its voxels are shorter than this times the shortest
SMALLEST_LEVEL = 512  # voxels of the longer side of a section, at which a pyramid ends


@dataclass(frozen=True)
class Layout:
    """Of an array: the shards that it is stored in, and the chunks that can be read from one. z, y, x in voxels."""

    shard: Zyx
    chunk: Zyx


@dataclass(frozen=True)
class Level:
    """One resolution of the output: the array `s<number>`.

    shape: its voxels. factors: how many voxels of s0 one of its voxels is long; step: how many of the level before.
    scale: the length of a voxel, translation: where the middle of its first voxel lies if that of voxel 0 of the
    image lies at 0; in nm, or in voxels of the image where their size is not known. All z, y, x.
    """

    number: int
    shape: Zyx
    factors: Zyx
    step: Zyx
    scale: Lengths
    translation: Lengths

    @property
    def name(self) -> str:
        return f"s{self.number}"

    @property
    def box(self) -> Box:
        """All its voxels, the first at 0."""
        return Box.at((0, 0, 0), self.shape)

    def source(self, box: Box) -> Box:
        """The voxels of the level before that the voxels `box` of this one are made of, uncut."""
        return _scaled(box, self.step)


def plan_levels(
    shape: Zyx,
    voxel_size_nm: Lengths | None,
    start: Zyx = (0, 0, 0),
    translation_nm: Lengths = (0.0, 0.0, 0.0),
) -> list[Level]:
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


def _level(number: int, shape: Zyx, factors: Zyx, step: Zyx, size: Sequence[float], first: Sequence[float]) -> Level:
    return Level(
        number=number,
        shape=tuple(-(-n // f) for n, f in zip(shape, factors, strict=True)),  # type: ignore[arg-type]
        factors=factors,
        step=step,
        scale=tuple(round(a * f, 9) for a, f in zip(size, factors, strict=True)),  # type: ignore[arg-type]
        translation=tuple(round(t + a * (f - 1) / 2, 9) for t, a, f in zip(first, size, factors, strict=True)),  # type: ignore[arg-type]
    )


def plan_layout(shape: Zyx, shard: Zyx | None = None, chunk: Zyx | None = None) -> Layout:
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
    return cut_layout(Layout(tuple(whole), tuple(parts)), shape)  # type: ignore[arg-type]


def cut_layout(layout: Layout, shape: Zyx) -> Layout:
    """The layout of a smaller array of the same output: never longer than the array, the shard in whole chunks."""
    chunk = tuple(min(c, n) for c, n in zip(layout.chunk, shape, strict=True))
    shard = tuple(c if c == n else min(s, -(-n // c) * c) for s, c, n in zip(layout.shard, chunk, shape, strict=True))
    return Layout(shard, chunk)  # type: ignore[arg-type]


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


def check_block(block: Zyx, shard: Zyx, shape: Zyx) -> None:
    """Raise a ValueError, with the nearest good sizes, for a block that is not whole shards.

    shape: of what is segmented. Along an axis that the block covers whole, any size will do.
    """
    if min(block) < 1:
        raise ValueError(f"block {tuple(block)}: expected three sizes z,y,x of at least 1")
    wrong = [
        f"{AXES[axis]}; use {_nearest(size, part)}"
        for axis, (size, part, n) in enumerate(zip(block, shard, shape, strict=True))
        if size % part and size < n
    ]
    if wrong:
        where = ", nor along ".join(wrong)
        raise ValueError(f"block {tuple(block)} is not a multiple of the shard {tuple(shard)} along {where}")


def _nearest(size: int, part: int) -> str:
    """The multiples of `part` on both sides of `size`, in words."""
    low = size // part * part
    return f"{low} or {low + part}" if low else str(part)


def default_block(shape: Zyx, layout: Layout, margin: Zyx) -> Zyx:
    """Whole shards of at most 64 x 2048 x 2048 voxels, in the form that reads the least halo.

    Begins with one shard, and adds one along the axis where the margin is the largest part of the block, as long as
    the box goes on there: (64, 2048, 2048) for a network that sees one section, deeper ones for one in 3D.
    """
    block = list(layout.shard)
    while True:
        grown = {}
        for axis in range(3):
            larger = [*block[:axis], block[axis] + layout.shard[axis], *block[axis + 1 :]]
            if margin[axis] and block[axis] < shape[axis] and math.prod(larger) <= BLOCK_VOXELS:
                grown[axis] = larger
        if not grown:
            return tuple(block)  # type: ignore[return-value]
        block = grown[max(grown, key=lambda axis: (margin[axis] / block[axis], -axis))]


class BlockGrid(Sequence[Zyx]):
    """The blocks that cover `box`, as their indices z, y, x; the grid begins where the box does. Nothing is kept.

    `grid[number]` is the index of a block in an order in which each block touches the one before: back and forth along
    x, then along y, section by section of blocks. `grid.box(index)` is the block, the last ones cut to the box.
    """

    def __init__(self, box: Box, block: Zyx) -> None:
        self.box_of_all, self.block = box, block
        self.shape: Zyx = tuple(-(-n // b) for n, b in zip(box.shape, block, strict=True))  # type: ignore[assignment]

    def __len__(self) -> int:
        return math.prod(self.shape)

    def __getitem__(self, number: Any) -> Any:
        """The index z, y, x of block `number`; a slice gives a list of them."""
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        if not -len(self) <= number < len(self):
            raise IndexError(f"block {number} of {len(self)}")
        _, rows, columns = self.shape
        z, rest = divmod(number % len(self), rows * columns)
        y, x = divmod(rows * columns - 1 - rest if z % 2 else rest, columns)
        return z, y, columns - 1 - x if y % 2 else x

    def __contains__(self, index: object) -> bool:
        return (
            isinstance(index, tuple)
            and len(index) == 3
            and all(isinstance(i, int) and 0 <= i < n for i, n in zip(index, self.shape, strict=True))
        )

    def index(self, index: Any, start: int = 0, stop: int | None = None) -> int:
        """The number of the block whose index is z, y, x."""
        if index not in self:
            raise ValueError(f"there is no block {index}; the grid has {self.shape} (z,y,x)")
        _, rows, columns = self.shape
        z, y, x = index
        rest = y * columns + (columns - 1 - x if y % 2 else x)
        return int(z * rows * columns + (rows * columns - 1 - rest if z % 2 else rest))

    def box(self, index: Zyx) -> Box:
        """The voxels of a block."""
        start = [a + i * n for a, i, n in zip(self.box_of_all.start, index, self.block, strict=True)]
        return Box.at(start, self.block).intersect(self.box_of_all)

    def covering(self, box: Box) -> Iterator[Zyx]:
        """The indices of the blocks that share a voxel with `box`, z slowest."""
        part = box.intersect(self.box_of_all)
        if part.num_voxels == 0:
            return
        ranges = []
        for a, b, origin, n in zip(part.start, part.stop, self.box_of_all.start, self.block, strict=True):
            ranges.append(range((a - origin) // n, (b - 1 - origin) // n + 1))
        yield from itertools.product(*ranges)  # type: ignore[misc]

    def kinds(self, ends: int = 1) -> Iterator[tuple[int, Box]]:
        """Pairs (how many blocks are of this kind, one of them), for sums over all blocks.

        Along each axis the first `ends` blocks and the last `ends` are kinds of their own, those between are one.
        """
        axes = []
        for n in self.shape:
            alone = sorted({*range(min(ends, n)), *range(max(0, n - ends), n)})
            axes.append([(1, i) for i in alone] + ([(n - len(alone), ends)] if n > len(alone) else []))
        for kind in itertools.product(*axes):
            yield math.prod(number for number, _ in kind), self.box(tuple(i for _, i in kind))  # type: ignore[arg-type]


def name_of(index: Zyx) -> str:
    """The name of a block in the ledger: `z_y_x` of its index."""
    return "_".join(map(str, index))


def index_of(name: str) -> Zyx:
    """The index that `name_of` named. Raises ValueError for another name."""
    parts = name.split("_")
    if len(parts) != 3 or not all(part.isdecimal() for part in parts):
        raise ValueError(f"{name!r} is no name of a block; expected z_y_x, such as 0_12_7")
    return tuple(map(int, parts))  # type: ignore[return-value]


def source_at(levels: Sequence[Level], level: int, box: Box, at: int = 0) -> Box:
    """The voxels of level `at` that the voxels `box` of the coarser level `level` are made of, cut to what is there."""
    for step in range(level, at, -1):
        box = levels[step].source(box)
    return box.intersect(levels[at].box)


def _scaled(box: Box, factors: Zyx) -> Box:
    start = tuple(a * f for a, f in zip(box.start, factors, strict=True))
    return Box(start, tuple(b * f for b, f in zip(box.stop, factors, strict=True)))  # type: ignore[arg-type]

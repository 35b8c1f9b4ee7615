"""How an output is cut: chunks in shards, shards in blocks, levels of a pyramid. Pure arithmetic on z, y, x."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from kasthuri_ray.geometry import AXES, Box, Zyx

BLOCK_VOXELS = 64 * 2048 * 2048  # of a block nobody asked for, at most, unless one shard is larger


@dataclass(frozen=True)
class ArrayLayout:
    """Of an array: the shards that it is stored in, and the chunks that can be read from one. z, y, x in voxels."""

    shard: Zyx
    chunk: Zyx


def check_block_shape(block: Zyx, shard: Zyx, shape: Zyx) -> None:
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


def default_block_shape(shape: Zyx, layout: ArrayLayout, margin: Zyx) -> Zyx:
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


def block_name(index: Zyx) -> str:
    """The name of a block in the ledger: `z_y_x` of its index."""
    return "_".join(map(str, index))


def block_index(name: str) -> Zyx:
    """The index that `name_of` named. Raises ValueError for another name."""
    parts = name.split("_")
    if len(parts) != 3 or not all(part.isdecimal() for part in parts):
        raise ValueError(f"{name!r} is no name of a block; expected z_y_x, such as 0_12_7")
    return tuple(map(int, parts))  # type: ignore[return-value]

"""How an output is divided into blocks, which are whole shards: arithmetic on z, y, x."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Iterator, Sequence
from typing import Any

from kasthuri_ray.errors import InputError
from kasthuri_ray.geometry import Box, Zyx, ceil_div, per_axis
from kasthuri_ray.output.layout import ArrayLayout, check_multiple

MAX_DEFAULT_VOXELS = 64 * 2048 * 2048  # of a default block, unless one shard is larger


def check_block_shape(block: Zyx, shard: Zyx, shape: Zyx) -> None:
    """Check that a block is whole shards.

    Parameters
    ----------
    block, shard : tuple of int
        Shapes, z, y, x.
    shape : tuple of int
        Of what is segmented, z, y, x. Along an axis that the block covers entirely any size is right.

    Raises
    ------
    InputError
        If it is not. The message names the nearest good sizes.
    """
    if min(block) < 1:
        raise InputError(f"block {tuple(block)}: expected three sizes z,y,x of at least 1")
    check_multiple("block", block, "shard", shard, exempt=per_axis(operator.ge, block, shape))


def default_block_shape(shape: Zyx, layout: ArrayLayout, margin: Zyx) -> Zyx:
    """Choose the shape of blocks for which the least halo is read.

    Starts with one shard. Adds shards along the axis where the margin is largest in relation to the block, while the
    block is smaller than the box there and has at most 64 x 2048 x 2048 voxels.

    Parameters
    ----------
    shape : tuple of int
        Of what is segmented, z, y, x.
    layout : ArrayLayout
        Shards and chunks of the output.
    margin : tuple of int
        Context that the network needs on each side, z, y, x.

    Returns
    -------
    tuple of int
        Whole shards: (64, 2048, 2048) for a network that sees one section, deeper blocks for one in 3D.
    """
    block = layout.shard
    while True:
        larger: dict[int, Zyx] = {}
        for axis in range(3):
            z, y, x = (n + layout.shard[a] * (a == axis) for a, n in enumerate(block))
            if margin[axis] and block[axis] < shape[axis] and z * y * x <= MAX_DEFAULT_VOXELS:
                larger[axis] = (z, y, x)
        if not larger:
            return block
        block = larger[max(larger, key=lambda axis: (margin[axis] / block[axis], -axis))]


class BlockGrid(Sequence[Zyx]):
    """The blocks that cover a box, as a sequence of their indices z, y, x, which are computed when they are needed.

    `grid[number]` is the index of a block, in an order in which each block touches the one before: back and forth along
    x, then along y, then along z. `grid.box(index)` is the block; the last blocks are cut to the box.

    Parameters
    ----------
    box : Box
        What the blocks cover; the first block starts where it does.
    block : tuple of int
        Shape of a block, z, y, x.
    """

    def __init__(self, box: Box, block: Zyx) -> None:
        self.bounds, self.block = box, block
        self.shape: Zyx = per_axis(ceil_div, box.shape, block)

    def __len__(self) -> int:
        return math.prod(self.shape)

    def __getitem__(self, number: Any) -> Any:
        """Return the index z, y, x of block `number`, or a list of indices for a slice."""
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
        """Return the number of the block with the index z, y, x."""
        if index not in self:
            raise InputError(f"there is no block {index}; the grid has {self.shape} (z,y,x)")
        _, rows, columns = self.shape
        z, y, x = index
        rest = y * columns + (columns - 1 - x if y % 2 else x)
        return int(z * rows * columns + (rows * columns - 1 - rest if z % 2 else rest))

    def box(self, index: Zyx) -> Box:
        """Return the voxels of a block."""
        start = per_axis(operator.mul, index, self.block)
        return Box.at(start, self.block).shifted(self.bounds.start).intersect(self.bounds)

    def overlapping(self, box: Box) -> Iterator[Zyx]:
        """Yield the indices of the blocks that share a voxel with `box`, z slowest."""
        part = box.intersect(self.bounds).relative_to(self.bounds.start)
        if part.num_voxels:
            first, stop = per_axis(operator.floordiv, part.start, self.block), per_axis(ceil_div, part.stop, self.block)
            yield from itertools.product(*per_axis(range, first, stop))

    def representative_blocks(self, ends: int = 1) -> Iterator[tuple[int, Box]]:
        """Yield (number of blocks, one of them) for groups of equal blocks, for sums over all blocks.

        Along each axis the first `ends` and the last `ends` blocks are groups of their own; those between are one.
        """
        axes = per_axis(lambda n: _groups_along_axis(n, ends), self.shape)
        for groups in itertools.product(*axes):
            yield math.prod(number for number, _ in groups), self.box(per_axis(lambda group: group[1], groups))


def block_name(index: Zyx) -> str:
    """Return the name of a block in the ledger.

    Parameters
    ----------
    index : tuple of int
        Index of the block, z, y, x.

    Returns
    -------
    str
        `z_y_x` of its index.
    """
    return "_".join(map(str, index))


def block_index(name: str) -> Zyx:
    """Return the index of a block by its name in the ledger.

    Parameters
    ----------
    name : str
        What `block_name` returned.

    Returns
    -------
    tuple of int
        Index of the block, z, y, x.

    Raises
    ------
    InputError
        If it is not the name of a block.
    """
    parts = name.split("_")
    if len(parts) != 3 or not all(part.isdecimal() for part in parts):
        raise InputError(f"{name!r} is not the name of a block; expected z_y_x, such as 0_12_7")
    return per_axis(int, parts)


def _groups_along_axis(num_blocks: int, ends: int) -> list[tuple[int, int]]:
    """Return (number of blocks, index of one of them) for each group along an axis."""
    single = sorted({*range(min(ends, num_blocks)), *range(max(0, num_blocks - ends), num_blocks)})
    num_between = num_blocks - len(single)
    return [(1, i) for i in single] + ([(num_between, ends)] if num_between else [])

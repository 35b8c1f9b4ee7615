"""Boxes and tiles in voxels: z, y, x order, half-open, pure arithmetic."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

Zyx = tuple[int, int, int]
AXES = "zyx"


@dataclass(frozen=True)
class Box:
    """A half-open box of voxels, `start <= voxel < stop` along z, y, x."""

    start: Zyx
    stop: Zyx

    def __post_init__(self) -> None:
        object.__setattr__(self, "start", tuple(int(value) for value in self.start))
        object.__setattr__(self, "stop", tuple(int(value) for value in self.stop))
        if len(self.start) != 3 or len(self.stop) != 3:
            raise ValueError(f"a box has three axes (z, y, x), got {self.start} to {self.stop}")

    @classmethod
    def at(cls, start: Sequence[int], shape: Sequence[int]) -> Box:
        """The box of `shape` voxels whose first voxel is `start`."""
        return cls(tuple(start), tuple(a + n for a, n in zip(start, shape, strict=True)))  # type: ignore[arg-type]

    @property
    def shape(self) -> Zyx:
        return tuple(b - a for a, b in zip(self.start, self.stop, strict=True))  # type: ignore[return-value]

    @property
    def num_voxels(self) -> int:
        return math.prod(max(0, n) for n in self.shape)

    def contains(self, other: Box) -> bool:
        """Whether every voxel of `other` lies in this box."""
        return all(a <= c and d <= b for a, b, c, d in self._pairs(other))

    def intersect(self, other: Box) -> Box:
        """What both boxes share; empty (no voxels, never a negative shape) where they do not meet."""
        start = tuple(max(a, c) for a, _, c, _ in self._pairs(other))
        stop = tuple(min(b, d) for _, b, _, d in self._pairs(other))
        return Box(start, tuple(max(a, b) for a, b in zip(start, stop, strict=True)))  # type: ignore[arg-type]

    def overlaps(self, other: Box) -> bool:
        return self.intersect(other).num_voxels > 0

    def grown_to_grid(self, cell: Sequence[int], origin: Sequence[int] = (0, 0, 0)) -> Box:
        """The smallest box of whole grid cells of shape `cell`, with a corner at `origin`, that covers this one."""
        start = (o + (a - o) // c * c for a, c, o in zip(self.start, cell, origin, strict=True))
        stop = (o - (o - b) // c * c for b, c, o in zip(self.stop, cell, origin, strict=True))
        return Box(tuple(start), tuple(stop))  # type: ignore[arg-type]

    def cells(self, cell: Sequence[int], origin: Sequence[int] = (0, 0, 0)) -> Iterator[Box]:
        """The grid cells (see `grown_to_grid`) that this box meets, each cut to the box, z slowest."""
        grown = self.grown_to_grid(cell, origin)
        corners = (range(a, b, c) for a, b, c in zip(grown.start, grown.stop, cell, strict=True))
        for corner in itertools.product(*corners):
            yield Box.at(corner, cell).intersect(self)

    def slices(self, origin: Sequence[int] = (0, 0, 0)) -> tuple[slice, slice, slice]:
        """Slices that cut this box from an array whose voxel [0, 0, 0] is the voxel `origin`."""
        return tuple(slice(a - o, b - o) for a, b, o in zip(self.start, self.stop, origin, strict=True))  # type: ignore[return-value]

    def _pairs(self, other: Box) -> Iterator[tuple[int, int, int, int]]:
        return zip(self.start, self.stop, other.start, other.stop, strict=True)

    def __str__(self) -> str:
        return ",".join(f"{a}:{b}" for a, b in zip(self.start, self.stop, strict=True))


def parse_box(text: str, bounds: Box) -> Box:
    """The box that `text` names, such as `0:100,1000:3000,:`, inside `bounds`.

    `:` stands for the whole axis. Raises ValueError for anything that is not three ranges, is empty, negative, or
    not wholly inside `bounds`.
    """
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 3 or any(part.count(":") != 1 for part in parts):
        raise ValueError(f"box {text!r} is not three ranges z,y,x such as 0:100,1000:3000,: (half-open, in voxels)")
    start, stop = [], []
    for axis, part in enumerate(parts):
        low, high = part.split(":")
        try:
            start.append(int(low) if low else bounds.start[axis])
            stop.append(int(high) if high else bounds.stop[axis])
        except ValueError:
            raise ValueError(f"box {text!r}: {part!r} along {AXES[axis]} is not a range of whole voxels") from None
        if start[-1] < min(0, bounds.start[axis]) or stop[-1] < min(0, bounds.start[axis]):
            raise ValueError(f"box {text!r}: negative indices are refused, along {AXES[axis]} it has {part!r}")
    return check_inside(Box(tuple(start), tuple(stop)), bounds, f"box {text!r}")  # type: ignore[arg-type]


def check_inside(box: Box, bounds: Box, what: str) -> Box:
    """`box`, if it holds voxels and lies in `bounds`; a ValueError that shows the bounds if not."""
    if box.num_voxels == 0:
        raise ValueError(f"{what} holds no voxels: {box}")
    if not bounds.contains(box):
        raise ValueError(f"{what} is outside the volume: {box} is not within {bounds} (z,y,x)")
    return box


def tile_starts(start: int, stop: int, size: int) -> list[int]:
    """Where tiles of `size` begin so that they cover `start`..`stop`; the last one shifts inward."""
    if stop - start < size:
        raise ValueError(f"a range of {stop - start} voxels is smaller than the tile, {size}")
    starts = list(range(start, stop - size + 1, size))
    if starts[-1] + size < stop:
        starts.append(stop - size)
    return starts


class TileGrid(Sequence[tuple[Box, Box]]):
    """Tiles that cover `box`, z slowest, and of each the part that no tile before it holds; nothing is kept of them.

    Gives pairs (tile, own): `tile` has the shape `tile`, the last along an axis shifts inward; the `own` boxes
    cover every voxel of `box` exactly once. Raises ValueError where the box is smaller than a tile.
    """

    def __init__(self, box: Box, tile: Zyx) -> None:
        for axis in range(3):
            if box.shape[axis] < tile[axis]:
                raise ValueError(
                    f"box {box} is smaller than a tile along {AXES[axis]}: "
                    f"it has {box.shape[axis]} voxels, the tile {tile[axis]}"
                )
        self.box, self.tile = box, tile
        self._starts = [tile_starts(box.start[axis], box.stop[axis], tile[axis]) for axis in range(3)]

    def __len__(self) -> int:
        return math.prod(len(starts) for starts in self._starts)

    def __getitem__(self, number: Any) -> Any:
        """The pair `number`; a slice gives a list of pairs."""
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        if not -len(self) <= number < len(self):
            raise IndexError(f"tile {number} of {len(self)}")
        number = number % len(self)
        places: list[int] = []
        for starts in reversed(self._starts):
            number, place = divmod(number, len(starts))
            places.insert(0, place)
        start, own, stop = [], [], []
        for starts, place, size in zip(self._starts, places, self.tile, strict=True):
            start.append(starts[place])
            own.append(starts[place - 1] + size if place else starts[place])
            stop.append(starts[place] + size)
        return Box(tuple(start), tuple(stop)), Box(tuple(own), tuple(stop))  # type: ignore[arg-type]

"""Boxes and tiles in voxels: z, y, x order, half-open, pure arithmetic."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from kasthuri_ray.errors import InputError

Zyx = tuple[int, int, int]
Nm = tuple[float, float, float]
AXES = "zyx"
T = TypeVar("T")


def per_axis(function: Callable[..., T], *values: Sequence[Any]) -> tuple[T, T, T]:
    """Return `function` of the values of each axis.

    Parameters
    ----------
    function : callable
        Takes one value of each of `values`.
    *values : sequence of three
        One value an axis, z, y, x.

    Returns
    -------
    tuple of three
        One result an axis, z, y, x.

    Raises
    ------
    ValueError
        If there are not three axes.
    """
    z, y, x = (function(*each) for each in zip(*values, strict=True))
    return z, y, x


def ceil_div(dividend: int, divisor: int) -> int:
    """Return the quotient rounded up.

    Parameters
    ----------
    dividend, divisor : int
        Any integers but a divisor of 0.

    Returns
    -------
    int
        The smallest integer that is not less than dividend / divisor.
    """
    return -(-dividend // divisor)


@dataclass(frozen=True)
class Box:
    """A half-open box of voxels, `start <= voxel < stop` along z, y, x.

    Parameters
    ----------
    start, stop : tuple of int
        First voxel, and the voxel after the last, z, y, x.

    Raises
    ------
    ValueError
        If `start` or `stop` does not have three axes.
    """

    start: Zyx
    stop: Zyx

    def __post_init__(self) -> None:
        object.__setattr__(self, "start", tuple(int(value) for value in self.start))
        object.__setattr__(self, "stop", tuple(int(value) for value in self.stop))
        if len(self.start) != 3 or len(self.stop) != 3:
            raise ValueError(f"a box has three axes (z, y, x), got {self.start} to {self.stop}")

    @classmethod
    def at(cls, start: Sequence[int], shape: Sequence[int]) -> Box:
        """Return the box of `shape` voxels whose first voxel is `start`."""
        return cls(per_axis(int, start), per_axis(operator.add, start, shape))

    @property
    def shape(self) -> Zyx:
        """Number of voxels along z, y, x."""
        return per_axis(operator.sub, self.stop, self.start)

    @property
    def num_voxels(self) -> int:
        """Number of voxels; 0 if the box is empty along any axis."""
        return math.prod(max(0, n) for n in self.shape)

    def contains(self, other: Box) -> bool:
        """Return whether every voxel of `other` lies in this box."""
        return self.intersect(other) == other

    def intersect(self, other: Box) -> Box:
        """Return the voxels that both boxes share; empty, never of negative shape, where they do not meet."""
        start = per_axis(max, self.start, other.start)
        return Box(start, per_axis(max, start, per_axis(min, self.stop, other.stop)))

    def overlaps(self, other: Box) -> bool:
        """Return whether the boxes share a voxel."""
        return self.intersect(other).num_voxels > 0

    def shifted(self, by: Sequence[int]) -> Box:
        """Return the box, moved by a number of voxels along z, y, x."""
        return Box(per_axis(operator.add, self.start, by), per_axis(operator.add, self.stop, by))

    def relative_to(self, origin: Sequence[int]) -> Box:
        """Return the box in voxels counted from the voxel `origin`."""
        return self.shifted(per_axis(operator.neg, origin))

    def grown(self, margin: Sequence[int]) -> Box:
        """Return the box with `margin` voxels more on both sides of each axis."""
        return Box(per_axis(operator.sub, self.start, margin), per_axis(operator.add, self.stop, margin))

    def scaled(self, factors: Sequence[int]) -> Box:
        """Return the same box in voxels that are smaller by whole factors."""
        return Box(per_axis(operator.mul, self.start, factors), per_axis(operator.mul, self.stop, factors))

    def grown_to_grid(self, cell: Sequence[int], origin: Sequence[int] = (0, 0, 0)) -> Box:
        """Return the smallest box of whole grid cells that covers this one.

        Parameters
        ----------
        cell : sequence of int
            Shape of a grid cell, z, y, x.
        origin : sequence of int
            A corner of the grid.
        """
        start = per_axis(lambda a, c, o: o + (a - o) // c * c, self.start, cell, origin)
        return Box(start, per_axis(lambda b, c, o: o + ceil_div(b - o, c) * c, self.stop, cell, origin))

    def cells(self, cell: Sequence[int], origin: Sequence[int] = (0, 0, 0)) -> Iterator[Box]:
        """Yield the grid cells (see `grown_to_grid`) that this box meets, each cut to the box, z slowest."""
        grown = self.grown_to_grid(cell, origin)
        for corner in itertools.product(*per_axis(range, grown.start, grown.stop, cell)):
            yield Box.at(corner, cell).intersect(self)

    def slices(self, origin: Sequence[int] = (0, 0, 0)) -> tuple[slice, slice, slice]:
        """Return slices that cut this box from an array whose voxel [0, 0, 0] is the voxel `origin`."""
        inside = self.relative_to(origin)
        return per_axis(slice, inside.start, inside.stop)

    def __str__(self) -> str:
        return ",".join(f"{a}:{b}" for a, b in zip(self.start, self.stop, strict=True))


def parse_box(text: str, bounds: Box, what: str = "box", where: str = "") -> Box:
    """Return the box that a text such as `0:100,1000:3000,:` names.

    Parameters
    ----------
    text : str
        Three half-open ranges z, y, x, in voxels; `:` is the whole axis.
    bounds : Box
        What the box must lie in.
    what : str
        Opens the message of an error, such as `--box`.
    where : str
        Name of the volume that `bounds` are those of, for the message of an error.

    Returns
    -------
    Box
        The box, in the voxels of `bounds`.

    Raises
    ------
    InputError
        If the text is not three ranges, or the box is empty, negative where `bounds` is not, or outside `bounds`.
    """
    parts = [part.strip() for part in text.split(",")]
    name = f"{what} {text}" if text else f"{what} {text!r}"
    if len(parts) != 3 or any(part.count(":") != 1 for part in parts):
        raise InputError(f"{name} is not three ranges z,y,x such as 0:100,1000:3000,: (half-open, in voxels)")
    whole = zip(parts, AXES, bounds.start, bounds.stop, strict=True)
    start, stop = zip(*(_parse_range(name, *axis) for axis in whole), strict=True)
    box = Box(start, stop)
    if box.num_voxels == 0:
        raise InputError(f"{name} holds no voxels: a range is start:stop, without the voxel stop")
    if not bounds.contains(box):
        turned = Box(start[::-1], stop[::-1])
        hint = f"; is it x,y,z? In the order z,y,x it is {turned}" if bounds.contains(turned) else ""
        raise InputError(f"{name} is outside the volume{where and ' '}{where}, {bounds} (z,y,x){hint}")
    return box


def box_of_text(text: str) -> Box:
    """Return the box that `str(box)` wrote, such as `0:100,-8:16,0:16`.

    Parameters
    ----------
    text : str
        Three half-open ranges z, y, x, in voxels.

    Returns
    -------
    Box
        The box.

    Raises
    ------
    ValueError
        If there are not three ranges.
    """
    ranges = [part.split(":") for part in text.split(",")]
    start, stop = zip(*((int(a), int(b)) for a, b in ranges), strict=True)
    return Box(start, stop)


def count_covered(boxes: Iterable[Box], within: Box) -> int:
    """Return how many voxels of a box other boxes cover; one that several cover counts once.

    Parameters
    ----------
    boxes : iterable of Box
        They may overlap, and extend beyond `within`.
    within : Box
        Whose voxels are counted.

    Returns
    -------
    int
        Number of voxels.
    """
    parts = [part for box in boxes if (part := box.intersect(within)).num_voxels]
    edges = [sorted({edge for part in parts for edge in (part.start[axis], part.stop[axis])}) for axis in range(3)]
    count = 0
    for z, z_stop in itertools.pairwise(edges[0]):
        slab = [part for part in parts if part.start[0] <= z < part.stop[0]]
        for y, y_stop in itertools.pairwise(edges[1]):
            ranges = sorted((p.start[2], p.stop[2]) for p in slab if p.start[1] <= y < p.stop[1])
            covered, last = 0, within.start[2]
            for start, stop in ranges:
                covered += max(0, stop - max(start, last))
                last = max(last, stop)
            count += (z_stop - z) * (y_stop - y) * covered
    return count


def _parse_range(name: str, part: str, axis: str, low: int, high: int) -> tuple[int, int]:
    first, last = part.split(":")
    try:
        start, stop = int(first) if first else low, int(last) if last else high
    except ValueError:
        raise InputError(f"{name}: {part!r} along {axis} is not a range of whole voxels") from None
    if min(start, stop) < min(0, low):
        raise InputError(f"{name}: negative indices are refused, along {axis} it has {part!r}")
    return start, stop


def check_inside(box: Box, bounds: Box, what: str) -> Box:
    """Return `box` if it holds voxels and lies in `bounds`.

    Parameters
    ----------
    box, bounds : Box
        What is checked, and what it must lie in.
    what : str
        Opens the message of the error.

    Returns
    -------
    Box
        `box`.

    Raises
    ------
    InputError
        If the box is empty or outside; the message shows `bounds`.
    """
    if box.num_voxels == 0:
        raise InputError(f"{what} holds no voxels: {box}")
    if not bounds.contains(box):
        raise InputError(f"{what} is outside the volume: {box} is not within {bounds} (z,y,x)")
    return box


def tile_starts(start: int, stop: int, size: int) -> list[int]:
    """Return where tiles of `size` begin that cover `start`..`stop`; the last one shifts inward.

    Raises
    ------
    InputError
        If the range is smaller than a tile.
    """
    if stop - start < size:
        raise InputError(f"a range of {stop - start} voxels is smaller than the tile, {size}")
    starts = list(range(start, stop - size + 1, size))
    if starts[-1] + size < stop:
        starts.append(stop - size)
    return starts


class TileGrid(Sequence[tuple[Box, Box]]):
    """Tiles that cover a box, z slowest; computed when they are asked for.

    An element is a pair (tile, own). `tile` has the shape of a tile; the last one along an axis shifts inward. The
    `own` boxes, the parts that no earlier tile holds, cover every voxel of the box exactly once.

    Parameters
    ----------
    box : Box
        What the tiles cover.
    tile : tuple of int
        Shape of a tile, z, y, x.

    Raises
    ------
    InputError
        If the box is smaller than a tile.
    """

    def __init__(self, box: Box, tile: Zyx) -> None:
        for axis in range(3):
            if box.shape[axis] < tile[axis]:
                raise InputError(
                    f"box {box} is smaller than a tile along {AXES[axis]}: "
                    f"it has {box.shape[axis]} voxels, the tile {tile[axis]}"
                )
        self.box, self.tile = box, tile
        self._starts = per_axis(tile_starts, box.start, box.stop, tile)

    def __len__(self) -> int:
        return math.prod(len(starts) for starts in self._starts)

    def __getitem__(self, number: Any) -> Any:
        """Return the pair `number`, or a list of pairs for a slice."""
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        if not -len(self) <= number < len(self):
            raise IndexError(f"tile {number} of {len(self)}")
        number = number % len(self)
        places: list[int] = []
        for starts in reversed(self._starts):
            number, place = divmod(number, len(starts))
            places.insert(0, place)
        tile = Box.at(per_axis(lambda starts, place: starts[place], self._starts, places), self.tile)
        own = per_axis(self._own_start, self._starts, places, self.tile)
        return tile, Box(own, tile.stop)

    @staticmethod
    def _own_start(starts: list[int], place: int, size: int) -> int:
        return starts[place - 1] + size if place else starts[0]

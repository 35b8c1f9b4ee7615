"""The tiles that a block is computed in, and the chunks of it that need no computing. Needs numpy alone.

A tile is what the network sees at once: a core, whose probabilities are kept, and a margin around it, whose
probabilities are discarded. Tiles are aligned to the pooling grid. The grid has a corner at the volume's first voxel
(`origin`), so that the network pools the same voxels together in all blocks and tiles.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kasthuri_ray.errors import InputError
from kasthuri_ray.geometry import AXES, Box, Zyx, ceil_div, per_axis

Span = tuple[int, int, int, int]  # of a tile along one axis: input start and stop, core start and stop


@dataclass(frozen=True)
class Tile:
    """A box that the network sees (`input`, which may extend beyond the volume), and the part that is kept (`core`)."""

    input: Box
    core: Box


def choose_tile_shape(
    block_shape: Sequence[int], margin: Zyx, factors: Zyx, max_voxels: int, dim: int, phase: Zyx = (0, 0, 0)
) -> Zyx:
    """Return the shape of tiles, margins included, for which blocks of `block_shape` take the fewest voxels to compute.

    Tiles have up to `max_voxels`, or are the smallest possible where that is less; in 2D a tile is one section.
    `phase` is the position of the blocks' first voxel in a cell of the pooling grid (`pooling_phase`). Margins are
    rounded up to the grid.
    """
    margin = margin_on_grid(margin, factors)
    extents = per_axis(_max_extent, block_shape, factors, phase)
    core_sizes = list(per_axis(_core_sizes, extents, factors))
    if dim == 2:
        core_sizes[0] = [1]
    tiles = []
    for core in itertools.product(*core_sizes):
        shape = per_axis(lambda c, m: c + 2 * m, core, margin)
        tiles.append((math.prod(shape), math.prod(per_axis(ceil_div, extents, core)), shape))
    small_enough = [tile for tile in tiles if tile[0] <= max_voxels] or [min(tiles)]
    # Of equal ones the one with the fewest tiles, then the widest: rows are contiguous.
    _, _, best = min(small_enough, key=lambda tile: (tile[0] * tile[1], tile[1], [-n for n in reversed(tile[2])]))
    return best


def check_tile_shape(tile: Sequence[int], margin: Zyx, factors: Zyx, dim: int) -> Zyx:
    """Return a tile shape (z, y, x, margins included) if the network can take it.

    Raises InputError with the nearest good sizes if it cannot.
    """
    for axis, (n, m, f) in enumerate(zip(tile, margin_on_grid(margin, factors), factors, strict=True)):
        smallest = 2 * m + f
        reason = f"it must be a multiple of {f} and more than the margins, 2 x {m}"
        nearest = sorted({max(smallest, n // f * f), max(smallest, ceil_div(n, f) * f)})
        if dim == 2 and axis == 0:
            reason, nearest = "sections are computed one by one", [1]
        if n not in nearest:
            raise InputError(
                f"tile {tuple(tile)} has {n} voxels along {AXES[axis]}: {reason}; use {' or '.join(map(str, nearest))}"
            )
    return per_axis(int, tile)


def margin_on_grid(margin: Zyx, factors: Zyx) -> Zyx:
    """Return the margin, rounded up to whole cells of the pooling grid, which a halo of the user may not be."""
    return per_axis(lambda m, f: ceil_div(m, f) * f, margin, factors)


def pooling_phase(start: Zyx, origin: Zyx, factors: Zyx) -> Zyx:
    """Return the position of a voxel in its cell of the pooling grid.

    Parameters
    ----------
    start : tuple of int
        The voxel, z, y, x.
    origin : tuple of int
        A corner of the pooling grid: the volume's first voxel, z, y, x.
    factors : tuple of int
        A cell of the pooling grid, z, y, x.

    Returns
    -------
    tuple of int
        Voxels from the corner of the cell, z, y, x.
    """
    return per_axis(lambda s, o, f: (s - o) % f, start, origin, factors)


def plan_tiles(block: Box, origin: Zyx, margin: Zyx, factors: Zyx, tile: Zyx) -> list[Tile]:
    """Return tiles of one shape, at most `tile`, whose cores cover `block` exactly once, z slowest.

    The input of a tile is whole cells of the pooling grid. Blocks that `tile` was not chosen for, such as those at the
    end of the volume, get smaller tiles.
    """
    tiles = []
    for spans in itertools.product(*_tile_spans(block, origin, margin, factors, tile)):
        starts, stops, core_starts, core_stops = zip(*spans, strict=True)
        tiles.append(Tile(Box(starts, stops), Box(core_starts, core_stops)))
    return tiles


def count_computed_voxels(block: Box, origin: Zyx, margin: Zyx, factors: Zyx, tile: Zyx) -> int:
    """Count the voxels that go through the network for a block without blank chunks.

    Parameters
    ----------
    block : Box
        The block.
    origin : tuple of int
        A corner of the pooling grid: the volume's first voxel, z, y, x.
    margin : tuple of int
        Margin of a tile on each side, z, y, x.
    factors : tuple of int
        A cell of the pooling grid, z, y, x.
    tile : tuple of int
        Largest tile, margins included, z, y, x.

    Returns
    -------
    int
        Voxels of all tiles, margins included.
    """
    axes = _tile_spans(block, origin, margin, factors, tile)
    return math.prod(sum(stop - start for start, stop, _, _ in spans) for spans in axes)


def recomputed_share(block: Box, origin: Zyx, margin: Zyx, factors: Zyx, tile: Zyx) -> float:
    """Return the share of a block's voxels that is computed in addition, in margins and to fill the pooling grid.

    Parameters
    ----------
    block, origin, margin, factors, tile : Box, tuple of int
        As for `count_computed_voxels`.

    Returns
    -------
    float
        0.1 for 10%.
    """
    return count_computed_voxels(block, origin, margin, factors, tile) / block.num_voxels - 1


def _tile_spans(
    block: Box, origin: Zyx, margin: Zyx, factors: Zyx, tile: Zyx
) -> tuple[list[Span], list[Span], list[Span]]:
    margin = margin_on_grid(margin, factors)
    return per_axis(_spans_along_axis, block.start, block.stop, origin, margin, factors, tile)


def _spans_along_axis(start: int, stop: int, origin: int, margin: int, factor: int, size: int) -> list[Span]:
    phase = (start - origin) % factor
    extent = _max_extent(stop - start, factor, phase)
    num_tiles = ceil_div(extent, max(factor, (size - 2 * margin) // factor * factor))
    core = ceil_div(ceil_div(extent, num_tiles), factor) * factor
    return [
        (low - margin, low + core + margin, max(start, low), min(stop, low + core))
        for low in range(start - phase, stop, core)
    ]


def _max_extent(length: int, factor: int, phase: int) -> int:
    """Return the largest number of voxels, in whole cells of the pooling grid, that a block overlaps along an axis.

    Blocks of whole cells all start at the same phase. Others get what the worst phase needs, so that all blocks of one
    shape get tiles of one shape.
    """
    return ceil_div(length + (factor - 1 if length % factor else phase), factor) * factor


def _core_sizes(extent: int, factor: int) -> list[int]:
    """Return the sizes of equal cores that `extent` can be divided into."""
    cells = extent // factor
    return sorted({ceil_div(cells, count) * factor for count in range(1, cells + 1)})


@dataclass(frozen=True)
class ChunkGrid:
    """Chunks of one shape, side by side.

    Parameters
    ----------
    shape : tuple of int
        Of a chunk, z, y, x.
    origin : tuple of int
        Corner of a chunk, in voxels of the volume, z, y, x.
    """

    shape: Zyx
    origin: Zyx

    def boxes(self, block: Box) -> np.ndarray:
        """Return the chunks of a block as an array z, y, x of boxes, each cut to the block."""
        grown = block.grown_to_grid(self.shape, self.origin)
        boxes = np.empty(per_axis(operator.floordiv, grown.shape, self.shape), object)
        for index, box in zip(np.ndindex(*boxes.shape), block.cells(self.shape, self.origin), strict=True):
            boxes[index] = box
        return boxes

    def indices(self, box: Box) -> Box:
        """Return the numbers of the chunks that overlap a box, as a box."""
        grown = box.grown_to_grid(self.shape, self.origin).relative_to(self.origin)
        return Box(*(per_axis(operator.floordiv, corner, self.shape) for corner in (grown.start, grown.stop)))


@dataclass(frozen=True)
class VolumePart:
    """Voxels of a box of a volume, for the computation of a block in it.

    Parameters
    ----------
    voxels : ndarray, (z, y, x)
        Values of `box`.
    box : Box
        Where they are: the block, grown by its halo and cut to `bounds`.
    bounds : Box
        The volume. It is mirrored at its faces; if the halo is too small, `box` is mirrored as well.
    """

    voxels: np.ndarray
    box: Box
    bounds: Box

    def gather(self, boxes: Sequence[Box], count: int) -> np.ndarray:
        """Return the voxels of boxes of one shape, (`count`, z, y, x); the last box is repeated up to `count`."""
        images = np.empty((count, *boxes[0].shape), self.voxels.dtype)
        for number, image in enumerate(images):
            self._copy(image, boxes[min(number, len(boxes) - 1)])
        return images

    def _copy(self, image: np.ndarray, box: Box) -> None:
        part = self.voxels
        for axis in range(3):
            indices = np.arange(box.start[axis], box.stop[axis])
            for within in (self.bounds, self.box):
                indices = mirror_indices(indices, within.start[axis], within.stop[axis])
            part = _take(part, indices - self.box.start[axis], axis)
        image[...] = part


def _take(array: np.ndarray, indices: np.ndarray, axis: int) -> np.ndarray:
    """Return `array` at indices along an axis; a view if they are consecutive."""
    if (np.diff(indices) == 1).all():
        return array[(slice(None),) * axis + (slice(indices[0], indices[-1] + 1),)]
    return array.take(indices, axis)


def blank_chunk_mask(part: VolumePart, block: Box, grid: ChunkGrid, margin: Zyx, fill_value: float) -> np.ndarray:
    """Find the chunks of a block around which the image holds nothing but its fill value.

    A chunk depends on itself, grown by the margin and cut to the volume; mirrored voxels beyond the volume are from
    within. So the result does not depend on how the output is divided into blocks, as long as these are whole chunks.

    Parameters
    ----------
    part : VolumePart
        All voxels that the chunks depend on, as the image stores them.
    block : Box
        The block.
    grid : ChunkGrid
        The chunks.
    margin : tuple of int
        Context that a chunk depends on, z, y, x. If the block was read with a smaller halo, pass the halo.
    fill_value : float
        Value of blank voxels.

    Returns
    -------
    ndarray of bool, (z, y, x)
        Whether each chunk is blank, in the order of `ChunkGrid.boxes`.

    Raises
    ------
    ValueError
        If `part` does not hold all voxels that the chunks depend on.
    """
    boxes = grid.boxes(block)
    blank = np.zeros(boxes.shape, bool)
    for index, chunk_box in np.ndenumerate(boxes):
        context = chunk_box.grown(margin).intersect(part.bounds)
        if not part.box.contains(context):
            raise ValueError(f"chunk {chunk_box} depends on {context}, and only {part.box} was read")
        blank[index] = _is_blank(part.voxels[context.slices(part.box.start)], fill_value)
    return blank


def tiles_to_compute(tiles: Sequence[Tile], block: Box, grid: ChunkGrid, keep: np.ndarray) -> list[Tile]:
    """Return the tiles whose cores overlap a chunk to be kept. keep: bool z, y, x, in the order of `grid.boxes`."""
    first = grid.indices(block).start
    return [tile for tile in tiles if keep[grid.indices(tile.core).slices(first)].any()]


def mirror_indices(indices: np.ndarray, low: int, high: int) -> np.ndarray:
    """Return for each index along an axis the index within `low`..`high` (half-open) that is mirrored there.

    As in np.pad(mode="reflect"): the outermost voxel is not repeated, and beyond the length of the axis reflections
    repeat. An axis of one voxel is repeated.
    """
    length = high - low
    if length == 1:
        return np.full_like(indices, low)
    period = 2 * (length - 1)
    offset = (indices - low) % period
    return low + np.minimum(offset, period - offset)


def _is_blank(voxels: np.ndarray, fill_value: float) -> bool:
    """Compare section by section: it stops at the first that is not blank, and needs no large array of bools.

    Voxels of nan are blank too: they were not imaged.
    """
    if voxels.dtype.kind == "f":
        return not any(((section != fill_value) & ~np.isnan(section)).any() for section in voxels)
    return not any((section != fill_value).any() for section in voxels)

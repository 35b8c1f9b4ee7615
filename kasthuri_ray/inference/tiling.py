"""Which tiles a block is computed in, and which of its chunks need no computing. Pure: numpy and boxes alone.

A tile is what the network sees at once: a core, whose probabilities are kept, and a margin around it, whose are not.
Tiles keep to the pooling grid, which has a corner at the volume's first voxel (`anchor`), so that the network pools the
same voxels together whatever block and tile they are in.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from kasthuri_ray.geometry import AXES, Box, Zyx

Span = tuple[int, int, int, int]


@dataclass(frozen=True)
class Tile:
    """What the network sees (`input`, which may reach beyond the volume), and the part of it that is kept (`core`)."""

    input: Box
    core: Box


def choose_tile_shape(
    block_shape: Sequence[int], margin: Zyx, factors: Zyx, most_voxels: int, dim: int, phase: Zyx = (0, 0, 0)
) -> Zyx:
    """The shape of a tile, margins included, so that blocks of `block_shape` take the fewest voxels to compute.

    Of tiles with up to `most_voxels`; the smallest that there is where that is less. In 2D a tile is one section.
    phase: of the blocks' first voxel within a cell of the pooling grid, see `phase_of`. Margins are rounded up to it.
    """
    margin = margin_on_grid(margin, factors)
    extents = [_extent(n, f, p) for n, f, p in zip(block_shape, factors, phase, strict=True)]
    cores = [_cores(extent, f) for extent, f in zip(extents, factors, strict=True)]
    if dim == 2:
        cores[0] = [1]
    tiles = []
    for core in itertools.product(*cores):
        shape = tuple(c + 2 * m for c, m in zip(core, margin, strict=True))
        count = math.prod(-(-extent // c) for extent, c in zip(extents, core, strict=True))
        tiles.append((math.prod(shape), count, shape))
    fitting = [tile for tile in tiles if tile[0] <= most_voxels] or [min(tiles)]
    # Of equals the fewest tiles, then the widest: rows are contiguous.
    _, _, best = min(fitting, key=lambda tile: (tile[0] * tile[1], tile[1], [-n for n in reversed(tile[2])]))
    return best  # type: ignore[return-value]


def margin_on_grid(margin: Zyx, factors: Zyx) -> Zyx:
    """The margin in whole cells of the pooling grid: it is one already unless a smaller halo was asked for."""
    return tuple(-(-m // f) * f for m, f in zip(margin, factors, strict=True))  # type: ignore[return-value]


def pooling_phase(start: Zyx, anchor: Zyx, factors: Zyx) -> Zyx:
    """Where in its cell of the pooling grid a voxel lies."""
    return tuple((s - a) % f for s, a, f in zip(start, anchor, factors, strict=True))  # type: ignore[return-value]


def plan_tiles(block: Box, anchor: Zyx, margin: Zyx, factors: Zyx, tile: Zyx) -> list[Tile]:
    """Tiles of one shape, at most `tile`, whose cores cover `block` exactly once; z slowest.

    anchor: a corner of the pooling grid, the volume's first voxel. A tile's input starts on that grid and is whole
    cells of it. A block that `tile` was not chosen for, such as one cut by the volume's end, takes smaller ones.
    """
    tiles = []
    for spans in itertools.product(*_axes(block, anchor, margin, factors, tile)):
        starts, stops, firsts, lasts = zip(*spans, strict=True)
        tiles.append(Tile(Box(starts, stops), Box(firsts, lasts)))
    return tiles


def count_computed_voxels(block: Box, anchor: Zyx, margin: Zyx, factors: Zyx, tile: Zyx) -> int:
    """How many voxels go through the network for a block, if none of it is blank; as `plan_tiles`."""
    axes = _axes(block, anchor, margin, factors, tile)
    return math.prod(sum(stop - start for start, stop, _, _ in axis) for axis in axes)


def recomputed_share(block: Box, anchor: Zyx, margin: Zyx, factors: Zyx, tile: Zyx) -> float:
    """The share of a block's voxels that are computed on top, in margins and up to the pooling grid: 0.1 is 10%."""
    return count_computed_voxels(block, anchor, margin, factors, tile) / block.num_voxels - 1


def check_tile_shape(tile: Sequence[int], margin: Zyx, factors: Zyx, dim: int) -> Zyx:
    """`tile` (z,y,x, margins included), if the network can work with it; a ValueError with the nearest good sizes."""
    for axis, (n, m, f) in enumerate(zip(tile, margin_on_grid(margin, factors), factors, strict=True)):
        least = 2 * m + f
        near = [1] if dim == 2 and axis == 0 else sorted({max(least, n // f * f), max(least, -(-n // f) * f)})
        if n not in near:
            why = (
                "sections are computed one by one"
                if dim == 2 and axis == 0
                else (f"it must be a multiple of {f} and more than the margins, 2 x {m}")
            )
            raise ValueError(
                f"tile {tuple(tile)} has {n} voxels along {AXES[axis]}: {why}; use {' or '.join(map(str, near))}"
            )
    return tuple(tile)  # type: ignore[return-value]


def _axes(block: Box, anchor: Zyx, margin: Zyx, factors: Zyx, tile: Zyx) -> list[list[Span]]:
    settings = zip(block.start, block.stop, anchor, margin_on_grid(margin, factors), factors, tile, strict=True)
    return [list(_along(*axis)) for axis in settings]


def _along(start: int, stop: int, anchor: int, margin: int, factor: int, size: int) -> Iterator[Span]:
    """Along one axis, of each tile: input start and stop, core start and stop."""
    phase = (start - anchor) % factor
    extent = _extent(stop - start, factor, phase)
    count = -(-extent // max(factor, (size - 2 * margin) // factor * factor))
    core = -(-extent // count // factor) * factor
    for low in range(start - phase, stop, core):
        yield low - margin, low + core + margin, max(start, low), min(stop, low + core)


def _extent(length: int, factor: int, phase: int) -> int:
    """The most voxels, in whole cells of the pooling grid, that an axis of a block meets.

    Blocks of whole cells all begin at the same phase; others take what the worst phase needs, so that all blocks of one
    shape take tiles of one shape.
    """
    return -(-(length + (factor - 1 if length % factor else phase)) // factor) * factor


def _cores(extent: int, factor: int) -> list[int]:
    """The sizes of equal cores that `extent` can be cut into."""
    cells = extent // factor
    return sorted({-(-cells // count) * factor for count in range(1, cells + 1)})


def chunk_grid(block: Box, chunk: Zyx, chunk_origin: Zyx) -> np.ndarray:
    """The block's chunks as an array z, y, x of boxes, each cut to the block."""
    grown = block.grown_to_grid(chunk, chunk_origin)
    shape = tuple(n // c for n, c in zip(grown.shape, chunk, strict=True))
    boxes = np.empty(shape, object)
    for index, box in zip(np.ndindex(*shape), block.cells(chunk, chunk_origin), strict=True):
        boxes[index] = box
    return boxes


def blank_chunk_mask(
    voxels: np.ndarray,
    box: Box,
    block: Box,
    bounds: Box,
    chunk: Zyx,
    chunk_origin: Zyx,
    margin: Zyx,
    fill_value: float,
) -> np.ndarray:
    """Which of the block's chunks see nothing but the fill value: bool z, y, x, in the order of `chunk_grid`.

    A chunk sees itself grown by the margin and cut to `bounds`, the volume; what is reflected beyond lies within that.
    So the answer does not depend on how the output is cut into blocks, as long as these are whole chunks.
    voxels: of `box`, which holds all of that, as the image stores them (any dtype; `fill_value` is one of them).
    Raises ValueError where `box` is too small, which is so for a halo smaller than `margin`: pass the halo then.
    """
    boxes = chunk_grid(block, chunk, chunk_origin)
    blank = np.zeros(boxes.shape, bool)
    for index in np.ndindex(*boxes.shape):
        one: Box = boxes[index]  # type: ignore[assignment]
        seen = one.grown(margin).intersect(bounds)
        if not box.contains(seen):
            raise ValueError(f"chunk {one} sees {seen}, and only {box} was read")
        blank[index] = _is_blank(voxels[seen.slices(box.start)], fill_value)
    return blank


def tiles_to_compute(tiles: Sequence[Tile], block: Box, chunk: Zyx, chunk_origin: Zyx, keep: np.ndarray) -> list[Tile]:
    """The tiles whose cores meet a chunk to be kept. keep: bool z, y, x, in the order of `chunk_grid`."""
    first = block.grown_to_grid(chunk, chunk_origin).start

    def meets(tile: Tile) -> bool:
        grown = tile.core.grown_to_grid(chunk, chunk_origin)
        low = [(a - o) // c for a, o, c in zip(grown.start, first, chunk, strict=True)]
        high = [(b - o) // c for b, o, c in zip(grown.stop, first, chunk, strict=True)]
        return bool(keep[tuple(slice(a, b) for a, b in zip(low, high, strict=True))].any())

    return [tile for tile in tiles if meets(tile)]


def _is_blank(voxels: np.ndarray, fill_value: float) -> bool:
    """Section by section, so that the first that is not blank answers, and no large array of bools is made."""
    return not any((section != fill_value).any() for section in voxels)


def mirror_indices(places: np.ndarray, low: int, high: int) -> np.ndarray:
    """For each of `places` along an axis, the place within `low`..`high` (half-open) that is mirrored there.

    As np.pad(mode="reflect"): the outermost voxel is not repeated; deeper than the axis is long, reflections repeat;
    an axis of one voxel is repeated.
    """
    length = high - low
    if length == 1:
        return np.full_like(places, low)
    period = 2 * (length - 1)
    offset = (places - low) % period
    return low + np.minimum(offset, period - offset)

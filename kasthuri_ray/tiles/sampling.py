"""Positions of tiles and their voxels: a tile follows from a seed, an epoch and an index alone.

This module knows neither workers nor Ray. `TrainTiles.address(epoch, index)` and `GridTiles.address(number)` return the
same tile on every machine, and `read_tile` reads its voxels.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from kasthuri_ray.errors import VolumeError
from kasthuri_ray.geometry import Box, TileGrid, Zyx, ceil_div, per_axis
from kasthuri_ray.labels import IGNORE_LABEL, LabelRule, find_not_imaged, to_classes, to_uint8
from kasthuri_ray.tiles.labelled_blocks import LabelledBlocks
from kasthuri_ray.volumes.volume import Volume

MAX_SEARCH_VOXELS_PER_TILE = 16_000_000  # of annotation that are read for a tile where foreground is rare
MAX_TRIES = 8  # random tiles of which none holds a labelled voxel, before one is drawn around such a voxel

# The search reads whole chunks, unless they are larger than this; then it reads boxes of the tile's shape.
MAX_SEARCH_BOX_VOXELS = 8_000_000
MAX_SHUFFLED_BOXES = 4096  # up to this number of boxes, each is searched once before any is searched again


@dataclass(frozen=True)
class TileSource:
    """A box of an image and of its annotation, and the conversion of both to uint8.

    Parameters
    ----------
    image : Volume
        Grey levels of any type.
    annotation : Volume or None
        On the voxel grid of `image`; None for a box that is predicted and not evaluated.
    box : Box
        Voxels from which tiles are taken, z, y, x.
    intensity : tuple of float
        Grey levels (low, high) that become 0 and 255.
    label_rule : LabelRule
        Conversion of annotated values to classes.
    """

    image: Volume
    annotation: Volume | None
    box: Box
    intensity: tuple[float, float] = (0.0, 255.0)
    label_rule: LabelRule = field(default_factory=LabelRule)

    def read_labels(self, box: Box) -> np.ndarray:
        """Return the classes in `box`: uint8, z, y, x; IGNORE_LABEL everywhere if there is no annotation."""
        if self.annotation is None:
            return np.full(box.shape, IGNORE_LABEL, np.uint8)
        return to_classes(self.annotation.read(box), self.label_rule, f"{self.annotation.uri} {box}")

    @property
    def may_lack_labels(self) -> bool:
        """Whether a voxel of the box may not count: its label may be one that is ignored, or the image nan."""
        if self.annotation is None or self.image.dtype.kind == "f":
            return True
        return bool(self.label_rule.ignored_labels(self.annotation.dtype))

    def read_counted_labels(self, box: Box) -> np.ndarray:
        """Return `read_labels`, with IGNORE_LABEL also where the image is nan."""
        labels = self.read_labels(box)
        if self.image.dtype.kind == "f" and (missing := find_not_imaged(self.image.read(box))) is not None:
            labels[missing] = IGNORE_LABEL
        return labels

    def find_blank_chunks(self, stored: np.ndarray, box: Box) -> list[str]:
        """Return the image chunks that meet `box` and hold only zeros, each as URI and box.

        Parameters
        ----------
        stored : numpy.ndarray
            Voxels of the image in `box`. A whole chunk is read only if its part of the box is zero.
        box : Box
            Voxels of a tile, z, y, x.

        Returns
        -------
        list of str
            Empty if no chunk is blank.
        """
        volume, blank = self.image, []
        for part in box.cells(volume.chunk, volume.chunk_origin):
            if _has_grey_levels(stored[part.slices(box.start)]):
                continue
            chunk = part.grown_to_grid(volume.chunk, volume.chunk_origin).intersect(volume.bounds)
            if chunk == part or not _has_grey_levels(volume.read(chunk)):
                blank.append(f"{volume.uri} {chunk}")
        return blank


SplitSources = Mapping[str, tuple[TileSource, ...]]  # of train, val and test, in the order of the task's regions


@dataclass(frozen=True)
class TileAddress:
    """Position of a tile, and the part of it whose labels count.

    Parameters
    ----------
    source : int
        Index of the source.
    box : Box
        Voxels of the tile, z, y, x.
    own : Box
        Voxels whose labels count in this tile; the others are IGNORE_LABEL, because another tile counts them.
    """

    source: int
    box: Box
    own: Box


@dataclass(frozen=True)
class TrainTiles:
    """Random tiles of the training boxes, of which a fixed share holds foreground.

    Parameters
    ----------
    sources : tuple of TileSource
        Training boxes; each is drawn in proportion to its number of voxels.
    tile : tuple of int
        Shape of a tile, z, y, x.
    seed : int
        Seed of all random draws.
    foreground_share : float
        Share of the tiles that are drawn around a foreground voxel, 0 to 1.
    tiles_per_epoch : int
        Number of tiles in an epoch.
    labelled : LabelledBlocks or None
        Where labelled voxels are: every tile holds one. None draws tiles whether they do or not.
    """

    sources: tuple[TileSource, ...]
    tile: Zyx
    seed: int
    foreground_share: float
    tiles_per_epoch: int
    labelled: LabelledBlocks | None = None

    def in_whole_batches(self, batch_size: int) -> TrainTiles:
        """Return the same tiles with epochs that are rounded up to whole batches."""
        return replace(self, tiles_per_epoch=ceil_div(self.tiles_per_epoch, batch_size) * batch_size)

    def address(self, epoch: int, index: int) -> TileAddress:
        """Return tile `index` of `epoch`; read annotation if the tile must hold foreground or labels are sparse."""
        rng = np.random.default_rng([self.seed, epoch, index])
        if self.labelled is not None:
            return self._draw_labelled(self.labelled, rng, self._needs_foreground(index))
        source = self._draw_source(rng)
        box = self._draw_box(self.sources[source].box, rng)
        if self._needs_foreground(index):
            voxel = self.find_foreground(source, rng, MAX_SEARCH_VOXELS_PER_TILE)
            # Without a voxel after a search of reasonable length, the tile stays a random one.
            box = box if voxel is None else self._draw_box_around(voxel, self.sources[source].box, rng)
        return TileAddress(source, box, box)

    def find_foreground(self, source: int, rng: np.random.Generator, max_voxels: int) -> Zyx | None:
        """Return a random foreground voxel from boxes in random order; None if a search of `max_voxels` finds none."""
        num_searched = 0
        for box in _search_boxes(self.sources[source], self.tile, rng):
            if num_searched and num_searched + box.num_voxels > max_voxels:
                return None
            num_searched += box.num_voxels
            voxel = _draw_foreground_voxel(self.sources[source], box, rng)
            if voxel is not None:
                return voxel
        return None

    def _draw_labelled(self, blocks: LabelledBlocks, rng: np.random.Generator, needs_foreground: bool) -> TileAddress:
        """Draw a random tile that holds a labelled voxel, or is drawn around one if those are rare."""
        for _ in range(0 if needs_foreground else MAX_TRIES):
            source = self._draw_source(rng)
            box = self._draw_box(self.sources[source].box, rng)
            if self._holds_labels(blocks, source, box):
                return TileAddress(source, box, box)
        source, block = blocks.draw(rng, first_class=int(needs_foreground))
        voxel = _draw_labelled_voxel(self.sources[source], block, rng, needs_foreground)
        box = self._draw_box_around(voxel, self.sources[source].box, rng)
        return TileAddress(source, box, box)

    def _holds_labels(self, blocks: LabelledBlocks, source: int, box: Box) -> bool:
        if blocks.is_whole and not blocks.meet(source, box):
            return False
        return bool((self.sources[source].read_counted_labels(box) != IGNORE_LABEL).any())

    def _needs_foreground(self, index: int) -> bool:
        """Spread these tiles evenly over an epoch; their share is never less than `foreground_share`."""
        # Minus a rounding error: 0.1 * 30 is slightly more than 3.
        return math.ceil((index + 1) * self.foreground_share - 1e-9) > math.ceil(index * self.foreground_share - 1e-9)

    def _draw_source(self, rng: np.random.Generator) -> int:
        sizes = np.array([source.box.num_voxels for source in self.sources], float)
        return int(rng.choice(len(sizes), p=sizes / sizes.sum()))

    def _draw_box(self, within: Box, rng: np.random.Generator) -> Box:
        start = per_axis(lambda a, b, n: int(rng.integers(a, b - n + 1)), within.start, within.stop, self.tile)
        return Box.at(start, self.tile)

    def _draw_box_around(self, voxel: Zyx, within: Box, rng: np.random.Generator) -> Box:
        def draw_start(v: int, a: int, b: int, n: int) -> int:
            return int(rng.integers(max(a, v - n + 1), min(b - n, v) + 1))

        return Box.at(per_axis(draw_start, voxel, within.start, within.stop, self.tile), self.tile)


@dataclass(frozen=True)
class GridTiles:
    """The tiles that cover the validation or test boxes; every voxel counts in exactly one tile.

    Parameters
    ----------
    sources : tuple of TileSource
        Boxes of the split.
    tile : tuple of int
        Shape of a tile without its context, z, y, x.
    context : tuple of int
        Voxels that are read around a tile on each side, of the whole image; no label counts there. At an end of the
        image there are more on the other side.
    """

    sources: tuple[TileSource, ...]
    tile: Zyx
    context: Zyx = (0, 0, 0)

    def __len__(self) -> int:
        return sum(len(TileGrid(source.box, self.tile)) for source in self.sources)

    def address(self, number: int) -> TileAddress:
        """Return tile `number` with its context; see `without_context`."""
        address = self.without_context(number)
        if not any(self.context):
            return address
        return replace(address, box=self._with_context(address.box, self.sources[address.source].image.bounds))

    def without_context(self, number: int) -> TileAddress:
        """Return tile `number`, counted from 0, one source after the other; raise an IndexError past the last."""
        for index, source in enumerate(self.sources):
            grid = TileGrid(source.box, self.tile)
            if number < len(grid):
                return TileAddress(index, *grid[number])
            number -= len(grid)
        raise IndexError(f"the grid has {len(self)} tiles")

    def _with_context(self, tile: Box, bounds: Box) -> Box:
        """Return a box of one shape for all tiles, around a tile and within the image."""

        def start(first: int, length: int, context: int, low: int, high: int) -> int:
            return max(low, min(first - context, high - length - 2 * context))

        shape = per_axis(lambda length, context: length + 2 * context, tile.shape, self.context)
        return Box.at(per_axis(start, tile.start, tile.shape, self.context, bounds.start, bounds.stop), shape)


def read_tile(sources: tuple[TileSource, ...], address: TileAddress) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Read the image and the labels of a tile.

    Parameters
    ----------
    sources : tuple of TileSource
        Boxes of the split.
    address : TileAddress
        Position of the tile, in one of `sources`.

    Returns
    -------
    image : numpy.ndarray of uint8, z, y, x
        Grey levels.
    labels : numpy.ndarray of uint8, z, y, x
        Classes; IGNORE_LABEL outside `address.own`.
    blank_chunks : list of str
        Image chunks of the tile that hold only zeros and may be missing; see `TileSource.find_blank_chunks`.

    Raises
    ------
    InputError
        If the annotation holds a value that is no class; the message names the tile's box.
    VolumeError
        If a volume cannot be read.
    """
    source = sources[address.source]
    stored = source.image.read(address.box)
    labels = np.full(address.box.shape, IGNORE_LABEL, np.uint8)
    labels[address.own.slices(address.box.start)] = source.read_labels(address.own)
    if (missing := find_not_imaged(stored)) is not None:
        labels[missing] = IGNORE_LABEL
    return to_uint8(stored, source.intensity), labels, source.find_blank_chunks(stored, address.box)


def _has_grey_levels(voxels: np.ndarray) -> bool:
    """Return whether voxels are neither zeros nor nan alone."""
    return bool((np.nan_to_num(voxels) if voxels.dtype.kind == "f" else voxels).any())


def _search_boxes(source: TileSource, tile: Zyx, rng: np.random.Generator) -> Iterator[Box]:
    """Yield boxes of the source in random order, with repetition if there are many."""
    grid = SearchGrid.of(source, tile)
    total = len(grid)
    order = rng.permutation(total) if total <= MAX_SHUFFLED_BOXES else (int(rng.integers(total)) for _ in range(total))
    for number in order:
        yield grid[int(number)]


@dataclass(frozen=True)
class SearchGrid:
    """Boxes that cover a training box, to be searched one by one.

    Each has about the size of a tile and consists of whole chunks of the annotation, which cost no more to read than
    parts of them.

    Parameters
    ----------
    box : Box
        What they cover, z, y, x.
    shape : tuple of int
        Shape of a box, z, y, x.
    origin : tuple of int
        A corner of the grid.
    """

    box: Box
    shape: Zyx
    origin: Zyx

    @classmethod
    def of(cls, source: TileSource, tile: Zyx, min_voxels: int = 1) -> SearchGrid:
        """Return the grid of a training box; its boxes are doubled in the plane up to a number of voxels."""
        assert source.annotation is not None
        chunk, origin = source.annotation.chunk, source.annotation.chunk_origin
        z, y, x = per_axis(lambda n, c: ceil_div(n, c) * c, tile, chunk)
        if z * y * x > MAX_SEARCH_BOX_VOXELS:
            z, y, x = tile
        while z * y * x < min_voxels:
            y, x = (2 * y, x) if y <= x else (y, 2 * x)
        return cls(source.box, (z, y, x), origin)

    def __len__(self) -> int:
        return math.prod(self._counts)

    def __getitem__(self, number: int) -> Box:
        cell = np.unravel_index(number, self._counts)
        start = per_axis(lambda a, i, n: a + int(i) * n, self._grown.start, cell, self.shape)
        return Box.at(start, self.shape).intersect(self.box)

    @property
    def _grown(self) -> Box:
        return self.box.grown_to_grid(self.shape, self.origin)

    @property
    def _counts(self) -> Zyx:
        return per_axis(operator.floordiv, self._grown.shape, self.shape)


def _draw_foreground_voxel(source: TileSource, box: Box, rng: np.random.Generator) -> Zyx | None:
    """Return a random foreground voxel of `box`; None if there is none."""
    labels = source.read_labels(box)
    return _draw_voxel((labels != 0) & (labels != IGNORE_LABEL), box, rng)


def _draw_labelled_voxel(source: TileSource, box: Box, rng: np.random.Generator, is_foreground: bool) -> Zyx:
    """Return a random labelled voxel of `box`, of the foreground if it is asked for and there is any."""
    labels = source.read_counted_labels(box)
    counted = labels != IGNORE_LABEL
    found = _draw_voxel(counted & (labels != 0), box, rng) if is_foreground else None
    found = found or _draw_voxel(counted, box, rng)
    if found is None:
        raise VolumeError(f"{box} held labelled voxels before, and now holds none: the annotation has changed")
    return found


def _draw_voxel(chosen: np.ndarray, box: Box, rng: np.random.Generator) -> Zyx | None:
    """Return a random voxel of those that are chosen in `box`; None if there is none."""
    places = np.flatnonzero(chosen)
    if not len(places):
        return None
    voxel = np.unravel_index(places[rng.integers(len(places))], chosen.shape)
    return per_axis(lambda a, b: int(a + b), box.start, voxel)

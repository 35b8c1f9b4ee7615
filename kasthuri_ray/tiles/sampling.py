"""Which tiles an epoch takes: every tile follows from a seed, an epoch and an index, whoever draws it.

Nothing here knows of workers or of Ray: `TrainTiles.address(epoch, index)` and `GridTiles.address(index)` give the same
tile on any machine, and `read_tile` gives its voxels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from kasthuri_ray.geometry import Box, TileGrid, Zyx
from kasthuri_ray.labels import IGNORE_LABEL, to_classes, to_uint8
from kasthuri_ray.volumes.volume import Volume

SEARCH_VOXELS = 64_000_000  # read at most, in search of foreground
SEARCH_VOXELS_OF_A_TILE = 16_000_000  # where there is foreground, but far between
LARGEST_CANDIDATE = 8_000_000  # voxels of a cutout that is looked at; of larger chunks, pieces of a tile's shape
ALL_CANDIDATES = 4096  # up to so many cutouts each is looked at once, before any is looked at again


@dataclass(frozen=True)
class LabelRule:
    """How the values of an annotation become classes; see `labels.to_classes`."""

    threshold_value: float | None = None
    num_classes: int = 2
    ignore_label: int | None = None


@dataclass(frozen=True)
class TileSource:
    """A box of an image and of its annotation (None: only looked at), and how their values become uint8."""

    image: Volume
    annotation: Volume | None
    box: Box
    intensity: tuple[float, float] = (0.0, 255.0)
    labelling: LabelRule = LabelRule()

    def read_labels(self, box: Box) -> np.ndarray:
        """uint8 classes, z, y, x; IGNORE everywhere without an annotation."""
        if self.annotation is None:
            return np.full(box.shape, IGNORE_LABEL, np.uint8)
        how = self.labelling
        return to_classes(
            self.annotation.read(box),
            threshold_value=how.threshold_value,
            num_classes=how.num_classes,
            ignore_label=how.ignore_label,
            where=f"{self.annotation.uri} {box}",
        )

    def blank_chunks(self, stored: np.ndarray, box: Box) -> list[str]:
        """The chunks of the image volume that `box` meets and that are zero from corner to corner.

        stored: the image's voxels of `box`; a chunk is read whole only where its part of the box is zero.
        """
        volume, blank = self.image, []
        for part in box.cells(volume.chunk, volume.chunk_origin):
            if stored[part.slices(box.start)].any():
                continue
            chunk = part.grown_to_grid(volume.chunk, volume.chunk_origin).intersect(volume.bounds)
            if chunk == part or not volume.read(chunk).any():
                blank.append(f"{volume.uri} {chunk}")
        return blank


@dataclass(frozen=True)
class TileAddress:
    """Where a tile lies, and which of its voxels are its own to count (the others are IGNORE)."""

    source: int
    box: Box
    own: Box


@dataclass(frozen=True)
class TrainTiles:
    """Random tiles of the training boxes, a set share of them on foreground.

    sources: in proportion to their voxels. tile: z, y, x. share: of the tiles, those drawn around a foreground voxel.
    tiles_per_epoch: how many tiles an epoch has.
    """

    sources: tuple[TileSource, ...]
    tile: Zyx
    seed: int
    share: float
    tiles_per_epoch: int

    def in_whole_batches(self, batch_size: int) -> TrainTiles:
        """With as many tiles more as make whole batches of an epoch."""
        return replace(self, tiles_per_epoch=math.ceil(self.tiles_per_epoch / batch_size) * batch_size)

    def address(self, epoch: int, index: int) -> TileAddress:
        """The tile `index` of `epoch`; reads annotation where the tile is to hold foreground."""
        rng = np.random.default_rng([self.seed, epoch, index])
        source = self._draw_source(rng)
        box = self._draw_box(self.sources[source].box, rng)
        if self._wants_foreground(index):
            voxel = self.find_foreground(source, rng, SEARCH_VOXELS_OF_A_TILE)
            # A tile for which none was found in reasonable time is an ordinary one.
            box = box if voxel is None else self._draw_box_around(voxel, self.sources[source].box, rng)
        return TileAddress(source, box, box)

    def find_foreground(self, source: int, rng: np.random.Generator, limit: int) -> Zyx | None:
        """A random foreground voxel out of cutouts drawn at random; None after `limit` voxels were looked at."""
        looked_at = 0
        for box in _candidates(self.sources[source], self.tile, rng):
            if looked_at and looked_at + box.num_voxels > limit:
                return None
            looked_at += box.num_voxels
            voxel = _foreground_in(self.sources[source], box, rng)
            if voxel is not None:
                return voxel
        return None

    def check_foreground(self) -> None:
        """Raise a ValueError if no foreground is found among the candidates, after at most SEARCH_VOXELS voxels."""
        rng = np.random.default_rng([self.seed, 0, 0])
        looked_at = 0
        for turn in itertools.zip_longest(*(_candidates(source, self.tile, rng) for source in self.sources)):
            for source, box in zip(self.sources, turn, strict=True):
                if box is None:
                    continue
                if looked_at + box.num_voxels > SEARCH_VOXELS:
                    raise ValueError(self._no_foreground(looked_at))
                looked_at += box.num_voxels
                if _foreground_in(source, box, rng) is not None:
                    return
        raise ValueError(self._no_foreground(looked_at))

    def _no_foreground(self, looked_at: int) -> str:
        named = "; ".join(f"{s.annotation.uri if s.annotation else '-'} {s.box}" for s in self.sources)
        return (
            f"annotation without foreground: none was found for training in {named}, where {looked_at / 1e6:.3g} "
            "million voxels were looked at; check the boxes and task.threshold_value"
        )

    def _wants_foreground(self, index: int) -> bool:
        """Spreads them evenly over an epoch, whose share is never less than `share`."""
        # Less a rounding error: 0.1 * 30 is a little more than 3.
        return math.ceil((index + 1) * self.share - 1e-9) > math.ceil(index * self.share - 1e-9)

    def _draw_source(self, rng: np.random.Generator) -> int:
        sizes = np.array([source.box.num_voxels for source in self.sources], float)
        return int(rng.choice(len(sizes), p=sizes / sizes.sum()))

    def _draw_box(self, within: Box, rng: np.random.Generator) -> Box:
        start = [int(rng.integers(a, b - n + 1)) for a, b, n in zip(within.start, within.stop, self.tile, strict=True)]
        return Box.at(start, self.tile)

    def _draw_box_around(self, voxel: Zyx, within: Box, rng: np.random.Generator) -> Box:
        start = []
        for v, a, b, n in zip(voxel, within.start, within.stop, self.tile, strict=True):
            low, high = max(a, v - n + 1), min(b - n, v)
            start.append(int(rng.integers(low, high + 1)))
        return Box.at(start, self.tile)


def _foreground_in(source: TileSource, box: Box, rng: np.random.Generator) -> Zyx | None:
    """A random foreground voxel of `box`, None if it has none."""
    labels = source.read_labels(box)
    found = np.flatnonzero((labels != 0) & (labels != IGNORE_LABEL))
    if not len(found):
        return None
    voxel = np.unravel_index(found[rng.integers(len(found))], labels.shape)
    return tuple(int(a + b) for a, b in zip(box.start, voxel, strict=True))  # type: ignore[return-value]


def _candidates(source: TileSource, tile: Zyx, rng: np.random.Generator) -> Iterator[Box]:
    """Cutouts of the source's box in random order; of a large grid with repetition.

    Each is about a tile, of whole chunks of the annotation: they cost no more to read than a part of them.
    """
    assert source.annotation is not None
    chunk, origin = source.annotation.chunk, source.annotation.chunk_origin
    shape = tuple(-(-n // c) * c for n, c in zip(tile, chunk, strict=True))
    if math.prod(shape) > LARGEST_CANDIDATE:
        shape = tile
    grid = source.box.grown_to_grid(shape, origin)
    counts = [n // c for n, c in zip(grid.shape, shape, strict=True)]
    total = math.prod(counts)
    order = rng.permutation(total) if total <= ALL_CANDIDATES else (int(rng.integers(total)) for _ in range(total))
    for number in order:
        cell = np.unravel_index(int(number), counts)
        start = [a + int(i) * n for a, i, n in zip(grid.start, cell, shape, strict=True)]
        yield Box.at(start, shape).intersect(source.box)


@dataclass(frozen=True)
class GridTiles:
    """The tiles that cover the validation or test boxes: every voxel is some tile's own exactly once."""

    sources: tuple[TileSource, ...]
    tile: Zyx

    def __len__(self) -> int:
        return sum(len(TileGrid(source.box, self.tile)) for source in self.sources)

    def address(self, number: int) -> TileAddress:
        """The tile `number`, from 0 on, the sources one after the other."""
        for index, source in enumerate(self.sources):
            grid = TileGrid(source.box, self.tile)
            if number < len(grid):
                return TileAddress(index, *grid[number])
            number -= len(grid)
        raise IndexError(f"the grid has {len(self)} tiles")


def read_tile(sources: tuple[TileSource, ...], address: TileAddress) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """The image and the labels of a tile (uint8, z, y, x), and the image chunks that are missing there.

    Labels outside `address.own` are IGNORE. Errors name the tile's box.
    """
    source = sources[address.source]
    stored = source.image.read(address.box)
    labels = source.read_labels(address.box)
    if address.own != address.box:
        counted = np.full_like(labels, IGNORE_LABEL)
        own = address.own.slices(address.box.start)
        counted[own] = labels[own]
        labels = counted
    return to_uint8(stored, source.intensity), labels, source.blank_chunks(stored, address.box)

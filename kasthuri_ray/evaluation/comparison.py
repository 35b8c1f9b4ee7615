"""Compares one block of a prediction with its annotation, and adds up blocks; the sums do not depend on the blocks.

It needs numpy alone. `evaluate.py` distributes the blocks.
"""

from __future__ import annotations

import itertools
import math
import operator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from kasthuri_ray.errors import InputError
from kasthuri_ray.geometry import Box, Zyx, ceil_div, per_axis
from kasthuri_ray.labels import IGNORE_LABEL, LabelRule, is_any_of, to_classes
from kasthuri_ray.metrics.class_map import classes_at, lowest_value
from kasthuri_ray.metrics.instances import CellBlock, CellSums, label_cells
from kasthuri_ray.metrics.intervals import TileCounts, TileSample, tile_counts
from kasthuri_ray.metrics.object_comparison import (
    BlockObjects,
    ObjectComparison,
    find_block_objects,
    object_classes,
)
from kasthuri_ray.metrics.voxel_counts import BINS, VoxelCounts, count_block_voxels, probability_bins
from kasthuri_ray.volumes.volume import Volume

MAX_BLOCK: Zyx = (64, 512, 512)
MAX_BLOCK_VOXELS = 1 << 23  # a block takes about 25 bytes a voxel
SAMPLE: Zyx = (1, 256, 256)  # read before the work
MAX_WINDOW = 1024  # voxels along y and x of the part of a section that is scored and shown as one picture

# Last axis of `window_counts`. COUNTED are all voxels that are not ignored.
FOUND, MISSED, WRONG, COUNTED = range(4)


@dataclass(frozen=True)
class Comparison:
    """The volumes to compare, and how.

    Parameters
    ----------
    predictions : tuple of Volume
        Probability of each foreground class, on the voxels of the annotation; see `read_probability`.
    annotation : Volume
        Labels, see `read_classes`.
    box : Box
        What is compared, in voxels of the annotation.
    thresholds : tuple of float
        A voxel can be of a class from this probability; one for each foreground class.
    labels : LabelRule
        What the values of the annotation mean.
    instances : Volume, optional
        Ids of cells, on the voxels of the annotation.
    no_instance : tuple of int
        Ids that mean "no cell", as 0 does.
    class_names : tuple of str
        Names of the foreground classes.
    is_complete : bool
        Whether the prediction is our own output, which stores no blocks of zeros.
    """

    predictions: tuple[Volume, ...]
    annotation: Volume
    box: Box
    thresholds: tuple[float, ...]
    labels: LabelRule = field(default_factory=LabelRule)
    instances: Volume | None = None
    no_instance: tuple[int, ...] = ()
    class_names: tuple[str, ...] = ("foreground",)
    is_complete: bool = False

    @property
    def prediction(self) -> Volume:
        """Probability of the first class; those of the others have the same voxels and the same source."""
        return self.predictions[0]

    @property
    def object_classes(self) -> list[int]:
        """Numbers of the classes whose objects are matched."""
        return object_classes(self.class_names)

    @cached_property
    def binned_thresholds(self) -> list[float]:
        """Thresholds at which binned counts are those of the comparison's own thresholds.

        For bytes they are the lower edges of the bins of the lowest values; for floats the thresholds themselves.
        """
        if self.prediction.dtype.kind == "f":
            return list(self.thresholds)
        lowest = np.array([min(lowest_value(threshold), 255) for threshold in self.thresholds])
        return (probability_bins(lowest / 255) / BINS).tolist()

    def count_absent(self, block: Box, probability: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """Return the chunks that begin in a block: absent ones and all, of prediction and annotation."""
        prediction = (0, 0) if self.is_complete else self.prediction.count_absent(block, probability, self.box)
        return np.array([prediction, self.annotation.count_absent(block, classes, self.box)])

    def read_probability(self, box: Box) -> np.ndarray:
        """Return the probability of each foreground class, c, z, y, x, as uint8 (255 is 1) or float.

        `box` is in voxels of the annotation. Raise an InputError for floats that are no probabilities.
        """
        voxels = np.stack([volume.read(box) for volume in self.predictions])
        if voxels.dtype.kind == "f" and not (voxels.min() >= 0 and voxels.max() <= 1 + 1e-6):
            raise InputError(
                f"{self.prediction.uri} {box} holds {voxels.min():.4g} to {voxels.max():.4g}; expected "
                "probabilities: floats from 0 to 1, or uint8 where 255 is 1"
            )
        return voxels * np.uint8(255) if voxels.dtype == bool else voxels

    def read_classes(self, box: Box) -> np.ndarray:
        """Return the class of each voxel, or IGNORE_LABEL; uint8, z, y, x."""
        return to_classes(self.annotation.read(box), self.labels, f"{self.annotation.uri} {box}")

    def check_sample(self) -> None:
        """Raise an InputError if the middle of the box shows that the volumes are no prediction and no annotation."""
        shape = per_axis(min, self.box.shape, SAMPLE)
        corner = per_axis(lambda start, n, size: start + (n - size) // 2, self.box.start, self.box.shape, shape)
        sample = Box.at(corner, shape)
        self.read_probability(sample)
        self.read_classes(sample)

    def read_instances(self, box: Box, classes: np.ndarray) -> np.ndarray:
        """Return the ids of cells, z, y, x; 0 where there is none, or where the annotation's class is ignored."""
        assert self.instances is not None
        ids = self.instances.read(box)
        without = classes == IGNORE_LABEL
        if self.no_instance:
            without |= is_any_of(ids, self.no_instance)
        return np.where(without, 0, ids)

    def window_starts(self) -> list[np.ndarray]:
        """Return where windows start along y and x; they divide a section into equal parts of at most MAX_WINDOW."""
        starts = []
        for axis in (1, 2):
            extent = self.box.shape[axis]
            size = ceil_div(extent, ceil_div(extent, MAX_WINDOW))
            starts.append(np.arange(0, extent, size) + self.box.start[axis])
        return starts

    def blocks(self, block_shape: Zyx | None = None) -> list[Box]:
        """Return the blocks of the box, z slowest, on the grid of the prediction's chunks.

        Their default shape is `comparison_block_shape`.
        """
        shape = block_shape or comparison_block_shape(self.prediction.chunk, self.box.shape)
        return list(self.box.cells(shape, self.prediction.chunk_origin))


def comparison_block_shape(chunk: Zyx, shape: Zyx) -> Zyx:
    """Return the shape of blocks for a volume of this chunk and shape.

    Small chunks are doubled along x, y and z in turn; large ones are cut.
    """
    block = list(per_axis(min, chunk, MAX_BLOCK))
    for axis in (2, 1, 0):
        while (
            2 * block[axis] <= MAX_BLOCK[axis] and 2 * np.prod(block) <= MAX_BLOCK_VOXELS and block[axis] < shape[axis]
        ):
            block[axis] *= 2
    return per_axis(int, block)


@dataclass(eq=False)
class BlockResult:
    """The result of one block. All of it adds up over blocks.

    Parameters
    ----------
    block : Box
        In voxels of the annotation.
    counts : VoxelCounts
        Confusion of the classes at the thresholds, and histograms by probability.
    tiles : dict
        For each window, as (section, window y, window x) in the box, its voxels as `TileSample` has them.
    window_counts : numpy.ndarray of int64, shape (sections, windows y, windows x, 4)
        Voxels FOUND, MISSED, WRONG and COUNTED.
    max_probability : float
        As stored: up to 255 for uint8.
    absent_chunks : numpy.ndarray of int64, shape (2, 2)
        See `Comparison.count_absent`.
    objects : BlockObjects, optional
        Objects of annotation and prediction.
    cells : CellBlock, optional
        Cells of the prediction, and the instances.
    """

    block: Box
    counts: VoxelCounts
    tiles: dict[Zyx, TileCounts]
    window_counts: np.ndarray
    max_probability: float
    absent_chunks: np.ndarray
    objects: BlockObjects | None = None
    cells: CellBlock | None = None


def compare_block(comparison: Comparison, block: Box) -> BlockResult:
    """Read and compare a block.

    Where components are joined across blocks, it reads one voxel beyond the upper ends too.
    """
    read_box, has_objects = block, bool(comparison.object_classes)
    if has_objects or comparison.instances is not None:
        beyond = (1 if has_objects else 0, 1, 1)
        read_box = Box(block.start, per_axis(operator.add, block.stop, beyond)).intersect(comparison.box)
    probability = comparison.read_probability(read_box)
    classes = comparison.read_classes(read_box if has_objects else block)
    predicted, inside = classes_at(probability, comparison.thresholds), block.slices(block.start)
    own = (probability[(slice(None), *inside)], predicted[inside], classes[inside])
    counts, tiles = count_tiles(comparison, block, *own)
    result = BlockResult(
        block=block,
        counts=counts,
        tiles=tiles,
        window_counts=count_windows(predicted[inside], classes[inside], block, comparison.window_starts()),
        max_probability=float(own[0].max()),
        absent_chunks=comparison.count_absent(block, own[0].max(0), classes[inside]),
    )
    if has_objects:
        result.objects = find_block_objects(predicted, classes, block, comparison.object_classes)
    if comparison.instances is not None:
        instances = comparison.read_instances(block, classes[inside])
        result.cells = label_cells(predicted[: block.shape[0]] == 0, instances, block)
    return result


def count_tiles(
    comparison: Comparison, block: Box, probability: np.ndarray, predicted: np.ndarray, classes: np.ndarray
) -> tuple[VoxelCounts, dict[Zyx, TileCounts]]:
    """Return `BlockResult.counts` and `BlockResult.tiles`."""
    total, tiles = VoxelCounts.zeros(len(probability) + 1), dict[Zyx, TileCounts]()
    rows, columns = (
        _window_parts(starts, block, axis) for axis, starts in zip((1, 2), comparison.window_starts(), strict=True)
    )
    first = block.start[0] - comparison.box.start[0]
    for z, (row, y), (column, x) in itertools.product(range(block.shape[0]), rows, columns):
        part = (slice(z, z + 1), y, x)
        counts = count_block_voxels(probability[(slice(None), *part)], predicted[part], classes[part])
        tiles[first + z, row, column] = tile_counts(counts, comparison.binned_thresholds)
        total += counts
    return total, tiles


def _window_parts(window_starts: np.ndarray, block: Box, axis: int) -> list[tuple[int, slice]]:
    """Return the windows that a block meets along an axis: the number of each, and its part of the block."""
    first, starts = _split(window_starts, block, axis)
    stops = [*starts[1:].tolist(), block.shape[axis]]
    return [(first + n, slice(start, stop)) for n, (start, stop) in enumerate(zip(starts.tolist(), stops, strict=True))]


def count_windows(
    predicted: np.ndarray, classes: np.ndarray, block: Box, window_starts: list[np.ndarray]
) -> np.ndarray:
    """Return `BlockResult.window_counts`."""
    counted, marked = classes != IGNORE_LABEL, predicted > 0
    true = (classes > 0) & counted
    found = true & (predicted == classes)
    masks = [found, true & ~marked, marked & ~found & counted, counted]
    rows, columns = (_split(starts, block, axis)[1] for axis, starts in zip((1, 2), window_starts, strict=True))
    by_row = (np.add.reduceat(mask, rows, axis=1, dtype=np.int64) for mask in masks)
    return np.stack([np.add.reduceat(sums, columns, axis=2) for sums in by_row], -1)


def _split(window_starts: np.ndarray, block: Box, axis: int) -> tuple[int, np.ndarray]:
    """Return the first window that a block meets along an axis, and where the windows start inside the block."""
    start, stop = block.start[axis], block.stop[axis]
    first = int(np.searchsorted(window_starts, start, side="right")) - 1
    return first, np.maximum(window_starts[first : np.searchsorted(window_starts, stop)], start) - start


@dataclass(eq=False)
class ComparisonTotals:
    """The sums over a comparison's blocks, which are added in their order.

    Parameters
    ----------
    comparison : Comparison
        What is compared.
    counts : VoxelCounts
        See `BlockResult`.
    max_probability : float
        See `BlockResult`.
    absent_chunks : numpy.ndarray of int64, shape (2, 2)
        See `BlockResult`.
    cells : CellSums
        Sums over the cells.
    objects : ObjectComparison
        Objects of all blocks.

    Attributes
    ----------
    window_counts : numpy.ndarray of int64, shape (sections, windows y, windows x, 4)
        Voxels FOUND, MISSED, WRONG and COUNTED of the whole box.
    """

    comparison: Comparison
    counts: VoxelCounts = field(init=False)
    max_probability: float = 0.0
    absent_chunks: np.ndarray = field(default_factory=lambda: np.zeros((2, 2), np.int64))
    cells: CellSums = field(default_factory=CellSums)
    objects: ObjectComparison = field(default_factory=ObjectComparison)

    def __post_init__(self) -> None:
        self._window_starts = self.comparison.window_starts()
        num_windows = (len(starts) for starts in self._window_starts)
        self.window_counts = np.zeros((self.comparison.box.shape[0], *num_windows, 4), np.int64)
        num_foreground = len(self.comparison.predictions)
        self.counts = VoxelCounts.zeros(num_foreground + 1)
        self.tiles = TileSample.empty(math.prod(self.window_counts.shape[:3]), num_foreground)

    def add(self, result: BlockResult) -> None:
        """Add the result of the next block."""
        self.counts = self.counts + result.counts
        for window, counts in result.tiles.items():
            self.tiles.add(int(np.ravel_multi_index(window, self.window_counts.shape[:3])), counts)
        self.max_probability = max(self.max_probability, result.max_probability)
        self.absent_chunks = self.absent_chunks + result.absent_chunks
        self._add_window_counts(result)
        if result.objects is not None:
            self.objects.add(result.objects)
        if result.cells is not None:
            self.cells.add(result.cells)

    def _add_window_counts(self, result: BlockResult) -> None:
        block = result.block
        row, column = (_split(starts, block, axis)[0] for axis, starts in zip((1, 2), self._window_starts, strict=True))
        sections, rows, columns = result.window_counts.shape[:3]
        z = block.start[0] - self.comparison.box.start[0]
        self.window_counts[z : z + sections, row : row + rows, column : column + columns] += result.window_counts

    def match_objects(self) -> dict[int, dict[str, float | int]]:
        """Match true and predicted objects of each class that has objects."""
        numbers = self.comparison.object_classes
        return self.objects.match(numbers) if numbers else {}

"""Compare one block of a prediction with its annotation, and add up blocks; the sums do not depend on the blocks.

All voxels are counted, and once more those that the network did not learn from, if it learnt from a part. It needs
numpy alone. `evaluate.py` distributes the blocks.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from kasthuri_ray.evaluation.comparison import Comparison
from kasthuri_ray.geometry import Box, Zyx, per_axis
from kasthuri_ray.labels import IGNORE_LABEL
from kasthuri_ray.metrics.block_objects import BlockObjects, class_bytes, find_block_objects, find_labelled_objects
from kasthuri_ray.metrics.class_map import classes_at
from kasthuri_ray.metrics.cleft_distances import (
    ClassMasks,
    CleftDistances,
    measure_cleft_distances,
    pack_class_masks,
)
from kasthuri_ray.metrics.instances import CellBlock, CellSums, label_cells
from kasthuri_ray.metrics.intervals import TileCounts, TileSample, tile_counts
from kasthuri_ray.metrics.object_comparison import ClassObjects, ObjectComparison
from kasthuri_ray.metrics.object_criteria import ObjectCriteria
from kasthuri_ray.metrics.object_detection import Extent, block_read_box, block_with_shell, find_extent
from kasthuri_ray.metrics.object_outcomes import ObjectOutcomes
from kasthuri_ray.metrics.voxel_counts import VoxelCounts, count_block_voxels

# Last axis of `window_counts`. COUNTED are all voxels that are not ignored.
FOUND, MISSED, WRONG, COUNTED = range(4)


@dataclass(eq=False)
class PartResult:
    """The voxels and objects of a block, all or those of a part of it. They add up over blocks.

    Parameters
    ----------
    counts : VoxelCounts
        Confusion of the classes at the thresholds, and histograms by probability.
    tiles : dict
        For each tile, as (section, tile y, tile x) in the box, its voxels as `TileSample` has them.
    window_counts : numpy.ndarray of int64, shape (sections, windows y, windows x, 4)
        Voxels FOUND, MISSED, WRONG and COUNTED.
    objects : BlockObjects, optional
        Objects of annotation and prediction.
    masks : mapping of int to ClassMasks
        Voxels of each class that has objects, by its number.
    """

    counts: VoxelCounts
    tiles: dict[Zyx, TileCounts]
    window_counts: np.ndarray
    objects: BlockObjects | None = None
    masks: Mapping[int, ClassMasks] = field(default_factory=dict)


@dataclass(eq=False)
class BlockResult:
    """The result of one block. All of it adds up over blocks.

    Parameters
    ----------
    block : Box
        In voxels of the annotation.
    whole : PartResult
        All voxels.
    unseen : PartResult
        Those that the network did not learn from; `whole` itself if it learnt from none of them.
    max_probability : float
        As stored: up to 255 for uint8.
    absent_chunks : numpy.ndarray of int64, shape (2, 2)
        See `Comparison.count_absent`.
    cells : CellBlock, optional
        Cells of the prediction, and the instances.
    """

    block: Box
    whole: PartResult
    unseen: PartResult
    max_probability: float
    absent_chunks: np.ndarray
    cells: CellBlock | None = None


def compare_block(comparison: Comparison, block: Box) -> BlockResult:
    """Read and compare a block.

    Where components are joined across blocks, it reads one voxel beyond the upper ends too, and sections for bridges.
    """
    read_box, has_objects = block, bool(comparison.object_classes)
    if has_objects or comparison.instances is not None:
        beyond = (1 if has_objects else 0, 1, 1)
        read_box = Box(block.start, per_axis(operator.add, block.stop, beyond)).intersect(comparison.box)
    if has_objects:
        read_box = block_read_box(block, comparison.box, comparison.found_by)
    probability = comparison.read_probability(read_box)
    labelled = read_box if has_objects else block
    classes = comparison.read_classes(labelled)
    predicted, inside = classes_at(probability, comparison.thresholds), block.slices(read_box.start)
    unseen = comparison.hide_learnt(classes, labelled)
    extent = _find_extent(comparison, probability, predicted)
    whole = _compare_part(comparison, block, read_box, probability, predicted, classes, extent)
    own = probability[(slice(None), *inside)]
    result = BlockResult(
        block=block,
        whole=whole,
        unseen=whole
        if unseen is classes
        else _compare_part(comparison, block, read_box, probability, predicted, unseen, extent, known_classes=classes),
        max_probability=float(own.max()),
        absent_chunks=comparison.count_absent(block, own.max(0), classes[inside]),
    )
    if comparison.instances is not None:
        instances = comparison.read_instances(block, classes[inside])
        result.cells = label_cells(predicted[inside[0]] == 0, instances, block)
    return result


def _find_extent(comparison: Comparison, probability: np.ndarray, predicted: np.ndarray) -> Extent:
    """Return the voxels that can belong to objects; without object settings those above the thresholds."""
    stored = probability if probability.dtype == np.uint8 else np.rint(probability * 255).astype(np.uint8)
    extent = find_extent(stored, comparison.found_by)
    if comparison.object_settings is not None:
        return extent
    return Extent(predicted, extent.probability, predicted)  # floats are compared as they are


def _compare_part(
    comparison: Comparison,
    block: Box,
    read: Box,
    probability: np.ndarray,
    predicted: np.ndarray,
    classes: np.ndarray,
    extent: Extent,
    known_classes: np.ndarray | None = None,
) -> PartResult:
    """Compare the voxels of a block whose class is not ignored; the arrays are of the box `read`.

    known_classes: `classes` before a part was hidden.
    """
    inside = block.slices(read.start)
    counts, tiles = count_tiles(
        comparison, block, probability[(slice(None), *inside)], predicted[inside], classes[inside]
    )
    windows = count_windows(predicted[inside], classes[inside], block, comparison.window_starts())
    numbers = comparison.object_classes
    objects = None
    if numbers:
        with_shell = block_with_shell(block, comparison.box)
        part, inside_shell = extent.cut(read, with_shell), with_shell.slices(read.start)
        of_true = class_bytes(probability, classes)[inside_shell]
        voxels = (part.classes, classes[inside_shell], block, numbers, part.probability, of_true)
        known = None if known_classes is None else known_classes[inside_shell]
        if comparison.object_ids is not None:
            objects = find_labelled_objects(comparison.object_ids.read(with_shell), *voxels, known_truth=known)
        else:
            bridged = part.bridged if comparison.found_by.bridge_sections else None
            objects = find_block_objects(*voxels, bridged, known)
    masks = pack_class_masks(predicted[inside], classes[inside], block, numbers)
    return PartResult(counts, tiles, windows, objects, masks)


def count_tiles(
    comparison: Comparison, block: Box, probability: np.ndarray, predicted: np.ndarray, classes: np.ndarray
) -> tuple[VoxelCounts, dict[Zyx, TileCounts]]:
    """Return `PartResult.counts` and `PartResult.tiles`."""
    total, tiles = VoxelCounts.zeros(len(probability) + 1), dict[Zyx, TileCounts]()
    rows, columns = (
        _tile_parts(starts, block, axis) for axis, starts in zip((1, 2), comparison.tile_starts(), strict=True)
    )
    first = block.start[0] - comparison.box.start[0]
    for z, (row, y), (column, x) in itertools.product(range(block.shape[0]), rows, columns):
        part = (slice(z, z + 1), y, x)
        counts = count_block_voxels(probability[(slice(None), *part)], predicted[part], classes[part])
        tiles[first + z, row, column] = tile_counts(counts, comparison.binned_thresholds)
        total += counts
    return total, tiles


def _tile_parts(tile_starts: np.ndarray, block: Box, axis: int) -> list[tuple[int, slice]]:
    """Return the tiles that a block meets along an axis: the number of each, and its part of the block."""
    first, starts = _split(tile_starts, block, axis)
    stops = [*starts[1:].tolist(), block.shape[axis]]
    return [(first + n, slice(start, stop)) for n, (start, stop) in enumerate(zip(starts.tolist(), stops, strict=True))]


def count_windows(
    predicted: np.ndarray, classes: np.ndarray, block: Box, window_starts: list[np.ndarray]
) -> np.ndarray:
    """Return `PartResult.window_counts`."""
    counted, marked = classes != IGNORE_LABEL, predicted > 0
    true = (classes > 0) & counted
    found = true & (predicted == classes)
    masks = [found, true & ~found, marked & ~found & counted, counted]
    rows, columns = (_split(starts, block, axis)[1] for axis, starts in zip((1, 2), window_starts, strict=True))
    by_row = (np.add.reduceat(mask, rows, axis=1, dtype=np.int64) for mask in masks)
    return np.stack([np.add.reduceat(sums, columns, axis=2) for sums in by_row], -1)


def _split(starts: np.ndarray, block: Box, axis: int) -> tuple[int, np.ndarray]:
    """Return the first window or tile that a block meets along an axis, and where each starts inside the block."""
    start, stop = block.start[axis], block.stop[axis]
    first = int(np.searchsorted(starts, start, side="right")) - 1
    return first, np.maximum(starts[first : np.searchsorted(starts, stop)], start) - start


@dataclass(eq=False)
class PartTotals:
    """The sums of `PartResult` over blocks.

    Parameters
    ----------
    comparison : Comparison
        What is compared.

    Attributes
    ----------
    counts : VoxelCounts
        See `PartResult`.
    window_counts : numpy.ndarray of int64, shape (sections, windows y, windows x, 4)
        Voxels FOUND, MISSED, WRONG and COUNTED of the whole box.
    tiles : TileSample
        Voxels of all tiles.
    hidden : tuple of Box
        Parts whose voxels do not count.
    """

    comparison: Comparison
    hidden: tuple[Box, ...] = ()
    counts: VoxelCounts = field(init=False)

    def __post_init__(self) -> None:
        self._window_starts = self.comparison.window_starts()
        num_windows = (len(starts) for starts in self._window_starts)
        self.window_counts = np.zeros((self.comparison.box.shape[0], *num_windows, 4), np.int64)
        num_foreground = len(self.comparison.predictions)
        self.counts = VoxelCounts.zeros(num_foreground + 1)
        self._tile_grid = (self.comparison.box.shape[0], *map(len, self.comparison.tile_starts()))
        self.tiles = TileSample.empty(math.prod(self._tile_grid), num_foreground)
        self._objects = ObjectComparison(self.comparison.select_objects)
        self._masks: dict[int, list[ClassMasks]] = {number: [] for number in self.comparison.object_classes}

    def add(self, block: Box, result: PartResult) -> None:
        """Add the result of the next block."""
        self.counts = self.counts + result.counts
        for tile, counts in result.tiles.items():
            self.tiles.add(int(np.ravel_multi_index(tile, self._tile_grid)), counts)
        self._add_window_counts(block, result)
        if result.objects is not None:
            self._objects.add(result.objects)
        for number, masks in result.masks.items():
            self._masks[number].append(masks)

    def _add_window_counts(self, block: Box, result: PartResult) -> None:
        row, column = (_split(starts, block, axis)[0] for axis, starts in zip((1, 2), self._window_starts, strict=True))
        sections, rows, columns = result.window_counts.shape[:3]
        z = block.start[0] - self.comparison.box.start[0]
        self.window_counts[z : z + sections, row : row + rows, column : column + columns] += result.window_counts

    @cached_property
    def objects(self) -> dict[int, ClassObjects]:
        """True and predicted objects of each class that has objects; asked for after the last block."""
        comparison = self.comparison
        size, radius = comparison.voxel_size_nm, comparison.centroid_radius_nm
        return self._objects.match(comparison.object_classes, ObjectCriteria(comparison.box, size, radius))

    @property
    def outcomes(self) -> dict[int, ObjectOutcomes]:
        """What became of the objects of each class that has objects."""
        return {number: each.outcomes for number, each in self.objects.items()}

    @cached_property
    def cleft_distances(self) -> dict[int, CleftDistances]:
        """CREMI's distances for each class that has objects; empty without a voxel size."""
        size = self.comparison.voxel_size_nm
        if size is None:
            return {}
        return {number: measure_cleft_distances(masks, size) for number, masks in self._masks.items()}


@dataclass(eq=False)
class ComparisonTotals:
    """The sums over a comparison's blocks, which are added in their order.

    Parameters
    ----------
    comparison : Comparison
        What is compared.
    max_probability : float
        See `BlockResult`.
    absent_chunks : numpy.ndarray of int64, shape (2, 2)
        See `BlockResult`.
    cells : CellSums
        Sums over the cells.

    Attributes
    ----------
    whole : PartTotals
        All voxels.
    unseen : PartTotals
        Those that the network did not learn from; `whole` itself if it is not known to have learnt from any.
    """

    comparison: Comparison
    max_probability: float = 0.0
    absent_chunks: np.ndarray = field(default_factory=lambda: np.zeros((2, 2), np.int64))
    cells: CellSums = field(default_factory=CellSums)

    def __post_init__(self) -> None:
        self.whole = PartTotals(self.comparison)
        learnt = self.comparison.learnt.boxes
        self.unseen = PartTotals(self.comparison, tuple(learnt)) if learnt else self.whole

    @property
    def counts(self) -> VoxelCounts:
        """Counts of all voxels."""
        return self.whole.counts

    @property
    def headline(self) -> PartTotals:
        """The sums whose scores come first: those of the unseen voxels if there are any."""
        return self.unseen if self.unseen.counts.num_voxels else self.whole

    def add(self, result: BlockResult) -> None:
        """Add the result of the next block."""
        self.whole.add(result.block, result.whole)
        if self.unseen is not self.whole:
            self.unseen.add(result.block, result.unseen)
        self.max_probability = max(self.max_probability, result.max_probability)
        self.absent_chunks = self.absent_chunks + result.absent_chunks
        if result.cells is not None:
            self.cells.add(result.cells)

"""Compares one block of a prediction with its annotation, and adds up blocks; the sums do not depend on the blocks.

It needs numpy alone. `evaluate.py` distributes the blocks.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kasthuri_ray.errors import InputError
from kasthuri_ray.geometry import Box, Zyx, ceil_div, per_axis
from kasthuri_ray.labels import IGNORE_LABEL, LabelRule, is_any_of, to_classes
from kasthuri_ray.metrics.components import Components, UnionFind, label_mask_components, lowest_foreground_value
from kasthuri_ray.metrics.instances import CellBlock, CellSums, label_cells
from kasthuri_ray.metrics.matching import LabelPairs, count_label_pairs, match_objects, merge_label_pairs
from kasthuri_ray.metrics.objects import ObjectTable, tabulate_objects
from kasthuri_ray.metrics.voxel_counts import VoxelCounts, count_block_voxels
from kasthuri_ray.volumes.volume import Volume

MAX_BLOCK: Zyx = (64, 512, 512)
MAX_BLOCK_VOXELS = 1 << 23  # a block takes about 25 bytes a voxel
MAX_WINDOW = 1024  # voxels along y and x of the part of a section that is scored and shown as one picture

# Last axis of `window_counts`. COUNTED are all voxels that are not ignored.
FOUND, MISSED, WRONG, COUNTED = range(4)


@dataclass(frozen=True)
class Comparison:
    """The volumes to compare, and how.

    Parameters
    ----------
    prediction : Volume
        Probability of foreground, on the voxels of the annotation; see `read_probability`.
    annotation : Volume
        Labels, see `read_classes`.
    box : Box
        What is compared, in voxels of the annotation.
    threshold : float
        A voxel is predicted as foreground from this probability.
    labels : LabelRule
        What the values of the annotation mean.
    instances : Volume, optional
        Ids of cells, on the voxels of the annotation.
    no_instance : tuple of int
        Ids that mean "no cell", as 0 does.
    has_objects : bool
        Whether to match objects.
    """

    prediction: Volume
    annotation: Volume
    box: Box
    threshold: float
    labels: LabelRule = field(default_factory=LabelRule)
    instances: Volume | None = None
    no_instance: tuple[int, ...] = ()
    has_objects: bool = False
    is_complete: bool = False  # the prediction is our own output, which stores no blocks of zeros

    def count_absent(self, block: Box, probability: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """Return the chunks that begin in a block: absent ones and all, of prediction and annotation."""
        prediction = (0, 0) if self.is_complete else self.prediction.count_absent(block, probability, self.box)
        return np.array([prediction, self.annotation.count_absent(block, classes, self.box)])

    def read_probability(self, box: Box) -> np.ndarray:
        """Return the probability of foreground, z, y, x, as uint8 (255 is 1) or float.

        `box` is in voxels of the annotation. Raise an InputError for floats that are no probabilities.
        """
        voxels = self.prediction.read(box)
        if voxels.dtype.kind == "f" and not (voxels.min() >= 0 and voxels.max() <= 1 + 1e-6):
            raise InputError(
                f"{self.prediction.uri} {box} holds {voxels.min():.4g} to {voxels.max():.4g}; expected "
                "probabilities: floats from 0 to 1, or uint8 where 255 is 1"
            )
        return voxels * np.uint8(255) if voxels.dtype == bool else voxels

    def read_classes(self, box: Box) -> np.ndarray:
        """Return 0 for background, 1 for foreground of any class, or IGNORE_LABEL; uint8, z, y, x."""
        classes = to_classes(self.annotation.read(box), self.labels, f"{self.annotation.uri} {box}")
        return np.where(classes == IGNORE_LABEL, classes, classes > 0).astype(np.uint8)

    def read_instances(self, box: Box, classes: np.ndarray) -> np.ndarray:
        """Return the ids of cells, z, y, x; 0 where there is none, or where the annotation's class is ignored."""
        assert self.instances is not None
        ids = self.instances.read(box)
        without = classes == IGNORE_LABEL
        if self.no_instance:
            without |= is_any_of(ids, self.no_instance)
        return np.where(without, 0, ids)

    def predict_foreground(self, probability: np.ndarray) -> np.ndarray:
        """Return a mask of the voxels whose probability is at least the threshold."""
        if probability.dtype == np.uint8:
            return probability >= lowest_foreground_value(self.threshold)
        return probability >= self.threshold

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
        Confusion of classes 0 and 1 at the threshold, and histogram by probability.
    window_counts : numpy.ndarray of int64, shape (sections, windows y, windows x, 4)
        Voxels FOUND, MISSED, WRONG and COUNTED.
    max_probability : float
        As stored: up to 255 for uint8.
    absent_chunks : numpy.ndarray of int64, shape (2, 2)
        See `Comparison.count_absent`.
    true_components, predicted_components : Components, optional
        Connected components of annotation and prediction.
    pairs : LabelPairs, optional
        Voxels that each true and each predicted component share.
    cells : CellBlock, optional
        Cells of the prediction, and the instances.
    """

    block: Box
    counts: VoxelCounts
    window_counts: np.ndarray
    max_probability: float
    absent_chunks: np.ndarray
    true_components: Components | None = None
    predicted_components: Components | None = None
    pairs: LabelPairs | None = None
    cells: CellBlock | None = None


def compare_block(comparison: Comparison, block: Box) -> BlockResult:
    """Read and compare a block.

    Where components are joined across blocks, it reads one voxel beyond the upper ends too.
    """
    read_box = block
    if comparison.has_objects or comparison.instances is not None:
        beyond = (1 if comparison.has_objects else 0, 1, 1)
        read_box = Box(block.start, per_axis(operator.add, block.stop, beyond)).intersect(comparison.box)
    probability = comparison.read_probability(read_box)
    classes = comparison.read_classes(read_box if comparison.has_objects else block)
    predicted, inside = comparison.predict_foreground(probability), block.slices(block.start)
    result = BlockResult(
        block=block,
        counts=count_block_voxels(probability[inside], predicted[inside], classes[inside]),
        window_counts=count_windows(predicted[inside], classes[inside], block, comparison.window_starts()),
        max_probability=float(probability[inside].max()),
        absent_chunks=comparison.count_absent(block, probability[inside], classes[inside]),
    )
    if comparison.has_objects:
        result.true_components, true_ids = label_mask_components(classes == 1, block)
        result.predicted_components, predicted_ids = label_mask_components(predicted & (classes != IGNORE_LABEL), block)
        result.pairs = count_label_pairs(true_ids[inside], predicted_ids[inside])
    if comparison.instances is not None:
        instances = comparison.read_instances(block, classes[inside])
        result.cells = label_cells(~predicted[: block.shape[0]], instances, block)
    return result


def count_windows(
    predicted: np.ndarray, classes: np.ndarray, block: Box, window_starts: list[np.ndarray]
) -> np.ndarray:
    """Return `BlockResult.window_counts`."""
    counted, true = classes != IGNORE_LABEL, classes == 1
    masks = [predicted & true, ~predicted & true, predicted & ~true & counted, counted]
    rows, columns = (_split(starts, block, axis)[1] for axis, starts in zip((1, 2), window_starts, strict=True))
    by_row = (np.add.reduceat(mask, rows, axis=1, dtype=np.int64) for mask in masks)
    return np.stack([np.add.reduceat(sums, columns, axis=2) for sums in by_row], -1)


def _split(window_starts: np.ndarray, block: Box, axis: int) -> tuple[int, np.ndarray]:
    """Return the first window that a block meets along an axis, and where the windows start inside the block."""
    start, stop = block.start[axis], block.stop[axis]
    first = int(np.searchsorted(window_starts, start, side="right")) - 1
    return first, np.maximum(window_starts[first : np.searchsorted(window_starts, stop)], start) - start


@dataclass(eq=False)
class _JoinedObjects:
    """The objects of annotation or prediction, joined over the blocks so far."""

    union_find: UnionFind = field(default_factory=UnionFind)
    stats: list[np.ndarray] = field(default_factory=list)

    def add(self, components: Components) -> int:
        """Add a block's components and return the number of the first one."""
        self.stats.append(components.stats)
        return self.union_find.add(components.borders)

    def table(self) -> ObjectTable:
        return tabulate_objects(np.concatenate(self.stats), self.union_find.roots())


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

    Attributes
    ----------
    window_counts : numpy.ndarray of int64, shape (sections, windows y, windows x, 4)
        Voxels FOUND, MISSED, WRONG and COUNTED of the whole box.
    """

    comparison: Comparison
    counts: VoxelCounts = field(default_factory=VoxelCounts.zeros)
    max_probability: float = 0.0
    absent_chunks: np.ndarray = field(default_factory=lambda: np.zeros((2, 2), np.int64))
    cells: CellSums = field(default_factory=CellSums)
    _true_objects: _JoinedObjects = field(default_factory=_JoinedObjects)
    _predicted_objects: _JoinedObjects = field(default_factory=_JoinedObjects)
    _pairs: list[LabelPairs] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._window_starts = self.comparison.window_starts()
        num_windows = (len(starts) for starts in self._window_starts)
        self.window_counts = np.zeros((self.comparison.box.shape[0], *num_windows, 4), np.int64)

    def add(self, result: BlockResult) -> None:
        """Add the result of the next block."""
        self.counts = self.counts + result.counts
        self.max_probability = max(self.max_probability, result.max_probability)
        self.absent_chunks = self.absent_chunks + result.absent_chunks
        self._add_window_counts(result)
        self._add_objects(result)
        if result.cells is not None:
            self.cells.add(result.cells)

    def _add_window_counts(self, result: BlockResult) -> None:
        block = result.block
        row, column = (_split(starts, block, axis)[0] for axis, starts in zip((1, 2), self._window_starts, strict=True))
        sections, rows, columns = result.window_counts.shape[:3]
        z = block.start[0] - self.comparison.box.start[0]
        self.window_counts[z : z + sections, row : row + rows, column : column + columns] += result.window_counts

    def _add_objects(self, result: BlockResult) -> None:
        if result.pairs is None or result.true_components is None or result.predicted_components is None:
            return
        true_base = self._true_objects.add(result.true_components)
        predicted_base = self._predicted_objects.add(result.predicted_components)
        true, predicted, voxels = result.pairs  # components are numbered from 1 in a block, from 0 in all
        self._pairs.append(
            (true.astype(np.int64) + true_base - 1, predicted.astype(np.int64) + predicted_base - 1, voxels)
        )

    def match_objects(self) -> dict[str, Any]:
        """Match true and predicted objects; see `metrics.matching.match_objects`."""
        true, predicted = self._true_objects.table(), self._predicted_objects.table()
        if not self._pairs:
            return match_objects((np.zeros(0, int),) * 3, true.size_voxels, predicted.size_voxels)
        pairs = merge_label_pairs((true.object_ids[t], predicted.object_ids[p], voxels) for t, p, voxels in self._pairs)
        return match_objects(pairs, true.size_voxels, predicted.size_voxels)

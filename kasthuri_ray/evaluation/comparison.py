"""A block of a prediction held against its annotation, and the sums of all blocks: the same whatever the blocks.

Numpy alone; who does which block is `evaluate`'s.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kasthuri_ray.geometry import Box, Zyx
from kasthuri_ray.labels import IGNORE_LABEL, to_classes
from kasthuri_ray.metrics.components import Components, UnionFind, label_mask_components, lowest_foreground_value
from kasthuri_ray.metrics.instances import CellBlock, CellSums, label_cells
from kasthuri_ray.metrics.objects import (
    ObjectTable,
    Pairs,
    count_label_pairs,
    match_objects,
    merge_label_pairs,
    tabulate_objects,
)
from kasthuri_ray.metrics.voxel_counts import VoxelCounts, count_block_voxels
from kasthuri_ray.volumes.volume import Volume

MAX_BLOCK: Zyx = (64, 512, 512)  # voxels of a block along each axis
MAX_BLOCK_VOXELS = 1 << 23  # of a block; it takes about 25 bytes each
WINDOW = 1024  # the widest part of a section that is shown and scored by itself
FOUND, MISSED, WRONG, TRUE_NEGATIVE = range(4)


@dataclass(frozen=True)
class Comparison:
    """What is held against what.

    box: what is compared, in voxels of the annotation. shift: to the prediction's voxels. instances: an annotation of
    cells on the annotation's own voxels, None for none. objects: whether to match objects.
    threshold_value, num_classes, ignore_label: how labels become classes, see `to_classes`.
    """

    prediction: Volume
    annotation: Volume
    box: Box
    shift: Zyx
    threshold: float
    threshold_value: float | None = None
    num_classes: int = 2
    ignore_label: int | None = None
    instances: Volume | None = None
    objects: bool = False

    def read_probability(self, box: Box) -> np.ndarray:
        """The probability of foreground: uint8 (255 is 1) or float, z,y,x. `box` in voxels of the annotation.

        Raises ValueError for floats that are no probabilities.
        """
        there = box.shifted(self.shift)
        voxels = self.prediction.read(there)
        if voxels.dtype.kind == "f" and not (voxels.min() >= 0 and voxels.max() <= 1 + 1e-6):
            raise ValueError(
                f"{self.prediction.uri} {there} holds {voxels.min():.4g} to {voxels.max():.4g}; probabilities are "
                "floats from 0 to 1, or uint8, of which 255 is 1"
            )
        return voxels * np.uint8(255) if voxels.dtype == bool else voxels

    def read_classes(self, box: Box) -> np.ndarray:
        """0 background, 1 foreground of whatever class, IGNORE_LABEL: uint8, z,y,x."""
        classes = to_classes(
            self.annotation.read(box),
            threshold_value=self.threshold_value,
            num_classes=self.num_classes,
            ignore_label=self.ignore_label,
            where=f"{self.annotation.uri} {box}",
        )
        return np.where(classes == IGNORE_LABEL, classes, classes > 0).astype(np.uint8)

    def called(self, probability: np.ndarray) -> np.ndarray:
        """Where the probability is at least the threshold: bool."""
        least = lowest_foreground_value(self.threshold)
        return probability >= (least if probability.dtype == np.uint8 else self.threshold)

    def windows(self) -> list[np.ndarray]:
        """Where the parts of a section begin along y and x: equal ones of at most WINDOW voxels."""
        edges = []
        for axis in (1, 2):
            extent = self.box.shape[axis]
            size = -(-extent // -(-extent // WINDOW))
            edges.append(np.arange(0, extent, size) + self.box.start[axis])
        return edges

    def blocks(self, block: Zyx | None = None) -> list[Box]:
        """What the box is cut into, z slowest, on the prediction's chunks; `block` stands instead of the rule's."""
        origin = [a - s for a, s in zip(self.prediction.chunk_origin, self.shift, strict=True)]
        return list(self.box.cells(block or comparison_block_shape(self.prediction.chunk, self.box.shape), origin))


def comparison_block_shape(chunk: Zyx, shape: Zyx) -> Zyx:
    """Whole chunks, doubled along x, y and z in turn while they are few; part of a chunk where those are large."""
    block = [min(c, most) for c, most in zip(chunk, MAX_BLOCK, strict=True)]
    for axis in (2, 1, 0):
        while (
            2 * block[axis] <= MAX_BLOCK[axis] and 2 * np.prod(block) <= MAX_BLOCK_VOXELS and block[axis] < shape[axis]
        ):
            block[axis] *= 2
    return tuple(block)  # type: ignore[return-value]


@dataclass(eq=False)
class BlockResult:
    """What a block comes to; all of it adds up.

    counts: at the threshold (classes 0 and 1), and by probability. parts: int64 [sections, windows y, windows x, 4],
    voxels FOUND, MISSED, WRONG and KEPT (all that count). highest: the highest probability there, as stored.
    """

    own: Box
    counts: VoxelCounts
    parts: np.ndarray
    highest: float
    true: Components | None = None
    predicted: Components | None = None
    pairs: Pairs | None = None
    cells: CellBlock | None = None


def compare_block(comparison: Comparison, own: Box) -> BlockResult:
    """Read a block, with a shell of one voxel at its upper ends where something is to be joined, and count it."""
    seen = own
    if comparison.objects or comparison.instances is not None:
        beyond = (1 if comparison.objects else 0, 1, 1)
        stop = tuple(n + more for n, more in zip(own.stop, beyond, strict=True))
        seen = Box(own.start, stop).intersect(comparison.box)  # type: ignore[arg-type]
    probability = comparison.read_probability(seen)
    classes = comparison.read_classes(seen if comparison.objects else own)
    called, inside = comparison.called(probability), own.slices(own.start)
    result = BlockResult(
        own=own,
        counts=count_block_voxels(probability[inside], called[inside], classes[inside]),
        parts=count_windows(called[inside], classes[inside], own, comparison.windows()),
        highest=float(probability[inside].max()),
    )
    if comparison.objects:
        result.true, true = label_mask_components(classes == 1, own)
        result.predicted, predicted = label_mask_components(called & (classes != IGNORE_LABEL), own)
        result.pairs = count_label_pairs(true[inside], predicted[inside])
    if comparison.instances is not None:
        instances = np.where(classes[inside] == IGNORE_LABEL, 0, comparison.instances.read(own))
        result.cells = label_cells(~called[: own.shape[0]], instances, own)
    return result


def count_windows(called: np.ndarray, classes: np.ndarray, own: Box, windows: list[np.ndarray]) -> np.ndarray:
    """`BlockResult.parts`."""
    kept, true = classes != IGNORE_LABEL, classes == 1
    masks = [called & true, ~called & true, called & ~true & kept, kept]
    rows, columns = (_inner(windows[axis - 1], own.start[axis], own.stop[axis])[1] for axis in (1, 2))
    by_row = (np.add.reduceat(mask, rows, axis=1, dtype=np.int64) for mask in masks)
    return np.stack([np.add.reduceat(sums, columns, axis=2) for sums in by_row], -1)


def _inner(edges: np.ndarray, start: int, stop: int) -> tuple[int, np.ndarray]:
    """The number of the first window that a range meets, and where the windows begin in it."""
    first = int(np.searchsorted(edges, start, side="right")) - 1
    return first, np.maximum(edges[first : np.searchsorted(edges, stop)], start) - start


@dataclass(eq=False)
class _Side:
    """The objects of truth or of prediction, while blocks come in."""

    joiner: UnionFind = field(default_factory=UnionFind)
    stats: list[np.ndarray] = field(default_factory=list)

    def add(self, block: Components) -> int:
        self.stats.append(block.stats)
        return self.joiner.add(block.borders)

    def table(self) -> ObjectTable:
        return tabulate_objects(np.concatenate(self.stats), self.joiner.roots())


@dataclass(eq=False)
class ComparisonTotals:
    """The sums of a comparison's blocks, which are added in their order.

    parts: int64 [sections, windows y, windows x, 4], of the whole box.
    """

    comparison: Comparison
    counts: VoxelCounts = field(default_factory=VoxelCounts.zeros)
    highest: float = 0.0
    cells: CellSums = field(default_factory=CellSums)
    _sides: tuple[_Side, _Side] = field(default_factory=lambda: (_Side(), _Side()))
    _pairs: list[Pairs] = field(default_factory=list)

    def __post_init__(self) -> None:
        sizes = (len(edges) for edges in self.comparison.windows())
        self.parts = np.zeros((self.comparison.box.shape[0], *sizes, 4), np.int64)

    def add(self, result: BlockResult) -> None:
        own, box = result.own, self.comparison.box
        self.counts = self.counts + result.counts
        self.highest = max(self.highest, result.highest)
        row, column = (
            _inner(edges, own.start[axis], own.stop[axis])[0]
            for axis, edges in zip((1, 2), self.comparison.windows(), strict=True)
        )
        sections, rows, columns = result.parts.shape[:3]
        z = own.start[0] - box.start[0]
        self.parts[z : z + sections, row : row + rows, column : column + columns] += result.parts
        if result.pairs is not None and result.true is not None and result.predicted is not None:
            bases = [side.add(part) for side, part in zip(self._sides, (result.true, result.predicted), strict=True)]
            true, predicted, voxels = result.pairs
            self._pairs.append(
                (true.astype(np.int64) + bases[0] - 1, predicted.astype(np.int64) + bases[1] - 1, voxels)
            )
        if result.cells is not None:
            self.cells.add(result.cells)

    def objects(self) -> dict[str, Any]:
        """The objects matched; see `match_objects`."""
        true, predicted = (side.table() for side in self._sides)
        if not self._pairs:
            return match_objects((np.zeros(0, int),) * 3, true.size_voxels, predicted.size_voxels)
        ids = merge_label_pairs((true.id_of[one], predicted.id_of[other], voxels) for one, other, voxels in self._pairs)
        return match_objects(ids, true.size_voxels, predicted.size_voxels)

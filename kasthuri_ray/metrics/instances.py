"""Cells that membranes enclose, held against an annotation of instances: adapted Rand error and variation of
information.

Membranes in serial sections do not close a cell along z: its profile in the next section has moved, and above it lies a
neighbour. So a cell is, as in the ISBI 2012 challenge (Arganda-Carreras et al. 2015, doi:10.3389/fnana.2015.00142), a
connected component of what is no membrane within one section, by faces (4 neighbours), and is compared with the
profiles of the annotation in that section: an instance in two sections is two. It does not matter whether the network
was 2D or 3D.

Voxels count that lie in a cell of both: not those without an instance (label 0), nor those called membrane, which are
in no cell. On the labels of such voxels the figures are those of `skimage.metrics.adapted_rand_error` and
`variation_of_information`. They are sums over sections, so that no more than a layer of blocks is kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import cc3d
import numpy as np

from kasthuri_ray.geometry import Box
from kasthuri_ray.metrics.components import Borders, UnionFind
from kasthuri_ray.metrics.objects import Pairs, count_label_pairs, merge_label_pairs


@dataclass(frozen=True)
class PartitionSums:
    """What two labellings of the same voxels add up to, section by section.

    voxels: how many are compared. Of the sizes n of the overlaps, of the true and of the predicted segments: the sums
    of n**2 (exact), and of n log2 n.
    """

    voxels: int = 0
    squares: tuple[int, int, int] = (0, 0, 0)
    logs: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @classmethod
    def of(cls, pairs: Pairs) -> PartitionSums:
        """pairs: (true, predicted, voxels), each pair once. The order does not change a bit of the sums."""
        true, predicted, voxels = pairs
        sizes = [voxels, _sizes(true, voxels), _sizes(predicted, voxels)]
        squares = tuple(sum(n * n for n in size.tolist()) for size in sizes)
        logs = tuple(math.fsum(n * math.log2(n) for n in size.tolist()) for size in sizes)
        return cls(int(voxels.sum()), squares, logs)  # type: ignore[arg-type]

    def __add__(self, other: PartitionSums) -> PartitionSums:
        return PartitionSums(
            self.voxels + other.voxels,
            tuple(a + b for a, b in zip(self.squares, other.squares, strict=True)),  # type: ignore[arg-type]
            tuple(a + b for a, b in zip(self.logs, other.logs, strict=True)),  # type: ignore[arg-type]
        )

    def scores(self) -> dict[str, float | None]:
        """`arand`, `voi_split`, `voi_merge` (bits): 0 is perfect. None where there are no voxels to compare.

        arand is 1 - F1 of the pairs of voxels that are together in the one and in the other; voi_split is what the
        prediction leaves unsaid if the truth is known, H(predicted | true), voi_merge H(true | predicted).
        """
        if not self.voxels:
            return {"arand": None, "voi_split": None, "voi_merge": None}
        both, true, predicted = (square - self.voxels for square in self.squares)
        log_both, log_true, log_predicted = self.logs
        return {
            "arand": 1 - 2 * both / (true + predicted) if true + predicted else 0.0,
            "voi_split": max(0.0, (log_true - log_both) / self.voxels),
            "voi_merge": max(0.0, (log_predicted - log_both) / self.voxels),
        }


def _sizes(labels: np.ndarray, voxels: np.ndarray) -> np.ndarray:
    """How many voxels each label has."""
    _, which = np.unique(labels, return_inverse=True)
    sizes = np.zeros(which.max() + 1 if which.size else 0, np.int64)
    np.add.at(sizes, which, voxels)
    return sizes


@dataclass(frozen=True, eq=False)
class CellBlock:
    """The cells of a block, before they are joined with those of others.

    pairs: of each section the pairs (instance, cell, voxels) of the block's own voxels.
    """

    borders: Borders
    pairs: list[Pairs]


def label_cells(inside: np.ndarray, instances: np.ndarray, own: Box) -> CellBlock:
    """The cells of a block, counted against instances.

    inside: bool, z,y,x: where no membrane is, of `own` and of one voxel more at the upper ends along y and x, as far as
    the volume goes. instances: integers of `own`, 0 where a voxel does not count.
    """
    labels = np.zeros(inside.shape, np.int32)
    pairs, number = [], 0
    for z, section in enumerate(inside):
        found, more = cc3d.connected_components(section, connectivity=4, return_N=True, binary_image=True)
        labels[z] = np.where(section, found.astype(np.int32) + number, 0)
        pairs.append(count_label_pairs(instances[z], labels[z, : own.shape[1], : own.shape[2]]))
        number += more
    return CellBlock(Borders.of(labels, own, number, axes=(1, 2)), pairs)


class CellSums:
    """Adds up the cells of blocks, which come in the order of `Box.cells`; a layer of them is kept at a time."""

    def __init__(self) -> None:
        self._sums = PartitionSums()
        self._joiner = UnionFind()
        self._layer: int | None = None
        self._pairs: list[list[Pairs]] = []  # of each section

    def add(self, block: CellBlock) -> None:
        own = block.borders.own
        if self._layer != own.start[0]:
            self._close()
            self._layer = own.start[0]
            self._pairs = [[] for _ in range(own.shape[0])]
        base = self._joiner.add(block.borders)
        for kept, (instance, cell, voxels) in zip(self._pairs, block.pairs, strict=True):
            kept.append((instance, base + cell.astype(np.int64) - 1, voxels))

    def _close(self) -> None:
        """Join the cells of a layer and count its sections."""
        roots = self._joiner.roots()
        for section in self._pairs:
            self._sums += PartitionSums.of(
                merge_label_pairs((instance, roots[node], voxels) for instance, node, voxels in section)
            )
        self._joiner, self._pairs = UnionFind(), []

    def total(self) -> PartitionSums:
        """The sums of all blocks so far."""
        self._close()
        self._layer = None
        return self._sums


def sum_cells(blocks: Iterable[CellBlock]) -> PartitionSums:
    """The sums of all blocks, in the order of `Box.cells`."""
    sums = CellSums()
    for block in blocks:
        sums.add(block)
    return sums.total()

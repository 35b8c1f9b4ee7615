"""Cells that membranes enclose, compared with an annotation of instances: adapted Rand error, variation of information.

Membranes in serial sections do not close a cell along z: its profile in the next section has moved, and above it may be
that of a neighbour. As in the ISBI 2012 challenge (Arganda-Carreras et al. 2015, doi:10.3389/fnana.2015.00142), a cell
is therefore a connected component, by faces (4 neighbours), of the voxels of one section that are not membrane. It is
compared with the profiles of the annotation in that section: an instance in two sections counts as two. The rule is the
same for 2D and 3D networks.

A voxel counts if it is in a cell of both. Voxels without an instance (label 0) and voxels predicted as membrane do not.
For the labels of the voxels that count, the scores equal `skimage.metrics.adapted_rand_error` and
`variation_of_information`. They are computed from sums over sections, so that one layer of blocks is kept at a time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cc3d
import numpy as np

from kasthuri_ray.geometry import Box, per_axis
from kasthuri_ray.metrics.components import Borders, UnionFind
from kasthuri_ray.metrics.matching import LabelPairs, count_label_pairs, merge_label_pairs


@dataclass(frozen=True)
class PartitionSums:
    """Sums over two labelings of the same voxels, which add up over sections.

    Parameters
    ----------
    num_voxels : int
        Number of voxels that count.
    squares : tuple of int
        Sums of n**2, exact, over the sizes n of the overlaps, of the true and of the predicted segments.
    logs : tuple of float
        Sums of n log2 n over the same three.
    """

    num_voxels: int = 0
    squares: tuple[int, int, int] = (0, 0, 0)
    logs: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @classmethod
    def from_pairs(cls, pairs: LabelPairs) -> PartitionSums:
        """Return the sums of (true, predicted, voxels), each pair once; their order does not change a bit."""
        true, predicted, voxels = pairs
        sizes = [voxels, _segment_sizes(true, voxels), _segment_sizes(predicted, voxels)]
        squares = per_axis(lambda size: sum(n * n for n in size.tolist()), sizes)
        logs = per_axis(lambda size: math.fsum(n * math.log2(n) for n in size.tolist()), sizes)
        return cls(int(voxels.sum()), squares, logs)

    def __add__(self, other: PartitionSums) -> PartitionSums:
        both, true, predicted = (a + b for a, b in zip(self.squares, other.squares, strict=True))
        log_both, log_true, log_predicted = (a + b for a, b in zip(self.logs, other.logs, strict=True))
        return PartitionSums(
            self.num_voxels + other.num_voxels, (both, true, predicted), (log_both, log_true, log_predicted)
        )

    def scores(self) -> dict[str, float | None]:
        """Return `arand`, `voi_split` and `voi_merge` (bits). 0 is perfect; None if there are no voxels to compare.

        `arand` is 1 - F1 of the pairs of voxels that share a segment. `voi_split` is H(predicted | true) and
        `voi_merge` is H(true | predicted).
        """
        if not self.num_voxels:
            return {"arand": None, "voi_split": None, "voi_merge": None}
        both, true, predicted = (square - self.num_voxels for square in self.squares)
        log_both, log_true, log_predicted = self.logs
        return {
            "arand": 1 - 2 * both / (true + predicted) if true + predicted else 0.0,
            "voi_split": max(0.0, (log_true - log_both) / self.num_voxels),
            "voi_merge": max(0.0, (log_predicted - log_both) / self.num_voxels),
        }


@dataclass(frozen=True, eq=False)
class CellBlock:
    """The cells of a block, before they are joined with those of other blocks.

    Parameters
    ----------
    borders : Borders
        The labels that other blocks share.
    pairs : list of LabelPairs
        For each section the (instance, cell, voxels) of the block's own voxels.
    """

    borders: Borders
    pairs: list[LabelPairs]


def label_cells(inside: np.ndarray, instances: np.ndarray, own: Box) -> CellBlock:
    """Find the cells of a block and count their overlaps with instances.

    Parameters
    ----------
    inside : ndarray of bool, (z, y, x)
        Voxels that are not membrane, of `own` and of one voxel more at the upper ends of y and x, except where the
        volume ends.
    instances : ndarray of int, (z, y, x)
        Instances of `own`; voxels that are 0 do not count.
    own : Box
        The block, in voxels of the volume.

    Returns
    -------
    CellBlock
        The cells of the block.
    """
    labels = np.zeros(inside.shape, np.int32)
    pairs, num_cells = [], 0
    for z, section in enumerate(inside):
        components, count = cc3d.connected_components(section, connectivity=4, return_N=True, binary_image=True)
        labels[z] = np.where(section, components.astype(np.int32) + num_cells, 0)
        pairs.append(count_label_pairs(instances[z], labels[z, : own.shape[1], : own.shape[2]]))
        num_cells += count
    return CellBlock(Borders.from_labels(labels, own, num_cells, axes=(1, 2)), pairs)


class CellSums:
    """Sums over the cells of blocks, which are added in the order of `Box.cells`; one layer of blocks is kept."""

    def __init__(self) -> None:
        self._sums = PartitionSums()
        self._union = UnionFind()
        self._layer_start: int | None = None
        self._pairs: list[list[LabelPairs]] = []  # of each section of the layer

    def add(self, block: CellBlock) -> None:
        """Add the next block."""
        own = block.borders.own
        if self._layer_start != own.start[0]:
            self._finish_layer()
            self._layer_start = own.start[0]
            self._pairs = [[] for _ in range(own.shape[0])]
        base = self._union.add(block.borders)
        for section, (instance, cell, voxels) in zip(self._pairs, block.pairs, strict=True):
            section.append((instance, base + cell.astype(np.int64) - 1, voxels))

    def total(self) -> PartitionSums:
        """Return the sums of all blocks that were added."""
        self._finish_layer()
        self._layer_start = None
        return self._sums

    def _finish_layer(self) -> None:
        """Join the cells of a layer and add up its sections."""
        roots = self._union.roots()
        for section in self._pairs:
            joined = merge_label_pairs((instance, roots[node], voxels) for instance, node, voxels in section)
            self._sums += PartitionSums.from_pairs(joined)
        self._union, self._pairs = UnionFind(), []


def _segment_sizes(labels: np.ndarray, voxels: np.ndarray) -> np.ndarray:
    """Return the number of voxels of each label."""
    _, segment = np.unique(labels, return_inverse=True)
    sizes = np.zeros(segment.max() + 1 if segment.size else 0, np.int64)
    np.add.at(sizes, segment, voxels)
    return sizes

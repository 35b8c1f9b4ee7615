"""The table of the objects of a volume, joined from the components of its blocks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from kasthuri_ray.geometry import Box
from kasthuri_ray.metrics.components import (
    CLASS,
    FIRST_VOXEL,
    MAXIMA,
    MINIMA,
    NUM_COLUMNS,
    PROBABILITY_SUM,
    SIZE,
    START_Z,
    STOP_Z,
    SUM_Z,
    SUMS,
    Components,
    UnionFind,
)


@dataclass(frozen=True, eq=False)
class ObjectTable:
    """The objects of a volume, in the order of their first voxels (z slowest): row i is object i + 1.

    Parameters
    ----------
    stats : ndarray of int64, (objects, NUM_COLUMNS)
        Sums, maxima and minima over the voxels of each object.
    object_ids : ndarray of int64, (nodes,)
        The object of each node of the `UnionFind`; 0 for a component whose voxels no block owns.
    continues_hidden : ndarray of bool, (objects,), optional
        Whether a part of the object is among voxels that do not count.
    """

    stats: np.ndarray
    object_ids: np.ndarray
    continues_hidden: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.stats)

    @property
    def size_voxels(self) -> np.ndarray:
        """Number of voxels, int64 [objects]."""
        return self.stats[:, SIZE]

    @property
    def class_numbers(self) -> np.ndarray:
        """Class of each object, 1, 2, ..., int64 [objects]."""
        return self.stats[:, CLASS]

    @property
    def centroid(self) -> np.ndarray:
        """Mean z, y, x of the voxels, float64 [objects, 3]; a voxel is at its index."""
        return self.stats[:, SUM_Z : SUM_Z + 3] / self.stats[:, SIZE, None]

    @property
    def mean_probability(self) -> np.ndarray:
        """Mean probability of the voxels, 0 to 1, float64 [objects]: the score of an object."""
        return self.stats[:, PROBABILITY_SUM] / np.maximum(self.stats[:, SIZE], 1) / 255

    def is_cut(self, bounds: Box) -> np.ndarray:
        """Return which objects may be only a part of one: they touch a face of the box, or continue in hidden voxels.

        Parameters
        ----------
        bounds : Box
            All voxels in which objects are found.

        Returns
        -------
        ndarray of bool, (objects,)
            One for each object.
        """
        starts, stops = self.stats[:, START_Z : START_Z + 3], self.stats[:, STOP_Z : STOP_Z + 3]
        at_face = np.logical_or((starts <= bounds.start).any(1), (stops >= bounds.stop).any(1))
        return at_face if self.continues_hidden is None else at_face | self.continues_hidden


def keep_objects(table: ObjectTable, keep: np.ndarray) -> ObjectTable:
    """Return a part of a table; the voxels of the other objects belong to none.

    Parameters
    ----------
    table : ObjectTable
        Objects.
    keep : ndarray of bool
        One for each object.

    Returns
    -------
    ObjectTable
        The kept objects, numbered in the same order.
    """
    new_ids = np.concatenate([[0], np.where(keep, np.cumsum(keep), 0)])
    continues_hidden = None if table.continues_hidden is None else table.continues_hidden[keep]
    return ObjectTable(table.stats[keep], new_ids[table.object_ids], continues_hidden)


def join_objects(blocks: Iterable[Components]) -> ObjectTable:
    """Join the components of all blocks to objects.

    Parameters
    ----------
    blocks : iterable of Components
        In the order of `Box.cells`, z slowest. Each is needed once.

    Returns
    -------
    ObjectTable
        The objects of the volume.

    Raises
    ------
    ValueError
        If blocks are out of order, or differ in the voxels that they share.

    Notes
    -----
    Takes about 500 bytes at its peak for each component of each block, and the borders of one layer of blocks.
    """
    union, stats = UnionFind(), [np.zeros((0, NUM_COLUMNS), np.int64)]
    for block in blocks:
        union.add(block.borders)
        stats.append(block.stats)
    return tabulate_objects(np.concatenate(stats), union.roots())


def tabulate_objects(stats: np.ndarray, roots: np.ndarray) -> ObjectTable:
    """Merge the nodes that have the same root into one object each.

    Parameters
    ----------
    stats : ndarray of int64, (nodes, NUM_COLUMNS)
        `Components.stats` of all blocks, in the order in which the blocks were added to the `UnionFind`.
    roots : ndarray of int64, (nodes,)
        `UnionFind.roots()`.

    Returns
    -------
    ObjectTable
        One row for each root that has voxels.
    """
    if not len(stats):
        return ObjectTable(stats, np.zeros(0, np.int64))
    order = np.argsort(roots, kind="stable")
    starts = np.flatnonzero(np.diff(roots[order], prepend=-1))
    merged = np.empty((len(starts), NUM_COLUMNS), np.int64)
    for columns, reduce in ((SUMS, np.add), (MAXIMA, np.maximum), (MINIMA, np.minimum)):
        merged[:, columns] = reduce.reduceat(stats[order, columns], starts, axis=0)
    by_first_voxel = np.argsort(merged[:, FIRST_VOXEL], kind="stable")
    by_first_voxel = by_first_voxel[merged[by_first_voxel, SIZE] > 0]
    group_ids = np.zeros(len(starts), np.int64)
    group_ids[by_first_voxel] = np.arange(1, len(by_first_voxel) + 1)
    object_ids = np.empty(len(roots), np.int64)
    object_ids[order] = np.repeat(group_ids, np.diff(starts, append=len(roots)))
    return ObjectTable(merged[by_first_voxel], object_ids)

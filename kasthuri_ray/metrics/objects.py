"""The table of the objects of a volume, joined from the components of its blocks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from kasthuri_ray.geometry import Zyx
from kasthuri_ray.metrics.components import (
    CLASS,
    FIRST_VOXEL,
    MAX_PROBABILITY,
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

HEADER = (
    "id,centroid_z{unit},centroid_y{unit},centroid_x{unit},size_voxels,mean_probability,highest_probability,"
    "z_start,z_stop,y_start,y_stop,x_start,x_stop"
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
    """

    stats: np.ndarray
    object_ids: np.ndarray

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

    def csv_lines(
        self,
        voxel_size_nm: Sequence[float] | None,
        translation_nm: Sequence[float] = (0.0, 0.0, 0.0),
        start: Zyx = (0, 0, 0),
        class_names: Sequence[str] = (),
    ) -> Iterator[str]:
        """Yield the table as lines of CSV, header first.

        Centroids are scaled by `voxel_size_nm`, if that is known, and shifted by `translation_nm`; boxes are shifted by
        `start` voxels. With names of several classes, 1, 2, ..., there is a column for the class.
        """
        header = HEADER.format(unit="_voxels" if voxel_size_nm is None else "_nm")
        yield f"{header},class" if len(class_names) > 1 else header
        scale = np.array(voxel_size_nm or (1.0, 1.0, 1.0), np.float64)
        centroids = self.centroid * scale + np.array(translation_nm, np.float64)
        mean = self.stats[:, PROBABILITY_SUM] / self.stats[:, SIZE] / 255
        for row, (stats, centroid) in enumerate(zip(self.stats.tolist(), centroids.tolist(), strict=True)):
            box = [stats[column + axis] + start[axis] for axis in range(3) for column in (START_Z, STOP_Z)]
            position = ",".join(f"{value:.3f}" for value in centroid)
            probability = f"{mean[row]:.6f},{stats[MAX_PROBABILITY] / 255:.6f}"
            name = f",{class_names[stats[CLASS] - 1]}" if len(class_names) > 1 else ""
            yield f"{row + 1},{position},{stats[SIZE]},{probability},{','.join(map(str, box))}{name}"


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
    Takes about 100 bytes for each component of each block, and the borders of one layer of blocks.
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

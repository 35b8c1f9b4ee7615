"""Objects of a volume of any size, such as its synapses: joined from the components of its blocks, and their table.

blocks = (label_block(probability_with_shell, own, threshold) for own in box.cells(block))   # anywhere, any order
table = join(blocks)                                                                         # in the order of cells
write_table(table, "out.zarr.synapses.csv", voxel_size_nm)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from kasthuri_ray.evaluation.components import (
    ADDED,
    COLUMNS,
    FIRST,
    HIGHEST,
    MAXIMA,
    MINIMA,
    PROBABILITY_SUM,
    SIZE,
    START_Z,
    STOP_Z,
    SUM_Z,
    Components,
    Joiner,
    label_block,
)
from kasthuri_ray.geometry import Zyx
from kasthuri_ray.storage import open_storage

__all__ = ["Components", "ObjectTable", "join", "label_block", "tabulate", "write_table"]

HEADER = (
    "id,centroid_z{unit},centroid_y{unit},centroid_x{unit},size_voxels,mean_probability,highest_probability,"
    "z_start,z_stop,y_start,y_stop,x_start,x_stop"
)


@dataclass(frozen=True, eq=False)
class ObjectTable:
    """The objects of a volume, in the order of their first voxels (z slowest): row i is the object i + 1.

    stats: int64 [objects, COLUMNS]. id_of: the object of each of the Joiner's nodes; 0 where nobody owns its voxels.
    """

    stats: np.ndarray
    id_of: np.ndarray

    def __len__(self) -> int:
        return len(self.stats)

    @property
    def size_voxels(self) -> np.ndarray:
        return self.stats[:, SIZE]

    @property
    def centroid(self) -> np.ndarray:
        """z, y, x in voxels of the volume, float64 [objects, 3]; a voxel's own place is its index."""
        return self.stats[:, SUM_Z : SUM_Z + 3] / self.stats[:, SIZE, None]

    def rows(
        self,
        voxel_size_nm: Sequence[float] | None,
        translation_nm: Sequence[float] = (0.0, 0.0, 0.0),
        start: Zyx = (0, 0, 0),
    ) -> Iterator[str]:
        """The lines of the table as CSV, header first; see `write_table`."""
        yield HEADER.format(unit="_voxels" if voxel_size_nm is None else "_nm")
        scale = np.array(voxel_size_nm or (1.0, 1.0, 1.0), np.float64)
        centroids = self.centroid * scale + np.array(translation_nm, np.float64)
        mean = self.stats[:, PROBABILITY_SUM] / self.stats[:, SIZE] / 255
        for row, (stats, centroid) in enumerate(zip(self.stats.tolist(), centroids.tolist(), strict=True)):
            box = [stats[column + axis] + start[axis] for axis in range(3) for column in (START_Z, STOP_Z)]
            place = ",".join(f"{value:.3f}" for value in centroid)
            chance = f"{mean[row]:.6f},{stats[HIGHEST] / 255:.6f}"
            yield f"{row + 1},{place},{stats[SIZE]},{chance},{','.join(map(str, box))}"


def join(blocks: Iterable[Components]) -> ObjectTable:
    """The table of all blocks, which come in the order of `Box.cells`; each is needed once.

    Takes about 100 bytes a component of a block, and the borders of one layer of blocks.
    """
    joiner, stats = Joiner(), [np.zeros((0, COLUMNS), np.int64)]
    for block in blocks:
        joiner.add(block.borders)
        stats.append(block.stats)
    return tabulate(np.concatenate(stats), joiner.roots())


def tabulate(stats: np.ndarray, roots: np.ndarray) -> ObjectTable:
    """One row for all nodes of one root. stats: of the nodes; roots: see `Joiner.roots`."""
    if not len(stats):
        return ObjectTable(stats, np.zeros(0, np.int64))
    order = np.argsort(roots, kind="stable")
    starts = np.flatnonzero(np.diff(roots[order], prepend=-1))
    merged = np.empty((len(starts), COLUMNS), np.int64)
    for columns, reduce in ((ADDED, np.add), (MAXIMA, np.maximum), (MINIMA, np.minimum)):
        merged[:, columns] = reduce.reduceat(stats[order, columns], starts, axis=0)
    by_first = np.argsort(merged[:, FIRST], kind="stable")
    by_first = by_first[merged[by_first, SIZE] > 0]
    id_of_group = np.zeros(len(starts), np.int64)
    id_of_group[by_first] = np.arange(1, len(by_first) + 1)
    id_of = np.empty(len(roots), np.int64)
    id_of[order] = np.repeat(id_of_group, np.diff(starts, append=len(roots)))
    return ObjectTable(merged[by_first], id_of)


def write_table(
    table: ObjectTable,
    path: str,
    voxel_size_nm: Sequence[float] | None,
    translation_nm: Sequence[float] = (0.0, 0.0, 0.0),
    start: Zyx = (0, 0, 0),
) -> None:
    """Write the table as CSV to a path or `s3://` URL, whole or not at all.

    Centroids are index * voxel size + translation in nm; in voxels, and the header says so, where no size is known.
    Boxes are half-open, in voxels; `start` is added to them: of an output, where it begins in its image. Probabilities
    are from 0 to 1.
    """
    folder, _, name = path.rpartition("/")
    lines = table.rows(voxel_size_nm, translation_nm, start)
    open_storage(folder or ".").write_bytes(name, "".join(f"{line}\n" for line in lines).encode())

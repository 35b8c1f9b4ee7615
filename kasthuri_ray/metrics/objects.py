"""Which predicted objects are right: one-to-one by overlap, and the precision, recall and F1 that follow.

The rule is that of panoptic quality (Kirillov et al., CVPR 2019, arXiv:1801.00868), which MONAI's
`PanopticQualityMetric` has too: a predicted object is right if what it shares with a true one is more than half of what
the two cover together (their intersection over union, IoU). Above a half no object has a second partner, so that
nothing need be chosen and nothing counts twice: one object over everything finds nothing, one that spans two true ones
finds at most one of them, and of the pieces of an object that fell apart at most one is right. No object is left out
for its size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from kasthuri_ray.geometry import Zyx
from kasthuri_ray.metrics.components import (
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
    UnionFind,
)

MATCHING_IOU = 0.5  # two are paired above it; below a half, pairs would have to be chosen
Pairs = tuple[np.ndarray, np.ndarray, np.ndarray]
"""(one, other, voxels): how many voxels have one label in one array and the other in another; sparse."""


HEADER = (
    "id,centroid_z{unit},centroid_y{unit},centroid_x{unit},size_voxels,mean_probability,highest_probability,"
    "z_start,z_stop,y_start,y_stop,x_start,x_stop"
)


def count_label_pairs(one: np.ndarray, other: np.ndarray) -> Pairs:
    """The pairs of labels (integers of any type, 0 is none) of two arrays of one shape, where neither is 0."""
    both = np.flatnonzero((one != 0) & (other != 0))
    one, other = one.ravel()[both], other.ravel()[both]
    # Runs along x are long: there is less to sort.
    starts = np.flatnonzero(np.r_[both.size > 0, (one[1:] != one[:-1]) | (other[1:] != other[:-1])][: both.size])
    return merge_label_pairs([(one[starts], other[starts], np.diff(starts, append=both.size))])


def merge_label_pairs(many: Iterable[Pairs]) -> Pairs:
    """The sum of several: each pair once, in the order of the labels."""
    ones, others, voxels = (np.concatenate(arrays) for arrays in zip(*many, strict=True))
    names, one = np.unique(ones, return_inverse=True)
    other_names, other = np.unique(others, return_inverse=True)
    if not ones.size:
        return names, other_names, voxels
    keys, pair = np.unique(one.astype(np.int64) * len(other_names) + other, return_inverse=True)
    total = np.zeros(len(keys), np.int64)
    np.add.at(total, pair, voxels)
    return names[keys // len(other_names)], other_names[keys % len(other_names)], total


def match_objects(pairs: Pairs, true_voxels: np.ndarray, predicted_voxels: np.ndarray) -> dict[str, float | int]:
    """`precision`, `recall`, `f1`, `num_true`, `num_predicted`, `matching_iou` of objects; 0 for no objects.

    pairs: (true, predicted, voxels), each pair once. true_voxels, predicted_voxels: the size of every object; the first
    is that of object 1.
    """
    true, predicted, shared = pairs
    iou = shared / (true_voxels[true - 1] + predicted_voxels[predicted - 1] - shared)
    matched, num_true, num_predicted = int((iou > MATCHING_IOU).sum()), len(true_voxels), len(predicted_voxels)
    return {
        "precision": matched / num_predicted if num_predicted else 0.0,
        "recall": matched / num_true if num_true else 0.0,
        "f1": 2 * matched / (num_true + num_predicted) if num_true + num_predicted else 0.0,
        "num_true": num_true,
        "num_predicted": num_predicted,
        "matching_iou": MATCHING_IOU,
    }


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


def join_objects(blocks: Iterable[Components]) -> ObjectTable:
    """The table of all blocks, which come in the order of `Box.cells`; each is needed once.

    Takes about 100 bytes a component of a block, and the borders of one layer of blocks.
    """
    joiner, stats = UnionFind(), [np.zeros((0, COLUMNS), np.int64)]
    for block in blocks:
        joiner.add(block.borders)
        stats.append(block.stats)
    return tabulate_objects(np.concatenate(stats), joiner.roots())


def tabulate_objects(stats: np.ndarray, roots: np.ndarray) -> ObjectTable:
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

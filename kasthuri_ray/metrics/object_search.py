"""Search of seed, extent and smallest size with the best object F1, by overlap, over the objects of a split."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kasthuri_ray.geometry import Box
from kasthuri_ray.metrics.class_map import lowest_value
from kasthuri_ray.metrics.components import MAX_PROBABILITY, SIZE
from kasthuri_ray.metrics.object_comparison import ComparedObjects
from kasthuri_ray.metrics.one_to_one import match_by_overlap

EXTENTS = (0.1, 0.3, 0.5, 0.7, 0.9)  # and the threshold
MIN_GAIN = 0.1  # of F1, for another extent than the threshold: the best of many settings on few objects is often luck
SEEDS = tuple(sorted({*(step / 20 for step in range(2, 17)), *(step / 50 for step in range(40, 50)), 0.99, 1.0}))
SIZE_SHARES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)  # of the median size of true objects
EQUAL = 1e-9  # difference of F1 by rounding alone


@dataclass(frozen=True, eq=False)
class BoxObjects:
    """The candidates of one class in a box at one extent.

    Parameters
    ----------
    joined : ComparedObjects
        True objects and all candidates.
    bounds : Box
        The box.
    """

    joined: ComparedObjects
    bounds: Box

    def at(self, seed: float, min_voxels: float) -> ComparedObjects:
        """Return the objects with a seed, and with a size unless they are cut."""
        stats = self.joined.predicted.stats
        is_large = (stats[:, SIZE] >= min_voxels) | self.joined.predicted.is_cut(self.bounds)
        is_seeded = stats[:, MAX_PROBABILITY] >= lowest_value(seed)
        return self.joined.kept(np.ones(len(self.joined.true), bool), is_seeded & is_large)


@dataclass(frozen=True)
class FoundSettings:
    """The best of the settings that were searched.

    Parameters
    ----------
    seed, extent : float
        Thresholds.
    min_voxels : float
        Smallest size in voxels.
    f1 : float
        Object F1.
    """

    seed: float
    extent: float
    min_voxels: float
    f1: float


def search_extents(threshold: float) -> list[float]:
    """Return the extents to search.

    Parameters
    ----------
    threshold : float
        Threshold of the voxels, which is one of them.

    Returns
    -------
    list of float
        Rising.
    """
    return sorted({*EXTENTS, threshold})


def search_object_settings(
    boxes_by_extent: Mapping[float, Sequence[BoxObjects]], threshold: float
) -> FoundSettings | None:
    """Return the seed, extent and smallest size with the best object F1.

    Parameters
    ----------
    boxes_by_extent : mapping
        All boxes of the split, for each extent of `search_extents`.
    threshold : float
        Threshold of the voxels.

    Returns
    -------
    FoundSettings or None
        None if there is no true object.

    Notes
    -----
    The extent is the threshold, unless another one gains MIN_GAIN. Of settings with equal F1 those in their middle are
    taken, since they depend least on single objects.
    """
    sizes = _true_sizes(boxes_by_extent[threshold])
    if not len(sizes):
        return None
    min_sizes = [float(np.floor(share * np.median(sizes))) for share in SIZE_SHARES]
    seeds = {extent: seeds_from(extent) for extent in boxes_by_extent}
    grids = {
        extent: np.array([[_pooled_f1(boxes, seed, size) for size in min_sizes] for seed in seeds[extent]])
        for extent, boxes in boxes_by_extent.items()
    }
    extent = max(grids, key=lambda each: grids[each].max())
    if grids[extent].max() < grids[threshold].max() + MIN_GAIN:
        extent = threshold
    seed, size = _middle_of_best(grids[extent])
    return FoundSettings(seeds[extent][seed], extent, min_sizes[size], float(grids[extent][seed, size]))


def seeds_from(extent: float) -> list[float]:
    """Return the seeds that are searched with an extent: itself, and those above it, rising."""
    return [extent, *(seed for seed in SEEDS if seed > extent)]


def highest_seed_of_all(boxes: Sequence[BoxObjects], extent: float, min_voxels: float) -> float:
    """Return the highest seed that loses no true object.

    Parameters
    ----------
    boxes : sequence of BoxObjects
        All boxes of the split at the extent.
    extent : float
        The extent, which is the lowest seed.
    min_voxels : float
        Smallest size in voxels.

    Returns
    -------
    float
        The extent or one of SEEDS.
    """

    def count_found(seed: float) -> int:
        return sum(len(match_by_overlap(box.at(seed, min_voxels).pairs).true) for box in boxes)

    num_found = count_found(extent)
    return max(seed for seed in seeds_from(extent) if count_found(seed) == num_found)


def _middle_of_best(grid: np.ndarray) -> tuple[int, ...]:
    """Return the index of the highest value; of several equal ones that nearest to the median of their indices."""
    best = np.argwhere(grid >= grid.max() - EQUAL)
    nearest = np.abs(best - np.median(best, 0)).sum(1).argmin()
    return tuple(best[nearest].tolist())


def judge_objects(boxes: Iterable[ComparedObjects]) -> tuple[list[float], list[bool]]:
    """Return the score of each predicted object, and whether it is matched to a true one.

    Parameters
    ----------
    boxes : iterable of ComparedObjects
        Objects of one class in all boxes of a split.

    Returns
    -------
    tuple of list
        Scores and verdicts.
    """
    scores, verdicts = list[float](), list[bool]()
    for joined in boxes:
        of_box = joined.predicted.mean_probability
        is_right = np.zeros(len(of_box) + 1, bool)  # ids count from 1
        is_right[match_by_overlap(joined.pairs, np.concatenate([[0.0], of_box])).predicted] = True
        scores += of_box.tolist()
        verdicts += is_right[1:].tolist()
    return scores, verdicts


def _true_sizes(boxes: Sequence[BoxObjects]) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.int64), *(box.joined.true.size_voxels for box in boxes)])


def _pooled_f1(boxes: Sequence[BoxObjects], seed: float, min_voxels: float) -> float:
    chosen = [box.at(seed, min_voxels) for box in boxes]
    num_matched = sum(len(match_by_overlap(each.pairs).true) for each in chosen)
    total = sum(len(each.true) + len(each.predicted) for each in chosen)
    return 2 * num_matched / total if total else 0.0

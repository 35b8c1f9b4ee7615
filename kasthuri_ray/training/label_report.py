"""What a run says about its labelled voxels: how many there are in each split, and how sure its scores are."""

from __future__ import annotations

from typing import Any

import numpy as np

from kasthuri_ray.metrics.intervals import TileSample
from kasthuri_ray.metrics.voxel_counts import VoxelCounts
from kasthuri_ray.metrics.voxel_scores import average_precision
from kasthuri_ray.tiles.sampling import GridTiles
from kasthuri_ray.tiles.splits import TaskTiles


def labelled_voxels(tiles: TaskTiles, val_confusion: Any, test: VoxelCounts | None) -> dict[str, dict[str, int]]:
    """Return how many voxels of each split are labelled.

    Parameters
    ----------
    tiles : TaskTiles
        Tiles of all splits.
    val_confusion : array_like
        Labelled voxels of val by true and predicted class.
    test : VoxelCounts or None
        Counts of test; None without a test box.

    Returns
    -------
    dict
        `labelled` and `voxels` of train, val and test; of train also `sampled_from`, if those voxels are a sample.
    """
    splits = {} if tiles.census is None else {"train": tiles.census.labelled_voxels()}
    splits["val"] = _count_split(tiles.val, int(np.sum(val_confusion)))
    if tiles.test is not None and test is not None:
        splits["test"] = _count_split(tiles.test, test.num_voxels)
    return splits


def _count_split(tiles: GridTiles, num_labelled: int) -> dict[str, int]:
    return {"labelled": num_labelled, "voxels": sum(source.box.num_voxels for source in tiles.sources)}


def score_intervals(sample: TileSample, counts: VoxelCounts) -> dict[str, Any]:
    """Return the 95% intervals of the scores over the tiles that hold a labelled voxel.

    Parameters
    ----------
    sample : TileSample
        Those tiles.
    counts : VoxelCounts
        All their voxels.

    Returns
    -------
    dict
        A pair of numbers by the name of a score with `_interval`; empty for fewer than five tiles.
    """
    if not sample.has_intervals:
        return {}
    exact = [average_precision(each) for each in counts.by_class]
    return {
        "foreground_f1_interval": list(sample.f1_interval()),
        "average_precision_interval": list(sample.average_precision_interval(exact)),
        **{f"{name}_interval": list(interval) for name, interval in sample.outcome_intervals().items()},
    }

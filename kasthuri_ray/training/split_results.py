"""What the test of a run found, as counts that can be pooled with those of other runs: the file test_results.npz."""

from __future__ import annotations

import functools
import io
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kasthuri_ray.metrics.cleft_distances import CleftDistances
from kasthuri_ray.metrics.intervals import TileSample
from kasthuri_ray.metrics.object_comparison import add_object_scores
from kasthuri_ray.metrics.object_outcomes import ObjectOutcomes, pool_outcomes
from kasthuri_ray.metrics.voxel_counts import VoxelCounts
from kasthuri_ray.metrics.voxel_outcomes import VoxelOutcomes
from kasthuri_ray.metrics.voxel_scores import argmax_scores, average_precision, mean_of_classes
from kasthuri_ray.training.label_report import score_intervals
from kasthuri_ray.training.tested_objects import SplitObjects

FILE = "test_results.npz"
AUGMENTED_FILE = "test_tta_results.npz"  # the same with test-time augmentation, where that was measured
OUTCOME_ARRAYS = ("scores", "true_is_cut", "predicted_is_cut", "is_small")


@dataclass(frozen=True, eq=False)
class SplitResults:
    """The voxels and objects of a split by outcome.

    Parameters
    ----------
    counts : VoxelCounts
        All voxels, by the most probable class.
    confusion : ndarray of int64, (classes, classes)
        Voxels by true class and predicted class at the thresholds.
    sample : TileSample
        The tiles, for intervals; its outcomes are those at the thresholds.
    objects : SplitObjects
        Objects of each class that has some.
    """

    counts: VoxelCounts
    confusion: np.ndarray
    sample: TileSample
    objects: SplitObjects

    def to_bytes(self) -> bytes:
        """Return everything as a compressed .npz file, for `from_bytes`."""
        arrays: dict[str, Any] = {
            "counts": self.counts.to_array(),
            "confusion": self.confusion,
            "tile_outcomes": self.sample.outcomes,
            "tile_histograms": self.sample.histograms,
            "num_tiles": self.sample.num_tiles,
            "numbers": np.array(list(self.objects.outcomes), np.int64),
        }
        for number, each in self.objects.outcomes.items():
            arrays |= {f"{number}_{name}": getattr(each, name) for name in OUTCOME_ARRAYS}
            arrays |= {f"{number}_partners_{name}": partners for name, partners in each.partners.items()}
            arrays[f"{number}_radius"] = np.nan if each.centroid_radius_nm is None else each.centroid_radius_nm
        for number, measured in self.objects.distances.items():
            sums = [measured.predicted_nm, measured.true_nm, measured.num_predicted, measured.num_true]
            arrays[f"{number}_distances"] = np.array(sums, np.float64)
        out = io.BytesIO()
        np.savez_compressed(out, **arrays)
        return out.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> SplitResults:
        """Return the results that `to_bytes` serialized."""
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        numbers = arrays["numbers"].tolist()
        return cls(
            VoxelCounts.from_array(arrays["counts"]),
            arrays["confusion"],
            TileSample(arrays["tile_outcomes"], arrays["tile_histograms"], int(arrays["num_tiles"])),
            SplitObjects(
                {number: _read_outcomes(arrays, number) for number in numbers},
                {
                    number: _read_distances(arrays[f"{number}_distances"])
                    for number in numbers
                    if f"{number}_distances" in arrays
                },
            ),
        )


def _read_outcomes(arrays: Mapping[str, np.ndarray], number: int) -> ObjectOutcomes:
    prefix, radius = f"{number}_partners_", float(arrays[f"{number}_radius"])
    partners = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    known = {name: arrays[f"{number}_{name}"] for name in OUTCOME_ARRAYS}
    return ObjectOutcomes(partners, centroid_radius_nm=None if np.isnan(radius) else radius, **known)


def _read_distances(sums: np.ndarray) -> CleftDistances:
    predicted_nm, true_nm, num_predicted, num_true = sums.tolist()
    return CleftDistances(predicted_nm, true_nm, int(num_predicted), int(num_true))


def pool_results(parts: Sequence[SplitResults]) -> SplitResults:
    """Return the results of several splits together.

    Parameters
    ----------
    parts : sequence of SplitResults
        At least one, of the same classes.

    Returns
    -------
    SplitResults
        Sums of voxels; tiles and objects one after another.
    """
    numbers = list(parts[0].objects.outcomes)
    distances = [part.objects.distances for part in parts]
    return SplitResults(
        functools.reduce(operator.add, (part.counts for part in parts)),
        np.sum([part.confusion for part in parts], axis=0),
        TileSample(
            np.concatenate([part.sample.outcomes for part in parts]),
            np.concatenate([part.sample.histograms for part in parts]),
            sum(part.sample.num_tiles for part in parts),
        ),
        SplitObjects(
            {number: pool_outcomes(part.objects.outcomes[number] for part in parts) for number in numbers},
            {number: functools.reduce(operator.add, (each[number] for each in distances)) for number in numbers}
            if all(distances)
            else {},
        ),
    )


def class_outcomes_of(results: SplitResults) -> list[VoxelOutcomes]:
    """Return the voxels of each foreground class by outcome, at the threshold of the run that each voxel belongs to.

    Parameters
    ----------
    results : SplitResults
        Of one run, or pooled.

    Returns
    -------
    list of VoxelOutcomes
        One for each foreground class.
    """
    total = results.counts.num_voxels
    return [
        VoxelOutcomes(found, missed, wrong, total - found - missed - wrong)
        for found, missed, wrong in results.sample.outcomes.sum(0).tolist()
    ]


def pooled_metrics(results: SplitResults, names: Sequence[str]) -> dict[str, Any]:
    """Return the scores of pooled results, as metrics.json has those of a test box.

    Parameters
    ----------
    results : SplitResults
        See `pool_results`.
    names : sequence of str
        Names of the foreground classes.

    Returns
    -------
    dict
        Voxels and objects are pooled, each at the thresholds of its own run; there is no `threshold`. Average precision
        is that of the pooled probabilities.
    """
    outcomes, counts = class_outcomes_of(results), results.counts
    rows = [
        {
            "foreground_f1": each.f1,
            "foreground_iou": each.iou,
            "precision": each.precision,
            "recall": each.recall,
            "average_precision": average_precision(of_class),
            "num_voxels": of_class.num_true,
        }
        for each, of_class in zip(outcomes, counts.by_class, strict=True)
    ]
    means = {key: mean_of_classes([row[key] for row in rows], counts) for key in rows[0] if key != "num_voxels"}
    metrics: dict[str, Any] = {
        **{key: np.asarray(value).tolist() for key, value in argmax_scores(counts).items()},
        **means,
        **score_intervals(results.sample, counts),
        "confusion": counts.confusion.tolist(),
        **({"classes": dict(zip(names, rows, strict=True))} if len(rows) > 1 else {}),
    }
    return add_object_scores(metrics, results.objects.outcomes, names, results.objects.distances)

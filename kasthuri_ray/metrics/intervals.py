"""Bootstrap intervals: how much a score would vary if other tiles had been drawn.

Voxels of a tile are alike, so tiles are resampled and not voxels (Efron and Tibshirani, "An Introduction to the
Bootstrap", 1993, chapter 13: percentile intervals).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from kasthuri_ray.metrics.thresholds import outcomes_at
from kasthuri_ray.metrics.voxel_counts import BINS, VoxelCounts, safe_ratio

COARSE_BINS = 64  # of the histograms of tiles; the scores from them differ by under 0.01 from the exact ones
MAX_UNITS = 2000  # more tiles are added up to this many groups of neighbours, which takes little memory
NUM_RESAMPLES = 1000
INTERVAL = (2.5, 97.5)  # percentiles

Interval = tuple[float, float]
TileCounts = tuple[np.ndarray, np.ndarray]  # outcomes and histograms of a tile, see `tile_counts`


@dataclass(eq=False)
class TileSample:
    """Voxels of each tile by outcome and by probability, from which tiles are drawn again.

    Parameters
    ----------
    outcomes : ndarray of int64, (units, classes - 1, 3)
        Voxels of each foreground class that are found, missed and wrongly marked. A unit is a tile, or several
        neighbours.
    histograms : ndarray of int64, (units, classes - 1, 2, COARSE_BINS)
        `VoxelCounts.histograms` of each unit, with fewer bins.
    num_tiles : int
        Number of all tiles.
    """

    outcomes: np.ndarray
    histograms: np.ndarray
    num_tiles: int
    _weights: np.ndarray | None = field(default=None, init=False, repr=False)

    @classmethod
    def empty(cls, num_tiles: int, num_foreground: int) -> TileSample:
        """Return a sample to which tiles can be added; neighbours share a unit if there are many tiles."""
        num_units = min(num_tiles, MAX_UNITS)
        outcomes = np.zeros((num_units, num_foreground, 3), np.int64)
        histograms = np.zeros((num_units, num_foreground, 2, COARSE_BINS), np.int64)
        return cls(outcomes, histograms, num_tiles)

    @classmethod
    def of(cls, tiles: Sequence[TileCounts]) -> TileSample:
        """Return the sample of tiles, at least one, in their order."""
        sample = cls.empty(len(tiles), len(tiles[0][0]))
        for number, counts in enumerate(tiles):
            sample.add(number, counts)
        return sample

    def add(self, number: int, counts: TileCounts) -> None:
        """Add the counts of tile `number`, or of a part of it."""
        unit = number * len(self.outcomes) // self.num_tiles
        outcomes, histograms = counts
        self.outcomes[unit] += outcomes
        self.histograms[unit] += histograms

    def outcome_intervals(self) -> dict[str, Interval]:
        """Return the 95% intervals of the classes' mean recall, precision and IoU at their thresholds."""
        found, missed, wrong = np.moveaxis(self._resample(self.outcomes), -1, 0)
        divisors = {"recall": found + missed, "precision": found + wrong, "foreground_iou": found + missed + wrong}
        return {name: self._interval(safe_ratio(found, all).mean(-1)) for name, all in divisors.items()}

    def f1_interval(self) -> Interval:
        """Return the 95% interval of the classes' mean F1 at their thresholds."""
        found, missed, wrong = np.moveaxis(self._resample(self.outcomes), -1, 0)
        return self._interval(safe_ratio(2 * found, 2 * found + missed + wrong).mean(-1))

    def average_precision_interval(self) -> Interval:
        """Return the 95% interval of the classes' mean average precision."""
        return self._interval(average_precisions(self._resample(self.histograms)).mean(-1))

    def class_average_precision_intervals(self) -> list[Interval]:
        """Return the 95% interval of each class's average precision."""
        return [self._interval(scores) for scores in average_precisions(self._resample(self.histograms)).T]

    def _resample(self, counts: np.ndarray) -> np.ndarray:
        """Return the sums of counts over the tiles of each resample; the same tiles for all counts."""
        if self._weights is None:
            num_tiles = len(counts)
            rng = np.random.default_rng(0)
            self._weights = rng.multinomial(num_tiles, np.full(num_tiles, 1 / num_tiles), NUM_RESAMPLES)
        sums = self._weights.astype(np.float64) @ counts.reshape(len(counts), -1)
        return sums.reshape(NUM_RESAMPLES, *counts.shape[1:])

    @staticmethod
    def _interval(scores: np.ndarray) -> Interval:
        low, high = np.percentile(scores, INTERVAL)
        return float(low), float(high)


def tile_counts(counts: VoxelCounts, thresholds: Sequence[float]) -> TileCounts:
    """Return what a `TileSample` keeps of the counts of a tile.

    Parameters
    ----------
    counts : VoxelCounts
        Counts of a tile.
    thresholds : sequence of float
        One for each foreground class.

    Returns
    -------
    outcomes : ndarray of int64, (classes - 1, 3)
        Voxels that are found, missed and wrongly marked.
    histograms : ndarray of int64, (classes - 1, 2, COARSE_BINS)
        Sums over neighbouring bins.
    """
    outcomes = [outcomes_at(each, threshold) for each, threshold in zip(counts.by_class, thresholds, strict=True)]
    rows = np.array([[each.found, each.missed, each.wrong] for each in outcomes])
    return rows, counts.histograms.reshape(-1, 2, COARSE_BINS, BINS // COARSE_BINS).sum(-1)


def average_precisions(histograms: np.ndarray) -> np.ndarray:
    """Return the average precision of many histograms at once.

    Parameters
    ----------
    histograms : ndarray, (..., 2, bins)
        Voxels of other classes and of the class by the bin of its probability.

    Returns
    -------
    ndarray of float64, (...)
        As `voxel_scores.average_precision`, at the edges of these bins; 0 where the class does not occur.
    """
    falling = np.cumsum(histograms[..., ::-1], axis=-1)
    false_positives, true_positives = falling[..., 0, :], falling[..., 1, :]
    precision = safe_ratio(true_positives, true_positives + false_positives)
    gained = np.diff(true_positives, axis=-1, prepend=0)
    return safe_ratio((gained * precision).sum(-1), true_positives[..., -1])

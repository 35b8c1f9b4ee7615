"""Bootstrap intervals: how much a score would vary if other tiles had been drawn.

Voxels of a tile are alike, so tiles are resampled and not voxels (Efron and Tibshirani, "An Introduction to the
Bootstrap", 1993, chapter 13: percentile intervals). A resample without a voxel of a class says nothing about that
class, and is left out of its scores.

`Estimate` is about another question: how much a score varies between runs of other seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from kasthuri_ray.metrics.thresholds import outcomes_at
from kasthuri_ray.metrics.voxel_counts import BINS, VoxelCounts, safe_ratio

COARSE_BINS = 64  # of the histograms of tiles
MAX_UNITS = 2000  # more tiles are added up to this many groups of neighbours, which takes little memory
NUM_RESAMPLES = 1000
INTERVAL = (2.5, 97.5)  # percentiles
MIN_TILES = 5  # of fewer there is no interval: too few tiles can be drawn again to tell how much they vary
MIN_RUNS = 3  # fewer have no interval: that of two is ten times as wide as their difference

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

    @property
    def has_intervals(self) -> bool:
        """Whether enough tiles hold a voxel that counts."""
        return int(np.count_nonzero(self.histograms.any((1, 2, 3)))) >= MIN_TILES

    def outcome_intervals(self) -> dict[str, Interval]:
        """Return the 95% intervals of the classes' mean recall, precision and IoU at their thresholds."""
        found, missed, wrong = np.moveaxis(self._resample(self.outcomes), -1, 0)
        divisors = {"recall": found + missed, "precision": found + wrong, "foreground_iou": found + missed + wrong}
        scores = {name: safe_ratio(found, all) for name, all in divisors.items()}
        return {name: percentile_interval(_mean_of_classes(each, found + missed)) for name, each in scores.items()}

    def f1_interval(self) -> Interval:
        """Return the 95% interval of the classes' mean F1 at their thresholds."""
        found, missed, wrong = np.moveaxis(self._resample(self.outcomes), -1, 0)
        return percentile_interval(_mean_of_classes(safe_ratio(2 * found, 2 * found + missed + wrong), found + missed))

    def average_precision_interval(self, exact: Sequence[float]) -> Interval:
        """Return the 95% interval of the classes' mean average precision; `exact` is that of each class."""
        scores, num_true = self._average_precisions(exact)
        return percentile_interval(_mean_of_classes(scores, num_true))

    def class_average_precision_intervals(self, exact: Sequence[float]) -> list[Interval]:
        """Return the 95% interval of each class's average precision; `exact` is that of each class."""
        scores, num_true = self._average_precisions(exact)
        return [percentile_interval(of_class[true > 0]) for of_class, true in zip(scores.T, num_true.T, strict=True)]

    def _average_precisions(self, exact: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
        """Return average precisions, (resamples, classes), and the voxels of each class.

        Coarse bins lower the scores of probabilities that crowd in one bin: all are raised by what the whole lacks.
        """
        histograms = self._resample(self.histograms)
        missing = np.asarray(exact) - average_precisions(self.histograms.sum(0))
        return np.clip(average_precisions(histograms) + missing, 0, 1), histograms[..., 1, :].sum(-1)

    def _resample(self, counts: np.ndarray) -> np.ndarray:
        """Return the sums of counts over the tiles of each resample; the same tiles for all counts.

        Tiles without a voxel that counts are not drawn.
        """
        if self._weights is None:
            drawn, rng = np.flatnonzero(self.histograms.any((1, 2, 3))), np.random.default_rng(0)
            self._weights = np.zeros((NUM_RESAMPLES, len(counts)), np.int64)
            if num_tiles := len(drawn):
                shares = np.full(num_tiles, 1 / num_tiles)
                self._weights[:, drawn] = rng.multinomial(num_tiles, shares, NUM_RESAMPLES)
        sums = self._weights.astype(np.float64) @ counts.reshape(len(counts), -1)
        return sums.reshape(NUM_RESAMPLES, *counts.shape[1:])


def _mean_of_classes(scores: np.ndarray, num_true: np.ndarray) -> np.ndarray:
    """Return the mean over the classes that occur, (resamples,); resamples in which none occurs are left out."""
    occurs = num_true > 0
    sums, counts = (scores * occurs).sum(-1), occurs.sum(-1)
    return sums[counts > 0] / counts[counts > 0]


def percentile_interval(scores: np.ndarray) -> Interval:
    """Return the 95% percentile interval of resampled scores.

    Parameters
    ----------
    scores : ndarray of float, (resamples,)
        One for each resample in which the score is defined.

    Returns
    -------
    tuple of float
        Both 0 without scores.
    """
    if not len(scores):
        return 0.0, 0.0
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


@dataclass(frozen=True)
class Estimate:
    """The mean of a figure over several runs, with its interval.

    Parameters
    ----------
    values : tuple of float
        The figure of each run; at least one.
    """

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over the runs."""
        return float(np.mean(self.values))

    @property
    def interval(self) -> Interval | None:
        """95% interval of the mean by Student's t; None below MIN_RUNS runs."""
        number = len(self.values)
        if number < MIN_RUNS:
            return None
        from scipy.special import stdtrit

        error = float(np.std(self.values, ddof=1)) / number**0.5
        half = float(stdtrit(number - 1, INTERVAL[1] / 100)) * error
        return self.mean - half, self.mean + half

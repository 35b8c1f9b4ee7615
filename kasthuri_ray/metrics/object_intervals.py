"""Scores of matched objects with their 95% bootstrap intervals: how much they would vary with other objects.

What is drawn again is one outcome: a pair of partners, a missed true object or a wrong predicted object, so that
partners stay together (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13: percentile
intervals). Objects that lie close together are taken as independent; where they are not, the intervals are too narrow.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kasthuri_ray.metrics.intervals import NUM_RESAMPLES, Interval, percentile_interval
from kasthuri_ray.metrics.one_to_one import FREE
from kasthuri_ray.metrics.voxel_counts import safe_ratio

# Columns of `OutcomeUnits.by_score`: partners of which both are scored, or one alone, and wrong predicted objects.
PAIR, TRUE_ALONE, PREDICTED_ALONE, WRONG = range(4)
MAX_LEVELS = 256  # of the score, in resamples; more are merged with their neighbours


@dataclass(frozen=True, eq=False)
class OutcomeUnits:
    """The outcomes of objects by one criterion.

    Parameters
    ----------
    by_score : ndarray of int64, (levels, 4)
        Outcomes with a predicted object, by its score, the highest first.
    missed : int
        True objects without a partner.
    """

    by_score: np.ndarray
    missed: int

    @classmethod
    def of(
        cls, partners: np.ndarray, scores: np.ndarray, is_true_scored: np.ndarray, is_predicted_scored: np.ndarray
    ) -> OutcomeUnits:
        """Count the outcomes of objects.

        Parameters
        ----------
        partners : ndarray of int64, (true objects,)
            The predicted object that is the partner of each true one, or FREE.
        scores : ndarray of float, (predicted objects,)
            What ranks the predicted objects.
        is_true_scored, is_predicted_scored : ndarray of bool
            The objects that are scored; the others count only as partners.

        Returns
        -------
        OutcomeUnits
            The counts.
        """
        found = np.flatnonzero(partners != FREE)
        matched = partners[found]
        levels, level = np.unique(-scores, return_inverse=True)
        kind = np.array([[-1, PREDICTED_ALONE], [TRUE_ALONE, PAIR]])[
            is_true_scored[found].astype(int), is_predicted_scored[matched].astype(int)
        ]
        wrong = is_predicted_scored.copy()
        wrong[matched] = False
        by_score = np.zeros((len(levels), 4), np.int64)
        np.add.at(by_score, (level[matched[kind >= 0]], kind[kind >= 0]), 1)
        np.add.at(by_score[:, WRONG], level[wrong], 1)
        return cls(by_score, int((is_true_scored & (partners == FREE)).sum()))

    @property
    def num_true(self) -> int:
        """Number of true objects."""
        return int(self.by_score[:, [PAIR, TRUE_ALONE]].sum()) + self.missed

    @property
    def num_predicted(self) -> int:
        """Number of predicted objects."""
        return int(self.by_score[:, [PAIR, PREDICTED_ALONE, WRONG]].sum())

    def metrics(self) -> dict[str, int | float | list[float]]:
        """Return `precision`, `recall` and `f1` with their intervals, and `true_positives`, the found true objects."""
        sums = self.by_score.sum(0)
        scores = _count_scores(sums[None], np.array([self.missed]))
        resampled = _count_scores(*_draw_again(sums, self.missed))
        found = int(self.by_score[:, [PAIR, TRUE_ALONE]].sum())
        values = {name: float(of_one[0]) for name, (of_one, _) in scores.items()}
        intervals = {f"{name}_interval": list(_interval_where(*each)) for name, each in resampled.items()}
        return {**values, "true_positives": found, **intervals}

    @property
    def average_precision(self) -> float:
        """Average precision of all units."""
        return float(_average_precisions(self.by_score[None], np.array([self.missed]))[0][0])

    def average_precision_metrics(self) -> dict[str, float | list[float]]:
        """Return `average_precision` and its interval; see `object_outcomes.object_metrics`."""
        exact = self.average_precision
        coarse = float(_average_precisions(self._merged[None], np.array([self.missed]))[0][0])
        scores, has_true = _average_precisions(*_draw_again(self._merged, self.missed))
        shifted = np.clip(scores + exact - coarse, 0, 1)
        interval = list(_interval_where(shifted, has_true))
        return {"average_precision": exact, "average_precision_interval": interval}

    @property
    def _merged(self) -> np.ndarray:
        """Outcomes in at most MAX_LEVELS levels of the score, as neighbours that hold about as many levels."""
        levels = len(self.by_score)
        if levels <= MAX_LEVELS:
            return self.by_score
        return np.add.reduceat(self.by_score, np.arange(MAX_LEVELS) * levels // MAX_LEVELS, axis=0)


def _draw_again(counts: np.ndarray, missed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the outcomes of each resample, (resamples, ...), and its missed objects, (resamples,)."""
    outcomes = np.append(counts.ravel(), missed)
    total = int(outcomes.sum())
    shares = outcomes / total if total else np.full(len(outcomes), 1 / len(outcomes))
    drawn = np.random.default_rng(0).multinomial(total, shares, NUM_RESAMPLES)
    return drawn[:, :-1].reshape(NUM_RESAMPLES, *counts.shape), drawn[:, -1]


def _count_scores(sums: np.ndarray, missed: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return scores of outcomes, (n, 4), and where they are defined."""
    found, right = sums[:, PAIR] + sums[:, TRUE_ALONE], sums[:, PAIR] + sums[:, PREDICTED_ALONE]
    num_true, num_predicted = found + missed, right + sums[:, WRONG]
    ratios = {
        "precision": (right, num_predicted),
        "recall": (found, num_true),
        "f1": (found + right, num_true + num_predicted),
    }
    return {name: (safe_ratio(part, of), of > 0) for name, (part, of) in ratios.items()}


def _average_precisions(by_score: np.ndarray, missed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the average precision of outcomes, (n, levels, 4), and whether there is a true object; both (n,)."""
    falling = by_score.cumsum(1)
    right = falling[..., PAIR] + falling[..., PREDICTED_ALONE]
    marked = right + falling[..., WRONG]
    precision = np.where(marked > 0, safe_ratio(right, marked), 1.0)
    found = by_score[..., PAIR] + by_score[..., TRUE_ALONE]
    num_true = found.sum(1) + missed
    return safe_ratio((found * precision).sum(1), num_true), num_true > 0


def _interval_where(scores: np.ndarray, is_defined: np.ndarray) -> Interval:
    return percentile_interval(scores[is_defined])

"""How much each searched setting mattered to the score, and whether the trials are enough to tell; pure.

For a list of values the effect is the range of the mean scores of its values; for a range it is Spearman's rank
correlation of value and score (Spearman 1904, American Journal of Psychology 15). Its p value is that of a permutation
test: the share of reassignments of the scores to the trials with at least that large an effect (Fisher 1935, "The
Design of Experiments"; Phipson and Smyth 2010, doi:10.2202/1544-6115.1585). It is valid with few trials.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kasthuri_ray.tuning.search_space import LISTS, SearchDomain, SearchSpace
from kasthuri_ray.tuning.trial_record import TrialRecord

MIN_TRIALS = 4  # with fewer there is nothing to compare
MANY_TRIALS = 20  # from these on an effect that is not seen is small
MAX_P = 0.05
MAX_ENUMERATED = 5040  # reassignments of seven trials; of more trials as many random ones are drawn

Statistic = Callable[[np.ndarray], np.ndarray]  # scores [reassignments, trials] in, effect of each out


@dataclass(frozen=True)
class SettingEffect:
    """The effect of a setting on the score.

    Parameters
    ----------
    key : str
        Section and name of the setting.
    tried : tuple of (value, int, float)
        Each value of a list with the number of its trials and their mean score; the lowest and the highest value of a
        range, with the number of all trials and their mean score.
    is_list : bool
        Whether the setting has a list of values.
    size : float or None
        Range of the mean scores, or rank correlation; None if the trials cannot be compared.
    p_value : float or None
        Share of reassignments with at least that large an effect.
    num_trials : int
        Trials that were compared.
    """

    key: str
    tried: tuple[tuple[Any, int, float], ...]
    is_list: bool
    size: float | None
    p_value: float | None
    num_trials: int

    @property
    def name(self) -> str:
        """The setting without its section."""
        return self.key.partition(".")[2] or self.key

    def describe_values(self) -> str:
        """Return what was tried."""
        shown = [value if isinstance(value, str) else json.dumps(value) for value, _, _ in self.tried]
        if not self.is_list:
            return f"{shown[0]} to {shown[1]}"
        return ", ".join(
            f"{value}: {score:.3f} ({number})" for value, (_, number, score) in zip(shown, self.tried, strict=True)
        )

    def describe_size(self) -> str:
        """Return the effect in words."""
        if self.size is None:
            return "not known"
        if not self.is_list:
            return f"rank correlation {self.size:+.2f}"
        means = [score for _, _, score in self.tried]
        return f"mean score {min(means):.3f} to {max(means):.3f}"

    def describe_certainty(self) -> str:
        """Return whether the effect is more than chance."""
        if self.size is None or self.p_value is None:
            return "one value was tried" if self.num_trials >= MIN_TRIALS else "too few trials to tell"
        if self.p_value <= MAX_P:
            return f"more than chance, p {self.p_value:.2g}"
        reason = "no clear effect" if self.num_trials >= MANY_TRIALS else "too few trials to tell"
        return f"{reason}, p {self.p_value:.2g}"

    def describe(self) -> str:
        """Return name, effect and certainty in a phrase."""
        size = "" if self.size is None else f"{self.describe_size()}; "
        return f"{self.name} ({size}{self.describe_certainty()})"


def measure_effects(space: SearchSpace, trials: Sequence[TrialRecord]) -> list[SettingEffect]:
    """Measure the effect of each setting.

    Parameters
    ----------
    space : SearchSpace
        What was searched.
    trials : sequence of TrialRecord
        All trials; those that failed or have no score are left out.

    Returns
    -------
    list of SettingEffect
        The surest first.
    """
    scored = [trial for trial in trials if trial.ended and trial.has_result]
    scores = np.array([trial.score for trial in scored], float)
    effects = [_measure(key, domain, [trial.values[key] for trial in scored], scores) for key, domain in space.items()]
    return sorted(effects, key=lambda effect: math.inf if effect.p_value is None else effect.p_value)


def _measure(key: str, domain: SearchDomain, values: list[Any], scores: np.ndarray) -> SettingEffect:
    is_list, distinct = domain.kind in LISTS, [json.dumps(value) for value in values]
    if not values:
        tried: tuple[tuple[Any, int, float], ...] = ()
    elif is_list:
        each = [value for value in domain.values if json.dumps(value) in distinct]
        groups = [np.array([text == json.dumps(value) for text in distinct]) for value in each]
        tried = tuple(
            (value, int(group.sum()), float(scores[group].mean())) for value, group in zip(each, groups, strict=True)
        )
    else:
        tried = tuple((end, len(values), float(scores.mean())) for end in (min(values), max(values)))
    if len(values) < MIN_TRIALS or len(set(distinct)) < 2:
        return SettingEffect(key, tried, is_list, None, None, len(values))
    statistic = _range_of_means(groups) if is_list else _rank_correlation(np.array(values, float))
    reassigned = statistic(_reassign(scores))
    size = float(statistic(scores[None])[0])
    extreme = int((np.abs(reassigned) >= abs(size) - 1e-12).sum())
    is_exact = math.factorial(len(scores)) <= MAX_ENUMERATED
    p_value = extreme / len(reassigned) if is_exact else (extreme + 1) / (len(reassigned) + 1)
    return SettingEffect(key, tried, is_list, size, p_value, len(values))


def _reassign(scores: np.ndarray) -> np.ndarray:
    """Return reassignments of the scores to the trials: all of them if they are few, else random ones."""
    if math.factorial(len(scores)) <= MAX_ENUMERATED:
        return np.array(list(itertools.permutations(scores)))
    return np.random.default_rng(0).permuted(np.tile(scores, (MAX_ENUMERATED, 1)), axis=1)


def _range_of_means(groups: Sequence[np.ndarray]) -> Statistic:
    weights = np.stack([group / group.sum() for group in groups])

    def range_of_means(scores: np.ndarray) -> np.ndarray:
        return np.ptp(scores @ weights.T, axis=1)

    return range_of_means


def _rank_correlation(values: np.ndarray) -> Statistic:
    value_ranks = _standardized(_ranks(values))

    def rank_correlation(scores: np.ndarray) -> np.ndarray:
        ranks = np.array([_ranks(row) for row in scores])
        return _standardized(ranks) @ value_ranks / len(values)

    return rank_correlation


def _ranks(values: np.ndarray) -> np.ndarray:
    """Return the rank of each value; equal ones share the mean of theirs."""
    _, index, number = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(number) - (number + 1) / 2)[index]


def _standardized(ranks: np.ndarray) -> np.ndarray:
    """Return ranks with mean 0 and standard deviation 1; zeros if all are equal."""
    deviation = ranks.std(-1, keepdims=True)
    centred = ranks - ranks.mean(-1, keepdims=True)
    return np.divide(centred, deviation, out=np.zeros_like(centred), where=deviation > 0)

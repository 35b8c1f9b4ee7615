"""The share of right objects of a volume, from a sample that a person looked at: a weighted estimate with an interval.

The objects are drawn at random within strata of known sizes. In each stratum the objects nobody looked at are right
with a probability p, whose posterior is Beta(right + m, wrong + 1 - m): the prior has the weight of one object and the
mean m of the whole estimate, so that it moves no estimate of the whole. Of a single stratum m is 1/2: Jeffreys' prior
(Brown, Cai and DasGupta, "Interval Estimation for a Binomial Proportion", 2001). In every one of many small strata that
would draw the whole towards 1/2. The interval is that of the number of right objects among all: it has no width once
all were looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

NUM_DRAWS = 20_000
PERCENTILES = (2.5, 97.5)


@dataclass(frozen=True)
class Stratum:
    """Objects of a stratum.

    Parameters
    ----------
    size : int
        Number of all of them.
    right, wrong : int
        Those that were looked at.
    """

    size: int
    right: int
    wrong: int


@dataclass(frozen=True)
class PrecisionEstimate:
    """Estimated share of right objects, and its 95% interval.

    Parameters
    ----------
    precision : float
        The share.
    low, high : float
        Ends of the interval.
    """

    precision: float
    low: float
    high: float


def estimate_precision(strata: Sequence[Stratum]) -> PrecisionEstimate | None:
    """Estimate the share of right objects in all strata together.

    Parameters
    ----------
    strata : sequence of Stratum
        Every stratum of the volume. Without objects that were looked at, a stratum counts as the others together.

    Returns
    -------
    PrecisionEstimate or None
        None if nothing was looked at.
    """
    right, wrong = sum(each.right for each in strata), sum(each.wrong for each in strata)
    if not right + wrong:
        return None
    total, seen = sum(each.size for each in strata), right + wrong
    shares = [each.right / (each.right + each.wrong) if each.right + each.wrong else right / seen for each in strata]
    precision = sum(each.size * share for each, share in zip(strata, shares, strict=True)) / total
    least = 0.5 / len(strata)  # of half an object in all strata together, as in Jeffreys' prior
    prior = min(max(precision, least), 1 - least)
    rng, drawn = np.random.default_rng(0), np.zeros(NUM_DRAWS)
    for each in strata:
        chance = rng.beta(each.right + prior, each.wrong + 1 - prior, NUM_DRAWS)
        drawn += each.right + rng.binomial(max(0, each.size - each.right - each.wrong), chance)
    low, high = np.percentile(drawn / total, PERCENTILES)
    return PrecisionEstimate(precision, min(float(low), precision), max(float(high), precision))

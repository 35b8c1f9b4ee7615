"""The share of right objects of a volume, from a sample that a person looked at: a weighted estimate with an interval.

The objects are drawn at random within strata of known sizes. In each stratum the objects nobody looked at are right
with a probability whose posterior is that of Jeffreys' prior, Beta(right + 1/2, wrong + 1/2) (Brown, Cai and DasGupta,
"Interval Estimation for a Binomial Proportion", 2001); the interval is that of the number of right objects among all,
so that it has no width once all were looked at.
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
    total = sum(each.size for each in strata)
    expected, drawn = 0.0, np.zeros(NUM_DRAWS)
    rng = np.random.default_rng(0)
    for each in strata:
        looked_at = each.right + each.wrong
        share = each.right / looked_at if looked_at else right / (right + wrong)
        expected += each.size * share
        chance = rng.beta(each.right + 0.5, each.wrong + 0.5, NUM_DRAWS)
        drawn += each.right + rng.binomial(max(0, each.size - looked_at), chance)
    low, high = np.percentile(drawn / total, PERCENTILES)
    precision = expected / total
    return PrecisionEstimate(precision, min(float(low), precision), max(float(high), precision))

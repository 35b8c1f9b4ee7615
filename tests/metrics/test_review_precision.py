"""Precision from a sample that was looked at: weighted by strata, with an interval that covers the truth."""

import numpy as np
import pytest
import scipy.stats

from kasthuri_ray.metrics import review_precision
from kasthuri_ray.metrics.review_precision import Stratum, estimate_precision


def test_the_estimate_is_weighted_by_the_sizes_of_the_strata():
    found = estimate_precision([Stratum(900, 9, 1), Stratum(100, 0, 10)])
    assert found.precision == pytest.approx(0.81)
    assert found.low < 0.81 < found.high


def test_with_one_large_stratum_the_interval_is_that_of_jeffreys():
    found = estimate_precision([Stratum(10**9, 40, 10)])
    low, high = scipy.stats.beta(40.5, 10.5).ppf([0.025, 0.975])
    assert found.low == pytest.approx(low, abs=0.003)
    assert found.high == pytest.approx(high, abs=0.003)


def test_once_all_objects_were_looked_at_the_interval_has_no_width():
    found = estimate_precision([Stratum(30, 20, 10), Stratum(10, 10, 0)])
    assert (found.low, found.precision, found.high) == (0.75, 0.75, 0.75)


def test_nothing_is_estimated_without_a_verdict_and_a_stratum_without_one_counts_as_the_others():
    assert estimate_precision([Stratum(5, 0, 0)]) is None
    found = estimate_precision([Stratum(50, 8, 2), Stratum(50, 0, 0)])
    assert found.precision == pytest.approx(0.8)
    assert found.high - found.low > 0.4


@pytest.mark.parametrize(
    ("sizes", "shares", "number"),
    [
        ((200, 500, 60), (0.95, 0.7, 0.3), 20),
        ((3000,), (0.9,), 30),
        ((400,) * 9, (0.98, 0.95, 0.95, 0.9, 0.9, 0.9, 0.8, 0.7, 0.6), 22),
        ((400,) * 4, (0.95, 0.9, 0.9, 0.8), 8),
    ],
)
def test_the_interval_covers_the_true_precision_in_about_95_of_100_reviews(sizes, shares, number, monkeypatch):
    monkeypatch.setattr(review_precision, "NUM_DRAWS", 1000)
    rng = np.random.default_rng(0)
    truths = [rng.permutation(np.arange(size) < round(size * share)) for size, share in zip(sizes, shares, strict=True)]
    truth = sum(each.sum() for each in truths) / sum(sizes)
    covered = 0
    for _ in range(300):
        drawn = [rng.choice(each, number, replace=False) for each in truths]
        strata = [Stratum(n, int(d.sum()), int((~d).sum())) for n, d in zip(sizes, drawn, strict=True)]
        found = estimate_precision(strata)
        covered += found.low <= truth <= found.high
    assert 0.88 <= covered / 300 <= 0.998

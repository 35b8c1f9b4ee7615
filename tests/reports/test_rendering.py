"""Shares in words, and scale bars."""

import pytest

from kasthuri_ray.reports.rendering import describe_share, scale_bar_nm


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0, "none"),
        (0.001, "fewer than 1 of 100"),
        (0.04, "4 of 100"),
        (0.33, "about 1 of 3"),
        (0.5, "about 5 of 10"),
        (0.76, "about 3 of 4"),
        (0.81, "about 8 of 10"),
        (0.967, "97 of 100"),
        (0.998, "more than 99 of 100"),
        (1, "all"),
    ],
)
def test_a_share_is_described_by_a_simple_ratio(share, text):
    assert describe_share(share) == text


def test_a_scale_bar_is_a_round_length_of_at_most_a_quarter_of_the_picture():
    assert [scale_bar_nm(width) for width in (400, 1000, 6144)] == [100, 200, 1000]

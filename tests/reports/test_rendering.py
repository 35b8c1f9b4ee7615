"""Shares in words, percentages, flags, and templates without gaps."""

from types import SimpleNamespace

import jinja2
import pytest

from kasthuri_ray.reports.rendering import code_flags, describe_share, format_percent, render


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


def test_percentages_have_a_digit_more_if_they_are_small():
    assert [format_percent(share) for share in (0, 0.0042, 0.01, 0.123)] == ["0.0%", "0.42%", "1.0%", "12.3%"]
    assert format_percent(0.5, 0) == "50%"


def test_flags_are_code_and_other_text_is_escaped():
    assert code_flags("use --box <x>, not a--b or -c") == "use <code>--box</code> &lt;x&gt;, not a--b or -c"


def test_a_name_that_a_template_needs_and_does_not_get_is_an_error():
    with pytest.raises(jinja2.UndefinedError, match="next_steps"):
        render("base.html.jinja", SimpleNamespace(name="my_run", task_type="synapse"))

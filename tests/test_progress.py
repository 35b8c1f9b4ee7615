"""Progress output: a live line or table in a terminal, lines from time to time elsewhere, counts and durations."""

import io
import time

import pytest

from kasthuri_ray.progress import (
    PLAIN_PERIOD_S,
    Reporter,
    Throttle,
    display_width,
    fit_line,
    format_count,
    format_duration,
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """Replace the clock by a list of one time, in seconds, that a test may change."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_a_terminal_has_one_live_line_which_stays_when_it_ends():
    out = Terminal()
    reporter = Reporter(out)
    reporter.show_live("1 of 2")
    reporter.show_live("x" * 100)
    reporter.print_line("a line")
    reporter.end()
    assert out.getvalue() == f"\r\033[K1 of 2\r\033[K{'x' * 79}\na line\n"


@pytest.mark.parametrize(
    ("text", "width", "line"),
    [
        ("block 3/60  1.2 Mvoxels/s  4 min left", 80, "block 3/60  1.2 Mvoxels/s  4 min left"),
        ("block 3/60  1.2 Mvoxels/s  4 min left", 30, "block 3/60  4 min left"),
        ("step 3/60  1.2 tiles/s  4 min left  waiting for data 1%", 30, "step 3/60  4 min left"),
        ("block 3/60  4 min left", 12, "block 3/60  "),
        ("脳の切片  4 min left", 9, "脳の切片 "),
        ("脳の切片", 7, "脳の切"),
        ("e\u0301" * 9, 4, "e\u0301" * 4),
        ("one\ntwo", 80, "one two"),
    ],
)
def test_a_line_of_progress_fits_the_terminal_in_columns_and_keeps_the_time_left(text, width, line, monkeypatch):
    assert fit_line(text, width) == line
    assert display_width(line) <= width
    monkeypatch.setenv("COLUMNS", str(width + 1))
    out = Terminal()
    Reporter(out).show_live(text)
    assert out.getvalue() == f"\r\033[K{line}"


def test_results_go_to_the_standard_output_and_early_notes_to_the_standard_error(capsys):
    out = Terminal()
    reporter = Reporter(out)
    reporter.print_stderr("starting")
    reporter.show_live("1 of 2")
    reporter.print_result("/runs/a")
    assert (out.getvalue(), *capsys.readouterr()) == ("\r\033[K1 of 2\n", "/runs/a\n", "starting\n")


def test_without_a_terminal_progress_is_printed_once_a_period(clock):
    out = io.StringIO()
    reporter = Reporter(out)
    reporter.show_live("too early")
    clock[0] += PLAIN_PERIOD_S
    reporter.show_live("1 of 2")
    reporter.show_live("too early again")
    reporter.print_line("a line")
    assert out.getvalue() == "1 of 2\na line\n"


def test_a_table_is_erased_before_the_next_table_or_line():
    out = Terminal()
    reporter = Reporter(out)
    reporter.show_table(["one", "two"])
    reporter.show_table(["three"])
    reporter.print_line("a line")
    reporter.end()
    assert out.getvalue() == "one\ntwo\n\033[2A\r\033[Jthree\n\033[1A\r\033[Ja line\n"


def test_without_a_terminal_only_the_first_line_of_a_table_is_printed_from_time_to_time():
    out = io.StringIO()
    reporter = Reporter(out, plain_period_s=0.0)
    reporter.show_table(["one", "two"])
    assert out.getvalue() == "one\n"
    quiet = Reporter(io.StringIO())
    quiet.show_table(["one", "two"])
    assert quiet.stream.getvalue() == ""


def test_a_throttle_is_due_at_the_first_call_and_once_more_after_each_period(clock):
    throttle = Throttle(5.0)
    assert throttle.due()
    assert not throttle.due()
    clock[0] += 5.0
    assert not throttle.due(), "more than the period has to pass"
    clock[0] += 0.1
    assert throttle.due()
    assert not throttle.due()
    clock[0] += 4.0
    assert not throttle.due(), "the period starts at the last call that was due"


@pytest.mark.parametrize(("number", "text"), [(0, "0 blocks"), (1, "1 block"), (1000, "1,000 blocks")])
def test_counts_are_written_with_their_noun(number, text):
    assert format_count(number, "block") == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (89.4, "89 s"),
        (90, "2 min"),
        (5399, "1 h 30 min"),
        (7500, "2 h 05 min"),
        (360_000, "100 h 00 min"),
    ],
)
def test_durations_are_written_in_units_that_people_use(seconds, text):
    assert format_duration(seconds) == text

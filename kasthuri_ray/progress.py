"""Progress of a job on its output stream: one live line in a terminal, plain lines now and then elsewhere."""

from __future__ import annotations

import itertools
import math
import shutil
import sys
import time
import unicodedata
from collections.abc import Sequence
from typing import TextIO

PLAIN_PERIOD_S = 30.0  # between two lines of progress where there is no terminal


class Reporter:
    """Prints lines, and in a terminal keeps a live line or a table below them.

    Parameters
    ----------
    stream : file or None
        Where to print; None is the standard output.
    plain_period_s : float
        Seconds between two lines of progress if the stream is not a terminal.
    """

    def __init__(self, stream: TextIO | None = None, plain_period_s: float = PLAIN_PERIOD_S) -> None:
        self.stream = stream or sys.stdout
        self.is_terminal = self.stream.isatty()
        self.plain_period_s = plain_period_s
        self._has_live_line = False
        self._table_lines = 0  # of the table on the screen
        self._last_plain = time.monotonic()

    def print_line(self, text: str) -> None:
        """Print a line that stays."""
        self.end()
        print(text, file=self.stream, flush=True)

    def print_result(self, text: str) -> None:
        """Print a line for scripts on the standard output: the path of the results, as the first and the last line."""
        self.end()
        print(text, flush=True)

    def print_stderr(self, text: str) -> None:
        """Print a line for people before the first line of the standard output, which scripts read."""
        print(text, file=sys.stderr, flush=True)

    def show_live(self, text: str) -> None:
        """Replace the live line of a terminal; elsewhere print the text if the last one is old enough."""
        if self.is_terminal:
            line = fit_line(text, shutil.get_terminal_size().columns - 1)
            print(f"\r\033[K{line}", end="", file=self.stream, flush=True)
            self._has_live_line = True
        elif time.monotonic() - self._last_plain >= self.plain_period_s:
            self._last_plain = time.monotonic()
            self.print_line(text)

    def show_table(self, lines: Sequence[str]) -> None:
        """Replace the table of a terminal; elsewhere show the first line alone, as `show_live` does."""
        if not self.is_terminal:
            return self.show_live(lines[0])
        size = shutil.get_terminal_size()
        shown = [cut_line(line, size.columns - 1) for line in lines[: max(1, size.lines - 1)]]
        self.end()
        print("\n".join(shown), file=self.stream, flush=True)
        self._table_lines = len(shown)

    def end(self) -> None:
        """End the live line, which stays, and erase the table."""
        if self._has_live_line:
            print(file=self.stream, flush=True)
            self._has_live_line = False
        if self._table_lines:
            print(f"\033[{self._table_lines}A\r\033[J", end="", file=self.stream, flush=True)
            self._table_lines = 0


def fit_line(text: str, width: int) -> str:
    """Return a line of progress that fits into a width; the first part and the time left are dropped last.

    Parameters
    ----------
    text : str
        Parts with two spaces between them.
    width : int
        Columns of a terminal.

    Returns
    -------
    str
        Of at most `width` columns.
    """
    parts = " ".join(text.splitlines()).split("  ")
    for place in reversed(range(1, len(parts))):
        if display_width("  ".join(parts)) > width and not parts[place].endswith(" left"):
            del parts[place]
    return cut_line("  ".join(parts), width)


def cut_line(text: str, width: int) -> str:
    """Return as much of a line as fits into a number of columns."""
    columns = itertools.accumulate(map(_char_width, text))
    return "".join(char for char, end in zip(text, columns, strict=True) if end <= width)


def display_width(text: str) -> int:
    """Return the number of columns that a text takes in a terminal."""
    return sum(map(_char_width, text))


def _char_width(char: str) -> int:
    if unicodedata.category(char) in ("Mn", "Me", "Cf", "Cc"):  # accents that join the letter before, and no letters
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


class Throttle:
    """A limit on how often something is done.

    Parameters
    ----------
    period_s : float
        Least time between two times, in seconds.
    """

    def __init__(self, period_s: float) -> None:
        self.period_s, self._last = period_s, -math.inf

    def due(self) -> bool:
        """Return whether more than the period has passed since the last call that returned True.

        The first call returns True.
        """
        now = time.monotonic()
        if now - self._last <= self.period_s:
            return False
        self._last = now
        return True


def format_count(number: int, noun: str) -> str:
    """Return a number with its noun: 1 block, 1,000 blocks.

    Parameters
    ----------
    number : int
        How many.
    noun : str
        In the singular; its plural ends with s.

    Returns
    -------
    str
        The number, with commas between thousands, and the noun.
    """
    return f"{number:,} {noun}{'s' * (number != 1)}"


def format_duration(seconds: float) -> str:
    """Return a duration as people write it: 45 s, 12 min, 3 h 05 min.

    Parameters
    ----------
    seconds : float
        The duration.

    Returns
    -------
    str
        Rounded to seconds below 90 s, and to minutes above.
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"

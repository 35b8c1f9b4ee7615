"""How a job is told to who watches it: one live line in a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import shutil
import sys
import time
from collections.abc import Sequence
from typing import TextIO

PLAIN_PERIOD_S = 30.0  # between lines about how far it is where there is no terminal


class Reporter:
    """Writes lines, and in a terminal keeps one of them alive."""

    def __init__(self, stream: TextIO | None = None, plain_period_s: float = PLAIN_PERIOD_S) -> None:
        self.stream = stream or sys.stdout
        self.terminal = self.stream.isatty()
        self.plain_period_s = plain_period_s
        self._live = False
        self._height = 0  # lines of the table that stands there
        self._told = time.monotonic()

    def line(self, text: str) -> None:
        """A line that stays."""
        self.end()
        print(text, file=self.stream, flush=True)

    def live(self, text: str) -> None:
        """How far it is: in a terminal in place of what was said before, elsewhere a line now and then."""
        if self.terminal:
            width = shutil.get_terminal_size().columns - 1
            print(f"\r\033[K{text[:width]}", end="", file=self.stream, flush=True)
            self._live = True
        elif time.monotonic() - self._told >= self.plain_period_s:
            self._told = time.monotonic()
            self.line(text)

    def table(self, lines: Sequence[str]) -> None:
        """As `live`, of several lines; where there is no terminal the first one alone is told, now and then."""
        if not self.terminal:
            return self.live(lines[0])
        size = shutil.get_terminal_size()
        shown = [line[: size.columns - 1] for line in lines[: max(1, size.lines - 1)]]
        self.end()
        print("\n".join(shown), file=self.stream, flush=True)
        self._height = len(shown)

    def end(self) -> None:
        """Leave the live line behind; a table is wiped off."""
        if self._live:
            print(file=self.stream, flush=True)
            self._live = False
        if self._height:
            print(f"\033[{self._height}A\r\033[J", end="", file=self.stream, flush=True)
            self._height = 0


class Throttle:
    """Limit how often something is done.

    Parameters
    ----------
    period_s : float
        Least time between two times, in seconds.
    """

    def __init__(self, period_s: float) -> None:
        self.period_s, self._last = period_s, -math.inf

    def due(self) -> bool:
        """Return whether the period has passed since this last returned True; the first call returns True."""
        now = time.monotonic()
        if now - self._last <= self.period_s:
            return False
        self._last = now
        return True


def format_count(number: int, noun: str) -> str:
    """So many of something: 1 block, 1,000 blocks."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def format_duration(seconds: float) -> str:
    """Seconds as a person says them: 45 s, 12 min, 3 h 05 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"

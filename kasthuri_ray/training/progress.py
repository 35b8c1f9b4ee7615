"""How a run is told to who watches it: one live line in a terminal, plain lines elsewhere."""

from __future__ import annotations

import shutil
import sys
import time
from typing import Any, TextIO

PLAIN_PERIOD_S = 30.0  # between lines about steps where there is no terminal


class Reporter:
    """Writes lines, and in a terminal keeps one of them alive."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stdout
        self.terminal = self.stream.isatty()
        self._live = False
        self._told = time.monotonic()

    def line(self, text: str) -> None:
        """A line that stays."""
        self.end()
        print(text, file=self.stream, flush=True)

    def show(self, note: dict[str, Any]) -> None:
        """A worker's note: a line, a step, or an epoch that is done."""
        if "line" in note:
            self.line(note["line"])
        elif "epoch_done" in note:
            self.line(epoch_line(note["epoch_done"]))
            if note["background"]:
                self.line("  the network calls background everywhere so far")
        else:
            self._step(step_line(note))

    def end(self) -> None:
        """Leave the live line behind."""
        if self._live:
            print(file=self.stream, flush=True)
            self._live = False

    def _step(self, text: str) -> None:
        if self.terminal:
            width = shutil.get_terminal_size().columns - 1
            print(f"\r\033[K{text[:width]}", end="", file=self.stream, flush=True)
            self._live = True
        elif time.monotonic() - self._told >= PLAIN_PERIOD_S:
            self._told = time.monotonic()
            self.line(text)


def step_line(note: dict[str, Any]) -> str:
    """How far an epoch is."""
    return (
        f"epoch {note['epoch']}/{note['epochs']}  step {note['step']}/{note['steps']}  "
        f"{note['tiles_per_second']:.1f} tiles/s  loss {note['loss']:.4f}  "
        f"{duration(note['seconds_left'])} left  waiting for data {note['wait_share']:.1%}"
    )


def epoch_line(row: dict[str, Any]) -> str:
    """What an epoch has come to."""
    return (
        f"epoch {row['epoch']}  loss {row['train.loss']:.4f}  val loss {row['val.loss']:.4f}  "
        f"F1 {row['val.foreground_f1']:.3f}  average precision {row['val.average_precision']:.3f}  "
        f"{row['tiles_per_second']:.1f} tiles/s  {duration(row['seconds'])}"
    )


def duration(seconds: float) -> str:
    """Seconds as a person says them: 45 s, 12 min, 3 h 05 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"

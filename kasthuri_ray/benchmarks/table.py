"""What a benchmark says: lines of figure, goal and verdict, as a table for people and as JSON for scripts."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Line:
    """One figure. at_least, at_most: its goal, None where it has none. note: how it was come by."""

    name: str
    figure: float | None  # None: could not be measured here, the note says why
    unit: str = ""
    at_least: float | None = None
    at_most: float | None = None
    note: str = ""

    @property
    def ok(self) -> bool | None:
        """Whether the goal is reached; None without a goal or a figure."""
        if self.figure is None or (self.at_least is None and self.at_most is None):
            return None
        enough = self.at_least is None or self.figure >= self.at_least
        return enough and (self.at_most is None or self.figure <= self.at_most)

    @property
    def goal(self) -> str:
        parts = [f"at least {self.at_least:g}"] if self.at_least is not None else []
        parts += [f"at most {self.at_most:g}"] if self.at_most is not None else []
        return " and ".join(parts)

    @property
    def verdict(self) -> str:
        return {True: "ok", False: "missed", None: ""}[self.ok]


def table(lines: Sequence[Line]) -> str:
    """The lines under one another: what, figure, goal, verdict, note."""
    rows = [("what", "figure", "goal", "", "")]
    rows += [(line.name, _number(line), line.goal, line.verdict, line.note) for line in lines]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    text = ["  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]]) for row in rows]
    return "\n".join(line.rstrip() for line in [text[0], "-" * (sum(widths) + 6), *text[1:]])


def _number(line: Line) -> str:
    return "-" if line.figure is None else f"{line.figure:.4g} {line.unit}".strip()


def record(name: str, lines: Sequence[Line], more: dict[str, Any]) -> dict[str, Any]:
    """What the JSON holds: the machine, every line with its verdict, and whatever else was found."""
    shown = [{**asdict(line), "ok": line.ok} for line in lines]
    return {"benchmark": name, "machine": machine(), "lines": shown, **more}


def machine() -> dict[str, Any]:
    """What it was measured on."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cpus": cpus, "processor": _processor(), "system": platform.platform(), "python": platform.python_version()}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def tell(name: str, lines: Sequence[Line], more: dict[str, Any], out: str) -> None:
    """Print the table and write the JSON to `out`."""
    print(f"\n{table(lines)}")
    missed = [line.name for line in lines if line.ok is False]
    print(f"\n{len(missed)} missed: {'; '.join(missed)}" if missed else "\nevery goal is reached")
    write(out, record(name, lines, more))


def write(out: str, content: dict[str, Any]) -> None:
    """The JSON, and a line that says where it is."""
    Path(out).write_text(json.dumps(content, indent=2) + "\n")
    print(out)

"""Figures of a benchmark beside their goals, as a table and a JSON file, and compared with those of an earlier one."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kasthuri_ray.errors import InputError, WorkFailed
from kasthuri_ray.progress import Reporter

MIN_RATIO = 0.95  # of a speed to that of before
DURATIONS = ("s", "ms", "ms a block", "min")


@dataclass(frozen=True)
class BenchmarkLine:
    """One measured figure.

    Parameters
    ----------
    name : str
        What was measured.
    figure : float or None
        None if it cannot be measured here.
    unit : str
        Its unit; a speed ends in `/s`.
    at_least, at_most : float, optional
        The goal, None without one.
    note : str
        How the figure was measured, or why it was not.
    """

    name: str
    figure: float | None
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
        """The goal as text."""
        parts = [f"at least {self.at_least:g}"] if self.at_least is not None else []
        parts += [f"at most {self.at_most:g}"] if self.at_most is not None else []
        return " and ".join(parts)

    @property
    def status(self) -> str:
        """`ok` as text."""
        return {True: "ok", False: "missed", None: ""}[self.ok]


def lines_table(lines: Sequence[BenchmarkLine]) -> str:
    """Return a table with the columns name, figure, goal, status and note."""
    rows = [("what", "figure", "goal", "", "")]
    rows += [(line.name, _figure_text(line), line.goal, line.status, line.note) for line in lines]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    text = ["  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]]) for row in rows]
    return "\n".join(line.rstrip() for line in [text[0], "-" * (sum(widths) + 6), *text[1:]])


def _figure_text(line: BenchmarkLine) -> str:
    return "-" if line.figure is None else f"{line.figure:.4g} {line.unit}".strip()


def benchmark_record(name: str, lines: Sequence[BenchmarkLine], more: dict[str, Any]) -> dict[str, Any]:
    """Return the content of the JSON file: the machine, every line and whether it reaches its goal, and `more`."""
    rows = [{**asdict(line), "ok": line.ok} for line in lines]
    return {"benchmark": name, "machine": machine_description(), "lines": rows, **more}


def machine_description() -> dict[str, Any]:
    """Return what a benchmark was measured on.

    Returns
    -------
    dict
        Processors, operating system and Python, as JSON takes them.
    """
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cpus": cpus, "processor": _processor(), "system": platform.platform(), "python": platform.python_version()}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def compare_lines(lines: Sequence[BenchmarkLine], before: Mapping[str, Any]) -> list[BenchmarkLine]:
    """Return the ratio of each speed to that of an earlier benchmark.

    Parameters
    ----------
    lines : sequence of BenchmarkLine
        Figures of now.
    before : mapping
        Content of the JSON file of the earlier benchmark.

    Returns
    -------
    list of BenchmarkLine
        One for each figure a second that both have. If there is none, one for each duration, and for each figure whose
        goal says whether more is better. A ratio above 1 is always the better one.
    """
    pairs = _pairs(lines, before)
    speeds = [pair for pair in pairs if pair[0].unit.endswith("/s")]
    ratios = []
    for line, figure in speeds or pairs:
        if (more_is_better := _more_is_better(line)) is not None and line.figure:
            ratio = line.figure / figure if more_is_better else figure / line.figure
            note = f"{line.figure:.4g} now, {figure:.4g} before"
            ratios.append(BenchmarkLine(line.name, ratio, at_least=MIN_RATIO, note=note))
    return ratios


def _pairs(lines: Sequence[BenchmarkLine], before: Mapping[str, Any]) -> list[tuple[BenchmarkLine, float]]:
    """Return the lines that an earlier benchmark has too, each with its figure of before; neither figure is 0."""
    earlier: dict[str, list[Any]] = {}
    for row in before["lines"]:
        earlier.setdefault(row["name"], []).append(row["figure"])
    found = []
    for line in lines:
        figures = earlier.get(line.name, [])
        figure = figures.pop(0) if figures else None  # names such as "  predict" occur once for each network
        if line.figure and figure:
            found.append((line, figure))
    return found


def _more_is_better(line: BenchmarkLine) -> bool | None:
    """Return whether a larger figure is better; None if nothing says so."""
    if line.unit.endswith("/s"):
        return True
    if line.unit in DURATIONS:
        return False
    has_least, has_most = line.at_least is not None, line.at_most is not None
    return has_least if has_least != has_most else None


def report_comparison(lines: Sequence[BenchmarkLine], before_file: str, reporter: Reporter) -> None:
    """Show how fast everything is compared with an earlier benchmark.

    Parameters
    ----------
    lines : sequence of BenchmarkLine
        Figures of now.
    before_file : str
        JSON file of the earlier benchmark.
    reporter : Reporter
        Shows the table.

    Raises
    ------
    WorkFailed
        If a speed is below 0.95 of that of before.
    """
    before = read_benchmark(before_file)
    ratios = compare_lines(lines, before)
    reporter.print_line(f"\ncompared with {before_file}\n{lines_table(ratios)}")
    if before["machine"] != machine_description():
        reporter.print_line("the machines differ, or their systems: the ratios are not those of the code")
    if slower := [line.name.strip() for line in ratios if line.ok is False]:
        raise WorkFailed(f"below {MIN_RATIO} of {before_file}: {'; '.join(slower)}")


def read_benchmark(path: str) -> dict[str, Any]:
    """Return the content of the JSON file of a benchmark.

    Parameters
    ----------
    path : str
        The file.

    Returns
    -------
    dict
        As `benchmark_record` makes it.

    Raises
    ------
    InputError
        If there is no such file, or it holds something else.
    """
    try:
        content = json.loads(Path(path).read_text())
        assert {"lines", "machine"} <= content.keys()
    except (OSError, ValueError, AssertionError, AttributeError):
        raise InputError(f"--compare {Path(path).absolute()} is not the JSON file of a benchmark") from None
    return content


def report_lines(name: str, lines: Sequence[BenchmarkLine], more: dict[str, Any], out: str, reporter: Reporter) -> None:
    """Show the table and write the JSON file `out`."""
    reporter.print_line(f"\n{lines_table(lines)}")
    missed = [line.name.strip() for line in lines if line.ok is False]
    reporter.print_line(f"\n{len(missed)} missed: {'; '.join(missed)}" if missed else "\nevery goal is reached")
    write_json(out, benchmark_record(name, lines, more), reporter)


def write_json(out: str, content: dict[str, Any], reporter: Reporter) -> None:
    """Write a JSON file, and show its path.

    Parameters
    ----------
    out : str
        Path of the file.
    content : dict
        Content, as JSON takes it.
    reporter : Reporter
        Shows the path.
    """
    Path(out).write_text(json.dumps(content, indent=2) + "\n")
    reporter.print_result(out)

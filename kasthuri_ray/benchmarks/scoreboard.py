"""The challenge's scoreboard as data: what the results of its runs come to, as rows, as CSV and as Markdown."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from kasthuri_ray.benchmarks.challenge_plan import RECIPE
from kasthuri_ray.metrics.intervals import Estimate
from kasthuri_ray.reports.scoreboard_page import (
    COLUMNS,
    ScoreboardReport,
    ScoreboardRow,
    ScoreboardTask,
    format_figure,
)
from kasthuri_ray.storage.storage import Storage


def read_results(storage: Storage) -> list[dict[str, Any]]:
    """Return all results of a board, in the order of their names.

    Parameters
    ----------
    storage : Storage
        Folder of the board.

    Returns
    -------
    list of dict
        See `BoardRunner`.
    """
    return [json.loads(storage.read_bytes(name)) for name in storage.list_files("results/") if name.endswith(".json")]


def make_report(name: str, board: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> ScoreboardReport:
    """Return what the page and the tables show.

    Parameters
    ----------
    name : str
        Name of the board.
    board : mapping
        Content of board.json.
    results : sequence of mapping
        As of `read_results`.

    Returns
    -------
    ScoreboardReport
        The challenge's recipe is the first row of a task; the others follow by their voxel F1, those that learnt from
        the test box last.
    """
    tasks = []
    for task, settings in board.get("tasks", {}).items():
        rows = make_rows([result for result in results if result["task"] == task])
        if rows:
            tasks.append(ScoreboardTask(task, settings, tuple(rows)))
    return ScoreboardReport(name, str(board.get("data", "")), tuple(tasks), _amounts(results))


def make_rows(results: Sequence[Mapping[str, Any]]) -> list[ScoreboardRow]:
    """Return a row for each contestant of one task.

    Parameters
    ----------
    results : sequence of mapping
        Results of one task.

    Returns
    -------
    list of ScoreboardRow
        The recipe first, then the best; last those that learnt from the test box.
    """
    by_name: dict[str, list[Mapping[str, Any]]] = {}
    for result in results:
        by_name.setdefault(result["contestant"], []).append(result)
    rows = [_make_row(name, of_one) for name, of_one in by_name.items()]
    return sorted(
        rows,
        key=lambda row: (not row.is_recipe, row.learnt_share > 0, -row.estimates["voxel_f1"].mean, row.name),
    )


def _make_row(name: str, results: Sequence[Mapping[str, Any]]) -> ScoreboardRow:
    estimates = {}
    for column in COLUMNS:
        values = [result["figures"].get(column.key) for result in results]
        if all(value is not None for value in values):
            estimates[column.key] = Estimate(tuple(values))
    seeds = tuple(sorted(result["seed"] for result in results if result["seed"] is not None))
    learnt_share = max(result.get("learnt_share") or 0.0 for result in results)
    return ScoreboardRow(name, seeds, estimates, name == RECIPE, learnt_share)


def _amounts(results: Sequence[Mapping[str, Any]]) -> tuple[int, int] | None:
    """Return epochs and tiles an epoch, if all trainings have the same."""
    networks = [result["record"]["network"] for result in results if result["seed"] is not None]
    amounts = {(network["epochs"], network["tiles_per_epoch"]) for network in networks}
    return amounts.pop() if len(amounts) == 1 and None not in next(iter(amounts)) else None


def scoreboard_csv(report: ScoreboardReport) -> str:
    """Return the board as CSV: for each figure the mean and the ends of its interval, empty where there is none.

    Parameters
    ----------
    report : ScoreboardReport
        The board.

    Returns
    -------
    str
        A line for each row of each task.
    """
    out = io.StringIO()
    names = [name for column in COLUMNS for name in (column.key, f"{column.key}_low", f"{column.key}_high")]
    writer = csv.DictWriter(out, ["task", "network", "runs", *names, "learnt_share"], lineterminator="\n")
    writer.writeheader()
    for task in report.tasks:
        for row in task.rows:
            figures: dict[str, Any] = {}
            for key, estimate in row.estimates.items():
                low, high = estimate.interval or ("", "")
                figures |= {key: estimate.mean, f"{key}_low": low, f"{key}_high": high}
            learnt = {"learnt_share": row.learnt_share}
            writer.writerow({"task": task.name, "network": row.name, "runs": row.num_runs, **figures, **learnt})
    return out.getvalue()


def scoreboard_markdown(report: ScoreboardReport) -> str:
    """Return the board as Markdown, a table for each task.

    Parameters
    ----------
    report : ScoreboardReport
        The board.

    Returns
    -------
    str
        Means, with intervals in brackets.
    """
    head = ["network", "runs", *(column.title for column in COLUMNS)]
    lines = []
    for task in report.tasks:
        lines += [f"**{task.name}**", "", _table_line(head), _table_line(["---"] * len(head))]
        for row in task.rows:
            cells = [format_figure(column, row.estimates.get(column.key)) for column in COLUMNS]
            lines.append(_table_line([row.title, str(row.num_runs), *cells]))
        lines.append("")
    return "\n".join(lines)


def _table_line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"

"""Page of the challenge's scoreboard: a table for each task, and the scores of every run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from kasthuri_ray.metrics.intervals import Estimate
from kasthuri_ray.reports.figures import FIRST, INK, SECOND, STYLE
from kasthuri_ray.reports.rendering import PLURALS, render

ROW_INCHES = 0.3  # of a row of a figure


@dataclass(frozen=True)
class ScoreboardColumn:
    """A figure of the board.

    Parameters
    ----------
    key : str
        Its name in the CSV file and in results.
    title : str
        What people read.
    digits : int
        Digits after the point.
    """

    key: str
    title: str
    digits: int


COLUMNS = (
    ScoreboardColumn("voxel_f1", "voxel F1", 3),
    ScoreboardColumn("iou", "IoU", 3),
    ScoreboardColumn("average_precision", "average precision", 3),
    ScoreboardColumn("object_f1", "object F1", 3),
    ScoreboardColumn("parameters", "parameters", 0),
    ScoreboardColumn("tiles_per_second", "training tiles/s", 2),
    ScoreboardColumn("mvoxels_per_second", "segmentation Mvoxels/s", 3),
)
PLOTTED = COLUMNS[:4]


@dataclass(frozen=True)
class ScoreboardRow:
    """A network, weights, or the challenge's recipe.

    Parameters
    ----------
    name : str
        Its name.
    seeds : tuple of int
        Seeds of its trainings; empty for weights that were not trained here.
    estimates : mapping of str to Estimate
        Figures by the key of their column; without those that are not known.
    is_recipe : bool
        Whether it is the challenge's recipe.
    learnt_share : float
        Share of the test box that it is known to have learnt from, so that its scores do not compare.
    """

    name: str
    seeds: tuple[int, ...]
    estimates: Mapping[str, Estimate]
    is_recipe: bool = False
    learnt_share: float = 0.0

    @property
    def num_runs(self) -> int:
        """Runs that the figures are means of."""
        return len(self.estimates["voxel_f1"].values)

    @property
    def title(self) -> str:
        """What people read."""
        if self.is_recipe:
            return "the challenge's recipe"
        if self.seeds:
            return self.name
        learnt = f"; learnt from {100 * self.learnt_share:.3g}% of the test box" if self.learnt_share else ""
        return f"{self.name} (weights as they are{learnt})"


@dataclass(frozen=True)
class ScoreboardTask:
    """A task of the board.

    Parameters
    ----------
    name : str
        Its name.
    settings : mapping
        Section `task` of its settings.
    rows : tuple of ScoreboardRow
        In the order of the table; at least one.
    """

    name: str
    settings: Mapping[str, Any]
    rows: tuple[ScoreboardRow, ...]

    @property
    def best(self) -> ScoreboardRow:
        """The row with the highest voxel F1, of those that did not learn from the test box if there are any."""
        return max(self.rows, key=lambda row: (not row.learnt_share, row.estimates["voxel_f1"].mean))

    @property
    def columns(self) -> list[ScoreboardColumn]:
        """Columns of which any figure is known."""
        return [column for column in COLUMNS if any(column.key in row.estimates for row in self.rows)]


@dataclass
class ScoreboardReport:
    """What the page shows.

    Parameters
    ----------
    name : str
        Name of the board.
    data : str
        Name of the data.
    tasks : tuple of ScoreboardTask
        The tasks that have rows.
    amounts : tuple of int, optional
        Epochs and tiles an epoch of every training; None if they differ.
    """

    name: str
    data: str
    tasks: tuple[ScoreboardTask, ...]
    amounts: tuple[int, int] | None = None
    task_type: str = field(init=False)  # what is looked for, for the head of the page

    def __post_init__(self) -> None:
        self.task_type = " and ".join(PLURALS.get(task.name, task.name) for task in self.tasks)


def scoreboard_page(report: ScoreboardReport) -> str:
    """Return the page as HTML: one file with everything in it and no links.

    Parameters
    ----------
    report : ScoreboardReport
        What to show.

    Returns
    -------
    str
        A whole HTML document.
    """
    cells = {
        task.name: [
            [figure_texts(column, row.estimates.get(column.key)) for column in task.columns] for row in task.rows
        ]
        for task in report.tasks
    }
    return render(
        "scoreboard.html.jinja",
        report,
        cells=cells,
        figures={task.name: plot_scores(task) for task in report.tasks},
        next_steps=[],
        settings={task.name: task.settings for task in report.tasks},
    )


def figure_texts(column: ScoreboardColumn, estimate: Estimate | None) -> tuple[str, str]:
    """Return the mean of a figure and its interval as texts; a dash and "" for what is not known."""
    if estimate is None:
        return "-", ""
    mean = f"{estimate.mean:,.{column.digits}f}"
    if estimate.interval is None or len(set(estimate.values)) == 1:
        return mean, ""
    low, high = estimate.interval
    return mean, f"{low:,.{column.digits}f} to {high:,.{column.digits}f}"


def format_figure(column: ScoreboardColumn, estimate: Estimate | None) -> str:
    """Return a figure of the board as text.

    Parameters
    ----------
    column : ScoreboardColumn
        Its column.
    estimate : Estimate or None
        The figure.

    Returns
    -------
    str
        The mean, with the interval in brackets if there is one; a dash for a figure that is not known.
    """
    mean, interval = figure_texts(column, estimate)
    return f"{mean} ({interval})" if interval else mean


@mpl.rc_context(STYLE)
def plot_scores(task: ScoreboardTask) -> Figure:
    """Plot the scores of every run, with mean and interval of each row.

    Parameters
    ----------
    task : ScoreboardTask
        The task.

    Returns
    -------
    matplotlib.figure.Figure
        A panel for each score, side by side, and a line for each row.
    """
    shown = [column for column in PLOTTED if any(column.key in row.estimates for row in task.rows)]
    figure = Figure(figsize=(9.0, 0.9 + ROW_INCHES * len(task.rows)), layout="constrained")
    panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for axes, column in zip(panels, shown, strict=True):
        for place, row in enumerate(task.rows):
            if column.key in row.estimates:
                _plot_row(axes, place, row.estimates[column.key], SECOND if row.is_recipe else FIRST)
        axes.set(title=column.title, xlim=(0, 1.02), ylim=(len(task.rows) - 0.4, -0.6))
        axes.set_xticks([0, 0.5, 1])
        axes.grid(axis="x", alpha=0.25, linewidth=0.5)
        axes.tick_params(length=0)
    panels[0].set_yticks(range(len(task.rows)), [row.title for row in task.rows])
    return figure


def _plot_row(axes: Any, place: int, estimate: Estimate, colour: str) -> None:
    axes.plot(estimate.values, [place] * len(estimate.values), "o", color=colour, alpha=0.35, markersize=4)
    if estimate.interval is not None:
        axes.plot(estimate.interval, [place, place], color=colour, linewidth=1.2)
    axes.plot(estimate.mean, place, "|", color=INK, markersize=9, markeredgewidth=1.6)

"""Page of a training by folds: the scores of all folds together, and of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kasthuri_ray.metrics.voxel_counts import VoxelCounts
from kasthuri_ray.metrics.voxel_outcomes import VoxelOutcomes
from kasthuri_ray.reports import score_figures
from kasthuri_ray.reports.class_rows import make_class_rows
from kasthuri_ray.reports.rendering import foreground_name, render, view_steps


@dataclass(frozen=True)
class FoldRow:
    """A fold.

    Parameters
    ----------
    name : str
        Name of its run.
    box : str
        The part that it tests, z, y, x.
    metrics : mapping
        Scores of its test.
    """

    name: str
    box: str
    metrics: Mapping[str, Any]


@dataclass
class FoldsReport:
    """What the page of a training by folds shows.

    Parameters
    ----------
    name : str
        Name of the folds.
    task_type : str
        synapse, membrane or any other word for the foreground.
    network : str
        Name of the network.
    metrics : mapping
        Content of metrics.json.
    rows : sequence of FoldRow
        The folds.
    counts : VoxelCounts
        Pooled voxels.
    outcomes : sequence of VoxelOutcomes
        Pooled voxels of each foreground class by outcome, at the threshold of each fold.
    class_names : sequence of str
        Names of the foreground classes, if there are several.
    settings : mapping
        Sections of settings, as in settings.json.
    view_flags : sequence of str
        Flags of jobs/view.py that show the run of a fold; none without a command.
    """

    name: str
    task_type: str
    network: str
    metrics: Mapping[str, Any]
    rows: Sequence[FoldRow]
    counts: VoxelCounts
    outcomes: Sequence[VoxelOutcomes]
    class_names: Sequence[str] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    view_flags: Sequence[str] = ()


def folds_page(report: FoldsReport) -> str:
    """Return the page as HTML: one file with everything in it and no links.

    Parameters
    ----------
    report : FoldsReport
        What to show.

    Returns
    -------
    str
        A whole HTML document.
    """
    test = report.metrics["test"]
    names = report.class_names or [foreground_name(report.task_type)]
    voxels = report.outcomes[0] if len(report.outcomes) == 1 else None
    return render(
        "folds.html.jinja",
        report,
        metrics=test,
        voxels=voxels,
        class_rows=make_class_rows(test),
        figures={
            "precision_recall": score_figures.plot_precision_recall(report.counts, report.outcomes, None, names),
            "confusion": score_figures.plot_confusion(report.counts.confusion, ["background", *names]),
        },
        next_steps=view_steps(*report.view_flags),
        settings=report.settings,
    )

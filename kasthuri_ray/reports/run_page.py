"""Page and text report of a training run. The page is one HTML file without links, readable offline and on paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from matplotlib.figure import Figure

from kasthuri_ray.metrics.thresholds import class_outcomes, outcomes_at
from kasthuri_ray.metrics.voxel_counts import VoxelCounts
from kasthuri_ray.metrics.voxel_outcomes import VoxelOutcomes
from kasthuri_ray.reports import figures, score_figures
from kasthuri_ray.reports.class_rows import make_class_rows
from kasthuri_ray.reports.examples import make_examples
from kasthuri_ray.reports.labelled_voxels import describe_labelled
from kasthuri_ray.reports.learnt_text import is_partly_learnt, learnt_sentences
from kasthuri_ray.reports.rendering import foreground_name, render, view_steps
from kasthuri_ray.reports.section_images import SectionResult


@dataclass
class RunReport:
    """What the page of a run shows.

    Parameters
    ----------
    name : str
        Name of the run.
    task_type : str
        synapse, membrane or any other word for the foreground.
    network : str
        Name of the network.
    metrics : mapping
        Content of metrics.json; "test" is None without an annotation for test.
    history : sequence of mappings
        Rows of history.csv.
    counts : VoxelCounts or None
        Voxels of the split `counts_of`; None if nothing was measured.
    gallery : sequence of SectionResult
        Example tiles of that split.
    thresholds : sequence of float
        Thresholds that were chosen on the validation box, 0 to 1; one for each foreground class.
    settings : mapping
        Sections of settings, as in settings.json.
    notes : sequence of str
        Warnings.
    view_flags : sequence of str
        Flags of jobs/view.py that show the run; none without a command.
    next_text, next_command : str
        Command to type next, and a text that says what it does; "" without one.
    counts_of : str
        "test", or "val" without a test box.
    num_tiles : int, optional
        Tiles that the network was trained on; by default computed from the history.
    pixel_size_nm : tuple of float, optional
        (y, x) for a scale bar, in nm; None draws none.
    class_names : sequence of str
        Names of the foreground classes, if there are several.
    confusion : sequence of sequence of int, optional
        Voxels by true class (rows) and predicted class at the thresholds, if there are several.
    weights : str
        Where the weights come from that the run started from; "" if they were random.
    """

    name: str
    task_type: str
    network: str
    metrics: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]]
    counts: VoxelCounts | None
    gallery: Sequence[SectionResult]
    thresholds: Sequence[float]
    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    next_text: str = ""
    next_command: str = ""
    view_flags: Sequence[str] = ()
    counts_of: str = "test"
    num_tiles: int | None = None
    pixel_size_nm: tuple[float, float] | None = None
    class_names: Sequence[str] = ()
    confusion: Sequence[Sequence[int]] | None = None
    weights: str = ""

    @property
    def warnings(self) -> Sequence[str]:
        """Signs that the scores mean nothing."""
        return self.metrics.get("warnings", ())


def run_page(report: RunReport) -> str:
    """Return the page as HTML: one file with everything in it and no links.

    Parameters
    ----------
    report : RunReport
        What to show.

    Returns
    -------
    str
        A whole HTML document.
    """
    split = "test" if report.metrics.get("test") is not None else "val"
    voxels, metrics = _voxel_outcomes(report), report.metrics.get(split)
    learnt = metrics.get("learnt_from") if metrics and split == "test" else None
    is_part = is_partly_learnt(learnt)
    return render(
        "run.html.jinja",
        report,
        split=split,
        metrics=metrics["unseen"] if metrics and is_part else metrics,
        whole=metrics if is_part else None,
        unseen_share=1 - learnt["share"] if learnt else 1.0,
        learnt_sentences=learnt_sentences(learnt, "the test box"),
        voxels=voxels,
        class_rows=make_class_rows(metrics["unseen"] if metrics and is_part else metrics),
        labelled=describe_labelled(report.metrics.get("labelled_voxels", {}), split),
        num_epochs=report.metrics.get("epochs", len(report.history)),
        num_tiles=_count_tiles(report.history) if report.num_tiles is None else report.num_tiles,
        examples=make_examples(report.gallery, report.pixel_size_nm),
        figures=_plot_figures(report, voxels),
        next_steps=[
            *view_steps(*report.view_flags),
            *([(report.next_text, report.next_command)] if report.next_command else []),
        ],
        settings=report.settings,
    )


def _voxel_outcomes(report: RunReport) -> VoxelOutcomes | None:
    """Return the voxels by outcome at the thresholds, of all foreground classes; None if nothing was measured."""
    if report.counts is None or not report.counts.num_voxels:
        return None
    if report.confusion is None:
        return outcomes_at(report.counts.by_class[0], report.thresholds[0])
    return VoxelOutcomes.of_confusion(report.confusion)


def _count_tiles(history: Sequence[Mapping[str, Any]]) -> int:
    return round(sum(float(r.get("seconds") or 0) * float(r.get("tiles_per_second") or 0) for r in history))


def _plot_figures(report: RunReport, voxels: VoxelOutcomes | None) -> dict[str, Figure | None]:
    plotted: dict[str, Figure | None] = {}
    if report.history:
        best = report.metrics.get("best_epoch")
        plotted["loss"] = figures.plot_loss(report.history, best)
        plotted["validation_scores"] = figures.plot_validation_scores(report.history, best)
    if report.counts is not None and voxels is not None:
        names = report.class_names or [foreground_name(report.task_type)]
        plotted["precision_recall"] = score_figures.plot_precision_recall(
            report.counts, class_outcomes(report.counts, report.thresholds), report.thresholds, names
        )
        plotted["confusion"] = score_figures.plot_confusion(
            report.confusion or voxels.confusion, ["background", *names]
        )
    return plotted


def metrics_report(
    metrics: Mapping[str, Any] | None, heading: Mapping[str, object], class_names: tuple[str, ...] = ()
) -> str:
    """Return the report of a test as aligned text: the scores of the seed's report, and ours at the threshold below.

    Parameters
    ----------
    metrics : mapping or None
        Result of `metrics.voxel_scores.split_metrics`; None if there is no annotation to test against, which the report
        then says.
    heading : mapping
        First lines of the report, a name and a value each.
    class_names : tuple of str
        Names of the classes; by default background and foreground, or numbers.

    Returns
    -------
    str
        Lines of text.
    """
    width = max((len(key) for key in heading), default=0)
    lines = [f"{key:<{width}}  {value}" for key, value in heading.items()] + [""]
    if metrics is None:
        return "\n".join([*lines, "No annotation for test: nothing to compare with."]) + "\n"
    return "\n".join([*lines, *_metrics_lines(metrics, class_names)]) + "\n"


def _metrics_lines(metrics: Mapping[str, Any], class_names: tuple[str, ...]) -> list[str]:
    confusion = metrics["confusion"]
    default = ("background", "foreground") if len(confusion) == 2 else tuple(map("class {}".format, range(99)))
    names = (class_names or default)[: len(confusion)]
    name_width = max(len(name) for name in (*names, "mean")) + 2
    cell_width = max(len(f"{value:,}") for row in confusion for value in row) + 2
    cell_width = max(cell_width, *(len(name) + 2 for name in names))
    lines = ["Of the most probable class (argmax)", ""]
    lines += [f"{'':<{name_width}}{'F1':>8}{'IoU':>8}{'accuracy':>10}"]
    for name, f1, iou, accuracy in zip(names, metrics["f1"], metrics["iou"], metrics["accuracy"], strict=True):
        lines.append(f"{name:<{name_width}}{f1:>8.4f}{iou:>8.4f}{accuracy:>10.4f}")
    lines += [f"{'mean':<{name_width}}{metrics['mean_f1']:>8.4f}{metrics['mean_iou']:>8.4f}", ""]
    for key, label in (
        ("balanced_accuracy", "balanced accuracy (argmax)"),
        ("average_precision", "average precision"),
        ("foreground_f1", "foreground F1 at the threshold"),
        ("threshold", "threshold, chosen on val"),
    ):
        values = metrics[key] if isinstance(metrics[key], list) else [metrics[key]]
        lines.append(f"{label:<32}{', '.join(f'{value:.4f}' for value in values)}")
    lines += ["", "Voxels: truth in rows, prediction (argmax) in columns"]
    lines += [f"{'':<{name_width}}" + "".join(f"{name:>{cell_width}}" for name in names)]
    return lines + [
        f"{name:<{name_width}}" + "".join(f"{value:>{cell_width},}" for value in row)
        for name, row in zip(names, confusion, strict=True)
    ]

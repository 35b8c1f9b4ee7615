"""Page and text report of a training run. The page is one HTML file without links, readable offline and on paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kasthuri_ray.metrics.thresholds import foreground_counts, precision_recall_at
from kasthuri_ray.metrics.voxel_counts import VoxelCounts
from kasthuri_ray.metrics.voxel_scores import average_precision, predicts_only_background
from kasthuri_ray.progress import format_count, format_duration
from kasthuri_ray.reports import figures, rendering
from kasthuri_ray.reports.rendering import ForegroundName, chart_html, only_background_warning
from kasthuri_ray.reports.section_images import SectionResult

BEST_METRICS = {"val.foreground_f1": "highest F1", "val.loss": "lowest validation loss"}  # network.metric in words
NO_TEST = "This task has no annotation for test: no score on this page was measured on sections kept for testing."


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
    threshold : float
        Threshold that was chosen on the validation box, 0 to 1.
    settings : mapping
        Sections of settings, as in settings.json.
    notes : sequence of str
        Warnings.
    next_text, next_command : str
        Command to type next, and a text that says what it does; "" without one.
    counts_of : str
        "test", or "val" without a test box.
    num_tiles : int, optional
        Tiles that the network was trained on; by default computed from the history.
    pixel_size_nm : tuple of float, optional
        (y, x) for a scale bar, in nm; None draws none.
    """

    name: str
    task_type: str
    network: str
    metrics: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]]
    counts: VoxelCounts | None
    gallery: Sequence[SectionResult]
    threshold: float
    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    next_text: str = ""
    next_command: str = ""
    counts_of: str = "test"
    num_tiles: int | None = None
    pixel_size_nm: tuple[float, float] | None = None

    @property
    def foreground(self) -> ForegroundName:
        """Name of what the network looks for."""
        return ForegroundName(self.task_type)

    @property
    def tested(self) -> bool:
        """Whether there are metrics of the test box."""
        return self.metrics.get("test") is not None


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
    context = [report.foreground.plural.capitalize(), report.network, report.name]
    parts = [
        rendering.page_header(context, _headline(report), [_measurement(report), _training(report)]),
        _warnings(report),
        _scores(report),
        _gallery(report),
        _training_charts(report),
        _error_charts(report),
        rendering.next_steps([(report.next_text, report.next_command)]),
        rendering.settings_tables(report.settings),
    ]
    return rendering.html_document(f"{report.name}: {report.foreground.plural}", parts)


def _headline(report: RunReport) -> str:
    if report.counts is None or not report.counts.num_voxels:
        return f"A network for {report.foreground.plural}, trained and not yet measured."
    return rendering.voxel_headline(report.counts, report.threshold, report.foreground)


def _measurement(report: RunReport) -> str:
    """Return on what the headline was measured, and how much of it is foreground."""
    if report.counts is None or not report.counts.num_voxels:
        return ""
    (found, wrong), (missed, right) = foreground_counts(report.counts, report.threshold)
    everything = found + wrong + missed + right
    box = (
        "the test box, a part of the volume that was not used in training"
        if report.counts_of == "test"
        else "the validation box, which was also used to choose the best epoch"
    )
    fractions = report.foreground.fractions_sentence((found + missed) / everything, (found + wrong) / everything)
    return f"Measured on {everything:,} voxels of {box}. {fractions}"


def _training(report: RunReport) -> str:
    """Return what the network was trained on, and for how long."""
    parts = ["Trained"]
    task = report.settings.get("task") or {}
    if task.get("image_chan"):
        parts.append(f"on {task['image_chan']}")
    if task.get("z_train"):
        parts.append("(sections {} to {})".format(*task["z_train"]))
    parts.append(f"for {format_count(report.metrics.get('epochs', len(report.history)), 'epoch')}")
    num_tiles = report.num_tiles if report.num_tiles is not None else _count_tiles(report.history)
    if num_tiles:
        parts.append(f"({num_tiles:,} tiles in total)")
    if report.metrics.get("seconds"):
        parts.append(f"in {format_duration(report.metrics['seconds'])}")
    best = report.metrics.get("best_epoch")
    weights = f" The weights are those of epoch {best}, the best on the validation box." if best else ""
    return f"{' '.join(parts)}.{weights}"


def _count_tiles(history: Sequence[Mapping[str, Any]]) -> int:
    return round(sum(float(r.get("seconds") or 0) * float(r.get("tiles_per_second") or 0) for r in history))


def _warnings(report: RunReport) -> str:
    notes = list(report.notes)
    if report.counts is not None and predicts_only_background(report.counts):
        notes.insert(0, only_background_warning(report.counts, report.foreground.name))
    if not report.tested:
        notes.insert(0, NO_TEST)
    return rendering.warning_notes(notes)


def _scores(report: RunReport) -> str:
    split = "test" if report.tested else "val"
    metrics = report.metrics.get(split)
    if not metrics:
        return ""
    scores = [("F1", metrics["foreground_f1"], f"at threshold {report.threshold:.2f}, chosen on the validation box")]
    if report.counts is not None and report.counts_of == split:
        precision, recall = precision_recall_at(report.counts, report.threshold)
        scores += [("recall", recall, f"share of the {report.foreground.name} voxels that are found")]
        scores += [("precision", precision, "share of the marked voxels that are correct")]
    scores += [("average precision", metrics["average_precision"], "over all thresholds")]
    iou = metrics["iou"][1:]
    scores += [("IoU", sum(iou) / len(iou), rendering.IOU_MEANING)]
    return rendering.score_cells([(name, f"{value:.3f}", text) for name, value, text in scores], f"Scores on {split}")


def _gallery(report: RunReport) -> str:
    gallery = rendering.Gallery(report.gallery, report.threshold, report.foreground, report.pixel_size_nm, "tile")
    return gallery.html(f"Tiles of the {'test' if report.tested else 'validation'} box")


def _training_charts(report: RunReport) -> str:
    if not report.history:
        return ""
    best = report.metrics.get("best_epoch")
    loss = chart_html(
        figures.plot_loss(report.history, best),
        "Loss over the epochs",
        "Loss on the training tiles and on the validation box, and the learning rate. Lower is better. If the "
        "validation loss rises while the training loss falls, the network overfits.",
    )
    scores = chart_html(
        figures.plot_validation_scores(report.history, best),
        "Validation scores over the epochs",
        "F1 of the foreground at the best threshold of each epoch, and average precision. The weights of the epoch "
        f"with the {_best_metric(report)} were kept.",
    )
    return rendering.charts_html("Training", [loss, scores])


def _best_metric(report: RunReport) -> str:
    """Return by what the best epoch was chosen."""
    metric = (report.settings.get("network") or {}).get("metric", "")
    return BEST_METRICS.get(str(metric), "highest average precision")


def _error_charts(report: RunReport) -> str:
    if report.counts is None or not report.counts.num_voxels:
        return ""
    split, name = "test" if report.counts_of == "test" else "validation", report.foreground.name
    (found, wrong), (missed, right) = foreground_counts(report.counts, report.threshold)
    precision_recall = chart_html(
        figures.plot_precision_recall(report.counts, report.threshold),
        "Precision over recall",
        f"Precision (the share of the marked voxels that are correct) over recall (the share of the {name} voxels that "
        f"are found) on the {split} box, as the threshold falls. The dot is the threshold chosen on the validation "
        f"box. Average precision is the area below the curve, {average_precision(report.counts):.3f}. Pale lines: "
        "equal F1.",
    )
    confusion = chart_html(
        figures.plot_confusion([[right, wrong], [missed, found]], ["background", name]),
        "Confusion",
        f"Voxels of the {split} box by truth and prediction at threshold {report.threshold:.2f}: the share of each "
        "row, and the number of voxels.",
    )
    return rendering.charts_html("Errors", [precision_recall, confusion, *_all_classes(report.counts)])


def _all_classes(counts: VoxelCounts) -> list[str]:
    """Return the confusion of all classes, if there are more than background and foreground."""
    if counts.num_classes <= 2:
        return []
    names = ["background", *(f"class {index}" for index in range(1, counts.num_classes))]
    figure = figures.plot_confusion(counts.confusion, names)
    return [chart_html(figure, "Confusion of all classes", "All classes; each voxel has its most likely class.")]


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
    lines = [f"{'':<{name_width}}{'F1':>8}{'IoU':>8}{'accuracy':>10}"]
    for name, f1, iou, accuracy in zip(names, metrics["f1"], metrics["iou"], metrics["accuracy"], strict=True):
        lines.append(f"{name:<{name_width}}{f1:>8.4f}{iou:>8.4f}{accuracy:>10.4f}")
    lines += [f"{'mean':<{name_width}}{metrics['mean_f1']:>8.4f}{metrics['mean_iou']:>8.4f}", ""]
    for key, label in (
        ("balanced_accuracy", "balanced accuracy"),
        ("average_precision", "average precision"),
        ("foreground_f1", "foreground F1 at the threshold"),
        ("threshold", "threshold, chosen on val"),
    ):
        lines.append(f"{label:<32}{metrics[key]:.4f}")
    lines += ["", "Voxels: truth in rows, prediction (argmax) in columns"]
    lines += [f"{'':<{name_width}}" + "".join(f"{name:>{cell_width}}" for name in names)]
    return lines + [
        f"{name:<{name_width}}" + "".join(f"{value:>{cell_width},}" for value in row)
        for name, row in zip(names, confusion, strict=True)
    ]

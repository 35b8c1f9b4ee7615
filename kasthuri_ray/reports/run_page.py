"""The page of a run: one HTML file that holds all it shows, to be looked at without a network, on a phone, on paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kasthuri_ray.metrics.voxel_counts import (
    VoxelCounts,
    average_precision,
    foreground_counts,
    precision_recall_at,
    predicts_only_background,
)
from kasthuri_ray.progress import format_duration
from kasthuri_ray.reports import figures, rendering
from kasthuri_ray.reports.rendering import ForegroundName, chart_html, only_background_warning, percent
from kasthuri_ray.reports.section_images import SectionResult


@dataclass
class RunReport:
    """What a page tells about a run.

    name: the run's. task_type: synapse, membrane or any other. network: its name.
    metrics: what metrics.json holds; "test" is None where there is no annotation for test.
    history: the rows of history.csv. counts: of the split `counts_of` ("test", or "val" without test).
    gallery: tiles of the test box. threshold: the one chosen on val. settings: sections of settings, as settings.json.
    notes: sentences to warn with. next_command: what to type next, if anything, and next_words: what for.
    num_tiles: tiles trained on; None works it out from the history.
    pixel_size_nm: (y, x) for a scale bar; None draws none.
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
    next_words: str = ""
    next_command: str = ""
    counts_of: str = "test"
    num_tiles: int | None = None
    pixel_size_nm: tuple[float, float] | None = None

    @property
    def foreground(self) -> ForegroundName:
        return ForegroundName(self.task_type)

    @property
    def tested(self) -> bool:
        return self.metrics.get("test") is not None


def run_page(run: RunReport) -> str:
    """The page as HTML: everything in one file, no address of anything outside it."""
    body = [_header(run), _warnings(run), _headline_figures(run), _gallery(run), _learning(run), _certainty(run)]
    body += [rendering.next_step(run.next_words, run.next_command), rendering.settings_tables(run.settings)]
    return rendering.html_document(f"{run.name}: {run.foreground.many}", "\n".join(filter(None, body)))


def _header(run: RunReport) -> str:
    over = [run.foreground.many.capitalize(), run.network, run.name]
    return rendering.page_header(over, _headline(run), [_measured(run), _trained(run)])


def _headline(run: RunReport) -> str:
    """What the network can do, in a sentence."""
    if run.counts is None or not run.counts.num_voxels:
        return f"A network for {run.foreground.many}, trained and not yet measured."
    return rendering.voxel_headline(run.counts, run.threshold, run.foreground)


def _measured(run: RunReport) -> str:
    """On what the headline was measured, and how much of it is foreground."""
    if run.counts is None or not run.counts.num_voxels:
        return ""
    (found, wrong), (missed, right) = foreground_counts(run.counts, run.threshold)
    everything = found + wrong + missed + right
    box = "the test box, which it never saw" if run.counts_of == "test" else "the validation box, which chose its epoch"
    return (
        f"Measured on {everything:,} voxels of {box}. {run.foreground.fraction((found + missed) / everything)} "
        f"in the annotation, and {percent((found + wrong) / everything)} in the prediction."
    )


def _trained(run: RunReport) -> str:
    """What was trained on what, for how long, on how many tiles."""
    words = ["Trained"]
    task = run.settings.get("task") or {}
    if task.get("image_chan"):
        words.append(f"on {task['image_chan']}")
    if task.get("z_train"):
        words.append("(sections {} to {})".format(*task["z_train"]))
    epochs = run.metrics.get("epochs", len(run.history))
    words.append(f"for {epochs} epoch{'s' * (epochs != 1)}")
    tiles = run.num_tiles if run.num_tiles is not None else _tiles_of(run.history)
    if tiles:
        words[-1] += f", {tiles:,} tiles in all"
    if run.metrics.get("seconds"):
        words[-1] += f", in {format_duration(run.metrics['seconds'])}"
    best = run.metrics.get("best_epoch")
    return " ".join(words) + (f"; the weights are those of epoch {best}, the best on validation." if best else ".")


def _tiles_of(history: Sequence[Mapping[str, Any]]) -> int:
    return round(sum(float(r.get("seconds") or 0) * float(r.get("tiles_per_second") or 0) for r in history))


def _warnings(run: RunReport) -> str:
    """What a person must know before believing the figures; empty where there is nothing."""
    notes = list(run.notes)
    if run.counts is not None and predicts_only_background(run.counts):
        notes.insert(0, only_background_warning(run.counts, run.foreground.name))
    if not run.tested:
        notes.insert(0, "This task has no annotation for test: nothing here was measured on sections kept apart.")
    return rendering.warning_notes(notes)


def _headline_figures(run: RunReport) -> str:
    split = "test" if run.tested else "val"
    figures_of = run.metrics.get(split)
    if not figures_of:
        return ""
    entries = [("F1", figures_of["foreground_f1"], f"at threshold {run.threshold:.2f}, chosen on validation")]
    if run.counts is not None and run.counts_of == split:
        precision, recall = precision_recall_at(run.counts, run.threshold)
        entries += [("recall", recall, f"of the {run.foreground.name} voxels are found")]
        entries += [("precision", precision, "of the marked voxels are right")]
    entries += [("average precision", figures_of["average_precision"], "over all thresholds")]
    iou = figures_of["iou"][1:]
    entries += [("IoU", sum(iou) / len(iou), "overlap, taking the likeliest class")]
    return rendering.figure_cells(
        [(name, f"{value:.3f}", words) for name, value, words in entries], f"Figures on {split}"
    )


def _gallery(run: RunReport) -> str:
    return rendering.Gallery(run.gallery, run.threshold, run.foreground, run.pixel_size_nm, "tile").html(
        f"Tiles of the {'test' if run.tested else 'validation'} box as the microscope took them, and what the network "
        "made of them. In truth and prediction blue is the foreground: the paler, the less sure."
    )


def _learning(run: RunReport) -> str:
    if not run.history:
        return ""
    best = run.metrics.get("best_epoch")
    charts = [
        chart_html(figures.loss_curve(run.history, best), "Loss over the epochs", "Loss on the training tiles and on the "
               "validation box, and the learning rate. Lower is better; where validation rises while training falls, "
               "the network learns by heart."),
        chart_html(figures.score_curve(run.history, best), "Validation scores over the epochs", "F1 of the foreground at "
               "each epoch's best threshold, and average precision. The epoch with the highest average precision is "
               "the one that was kept."),
    ]  # fmt: skip
    return rendering.charts_html("How it learned", charts)


def _certainty(run: RunReport) -> str:
    if run.counts is None or not run.counts.num_voxels:
        return ""
    where = "test" if run.counts_of == "test" else "validation"
    names = ["background", run.foreground.name]
    (found, wrong), (missed, right) = foreground_counts(run.counts, run.threshold)
    charts = [
        chart_html(figures.precision_recall(run.counts, run.threshold), "Precision over recall", "How many of the marked "
               f"voxels are right, over how many of the {run.foreground.name} voxels are found, on the {where} box, "
               "as the threshold falls. The dot is the threshold chosen on validation; average precision is the area "
               f"below, {average_precision(run.counts):.3f}. Pale: equal F1."),
        chart_html(figures.confusion([[right, wrong], [missed, found]], names), "Confusion", f"Voxels of the {where} box "
               f"at threshold {run.threshold:.2f}: the share of each row, and the count."),
    ]  # fmt: skip
    if run.counts.classes > 2:
        every = ["background", *(f"class {index}" for index in range(1, run.counts.classes))]
        charts.append(chart_html(figures.confusion(run.counts.confusion, every), "Confusion of all classes",
                             "Every class, by the likeliest."))  # fmt: skip
    return rendering.charts_html("Where it errs", charts)


def metrics_report(
    metrics: Mapping[str, Any] | None, heading: Mapping[str, object], class_names: tuple[str, ...] = ()
) -> str:
    """The report as text, aligned: `heading` line by line, then the figures of `test_metrics`, per class and over all.

    `metrics` None: there is no annotation to test against, and the report says so. The figures are those of the seed's
    report, and ours at the threshold below them. `class_names` default to background, foreground (or numbers).
    """
    width = max((len(key) for key in heading), default=0)
    lines = [f"{key:<{width}}  {value}" for key, value in heading.items()] + [""]
    if metrics is None:
        return "\n".join([*lines, "No annotation for test: nothing to compare with."]) + "\n"
    return "\n".join([*lines, *_figures_text(metrics, class_names)]) + "\n"


def _figures_text(metrics: Mapping[str, Any], class_names: tuple[str, ...]) -> list[str]:
    confusion = metrics["confusion"]
    default = ("background", "foreground") if len(confusion) == 2 else tuple(map("class {}".format, range(99)))
    names = (class_names or default)[: len(confusion)]
    wide = max(len(name) for name in (*names, "mean")) + 2
    cell = max(len(f"{value:,}") for row in confusion for value in row) + 2
    cell = max(cell, *(len(name) + 2 for name in names))
    lines = [f"{'':<{wide}}{'F1':>8}{'IoU':>8}{'accuracy':>10}"]
    for name, f1, iou, accuracy in zip(names, metrics["f1"], metrics["iou"], metrics["accuracy"], strict=True):
        lines.append(f"{name:<{wide}}{f1:>8.4f}{iou:>8.4f}{accuracy:>10.4f}")
    lines += [f"{'mean':<{wide}}{metrics['mean_f1']:>8.4f}{metrics['mean_iou']:>8.4f}", ""]
    for key, label in (
        ("balanced_accuracy", "balanced accuracy"),
        ("average_precision", "average precision"),
        ("foreground_f1", "foreground F1 at the threshold"),
        ("threshold", "threshold, chosen on val"),
    ):
        lines.append(f"{label:<32}{metrics[key]:.4f}")
    lines += [
        "",
        "Voxels: truth in rows, prediction (argmax) in columns",
        f"{'':<{wide}}" + "".join(f"{n:>{cell}}" for n in names),
    ]
    return lines + [
        f"{name:<{wide}}" + "".join(f"{v:>{cell},}" for v in row) for name, row in zip(names, confusion, strict=True)
    ]

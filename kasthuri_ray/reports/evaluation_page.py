"""The page of an evaluation: where a prediction is right and where it is wrong, in one HTML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from kasthuri_ray.metrics.voxel_counts import VoxelCounts, predicts_only_background
from kasthuri_ray.reports import figures, rendering
from kasthuri_ray.reports.figures import FIRST, INK, SECOND, STYLE
from kasthuri_ray.reports.rendering import ForegroundName, chart_html, only_background_warning, percent
from kasthuri_ray.reports.section_images import SectionResult

BETTER = 0.01  # of F1, from which another threshold is worth a word


@dataclass
class EvaluationReport:
    """What a page tells about an evaluation.

    result: what evaluation.json holds. counts: of classes 0 and 1, by probability and, in the confusion, at the
    threshold. threshold: the one that is exact on the counts' bins. sections: (z, F1, voxels of foreground in truth or
    prediction) of each that has voxels. gallery: sections to look at, or parts of them where not `whole_sections`.
    notes: sentences to warn with. settings: sections of what the prediction was made with. pixel_size_nm: (y, x) for a
    scale bar; None draws none.
    """

    name: str
    task_type: str
    result: Mapping[str, Any]
    counts: VoxelCounts
    threshold: float
    sections: Sequence[tuple[int, float, int]]
    gallery: Sequence[SectionResult]
    whole_sections: bool = True
    notes: Sequence[str] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    next_words: str = ""
    next_command: str = ""
    pixel_size_nm: tuple[float, float] | None = None

    @property
    def foreground(self) -> ForegroundName:
        return ForegroundName(self.task_type)


def evaluation_page(report: EvaluationReport) -> str:
    """The page as HTML: everything in one file, no address of anything outside it."""
    over = [report.foreground.many.capitalize(), "evaluation", report.name]
    body = [
        rendering.page_header(over, _headline(report), [_measured(report), _rule(report), _advice(report)]),
        rendering.warning_notes([*_silence(report), *report.notes]),
        rendering.figure_cells(_figures(report), "Figures"),
        _gallery(report),
        _where(report),
        rendering.next_step(report.next_words, report.next_command),
        rendering.settings_tables(report.settings),
    ]
    return rendering.html_document(f"{report.name}: {report.foreground.many}", "\n".join(filter(None, body)))


def _gallery(report: EvaluationReport) -> str:
    noun = "section" if report.whole_sections else "part"
    gallery = rendering.Gallery(report.gallery, report.threshold, report.foreground, report.pixel_size_nm, noun)
    many = "Sections" if report.whole_sections else "Parts of sections"
    return gallery.html(
        f"{many} as the microscope took them, what the annotation says, and what the network made of them. In truth "
        "and prediction blue is the foreground: the paler, the less sure."
    )


def _headline(report: EvaluationReport) -> str:
    """What it comes to, in a sentence: of objects where they were matched, else of voxels."""
    objects = report.result.get("objects")
    if not report.counts.num_voxels:
        return "Nothing was compared: every voxel is ignored."
    if not report.counts.confusion[1].sum():
        return (
            f"The annotation holds no {report.foreground.name} voxels here: all that can be wrong is what the network "
            f"marks, {report.counts.confusion[0, 1]:,} of {report.counts.num_voxels:,} voxels."
        )
    if not objects or not objects["num_true"]:
        return rendering.voxel_headline(report.counts, report.threshold, report.foreground)
    many, right = report.foreground.many, round(objects["recall"] * objects["num_true"])
    if not objects["num_predicted"]:
        return f"The network marks none of the {objects['num_true']:,} {many}."
    return (
        f"The network finds {right:,} of {objects['num_true']:,} {many}; "
        f"of the {objects['num_predicted']:,} it marks, {right:,} {'is' if right == 1 else 'are'} right."
    )


def _measured(report: EvaluationReport) -> str:
    (_, wrong), (missed, found) = report.counts.confusion.tolist()
    everything = report.counts.num_voxels
    if not everything:
        return ""
    box = f", box {report.result['box']}" if "box" in report.result else ""
    return (
        f"Measured on {everything:,} voxels{box}. {report.foreground.fraction((found + missed) / everything)} in the "
        f"annotation, and {percent((found + wrong) / everything)} in the prediction."
    )


def _rule(report: EvaluationReport) -> str:
    """When an object counts as found."""
    objects = report.result.get("objects")
    if not objects or not report.counts.num_voxels:
        return ""
    return (
        f"Of the {report.foreground.many} a true and a marked one are a pair, and right, if what they share is more "
        f"than {objects['matching_iou']:.0%} of what the two cover together (their IoU). So each counts once."
    )


def _advice(report: EvaluationReport) -> str:
    """Whether another threshold would be better."""
    best, now = report.result["best_foreground_f1"], report.result["foreground_f1"]
    if best - now < BETTER:
        return ""
    return (
        f"At threshold {report.result['best_threshold']:.2f} F1 would be {best:.3f} instead of {now:.3f} at "
        f"{report.result['threshold']:.2f}."
    )


def _silence(report: EvaluationReport) -> list[str]:
    silent = report.counts.num_voxels and predicts_only_background(report.counts)
    return [only_background_warning(report.counts, report.foreground.name)] if silent else []


def _figures(report: EvaluationReport) -> list[tuple[str, str, str]]:
    result, name = report.result, report.foreground.name
    entries = [
        ("F1", result["foreground_f1"], f"at threshold {result['threshold']:.2f}"),
        ("recall", result["recall"], f"of the {name} voxels are found"),
        ("precision", result["precision"], "of the marked voxels are right"),
        ("average precision", result["average_precision"], "over all thresholds"),
        ("IoU", result["iou"], "overlap of marked and true"),
    ]
    if result.get("objects"):
        objects = result["objects"]
        entries += [
            ("F1 of objects", objects["f1"], f"{report.foreground.many} paired by IoU"),
            ("recall of objects", objects["recall"], f"of {objects['num_true']:,} {report.foreground.many} are found"),
            ("precision of objects", objects["precision"], f"of {objects['num_predicted']:,} marked are right"),
        ]
    if result.get("arand") is not None:
        entries += [
            ("ARAND", result["arand"], "adapted Rand error of the cells, 0 is perfect"),
            ("VOI, split", result["voi_split"], "bits: cells cut in two"),
            ("VOI, merge", result["voi_merge"], "bits: cells run together"),
        ]
    return [(name, f"{value:.3f}", words) for name, value, words in entries]


def _where(report: EvaluationReport) -> str:
    if not report.counts.num_voxels:
        return ""
    (right, wrong), (missed, found) = report.counts.confusion.tolist()
    name, result = report.foreground.name, report.result
    charts = [
        chart_html(
            figures.precision_recall(report.counts, report.threshold, result["threshold"]),
            "Precision over recall",
            f"How many of the marked voxels are right, over how many of the {name} voxels are found, as the threshold "
            f"falls. The dot is the threshold; average precision is the area below, "
            f"{result['average_precision']:.3f}. Pale: equal F1.",
        ),
        chart_html(
            section_score_chart(report.sections, result["foreground_f1"]),
            "F1 of every section",
            f"F1 of the {name} voxels of every section; the line is that of all voxels. Hollow: sections with little "
            "foreground, where a few voxels decide.",
        ),
        chart_html(
            figures.confusion([[right, wrong], [missed, found]], ["background", name]),
            "Confusion",
            f"Voxels at threshold {result['threshold']:.2f}: the share of each row, and the count.",
        ),
    ]
    return rendering.charts_html("Where it errs", charts)


@mpl.rc_context(STYLE)
def section_score_chart(sections: Sequence[tuple[int, float, int]], overall: float) -> Figure:
    """F1 of every section over z; hollow where there is little foreground, and nothing where there is none."""
    figure = Figure(figsize=(4.4, 4.0), layout="constrained")
    axes = figure.subplots()
    shown = [row for row in sections if row[2]]
    z, f1, size = (np.array(column) for column in zip(*shown, strict=True)) if shown else (np.zeros(0),) * 3
    little = size < size.mean() / 2 if size.size else np.zeros(0, bool)
    marker = 5 if len(shown) < 60 else 3 if len(shown) < 300 else 1.5
    axes.axhline(overall, color=SECOND, linewidth=1.2)
    axes.set_title(f"all voxels {overall:.2f}", loc="right", color=SECOND, fontsize=9)
    axes.plot(z, f1, color=FIRST, linewidth=0.8, alpha=0.5)
    axes.plot(z[~little], f1[~little], "o", color=FIRST, markersize=marker)
    axes.plot(z[little], f1[little], "o", markerfacecolor="none", markeredgecolor=FIRST, markersize=marker,
              markeredgewidth=0.8)  # fmt: skip
    axes.grid(axis="y", color=INK, alpha=0.1, linewidth=0.6)
    axes.set(xlabel="section z", ylabel="F1", ylim=(0, 1.02))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    return figure

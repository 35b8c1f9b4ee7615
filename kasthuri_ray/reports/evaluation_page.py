"""Page of an evaluation: where a prediction is right and where it is wrong, in one HTML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kasthuri_ray.metrics.voxel_counts import VoxelCounts
from kasthuri_ray.metrics.voxel_scores import predicts_only_background
from kasthuri_ray.reports import figures, rendering
from kasthuri_ray.reports.rendering import ForegroundName, chart_html, only_background_warning
from kasthuri_ray.reports.section_images import SectionResult

MIN_F1_GAIN = 0.01  # from which the page names another threshold


@dataclass
class EvaluationReport:
    """What the page of an evaluation shows.

    Parameters
    ----------
    name : str
        Name of the prediction.
    task_type : str
        synapse, membrane or any other word for the foreground.
    result : mapping
        Content of evaluation.json.
    counts : VoxelCounts
        Voxels of classes 0 and 1, by probability and, in the confusion, at the threshold.
    threshold : float
        Threshold rounded to the histogram's bin edge, 0 to 1; for floats the threshold itself.
    sections : sequence of (int, float, int)
        z, F1 and number of voxels of foreground, in truth or prediction, of each section that has voxels.
    gallery : sequence of SectionResult
        Example sections, or parts of them.
    whole_sections : bool
        Whether the examples are whole sections.
    notes : sequence of str
        Warnings.
    settings : mapping
        Sections of settings that the prediction was made with.
    next_text, next_command : str
        Command to type next, and a text that says what it does; "" without one.
    pixel_size_nm : tuple of float, optional
        (y, x) for a scale bar, in nm; None draws none.
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
    next_text: str = ""
    next_command: str = ""
    pixel_size_nm: tuple[float, float] | None = None

    @property
    def foreground(self) -> ForegroundName:
        """Name of what the network looks for."""
        return ForegroundName(self.task_type)


def evaluation_page(report: EvaluationReport) -> str:
    """Return the page as HTML: one file with everything in it and no links.

    Parameters
    ----------
    report : EvaluationReport
        What to show.

    Returns
    -------
    str
        A whole HTML document.
    """
    context = [report.foreground.plural.capitalize(), "evaluation", report.name]
    paragraphs = [_measurement(report), _matching_rule(report), _better_threshold(report)]
    parts = [
        rendering.page_header(context, _headline(report), paragraphs),
        rendering.warning_notes([*_background_warning(report), *report.notes]),
        rendering.score_cells(_scores(report), "Scores"),
        _gallery(report),
        _error_charts(report),
        rendering.next_steps([(report.next_text, report.next_command)]),
        rendering.settings_tables(report.settings),
    ]
    return rendering.html_document(f"{report.name}: {report.foreground.plural}", parts)


def _headline(report: EvaluationReport) -> str:
    """Return a sentence about objects if they were matched, else about voxels."""
    objects, (_, wrong) = report.result.get("objects"), report.counts.confusion[0]
    if not report.counts.num_voxels:
        return "Nothing was compared: every voxel is ignored."
    if not report.counts.confusion[1].sum():
        return (
            f"The annotation holds no {report.foreground.name} voxels here, so that all voxels which the prediction "
            f"marks are errors: {wrong:,} of {report.counts.num_voxels:,} voxels."
        )
    if not objects or not objects["num_true"]:
        return rendering.voxel_headline(report.counts, report.threshold, report.foreground, "The prediction")
    plural, right = report.foreground.plural, round(objects["recall"] * objects["num_true"])
    if not objects["num_predicted"]:
        return f"The prediction finds none of the {objects['num_true']:,} {plural}."
    return (
        f"The prediction finds {right:,} of {objects['num_true']:,} {plural}; "
        f"of the {objects['num_predicted']:,} that it marks, {right:,} {'is' if right == 1 else 'are'} correct."
    )


def _measurement(report: EvaluationReport) -> str:
    (_, wrong), (missed, found) = report.counts.confusion.tolist()
    everything = report.counts.num_voxels
    if not everything:
        return ""
    box = f", box {report.result['box']} (z,y,x)" if "box" in report.result else ""
    fractions = report.foreground.fractions_sentence((found + missed) / everything, (found + wrong) / everything)
    return f"Measured on {everything:,} voxels{box}. {fractions}"


def _matching_rule(report: EvaluationReport) -> str:
    objects = report.result.get("objects")
    if not objects or not report.counts.num_voxels:
        return ""
    return (
        "An object of the annotation counts as found, and a marked object as correct, if the intersection of the two "
        f"is more than {objects['matching_iou']:.0%} of their union (IoU). Each object counts once."
    )


def _better_threshold(report: EvaluationReport) -> str:
    """Return what F1 another threshold would reach, if that is clearly better."""
    best, current = report.result["best_foreground_f1"], report.result["foreground_f1"]
    if best - current < MIN_F1_GAIN:
        return ""
    return (
        f"At threshold {report.result['best_threshold']:.2f} F1 would be {best:.3f} instead of {current:.3f} at "
        f"threshold {report.result['threshold']:.2f}."
    )


def _background_warning(report: EvaluationReport) -> list[str]:
    only_background = report.counts.num_voxels and predicts_only_background(report.counts)
    return [only_background_warning(report.counts, report.foreground.name)] if only_background else []


def _scores(report: EvaluationReport) -> list[tuple[str, str, str]]:
    result, name = report.result, report.foreground.name
    scores = [
        ("F1", result["foreground_f1"], f"at threshold {result['threshold']:.2f}"),
        ("recall", result["recall"], f"share of the {name} voxels that are found"),
        ("precision", result["precision"], "share of the marked voxels that are correct"),
        ("average precision", result["average_precision"], "over all thresholds"),
        ("IoU", result["iou"], "overlap of prediction and truth"),
    ]
    if result.get("objects"):
        objects, plural = result["objects"], report.foreground.plural
        scores += [
            ("F1 of objects", objects["f1"], f"{plural}, paired by IoU"),
            ("recall of objects", objects["recall"], f"share of the {objects['num_true']:,} {plural} that are found"),
            (
                "precision of objects",
                objects["precision"],
                f"share of the {objects['num_predicted']:,} marked objects that are correct",
            ),
        ]
    if result.get("arand") is not None:
        scores += [
            ("ARAND", result["arand"], "adapted Rand error of the cells, 0 is perfect"),
            ("VOI, split", result["voi_split"], "variation of information in bits: cells cut in two"),
            ("VOI, merge", result["voi_merge"], "variation of information in bits: cells merged into one"),
        ]
    return [(name, f"{value:.3f}", text) for name, value, text in scores]


def _gallery(report: EvaluationReport) -> str:
    noun = "section" if report.whole_sections else "part"
    gallery = rendering.Gallery(report.gallery, report.threshold, report.foreground, report.pixel_size_nm, noun)
    return gallery.html("Sections" if report.whole_sections else "Parts of sections")


def _error_charts(report: EvaluationReport) -> str:
    if not report.counts.num_voxels:
        return ""
    name, result = report.foreground.name, report.result
    precision_recall = chart_html(
        figures.plot_precision_recall(report.counts, report.threshold, result["threshold"]),
        "Precision over recall",
        f"Precision (the share of the marked voxels that are correct) over recall (the share of the {name} voxels that "
        "are found), as the threshold falls. The dot is the threshold of this evaluation. Average precision is the "
        f"area below the curve, {result['average_precision']:.3f}. Pale lines: equal F1.",
    )
    sections = chart_html(
        figures.plot_section_scores(report.sections, result["foreground_f1"]),
        "F1 of every section",
        f"F1 of the {name} voxels in every section; the orange line is the F1 of all voxels together. Hollow circles: "
        "sections with little foreground, where a few voxels decide the F1.",
    )
    (right, wrong), (missed, found) = report.counts.confusion.tolist()
    confusion = chart_html(
        figures.plot_confusion([[right, wrong], [missed, found]], ["background", name]),
        "Confusion",
        f"Voxels by truth and prediction at threshold {result['threshold']:.2f}: the share of each row, and the number "
        "of voxels.",
    )
    return rendering.charts_html("Errors", [precision_recall, sections, confusion])

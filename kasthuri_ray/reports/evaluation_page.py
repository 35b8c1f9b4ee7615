"""Page of an evaluation: where a prediction is right and where it is wrong, in one HTML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kasthuri_ray.metrics.voxel_counts import VoxelCounts
from kasthuri_ray.metrics.voxel_scores import predicts_only_background
from kasthuri_ray.reports import figures
from kasthuri_ray.reports.examples import make_examples
from kasthuri_ray.reports.rendering import foreground_name, render
from kasthuri_ray.reports.section_images import SectionResult
from kasthuri_ray.reports.voxel_outcomes import VoxelOutcomes

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
    counts, result, objects = report.counts, report.result, report.result.get("objects")
    (right, wrong), (missed, found) = counts.confusion.tolist()
    voxels = VoxelOutcomes(found, missed, wrong, right)
    names = ["background", foreground_name(report.task_type)]
    return render(
        "evaluation.html.jinja",
        report,
        voxels=voxels,
        num_matched=round(objects["recall"] * objects["num_true"]) if objects else 0,
        other_threshold_is_better=result["best_foreground_f1"] - result["foreground_f1"] >= MIN_F1_GAIN,
        only_background=predicts_only_background(counts),
        examples=make_examples(report.gallery, report.threshold, report.pixel_size_nm),
        figures={
            "precision_recall": figures.plot_precision_recall(counts, report.threshold, result["threshold"]),
            "section_scores": figures.plot_section_scores(report.sections, result["foreground_f1"]),
            "confusion": figures.plot_confusion(voxels.confusion, names),
        },
        next_steps=[(report.next_text, report.next_command)] if report.next_command else [],
        settings=report.settings,
    )

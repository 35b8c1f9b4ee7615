"""Page of an evaluation: where a prediction is right and where it is wrong, in one HTML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kasthuri_ray.metrics.voxel_counts import VoxelCounts
from kasthuri_ray.metrics.voxel_outcomes import VoxelOutcomes
from kasthuri_ray.reports import score_figures
from kasthuri_ray.reports.class_rows import make_class_rows
from kasthuri_ray.reports.examples import make_examples
from kasthuri_ray.reports.learnt_text import is_partly_learnt, learnt_sentences
from kasthuri_ray.reports.object_gallery import OUTLINES, ObjectCrop, make_object_groups
from kasthuri_ray.reports.rendering import foreground_name, render, view_steps
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
        Voxels by class and probability; the confusion is that at the thresholds.
    outcomes : sequence of VoxelOutcomes
        Voxels of each foreground class by outcome, at its threshold.
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
    view_flags : sequence of str
        Flags of jobs/view.py that show the evaluation; none without a command.
    next_text, next_command : str
        Command to type next, and a text that says what it does; "" without one.
    pixel_size_nm : tuple of float, optional
        (y, x) for a scale bar, in nm; None draws none.
    class_names : sequence of str
        Names of the foreground classes, if there are several.
    crops : sequence of ObjectCrop
        Wrong, missed and found objects.
    num_objects : mapping of str to int
        Number of all objects of each verdict, in the order of the page.
    """

    name: str
    task_type: str
    result: Mapping[str, Any]
    counts: VoxelCounts
    outcomes: Sequence[VoxelOutcomes]
    sections: Sequence[tuple[int, float, int]]
    gallery: Sequence[SectionResult]
    whole_sections: bool = True
    notes: Sequence[str] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    next_text: str = ""
    next_command: str = ""
    view_flags: Sequence[str] = ()
    pixel_size_nm: tuple[float, float] | None = None
    class_names: Sequence[str] = ()
    crops: Sequence[ObjectCrop] = ()
    num_objects: Mapping[str, int] = field(default_factory=dict)

    @property
    def warnings(self) -> Sequence[str]:
        """Signs that the scores mean nothing."""
        return self.result.get("warnings", ())


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
    counts, result, learnt = report.counts, report.result, report.result.get("learnt_from")
    is_part = is_partly_learnt(learnt)
    scores = result["unseen"] if is_part else result
    objects = scores.get("objects")
    voxels = VoxelOutcomes.of_confusion(counts.confusion)
    names = report.class_names or [foreground_name(report.task_type)]
    shown = result["threshold"] if isinstance(result["threshold"], list) else [result["threshold"]]
    return render(
        "evaluation.html.jinja",
        report,
        voxels=voxels,
        class_rows=make_class_rows(scores),
        shown=scores,
        whole=result if is_part else None,
        unseen_share=1 - learnt["share"] if learnt else 1.0,
        learnt_sentences=learnt_sentences(learnt, "what is compared"),
        outlines=OUTLINES,
        num_matched=objects["by"]["overlap"]["true_positives"] if objects else 0,
        object_groups=make_object_groups(report.crops, report.num_objects, report.pixel_size_nm),
        other_threshold_is_better=scores["best_foreground_f1"] - scores["foreground_f1"] >= MIN_F1_GAIN,
        examples=make_examples(report.gallery, report.pixel_size_nm),
        figures={
            "precision_recall": score_figures.plot_precision_recall(counts, report.outcomes, shown, names),
            "section_scores": score_figures.plot_section_scores(report.sections, voxels.f1),
            "confusion": score_figures.plot_confusion(counts.confusion, ["background", *names]),
        },
        next_steps=[
            *view_steps(*report.view_flags),
            *([(report.next_text, report.next_command)] if report.next_command else []),
        ],
        settings=report.settings,
    )

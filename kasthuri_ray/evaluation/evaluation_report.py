"""The result of an evaluation: evaluation.json, a summary line, notes, figures and the page with example sections."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from kasthuri_ray.config.settings import EvaluateSettings
from kasthuri_ray.evaluation.block_comparison import COUNTED, FOUND, MISSED, WRONG, ComparisonTotals, PartTotals
from kasthuri_ray.evaluation.comparison import Comparison
from kasthuri_ray.evaluation.comparison_inputs import ComparisonInputs
from kasthuri_ray.evaluation.image_sections import read_image_section
from kasthuri_ray.evaluation.object_crops import choose_objects, count_verdicts, read_object_crop
from kasthuri_ray.evaluation.object_list import matches_csv
from kasthuri_ray.evaluation.provenance import storage_path
from kasthuri_ray.geometry import Box, Zyx
from kasthuri_ray.metrics import sanity, voxel_counts, voxel_scores
from kasthuri_ray.metrics.object_comparison import add_object_scores
from kasthuri_ray.metrics.object_density import AnnotatedObjects, object_warnings
from kasthuri_ray.metrics.object_outcomes import object_metrics
from kasthuri_ray.metrics.thresholds import class_outcomes
from kasthuri_ray.metrics.voxel_outcomes import VoxelOutcomes
from kasthuri_ray.reports import figures, score_figures
from kasthuri_ray.reports.evaluation_page import EvaluationReport, evaluation_page
from kasthuri_ray.reports.learnt_text import (
    all_learnt_warning,
    is_partly_learnt,
    learnt_entry,
    learnt_percent,
    learnt_sentences,
)
from kasthuri_ray.reports.object_gallery import ObjectCrop
from kasthuri_ray.reports.rendering import format_thresholds
from kasthuri_ray.reports.section_images import NUM_EXAMPLES, SectionResult, choose_evenly, choose_examples
from kasthuri_ray.storage.storage import Storage
from kasthuri_ray.volumes.absent_chunks import absent_text
from kasthuri_ray.volumes.background_labels import MAX_SYNAPSE_SHARE

COMPARED = "what is compared"
NO_CELLS_NOTE = "ARAND and VOI were not computed: predicted cells and --instances share no voxel."
MASK_NOTE = (
    "The largest value in this uint8 prediction is 1 (255 means probability 1). If it is a 0/1 mask, convert it to "
    "bool, or to 0 and 255."
)
NO_VOXEL_SIZE_NOTE = (
    "Objects are not matched by the distance of their centroids, and CREMI's cleft distances are not measured: the "
    "voxel size is not known. Give it with --voxel-size Z,Y,X (nm)."
)
NOTHING_COMPARED = "Nothing was compared: every voxel is ignored."
NO_IMAGE_NOTE = "The image that was segmented is not known: the sections are shown on grey."


def evaluation_metrics(inputs: ComparisonInputs, totals: ComparisonTotals) -> dict[str, Any]:
    """Return the content of evaluation.json: plain numbers, zero where a ratio has no denominator."""
    comparison, is_several = inputs.comparison, len(inputs.comparison.class_names) > 1
    result: dict[str, Any] = {
        "prediction": comparison.prediction.uri,
        "annotation": comparison.annotation.uri,
        "box": str(comparison.box),
        "threshold": list(comparison.thresholds) if is_several else comparison.thresholds[0],
        **_part_metrics(comparison, totals.whole),
        "absent_chunks": dict(zip(("prediction", "annotation"), totals.absent_chunks.tolist(), strict=True)),
        "sections": [{"z": z, "foreground_f1": f1} for z, f1, _ in section_scores(totals.whole)],
        "learnt_from": (learnt := _learnt_entry(comparison, totals)),
        "warnings": _score_warnings(inputs, totals, learnt),
    }
    is_unseen = totals.unseen.counts.num_voxels and (learnt["known"] or learnt["share"])
    result["unseen"] = _part_metrics(comparison, totals.unseen) if is_unseen else None
    if comparison.labels.background:
        result["background"] = list(comparison.labels.background)
    if comparison.instances is not None:
        result["instances"] = comparison.instances.uri
        result |= totals.cells.total().scores()
    return result


def _learnt_entry(comparison: Comparison, totals: ComparisonTotals) -> dict[str, Any]:
    """Return what is known about the part of what is compared that the network learnt from."""
    part = comparison.learnt
    entry = learnt_entry(
        totals.counts.num_voxels,
        totals.unseen.counts.num_voxels,
        is_known=part.is_known,
        is_same_image=part.is_same_image,
        images=part.images,
    )
    return {**entry, "boxes": [str(box) for box in part.boxes]}


def _part_metrics(comparison: Comparison, totals: PartTotals) -> dict[str, Any]:
    """Return the scores of all voxels and objects, or those of a part."""
    counts, names, is_several = totals.counts, comparison.class_names, len(comparison.class_names) > 1
    best_thresholds, best_f1 = voxel_scores.best_thresholds(counts)
    result: dict[str, Any] = {
        **_voxel_metrics(counts, comparison),
        "best_threshold": best_thresholds if is_several else best_thresholds[0],
        "best_foreground_f1": best_f1,
        "average_precision": voxel_scores.mean_average_precision(counts),
        "voxels": counts.num_voxels,
    }
    if totals.tiles.has_intervals:
        exact = [voxel_scores.average_precision(each) for each in counts.by_class]
        result["foreground_f1_interval"] = list(totals.tiles.f1_interval())
        result["average_precision_interval"] = list(totals.tiles.average_precision_interval(exact))
    if is_several:
        result["classes"] = dict(zip(names, _class_rows(counts, comparison), strict=True))
    result = add_object_scores(result, totals.outcomes, names, totals.cleft_distances)
    return result


def _voxel_metrics(counts: voxel_counts.VoxelCounts, comparison: Comparison) -> dict[str, float]:
    """Return the scores at the thresholds; of several classes their means."""
    rows = [(each.f1, each.precision, each.recall, each.iou) for each in exact_outcomes(comparison, counts)]
    means = (voxel_scores.mean_of_classes(column, counts) for column in zip(*rows, strict=True))
    return dict(zip(("foreground_f1", "precision", "recall", "iou"), means, strict=True))


def exact_outcomes(comparison: Comparison, counts: voxel_counts.VoxelCounts) -> list[VoxelOutcomes]:
    """Return the outcomes of each class at its threshold; exact for one class, whatever the threshold."""
    if counts.num_classes == 2:
        return [VoxelOutcomes.of_confusion(counts.confusion)]
    return class_outcomes(counts, comparison.binned_thresholds)


def _class_rows(counts: voxel_counts.VoxelCounts, comparison: Comparison) -> list[dict[str, Any]]:
    """Return the scores of each class by itself, with its own threshold."""
    binned = zip(counts.by_class, comparison.binned_thresholds, comparison.thresholds, strict=True)
    return [voxel_scores.class_metrics(each, at) | {"threshold": threshold} for each, at, threshold in binned]


def _score_warnings(inputs: ComparisonInputs, totals: ComparisonTotals, learnt: Mapping[str, Any]) -> list[str]:
    """Return the signs that the scores which come first mean nothing."""
    comparison, shown = inputs.comparison, totals.headline
    counts = shown.counts
    if not counts.num_voxels:
        return [NOTHING_COMPARED]
    training = AnnotatedObjects.from_plain(inputs.provenance.get("annotated_objects"))
    size = comparison.voxel_size_nm
    by_name = {comparison.class_names[number - 1]: object_metrics(each) for number, each in shown.outcomes.items()}
    names = [name.replace("_", " ") for name in comparison.class_names]
    warnings = [warning] if (warning := all_learnt_warning(learnt, COMPARED)) else []
    warnings += sanity.count_warnings(counts, exact_outcomes(comparison, counts), shown.tiles, names, COMPARED)
    voxels = dict(zip(["background", *names], counts.confusion.sum(1).tolist(), strict=True))
    warnings += sanity.missing_class_warnings({COMPARED: voxels})
    return warnings + object_warnings(by_name, counts.num_voxels, size, training)


def _ratio(numerator: int, denominator: int) -> float:
    return numerator / denominator if denominator else 0.0


def section_scores(totals: PartTotals) -> list[tuple[int, float, int]]:
    """Return (z, F1, voxels of true or predicted foreground) of every section that is not ignored as a whole."""
    sums = totals.window_counts.sum((1, 2)).tolist()
    scores = []
    for z, section in enumerate(sums, start=totals.comparison.box.start[0]):
        found, missed, wrong = section[FOUND], section[MISSED], section[WRONG]
        if section[COUNTED]:
            scores.append((z, _ratio(2 * found, 2 * found + missed + wrong), found + missed + wrong))
    return scores


def learnt_line(result: dict[str, Any]) -> str:
    """Return what is known about what the network learnt from; "" if all of it, which is a warning."""
    return learnt_sentences(result["learnt_from"], COMPARED)


def evaluation_summary(result: dict[str, Any]) -> str:
    """Return the result in a line."""
    learnt = result["learnt_from"]
    shown = result["unseen"] if is_partly_learnt(learnt) else result
    parts = [f"F1 {shown['foreground_f1']:.3f} at threshold {format_thresholds(result['threshold'])}"]
    if shown is not result:
        unseen = learnt_percent(1 - learnt["share"])
        parts[0] += f" on the {unseen} that was not learnt from (whole: {result['foreground_f1']:.3f})"
    parts += [f"best {shown['best_foreground_f1']:.3f} at {format_thresholds(shown['best_threshold'])}"]
    parts += [f"average precision {shown['average_precision']:.3f}"]
    if "objects" in shown:
        parts.append(_object_summary(shown["objects"]))
    if result.get("arand") is not None:
        parts.append("ARAND {arand:.3f}  VOI {voi_split:.3f} split, {voi_merge:.3f} merge".format(**result))
    return "  ".join(parts)


def _object_summary(objects: Mapping[str, Any]) -> str:
    overlap = objects["by"]["overlap"]
    return (
        f"objects: F1 {overlap['f1']:.3f} by overlap, {objects['f1']:.3f} by IoU; by overlap "
        f"{overlap['true_positives']} of {objects['num_true']} found, {objects['num_predicted']} marked"
    )


def evaluation_notes(inputs: ComparisonInputs, totals: ComparisonTotals, result: dict[str, Any]) -> list[str]:
    """Return the notes that a user needs to judge the result: those of the inputs, then those of the result."""
    notes = list(inputs.notes)
    if inputs.comparison.prediction.dtype == np.uint8 and totals.max_probability == 1:
        notes.append(MASK_NOTE)
    for kind, (absent, chunks) in result["absent_chunks"].items():
        if absent:
            fill = getattr(inputs.comparison, kind).fill_value
            meaning = f"the label {fill:g}" if kind == "annotation" else f"a probability of {fill:g}"
            notes.append(absent_text(result[kind], absent, chunks, meaning))
    num_voxels, num_labelled = inputs.comparison.box.num_voxels, totals.whole.counts.num_voxels
    if num_labelled < num_voxels:
        comparison = inputs.comparison
        labels = ", ".join(map(str, comparison.labels.ignored_labels(comparison.annotation.dtype)))
        notes.append(
            f"{num_labelled:,} of {num_voxels:,} voxels count ({num_labelled / num_voxels:.2%}). The others have the "
            f"label {labels}, which means not labelled in the task (task.ignore_label or task.labels)."
        )
    share = _ratio(totals.counts.num_foreground, totals.counts.num_voxels)
    if inputs.rule.task_type == "synapse" and share > MAX_SYNAPSE_SHARE:
        notes.append(
            f"{share:.0%} of what is compared of {result['annotation']} is foreground, much for synapses: check the "
            "task's `background` and `threshold_value` (--task)."
        )
    if "arand" in result and result["arand"] is None:
        notes.append(NO_CELLS_NOTE)
    if inputs.image is None:
        notes.append(NO_IMAGE_NOTE)
    if inputs.comparison.object_classes and inputs.comparison.voxel_size_nm is None:
        notes.append(NO_VOXEL_SIZE_NOTE)
    return notes


def write_evaluation_report(
    storage: Storage,
    path: str,
    inputs: ComparisonInputs,
    totals: ComparisonTotals,
    result: dict[str, Any],
    settings: EvaluateSettings,
) -> None:
    """Write figures and page and, last of all, evaluation.json; all of it is moved to `path` later."""
    comparison, provenance = inputs.comparison, inputs.provenance
    notes = evaluation_notes(inputs, totals, result)
    names = [name.replace("_", " ") for name in comparison.class_names]
    gallery = []
    shown = totals.headline
    for window in choose_windows(shown.window_counts):
        try:
            gallery.append(read_window(inputs, window))
        except OSError as error:  # the result does not need the picture
            notes.append(f"A section could not be shown: {error}")
    for number, section in enumerate(sorted(gallery, key=lambda each: (each.z, each.box))):
        figure = figures.plot_section(section, names)
        storage.write_bytes(f"slices/slice_{number}.png", figures.figure_png(figure))
    if shown.objects:
        size_nm, origin_nm = comparison.voxel_size_nm, comparison.annotation.translation_nm
        lines = matches_csv(shown.objects, comparison.class_names, size_nm, origin_nm)
        storage.write_bytes("matches.csv", "".join(f"{line}\n" for line in lines).encode())
    sections = section_scores(shown)
    outcomes = exact_outcomes(comparison, shown.counts)
    curve = score_figures.plot_precision_recall(shown.counts, outcomes, comparison.thresholds, names)
    storage.write_bytes("precision_recall.png", figures.figure_png(curve))
    chart = score_figures.plot_section_scores(sections, VoxelOutcomes.of_confusion(shown.counts.confusion).f1)
    storage.write_bytes("sections.png", figures.figure_png(chart))
    size_nm = comparison.voxel_size_nm
    report = EvaluationReport(
        name=os.path.basename((storage_path(settings.prediction) or settings.prediction).rstrip("/")),
        task_type=inputs.rule.task_type,
        result=result,
        counts=shown.counts,
        outcomes=outcomes,
        class_names=names if len(names) > 1 else (),
        sections=sections,
        gallery=gallery,
        whole_sections=shown.window_counts.shape[1:3] == (1, 1),
        crops=_read_crops(inputs, shown, notes),
        num_objects=count_verdicts(shown.objects),
        notes=notes,
        settings={"compared": {key: result[key] for key in ("prediction", "annotation", "box")}, **provenance},
        pixel_size_nm=None if size_nm is None else (size_nm[1], size_nm[2]),
        view_flags=["--evaluation", path],
    )
    storage.write_bytes("index.html", evaluation_page(report).encode())
    storage.write_bytes("evaluation.json", (json.dumps(result, indent=2) + "\n").encode())


def _read_crops(inputs: ComparisonInputs, part: PartTotals, notes: list[str]) -> list[ObjectCrop]:
    """Return crops around objects; one that cannot be read is a note."""
    crops = []
    for verdict, listed in choose_objects(part.objects).items():
        for each in listed:
            try:
                crops.append(read_object_crop(inputs, part, each, verdict))
            except OSError as error:  # the result does not need the picture
                notes.append(f"An object could not be shown: {error}")
    return crops


def choose_windows(window_counts: np.ndarray, num_windows: int = NUM_EXAMPLES) -> list[Zyx]:
    """Return the windows to show as (section, window y, window x); see `choose_examples`.

    `window_counts` is `PartTotals.window_counts`. Without any foreground the windows are spread over the
    sections.
    """
    found, missed, wrong = (window_counts[..., outcome] for outcome in (FOUND, MISSED, WRONG))
    if (found + missed).any():
        chosen = choose_examples(found.ravel(), missed.ravel(), wrong.ravel(), num_windows)
        windows = [np.unravel_index(index, found.shape) for index in chosen]
    else:
        counted = np.flatnonzero(window_counts[..., COUNTED].any((1, 2)))
        sections = choose_evenly(counted if len(counted) else np.arange(len(window_counts)), num_windows)
        windows = [(z, *np.unravel_index(wrong[z].argmax(), wrong[z].shape)) for z in sections]
    return [(int(z), int(y), int(x)) for z, y, x in windows]


def read_window(inputs: ComparisonInputs, window: Zyx) -> SectionResult:
    """Return a window (section, window y, window x) with its image, annotation and prediction."""
    comparison = inputs.comparison
    box = window_box(comparison, window)
    return SectionResult(
        z=box.start[0],
        image=read_image_section(box, inputs.image, inputs.provenance.get("intensity")),
        truth=comparison.read_classes(box)[0],
        probability=comparison.read_probability(box)[:, 0],
        thresholds=comparison.thresholds,
        box=str(box),
    )


def window_box(comparison: Comparison, window: Zyx) -> Box:
    """Return the voxels of a window, in voxels of the annotation."""
    section, *indices = window
    z = comparison.box.start[0] + section
    stops = comparison.box.stop[1:]
    edges = [[*starts.tolist(), stop] for starts, stop in zip(comparison.window_starts(), stops, strict=True)]
    (y, y_stop), (x, x_stop) = (along[index : index + 2] for along, index in zip(edges, indices, strict=True))
    return Box((z, y, x), (z + 1, y_stop, x_stop))

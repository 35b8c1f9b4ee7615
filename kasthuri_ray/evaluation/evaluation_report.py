"""Which parts of which sections to show, and what they look like."""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np

from kasthuri_ray.config.settings import EvaluateSettings
from kasthuri_ray.evaluation.comparison import FOUND, MISSED, TRUE_NEGATIVE, WRONG, Comparison, ComparisonTotals
from kasthuri_ray.evaluation.comparison_inputs import ComparisonInputs
from kasthuri_ray.evaluation.provenance import group_path
from kasthuri_ray.geometry import Box, Zyx
from kasthuri_ray.labels import intensity_window, to_uint8
from kasthuri_ray.metrics import voxel_counts
from kasthuri_ray.metrics.components import lowest_foreground_value
from kasthuri_ray.reports import figures
from kasthuri_ray.reports.evaluation_page import EvaluationReport, evaluation_page, section_score_chart
from kasthuri_ray.reports.section_images import NUM_EXAMPLES, SectionResult, choose_evenly, choose_examples
from kasthuri_ray.storage.folder import Storage
from kasthuri_ray.volumes.volume import Volume

MISSING_GREY = 128  # where no image is known


NO_CELLS = "No voxel lies in a cell of both the prediction and the instances: there is no ARAND and no VOI."


def choose_windows(parts: np.ndarray, most: int = NUM_EXAMPLES) -> list[tuple[int, int, int]]:
    """Return the windows to show as (section, window y, window x); see `choose_examples`.

    Parameters
    ----------
    parts : numpy.ndarray of int, shape (sections, windows y, windows x, 4)
        See `ComparisonTotals.parts`. Without any foreground the windows are spread over the sections.
    """
    found, missed, wrong = (parts[..., outcome] for outcome in (FOUND, MISSED, WRONG))
    if (found + missed).any():
        chosen = choose_examples(found.ravel(), missed.ravel(), wrong.ravel(), most)
        places = [np.unravel_index(index, found.shape) for index in chosen]
    else:
        sections = choose_evenly(np.arange(len(parts)), most)
        places = [(z, *np.unravel_index(wrong[z].argmax(), wrong[z].shape)) for z in sections]
    return [(int(z), int(y), int(x)) for z, y, x in places]


def read_window(
    comparison: Comparison, part: tuple[int, int, int], image: Volume | None, image_shift: Zyx, intensity: object
) -> SectionResult:
    """A part of a section as it is shown. intensity: the grey levels that become 0 and 255, if the provenance says."""
    box = window_box(comparison, part)
    return SectionResult(
        z=box.start[0],
        image=_read_image(box, image, image_shift, intensity),
        truth=comparison.read_classes(box)[0],
        probability=comparison.read_probability(box)[0],
        box=str(box),
    )


def window_box(comparison: Comparison, part: tuple[int, int, int]) -> Box:
    """The voxels of a part, in those of the annotation."""
    z = comparison.box.start[0] + part[0]
    starts, stops = [z], [z + 1]
    for axis, (edges, number) in enumerate(zip(comparison.windows(), part[1:], strict=True), start=1):
        ends = [*edges[1:].tolist(), comparison.box.stop[axis]]
        starts.append(int(edges[number]))
        stops.append(ends[number])
    return Box(tuple(starts), tuple(stops))  # type: ignore[arg-type]


def _read_image(box: Box, image: Volume | None, shift: Zyx, intensity: object) -> np.ndarray:
    """uint8 [y, x]; grey where the image does not reach."""
    shown = np.full(box.shape, MISSING_GREY, np.uint8)
    if image is None:
        return shown[0]
    there = box.shifted(shift)
    part = there.intersect(image.bounds)
    if part.num_voxels:
        voxels = image.read(part)
        shown[part.slices(there.start)] = to_uint8(voxels, _window(voxels, intensity))
    return shown[0]


def _window(voxels: np.ndarray, intensity: object) -> tuple[float, float]:
    if isinstance(intensity, list | tuple) and len(intensity) == 2:
        return float(intensity[0]), float(intensity[1])
    if voxels.dtype == np.uint8:
        return 0.0, 255.0
    try:
        return intensity_window(voxels, voxels.dtype, {"percentiles": (0.5, 99.5)})
    except ValueError:  # flat
        return float(voxels.min()), float(voxels.min()) + 1.0


def evaluation_figures(prepared: ComparisonInputs, totals: ComparisonTotals) -> dict[str, Any]:
    """What evaluation.json holds: plain numbers, zero where there is nothing to divide by."""
    comparison, counts = prepared.comparison, totals.counts
    (_, wrong), (missed, found) = counts.confusion.tolist()
    best, best_f1 = voxel_counts.best_threshold(counts)
    result = {
        "prediction": comparison.prediction.uri,
        "annotation": comparison.annotation.uri,
        "box": str(comparison.box),
        "threshold": comparison.threshold,
        "foreground_f1": safe_ratio(2 * found, 2 * found + wrong + missed),
        "precision": safe_ratio(found, found + wrong),
        "recall": safe_ratio(found, found + missed),
        "iou": safe_ratio(found, found + wrong + missed),
        "best_threshold": best,
        "best_foreground_f1": best_f1,
        "average_precision": voxel_counts.average_precision(counts),
        "voxels": counts.num_voxels,
        "sections": [{"z": z, "foreground_f1": f1} for z, f1, _ in section_f1(totals)],
    }
    if comparison.objects:
        result["objects"] = totals.objects()
    if comparison.instances is not None:
        result["instances"] = comparison.instances.uri
        result |= totals.cells.total().scores()
    return result


def safe_ratio(over: int, under: int) -> float:
    return over / under if under else 0.0


def section_f1(totals: ComparisonTotals) -> list[tuple[int, float, int]]:
    """(z, F1, voxels of foreground in truth or prediction) of every section that has voxels which count."""
    sums = totals.parts.sum((1, 2)).tolist()
    rows = []
    for z, section in enumerate(sums, start=totals.comparison.box.start[0]):
        found, missed, wrong = section[FOUND], section[MISSED], section[WRONG]
        if section[TRUE_NEGATIVE]:
            rows.append((z, safe_ratio(2 * found, 2 * found + missed + wrong), found + missed + wrong))
    return rows


def binned_threshold(comparison: Comparison) -> float:
    """The threshold at which counts by bins say what the comparison's own says of bytes; of floats its own."""
    if comparison.prediction.dtype.kind == "f":
        return comparison.threshold
    least = min(lowest_foreground_value(comparison.threshold), 255)
    return float(voxel_counts.probability_bins(np.array([least / 255]))[0]) / voxel_counts.BINS


def evaluation_summary(result: dict[str, Any]) -> str:
    """The result in a line."""
    if not result["voxels"]:
        return "Nothing was compared: every voxel is ignored."
    words = [f"F1 {result['foreground_f1']:.3f} at threshold {result['threshold']:.2f}"]
    words += [f"best {result['best_foreground_f1']:.3f} at {result['best_threshold']:.2f}"]
    words += [f"average precision {result['average_precision']:.3f}"]
    if "objects" in result:
        words.append("objects: F1 {f1:.3f}, {num_predicted} marked, {num_true} true".format(**result["objects"]))
    if result.get("arand") is not None:
        words.append("ARAND {arand:.3f}  VOI {voi_split:.3f} split, {voi_merge:.3f} merge".format(**result))
    return "  ".join(words)


def evaluation_notes(prepared: ComparisonInputs, totals: ComparisonTotals, result: dict[str, Any]) -> list[str]:
    """What a person must know before believing the figures."""
    notes = list(prepared.notes)
    if prepared.comparison.prediction.dtype == np.uint8 and totals.highest == 1:
        notes.append(
            "The prediction holds nothing above 1 of 255. If it is a mask of 0 and 1, store it as bools, or as 0 and "
            "255."
        )
    if "arand" in result and result["arand"] is None:
        notes.append(NO_CELLS)
    if prepared.image is None:
        notes.append("Which image was segmented is not known: the sections are shown on grey.")
    return notes


def write_evaluation_report(
    storage: Storage,
    prepared: ComparisonInputs,
    totals: ComparisonTotals,
    result: dict[str, Any],
    options: EvaluateSettings,
) -> None:
    """Leave figures, page and, last of all, evaluation.json."""
    comparison, intensity = prepared.comparison, prepared.record.get("intensity")
    notes = evaluation_notes(prepared, totals, result)
    threshold = binned_threshold(comparison)
    gallery = []
    for part in choose_windows(totals.parts):
        try:
            gallery.append(read_window(comparison, part, prepared.image, prepared.image_shift, intensity))
        except OSError as error:  # the figures stand without a picture
            notes.append(f"A section could not be shown: {error}")
    for number, section in enumerate(sorted(gallery, key=lambda each: (each.z, each.box))):
        figure = figures.slice_figure(section, threshold, prepared.truth.task_type, result["threshold"])
        storage.write_bytes(f"slices/slice_{number}.png", figures.figure_png(figure))
    sections = section_f1(totals)
    curve = figures.precision_recall(totals.counts, threshold, result["threshold"])
    storage.write_bytes("precision_recall.png", figures.figure_png(curve))
    storage.write_bytes("sections.png", figures.figure_png(section_score_chart(sections, result["foreground_f1"])))
    size = comparison.annotation.voxel_size_nm or comparison.prediction.voxel_size_nm
    report = EvaluationReport(
        name=os.path.basename((group_path(options.prediction) or options.prediction).rstrip("/")),
        task_type=prepared.truth.task_type,
        result=result,
        counts=totals.counts,
        threshold=threshold,
        sections=sections,
        gallery=gallery,
        whole_sections=totals.parts.shape[1:3] == (1, 1),
        notes=notes,
        settings={"compared": {key: result[key] for key in ("prediction", "annotation", "box")}, **prepared.record},
        pixel_size_nm=None if size is None else (size[1], size[2]),
    )
    storage.write_bytes("index.html", evaluation_page(report).encode())
    storage.write_bytes("evaluation.json", (json.dumps(result, indent=2) + "\n").encode())

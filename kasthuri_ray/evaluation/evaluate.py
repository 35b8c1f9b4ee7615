"""Ray around an evaluation: a prediction against its annotation, block by block, and what is left for a person.

`compare_block` counts a block on any machine; the sums are taken here, in the order of the blocks, and no more than a
few blocks are on their way at once.
"""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np

from kasthuri_ray.cli import WorkFailed
from kasthuri_ray.evaluation import metrics
from kasthuri_ray.evaluation.blocks import FOUND, KEPT, MISSED, WRONG, BlockResult, Comparison, Totals, compare_block
from kasthuri_ray.evaluation.components import lowest_called
from kasthuri_ray.evaluation.gallery import choose_parts, read_part
from kasthuri_ray.evaluation.prepare import Options, Prepared, prepare
from kasthuri_ray.evaluation.provenance import group_path, output_path
from kasthuri_ray.geometry import Box, Zyx
from kasthuri_ray.placement import check_writable, place_output
from kasthuri_ray.progress import Reporter, duration
from kasthuri_ray.reports import figures
from kasthuri_ray.reports.evaluation_page import EvaluationReport, evaluation_page, section_scores
from kasthuri_ray.resources import Demand, attach_or_start, bottom, check_demand, root_cause
from kasthuri_ray.storage import Storage, lies_in, open_storage

BLOCK_CPUS = 0.5  # logical: while one block is read, another is counted
RETRIES = 5  # of a block whose worker died, or whose source failed
NO_CELLS = "No voxel lies in a cell of both the prediction and the instances: there is no ARAND and no VOI."


def evaluate(options: Options, block: Zyx | None = None) -> dict[str, Any]:
    """Evaluate as the options say; gives what evaluation.json holds.

    block: z, y, x, instead of the rule's; changes no figure. Raises ValueError and other errors in words before
    anything is written, and WorkFailed once the work has begun.
    """
    prepared = prepare(options)
    out = default_out(options)
    cluster = attach_or_start(options.verbose)
    storage = open_storage(place_output(out, cluster, "--out"))
    check_writable(storage.path, "--out")
    reporter = Reporter()
    reporter.line(storage.path)  # the first line, for scripts
    for note in prepared.notes:
        reporter.line(note)
    check_demand(Demand(1, BLOCK_CPUS, noun="task"), options.wait_for_resources, reporter.line)
    totals = Totals(prepared.comparison)
    try:
        for counted in compared(prepared.comparison, prepared.comparison.blocks(block), reporter):
            totals.add(counted)
    finally:
        reporter.end()
    result = figures_of(prepared, totals)
    write_report(storage, prepared, totals, result, options)
    for note in notes_of(prepared, totals, result)[len(prepared.notes) :]:
        reporter.line(note)
    reporter.line(summary(result))
    reporter.line(storage.path)
    return result


def default_out(options: Options) -> str:
    """`--out`, else beside the prediction. ValueError where there is no beside, and for a place in the prediction."""
    path, group = group_path(options.prediction), output_path(options.prediction)
    if options.out is not None:
        out = open_storage(options.out).path
        if group is not None and lies_in(out, open_storage(group).path):
            raise ValueError(f"--out {options.out} lies in the prediction, {group}; give a place beside it")
        return options.out
    if path is None or group is None:
        raise ValueError(f"there is no place beside {options.prediction} to leave an evaluation: give --out")
    level = path.removeprefix(group).replace("/", ".")  # of an array of the group that was named
    return f"{group}{level}.evaluation"


def compared(comparison: Comparison, blocks: list[Box], reporter: Reporter) -> Iterator[BlockResult]:
    """The results of all blocks in their order, counted by Ray's workers, a few ahead of what is asked for."""
    import ray

    began = time.monotonic()
    shared = ray.put(comparison)
    as_task: Any = ray.remote(num_cpus=BLOCK_CPUS, max_retries=RETRIES, retry_exceptions=[OSError])  # type: ignore
    count = as_task(compare_block)
    ahead = 2 * max(1, int(ray.cluster_resources().get("CPU", 1) / BLOCK_CPUS))
    waiting, left = deque[Any](), iter(blocks)
    for done in range(len(blocks)):
        while len(waiting) < ahead and (own := next(left, None)) is not None:
            waiting.append((own, count.remote(shared, own)))
        own, reference = waiting.popleft()
        try:
            yield ray.get(reference)
        except Exception as error:
            for _, other in waiting:
                ray.cancel(other, force=True)
            raise _in_words(error, own) from error
        left_s = (time.monotonic() - began) / (done + 1) * (len(blocks) - done - 1)
        reporter.live(f"block {done + 1}/{len(blocks)}  {duration(left_s)} left")


def _in_words(error: Exception, own: Box) -> Exception:
    """A label that is no class, or a probability that is none, is bad input; all else is work that failed."""
    if isinstance(bottom(error), ValueError):
        return ValueError(root_cause(error))
    return WorkFailed(f"the block {own} could not be compared: {root_cause(error)}")


def figures_of(prepared: Prepared, totals: Totals) -> dict[str, Any]:
    """What evaluation.json holds: plain numbers, zero where there is nothing to divide by."""
    comparison, counts = prepared.comparison, totals.counts
    (_, wrong), (missed, found) = counts.confusion.tolist()
    best, best_f1 = metrics.best_threshold(counts)
    result = {
        "prediction": comparison.prediction.uri,
        "annotation": comparison.annotation.uri,
        "box": str(comparison.box),
        "threshold": comparison.threshold,
        "foreground_f1": ratio(2 * found, 2 * found + wrong + missed),
        "precision": ratio(found, found + wrong),
        "recall": ratio(found, found + missed),
        "iou": ratio(found, found + wrong + missed),
        "best_threshold": best,
        "best_foreground_f1": best_f1,
        "average_precision": metrics.average_precision(counts),
        "voxels": counts.num_voxels,
        "sections": [{"z": z, "foreground_f1": f1} for z, f1, _ in sections_of(totals)],
    }
    if comparison.objects:
        result["objects"] = totals.objects()
    if comparison.instances is not None:
        result["instances"] = comparison.instances.uri
        result |= totals.cells.total().scores()
    return result


def ratio(over: int, under: int) -> float:
    return over / under if under else 0.0


def sections_of(totals: Totals) -> list[tuple[int, float, int]]:
    """(z, F1, voxels of foreground in truth or prediction) of every section that has voxels which count."""
    sums = totals.parts.sum((1, 2)).tolist()
    rows = []
    for z, section in enumerate(sums, start=totals.comparison.box.start[0]):
        found, missed, wrong = section[FOUND], section[MISSED], section[WRONG]
        if section[KEPT]:
            rows.append((z, ratio(2 * found, 2 * found + missed + wrong), found + missed + wrong))
    return rows


def threshold_of_bins(comparison: Comparison) -> float:
    """The threshold at which counts by bins say what the comparison's own says of bytes; of floats its own."""
    if comparison.prediction.dtype.kind == "f":
        return comparison.threshold
    least = min(lowest_called(comparison.threshold), 255)
    return float(metrics.probability_bins(np.array([least / 255]))[0]) / metrics.BINS


def summary(result: dict[str, Any]) -> str:
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


def notes_of(prepared: Prepared, totals: Totals, result: dict[str, Any]) -> list[str]:
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


def write_report(
    storage: Storage, prepared: Prepared, totals: Totals, result: dict[str, Any], options: Options
) -> None:
    """Leave figures, page and, last of all, evaluation.json."""
    comparison, intensity = prepared.comparison, prepared.record.get("intensity")
    notes = notes_of(prepared, totals, result)
    threshold = threshold_of_bins(comparison)
    gallery = []
    for part in choose_parts(totals.parts):
        try:
            gallery.append(read_part(comparison, part, prepared.image, prepared.image_shift, intensity))
        except OSError as error:  # the figures stand without a picture
            notes.append(f"A section could not be shown: {error}")
    for number, section in enumerate(sorted(gallery, key=lambda each: (each.z, each.box))):
        figure = figures.slice_figure(section, threshold, prepared.truth.task_type, result["threshold"])
        storage.write_bytes(f"slices/slice_{number}.png", figures.png(figure))
    sections = sections_of(totals)
    curve = figures.precision_recall(totals.counts, threshold, result["threshold"])
    storage.write_bytes("precision_recall.png", figures.png(curve))
    storage.write_bytes("sections.png", figures.png(section_scores(sections, result["foreground_f1"])))
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

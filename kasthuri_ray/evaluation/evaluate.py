"""Evaluate a prediction against its annotation with Ray, block by block.

`compare_block` runs as a Ray task on any node. This process adds up the results in the order of the blocks, with only a
few blocks in flight.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kasthuri_ray.config.settings import EvaluateSettings
from kasthuri_ray.errors import InputError, WorkFailed, missing_is_bad_input, named_input
from kasthuri_ray.evaluation.block_comparison import BlockResult, ComparisonTotals, compare_block
from kasthuri_ray.evaluation.comparison import Comparison
from kasthuri_ray.evaluation.comparison_inputs import ComparisonInputs, prepare_comparison
from kasthuri_ray.evaluation.evaluation_folder import (
    check_evaluation_folder,
    evaluation_record,
    replaced_evaluation,
)
from kasthuri_ray.evaluation.provenance import output_group_path, storage_path
from kasthuri_ray.geometry import Box, Zyx
from kasthuri_ray.module_path import import_in_background
from kasthuri_ray.progress import Reporter, format_duration
from kasthuri_ray.ray_cluster.connection import connect_ray
from kasthuri_ray.ray_cluster.output_paths import SINGLE_NODE, check_writable_path, resolve_output_path
from kasthuri_ray.ray_cluster.ray_errors import root_cause, user_error
from kasthuri_ray.ray_cluster.resources import ClusterResources, ResourceDemand, require_resources
from kasthuri_ray.storage.folder import open_storage
from kasthuri_ray.storage.storage import Storage
from kasthuri_ray.storage.uris import is_inside

BLOCK_CPUS = 0.5  # logical: while one block is read, another is counted
MAX_RETRIES = 5  # of a block whose worker died, or whose volume could not be read


@dataclass(frozen=True)
class EvaluateResult:
    """Result of an evaluation.

    Parameters
    ----------
    path : str
        Path or URL of the folder of the results.
    metrics : dict
        Content of evaluation.json.
    """

    path: str
    metrics: dict[str, Any]


@missing_is_bad_input()
def evaluate(
    settings: EvaluateSettings,
    reporter: Reporter,
    block_shape: Zyx | None = None,
    task_changes: Mapping[str, Any] | None = None,
) -> EvaluateResult:
    """Compare a prediction with an annotation, and write the result and its page.

    Parameters
    ----------
    settings : EvaluateSettings
        What to compare, and where to write the result.
    reporter : Reporter
        Shows path, notes, progress and result.
    block_shape : tuple of int, optional
        Shape of the blocks, z, y, x. The result does not depend on it.
    task_changes : mapping, optional
        Settings that win over those of the task, by key.

    Returns
    -------
    EvaluateResult
        Where the result is, and its metrics.

    Raises
    ------
    InputError
        For bad input, before anything is written. Files that cannot be opened raise InputNotFound, InputDenied or
        VolumeError.
    WorkFailed
        If the work fails after it has started.
    """
    inputs = prepare_comparison(settings, task_changes)
    record = evaluation_record(inputs, settings)
    with named_input("--annotation", settings.annotation):
        inputs.comparison.check_sample()
    _open_folder(settings, SINGLE_NODE, record)  # what it refuses needs no cluster
    import_in_background("kasthuri_ray.evaluation.evaluation_report")  # with its figures, while Ray starts
    cluster = connect_ray(reporter, settings.verbose)
    storage = _open_folder(settings, cluster, record)
    reporter.print_result(storage.path)  # the first line, for scripts
    for note in inputs.notes:
        reporter.print_line(note)
    require_resources(ResourceDemand(1, BLOCK_CPUS), settings.wait_for_resources, reporter.print_line)
    totals = ComparisonTotals(inputs.comparison)
    try:
        for block_result in compare_blocks(inputs.comparison, inputs.comparison.blocks(block_shape), reporter):
            totals.add(block_result)
    finally:
        reporter.end()
    metrics, lines = _write_results(storage, record, inputs, totals, settings)
    for line in lines:
        reporter.print_line(line)
    reporter.print_result(storage.path)
    return EvaluateResult(storage.path, metrics)


def _write_results(
    storage: Storage,
    record: Mapping[str, Any],
    inputs: ComparisonInputs,
    totals: ComparisonTotals,
    settings: EvaluateSettings,
) -> tuple[dict[str, Any], list[str]]:
    """Write the folder of the results; return the metrics, and lines for people."""
    from kasthuri_ray.evaluation import evaluation_report as report  # loads the figures, which nothing needs before

    metrics = report.evaluation_metrics(inputs, totals)
    with replaced_evaluation(storage, record) as folder:
        report.write_evaluation_report(folder, storage.path, inputs, totals, metrics, settings)
    lines = report.evaluation_notes(inputs, totals, metrics)[len(inputs.notes) :]
    lines += [f"warning: {warning}" for warning in metrics["warnings"]]
    if metrics["voxels"]:
        lines += filter(None, [report.learnt_line(metrics), report.evaluation_summary(metrics)])
    return metrics, lines


def _open_folder(settings: EvaluateSettings, cluster: ClusterResources, record: Mapping[str, Any]) -> Storage:
    """Return the folder of the results, after a check that it can be written and holds no other evaluation."""
    storage = open_storage(resolve_output_path(default_out(settings), cluster, "--out"))
    check_writable_path(storage.path, "--out")
    check_evaluation_folder(storage, record, settings.overwrite)
    return storage


def default_out(settings: EvaluateSettings) -> str:
    """Return `--out`, else a folder next to the prediction.

    Raise an InputError for a folder inside the prediction, and if a prediction without `--out` is not on a disk or S3.
    """
    path, group = storage_path(settings.prediction), output_group_path(settings.prediction)
    if settings.out is not None:
        out = open_storage(settings.out).path
        if group is not None and is_inside(out, open_storage(group).path):
            raise InputError(f"--out {settings.out} is inside the prediction {group}; give a folder outside of it")
        return settings.out
    if path is None or group is None:
        raise InputError(f"there is no folder next to {settings.prediction} to write an evaluation to: give --out")
    level = path.removeprefix(group).replace("/", ".")  # of an array in the group
    return f"{group}{level}.evaluation"


def compare_blocks(comparison: Comparison, blocks: list[Box], reporter: Reporter) -> Iterator[BlockResult]:
    """Yield the results of the blocks in their order; Ray tasks compute a few of them ahead."""
    import ray

    started_at = time.monotonic()
    comparison_ref = ray.put(comparison)
    task: Any = ray.remote(compare_block)
    task = task.options(num_cpus=BLOCK_CPUS, max_retries=MAX_RETRIES, retry_exceptions=[OSError])
    max_in_flight = 2 * max(1, int(ray.cluster_resources().get("CPU", 1) / BLOCK_CPUS))
    in_flight, todo = deque[Any](), iter(blocks)
    for done in range(len(blocks)):
        while len(in_flight) < max_in_flight and (block := next(todo, None)) is not None:
            in_flight.append((block, task.remote(comparison_ref, block)))
        block, reference = in_flight.popleft()
        try:
            yield ray.get(reference)
        except Exception as error:
            for _, other in in_flight:
                ray.cancel(other, force=True)
            raise _to_input_error(error, block) from error
        seconds_left = (time.monotonic() - started_at) / (done + 1) * (len(blocks) - done - 1)
        reporter.show_live(f"block {done + 1}/{len(blocks)}  {format_duration(seconds_left)} left")


def _to_input_error(error: Exception, block: Box) -> Exception:
    """Return an InputError for bad input, such as a label that is no class, and WorkFailed for any other error."""
    if isinstance(user_error(error), InputError):
        return InputError(root_cause(error))
    return WorkFailed(f"the block {block} could not be compared: {root_cause(error)}")

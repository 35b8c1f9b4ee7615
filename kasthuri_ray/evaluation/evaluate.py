"""Ray around an evaluation: a prediction against its annotation, block by block, and what is left for a person.

`compare_block` counts a block on any machine; the sums are taken here, in the order of the blocks, and no more than a
few blocks are on their way at once.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from typing import Any

from kasthuri_ray.config.settings import EvaluateSettings
from kasthuri_ray.errors import WorkFailed
from kasthuri_ray.evaluation.comparison import BlockResult, Comparison, ComparisonTotals, compare_block
from kasthuri_ray.evaluation.comparison_inputs import prepare_comparison
from kasthuri_ray.evaluation.evaluation_report import (
    evaluation_figures,
    evaluation_notes,
    evaluation_summary,
    write_evaluation_report,
)
from kasthuri_ray.evaluation.provenance import group_path, output_group_path
from kasthuri_ray.geometry import Box, Zyx
from kasthuri_ray.progress import Reporter, format_duration
from kasthuri_ray.ray_cluster.connection import connect_ray
from kasthuri_ray.ray_cluster.output_paths import check_writable_path, resolve_output_path
from kasthuri_ray.ray_cluster.ray_errors import root_cause, user_error
from kasthuri_ray.ray_cluster.resources import ResourceDemand, require_resources
from kasthuri_ray.storage.folder import open_storage
from kasthuri_ray.storage.uris import is_inside

BLOCK_CPUS = 0.5  # logical: while one block is read, another is counted
RETRIES = 5  # of a block whose worker died, or whose source failed


def evaluate(options: EvaluateSettings, block: Zyx | None = None) -> dict[str, Any]:
    """Evaluate as the options say; gives what evaluation.json holds.

    block: z, y, x, instead of the rule's; changes no figure. Raises ValueError and other errors in words before
    anything is written, and WorkFailed once the work has begun.
    """
    prepared = prepare_comparison(options)
    out = default_out(options)
    cluster = connect_ray(options.verbose)
    storage = open_storage(resolve_output_path(out, cluster, "--out"))
    check_writable_path(storage.path, "--out")
    reporter = Reporter()
    reporter.line(storage.path)  # the first line, for scripts
    for note in prepared.notes:
        reporter.line(note)
    require_resources(ResourceDemand(1, BLOCK_CPUS, noun="task"), options.wait_for_resources, reporter.line)
    totals = ComparisonTotals(prepared.comparison)
    try:
        for counted in compare_blocks(prepared.comparison, prepared.comparison.blocks(block), reporter):
            totals.add(counted)
    finally:
        reporter.end()
    result = evaluation_figures(prepared, totals)
    write_evaluation_report(storage, prepared, totals, result, options)
    for note in evaluation_notes(prepared, totals, result)[len(prepared.notes) :]:
        reporter.line(note)
    reporter.line(evaluation_summary(result))
    reporter.line(storage.path)
    return result


def default_out(options: EvaluateSettings) -> str:
    """`--out`, else beside the prediction. ValueError where there is no beside, and for a place in the prediction."""
    path, group = group_path(options.prediction), output_group_path(options.prediction)
    if options.out is not None:
        out = open_storage(options.out).path
        if group is not None and is_inside(out, open_storage(group).path):
            raise ValueError(f"--out {options.out} lies in the prediction, {group}; give a place beside it")
        return options.out
    if path is None or group is None:
        raise ValueError(f"there is no place beside {options.prediction} to leave an evaluation: give --out")
    level = path.removeprefix(group).replace("/", ".")  # of an array of the group that was named
    return f"{group}{level}.evaluation"


def compare_blocks(comparison: Comparison, blocks: list[Box], reporter: Reporter) -> Iterator[BlockResult]:
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
            raise _as_input_error(error, own) from error
        left_s = (time.monotonic() - began) / (done + 1) * (len(blocks) - done - 1)
        reporter.live(f"block {done + 1}/{len(blocks)}  {format_duration(left_s)} left")


def _as_input_error(error: Exception, own: Box) -> Exception:
    """A label that is no class, or a probability that is none, is bad input; all else is work that failed."""
    if isinstance(user_error(error), ValueError):
        return ValueError(root_cause(error))
    return WorkFailed(f"the block {own} could not be compared: {root_cause(error)}")

"""Benchmark of growth: what very many blocks and actors cost the driver, the ledger and S3, and whether they resume.

Actors sleep in place of the network; all else is that of `jobs/segment.py`. Each segmentation is killed in the middle
and resumed. On S3, moto's server on the loopback, requests are counted; its times say nothing about S3.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kasthuri_ray.benchmarks.benchmark_lines import BenchmarkLine, report_lines
from kasthuri_ray.benchmarks.harness import PartFailed, PartRunner
from kasthuri_ray.benchmarks.loopback_s3 import BUCKET, LoopbackS3, count_repeated, count_requests, loopback_s3
from kasthuri_ray.errors import WorkFailed
from kasthuri_ray.geometry import Zyx, ceil_div, per_axis

SCALE_PARTS = "kasthuri_ray.benchmarks.scale_processes"
GB, MB = 1e9, 1e6

FEW_BLOCKS = 1000  # at which the driver's memory is compared with that of all blocks
ACTOR_BYTES = 300_000_000  # of an actor that sleeps, with the libraries that it loads
NUM_ACTORS, FEWER_ACTORS, SLOTS = 200, 50, 4

MAX_MS_PER_BLOCK, MAX_GROWTH_MB, MAX_RESUME_S, MAX_REQUESTS_PER_BLOCK = 1.0, 200.0, 30.0, 3.0


@dataclass(frozen=True)
class ScaleSize:
    """How many blocks there are, and on how many actors at most."""

    shape: Zyx = (100, 512, 512)  # 102,400 blocks on a disk
    s3_shape: Zyx = (10, 512, 512)  # 10,240 blocks on S3
    block: Zyx = (1, 16, 16)
    actors: int = NUM_ACTORS
    s3_actors: int = FEWER_ACTORS
    few_blocks: int = FEW_BLOCKS


QUICK = ScaleSize(shape=(1, 512, 512), s3_shape=(1, 256, 256), actors=4, s3_actors=4, few_blocks=100)


@dataclass
class ScaleResults:
    """Results: `runs` of segmentations by store, the samples of their drivers, and what was found on the store."""

    actors: dict[str, int] = field(default_factory=dict)
    slots: dict[str, int] = field(default_factory=dict)
    samples: dict[str, list[list[dict[str, float]]]] = field(default_factory=dict)  # of each run
    state: dict[str, dict[str, Any]] = field(default_factory=dict)
    finished_seconds: dict[str, float] = field(default_factory=dict)  # of a run that finds every block done
    requests: dict[str, int] = field(default_factory=dict)
    few_blocks: int = FEW_BLOCKS


def run_scale_benchmark(
    parts: PartRunner, quick: bool = False, out: str = "benchmark_scale.json"
) -> list[BenchmarkLine]:
    """Measure everything, print the table and write the JSON file.

    Parameters
    ----------
    parts : PartRunner
        Runs the segmentations.
    quick : bool
        Take few blocks and actors, to try whether the benchmark works.
    out : str
        Path of the JSON file, with the samples of the driver.

    Returns
    -------
    list of BenchmarkLine
        What blocks cost, and whether killed segmentations were resumed.
    """
    size = QUICK if quick else ScaleSize()
    results = ScaleResults(few_blocks=size.few_blocks)
    with tempfile.TemporaryDirectory(prefix="kasthuri_ray_benchmark_") as scratch:
        from kasthuri_ray.benchmarks.segmentation_processes import make_weights

        weights = make_weights(f"{scratch}/fresh.pt")
        measure = _Measurement(parts, results, size.block, weights, scratch)
        measure.run("disk", size.shape, size.actors, f"{scratch}/out.zarr")
        with loopback_s3() as server:
            if server is not None:
                measure.run("s3", size.s3_shape, size.s3_actors, f"s3://{BUCKET}/out.zarr", server)
    lines = scale_lines(results)
    report_lines("scale", lines, {"quick": quick, "size": asdict(size), **asdict(results)}, out, parts.reporter)
    return lines


def choose_actors(wanted: int, free_bytes: int) -> tuple[int, int]:
    """Return how many actors are started, and how many blocks each works on at once.

    If there is no room for all that are wanted, fewer work on several blocks each.
    """
    if wanted * ACTOR_BYTES <= free_bytes:
        return wanted, SLOTS
    fitting = max(2, free_bytes // ACTOR_BYTES)
    return min(FEWER_ACTORS, wanted, fitting), SLOTS


@dataclass(frozen=True)
class _Measurement:
    """The segmentations of one store after the other."""

    parts: PartRunner
    results: ScaleResults
    block: Zyx
    weights: str
    scratch: str

    def run(self, store: str, shape: Zyx, wanted: int, output: str, server: LoopbackS3 | None = None) -> None:
        """Segment, kill, resume, and run the finished segmentation once more."""
        import psutil

        results, num_blocks = self.results, math.prod(per_axis(ceil_div, shape, self.block))
        actors, slots = choose_actors(wanted, psutil.virtual_memory().available)
        results.actors[store], results.slots[store] = actors, slots
        self.parts.show(f"{store}: {num_blocks:,} blocks, {actors} actors, {slots} blocks at once each")
        if actors < wanted:
            self.parts.show(f"  {wanted} actors need {wanted * ACTOR_BYTES / GB:.0f} GB of memory: {actors} instead")
        environment = server.environment if server else {}
        arguments: dict[str, Any] = {
            "shape": shape,
            "block": self.block,
            "output": output,
            "writes": server is not None,
        }
        job = arguments | {"weights": self.weights, "actors": actors, "slots": slots}
        results.samples[store] = []
        self._run_killed(store, job | {"kill_at": num_blocks // 2}, environment)
        before = record_times(output) if server is None else {}
        self.parts.show("  killed in the middle; resumed")
        self._run_job(store, job, environment)
        after = record_times(output) if server is None else {}
        if server is not None:
            results.requests = count_requests(server.requests, f"/{BUCKET}/out.zarr/s0/c/")
        finished, _ = self._run_job(store, job, environment, "finished")
        results.finished_seconds[store] = finished["seconds"]
        state, _ = self.parts.run("state", arguments, environment, SCALE_PARTS)
        ledger = f"/{BUCKET}/out.zarr.ledger/s0/"
        repeated = count_repeated(server.requests, ledger) if server else count_changed(before, after)
        results.state[store] = state | {"repeated": repeated}

    def _run_killed(self, store: str, arguments: dict[str, Any], environment: Mapping[str, str]) -> None:
        """Run a segmentation that kills its driver. Raises WorkFailed if it ended in another way."""
        try:
            self._run_job(store, arguments, environment)
        except PartFailed as error:
            if "exited with code -9" not in str(error):
                raise
            self._read_samples(store, "run0")
            return
        raise WorkFailed("the segmentation ended before it was killed: there are too few blocks")

    def _run_job(
        self, store: str, arguments: dict[str, Any], environment: Mapping[str, str], name: str | None = None
    ) -> tuple[dict[str, Any], Any]:
        name = name or f"run{len(self.results.samples[store])}"
        samples = f"{self.scratch}/{store}_{name}.jsonl"
        found = self.parts.run("scale", arguments | {"samples": samples}, environment, SCALE_PARTS)
        self._read_samples(store, name)
        return found

    def _read_samples(self, store: str, name: str) -> None:
        lines = Path(f"{self.scratch}/{store}_{name}.jsonl").read_text().splitlines()
        if name != "finished":
            self.results.samples[store].append([json.loads(line) for line in lines])


def record_times(output: str) -> dict[str, int]:
    """Return when each record of the blocks was last written, by its name."""
    return {path.name: path.stat().st_mtime_ns for path in Path(f"{output}.ledger", "s0").iterdir()}


def count_changed(before: Mapping[str, int], after: Mapping[str, int]) -> int:
    """Return how many records of before are gone or were written again."""
    return sum(after.get(name) != time for name, time in before.items())


def driver_costs(runs: Sequence[Sequence[Mapping[str, float]]], few_blocks: int) -> dict[str, float | None]:
    """Return what the blocks cost the driver, from the samples of runs that continue each other.

    ms_per_block: CPU time. blocks_per_second: of the clock. Both count from a run's first sample with new blocks, so
    that neither its start nor that of its actors counts. growth_mb: the highest memory of a run above that of its first
    sample with `few_blocks`, summed over the runs.
    """
    seconds = cpu = blocks = 0.0
    for run in runs:
        working = [sample for sample in run if sample["done"] > run[0]["done"]]
        if len(working) > 1:
            first, last = working[0], working[-1]
            blocks += last["done"] - first["done"]
            seconds, cpu = seconds + last["time"] - first["time"], cpu + last["cpu"] - first["cpu"]
    memory = [[sample["rss"] for sample in run if sample["done"] >= few_blocks and sample["rss"]] for run in runs]
    growth = [max(each) - each[0] for each in memory if each]
    return {
        "ms_per_block": 1000 * cpu / blocks if blocks else None,
        "blocks_per_second": blocks / seconds if seconds else None,
        "growth_mb": sum(growth) / MB if growth else None,
    }


def scale_lines(results: ScaleResults) -> list[BenchmarkLine]:
    """Return the figures beside their goals."""
    lines = _store_lines("1 on a disk", "disk", results, judged=True)
    if "s3" not in results.state:
        return [*lines, BenchmarkLine("2 on S3", None, note="moto is not installed: pip install 'moto[server]'")]
    return [*lines, *_store_lines("2 on S3", "s3", results, judged=False), *_request_lines(results)]


def _store_lines(title: str, store: str, results: ScaleResults, judged: bool) -> list[BenchmarkLine]:
    """Return the figures of a store; if not `judged`, its times have no goals."""
    state, costs = results.state[store], driver_costs(results.samples[store], results.few_blocks)
    runs, actors = results.samples[store], f"{results.actors[store]} actors x {results.slots[store]} blocks at once"
    num_ready = max(sample["actors"] for run in runs for sample in run)
    missing = state["blocks"] - state["recorded"] + state["strange"] + (state["wrong"] or 0)
    killed = f"{num_ready:g} were ready; killed at {runs[0][-1]['done']:,.0f} and resumed"
    return [
        BenchmarkLine(title, state["blocks"], "blocks", note=f"{actors}, {killed}"),
        BenchmarkLine("  missing, strange or wrong blocks", missing, at_most=0.0),
        BenchmarkLine("  finished blocks that were made again", state["repeated"], at_most=0.0),
        BenchmarkLine(
            "  blocks", costs["blocks_per_second"], "blocks/s", note="actors, driver and Ray share the cores"
        ),
        BenchmarkLine(
            "  CPU time of the driver",
            costs["ms_per_block"],
            "ms a block",
            at_most=MAX_MS_PER_BLOCK if judged else None,
        ),
        BenchmarkLine(
            "  memory of the driver, growth",
            costs["growth_mb"],
            "MB",
            at_most=MAX_GROWTH_MB,
            note=f"above that at {results.few_blocks:,} blocks",
        ),
        BenchmarkLine(
            "  to find that all is done",
            results.finished_seconds[store],
            "s",
            at_most=MAX_RESUME_S if judged else None,
            note="the same command once more, from Ray's start to its end",
        ),
    ]


def _request_lines(results: ScaleResults) -> list[BenchmarkLine]:
    requests, blocks = results.requests, results.state["s3"]["blocks"]
    return [
        BenchmarkLine(
            "  requests beside the data",
            requests["other"] / blocks,
            "a block",
            at_most=MAX_REQUESTS_PER_BLOCK,
            note=f"both runs: {requests['other']:,}, and {requests['data']:,} for voxels",
        )
    ]

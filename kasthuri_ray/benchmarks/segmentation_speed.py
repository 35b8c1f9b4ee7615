"""Benchmark of segmentation: the network alone, the whole job, other tools, scheduling, two actors, memory, precision.

`run_segmentation_benchmark` measures all of it, each part in a process of its own. Parts that are compared with each
other take turns, since the load of a machine changes with time.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from kasthuri_ray.benchmarks.benchmark_lines import BenchmarkLine, report_lines
from kasthuri_ray.benchmarks.harness import PartRunner, Usage, larger_usage
from kasthuri_ray.geometry import Box, Zyx, parse_box, per_axis

SEGMENTATION_PARTS = "kasthuri_ray.benchmarks.segmentation_processes"
MVOXELS, GB, MB, TERA = 1e6, 1e9, 1e6, 1e12

DEFAULT_BLOCK: Zyx = (64, 2048, 2048)
PHANTOM = "phantom://em?shape=20,1024,1024&seed=7"
IMAGE_CHUNK: Zyx = (16, 256, 256)

MIN_SPEEDUP = 3.0  # over other tools
NEEDS_RUN = "needs --data vnc.zarr, and --weights with the folder of a run that was trained on it"


@dataclass(frozen=True)
class SegmentationSize:
    """How much is segmented. Blocks are as wide as by default but less deep, so that there are several."""

    image: Zyx = (12, 4096, 4096)
    block: Zyx = (12, 2048, 2048)
    compile: str = "on"
    rounds: int = 2
    seconds: float = 6.0  # of each measurement of the network alone
    seed_tiles: int = 60
    section: tuple[int, int] = (1024, 1024)  # of the sliding window
    pair_image: Zyx = (8, 2048, 2048)  # for the comparison of two actors with one
    pair_block: Zyx = (2, 1024, 1024)
    scheduled: Zyx = (100, 512, 512)  # 102,400 blocks
    scheduled_block: Zyx = (1, 16, 16)


QUICK = SegmentationSize(
    image=(4, 512, 512),
    block=(2, 256, 512),
    compile="off",
    rounds=1,
    seconds=0.2,
    seed_tiles=3,
    section=(256, 256),
    pair_image=(4, 256, 256),
    pair_block=(1, 128, 256),
    scheduled=(8, 128, 128),
)


@dataclass
class SegmentationResults:
    """Results of every turn of the parts, by name, and the usage of the turn with the highest memory."""

    parts: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    usage: dict[str, Usage] = field(default_factory=dict)

    def add(self, name: str, result: dict[str, Any], usage: Usage) -> None:
        """Add the result of a turn."""
        self.parts.setdefault(name, []).append(result)
        self.usage[name] = larger_usage(self.usage.get(name), usage)

    def all(self, name: str, key: str) -> list[Any]:
        """Return one value of each turn."""
        return [result[key] for result in self.parts[name]]

    def median(self, name: str, key: str) -> float:
        """Return the median of a value over the turns."""
        return statistics.median(self.all(name, key))

    def rate(self, name: str) -> float | None:
        """Return the median of all runs of all turns; None if the part could not be measured."""
        rates = [rate for result in self.parts[name] for rate in result["rates"] or ()]
        return statistics.median(rates) if rates else None


def run_segmentation_benchmark(
    parts: PartRunner,
    data: str | None = None,
    weights: str | None = None,
    quick: bool = False,
    out: str = "benchmark_segment.json",
) -> list[BenchmarkLine]:
    """Measure everything, print the table and write the JSON file.

    Parameters
    ----------
    parts : PartRunner
        Runs the segmentations.
    data : str, optional
        Zarr group with em and the labels that the weights were trained on; by default the phantom is segmented.
    weights : str, optional
        Folder of a run of UNet_2D; by default the weights are random, and the effect of precision is not measured.
    quick : bool
        Segment few voxels, to try whether the benchmark works.
    out : str
        Path of the JSON file, with the results of every turn.

    Returns
    -------
    list of BenchmarkLine
        Speed and memory of segmentation.
    """
    size, results = QUICK if quick else SegmentationSize(), SegmentationResults()
    with tempfile.TemporaryDirectory(prefix="kasthuri_ray_benchmark_") as scratch:
        _measure(data, weights, size, scratch, results, parts)
    lines = segmentation_lines(results)
    usage = {name: asdict(usage) for name, usage in results.usage.items()}
    more = {"data": data or "phantom", "quick": quick, "size": asdict(size), "parts": results.parts, "usage": usage}
    report_lines("segment", lines, more, out, parts.reporter)
    return lines


def _measure(
    data: str | None,
    weights: str | None,
    size: SegmentationSize,
    scratch: str,
    results: SegmentationResults,
    parts: PartRunner,
) -> None:
    from kasthuri_ray.benchmarks.segmentation_processes import make_weights

    source = f"{data}/em" if data else PHANTOM
    image = mirror_image(f"{scratch}/em.zarr", source, size.image)
    pair_image = mirror_image(f"{scratch}/p.zarr", source, size.pair_image)
    random_weights = make_weights(f"{scratch}/fresh.pt")
    common: dict[str, Any] = {"weights": weights or random_weights, "compile": size.compile}

    def measure(name: str, part: str, /, threads: int | None = None, **arguments: Any) -> None:
        environment = {"KASTHURI_THREADS": str(threads)} if threads else {}
        result, usage = parts.run(part, arguments, environment, SEGMENTATION_PARTS)
        results.add(name, result, usage)
        parts.show(f"  {name}: {_describe_result(result)}")

    parts.show("the network alone, the whole job, and other tools, in turns")
    for turn in range(size.rounds):
        measure("bare", "bare", block=size.block, seconds=size.seconds, compile=size.compile)
        measure("job", "job", image=image, output=f"{scratch}/job{turn}.zarr", block=size.block, **common)
        measure("seed", "seed", size=256, tiles=size.seed_tiles)
        measure("monai", "monai", size=256, overlap=0.25, shape=size.section, seconds=size.seconds)
    measure("bare", "bare", block=size.block, seconds=size.seconds, compile=size.compile)
    parts.show("one actor of one thread, and two")
    for turn in range(size.rounds):
        for count in (1, 2):
            arguments = {"image": pair_image, "output": f"{scratch}/pair{turn}{count}.zarr", "block": size.pair_block}
            measure(f"{count} x 1 thread", "job", threads=1, actors=count, **arguments, **common)
    parts.show("blocks without a network")
    scheduled: dict[str, Any] = {"shape": size.scheduled, "block": size.scheduled_block, "weights": random_weights}
    measure("schedule", "schedule", output=f"{scratch}/nothing.zarr", **scheduled)
    if data and weights:
        parts.show("the effect of reduced precision")
        measure("honest", "honest", data=data, weights=weights)


def _describe_result(result: Mapping[str, Any]) -> str:
    if result.get("rates"):
        return f"{statistics.median(result['rates']) / MVOXELS:.3g} Mvoxels/s"
    if "working_seconds" in result:
        return f"{result['rate'] / MVOXELS:.3g} Mvoxels/s computed, {result['working_seconds']:.1f} s"
    return ", ".join(f"{key} {value}" for key, value in result.items())


def mirror_image(path: str, source: str, shape: Zyx) -> str:
    """Write a zarr of `shape` with the voxels of an image, mirrored until they fill it; return its path."""
    import numpy as np
    import zarr

    from kasthuri_ray.volumes.opening import open_volume

    volume = open_volume(source)
    voxels = volume.read(Box.at(volume.bounds.start, per_axis(min, volume.bounds.shape, shape)))
    padding = per_axis(lambda n, m: (0, n - m), shape, voxels.shape)
    array = zarr.create_array(path, shape=shape, chunks=per_axis(min, IMAGE_CHUNK, shape), dtype="uint8")
    array[:] = np.pad(voxels, padding, mode="symmetric")
    return path


def segmentation_lines(results: SegmentationResults) -> list[BenchmarkLine]:
    """Return the figures beside their goals."""
    return [
        *_network_lines(results),
        *_job_lines(results),
        *_comparison_lines(results),
        *_actor_lines(results),
        *_memory_lines(results),
        *_precision_lines(results),
    ]


def product_ceiling(results: SegmentationResults) -> float:
    """Return the FLOP/s of square products of the fastest size."""
    products = results.all("bare", "products")
    return max(statistics.median(rates[size] for rates in products) for size in products[0])


def _network_lines(results: SegmentationResults) -> list[BenchmarkLine]:
    first, rate, limit = results.parts["bare"][0], results.rate("bare"), product_ceiling(results)
    assert rate is not None
    settings, flop, sizes = first["arithmetic"], first["flop_per_voxel"], ", ".join(first["products"])
    compiled = ", compiled" if settings["compile"] else ""
    how = f"{settings['precision']}{compiled}, {settings['threads']} threads, tile {settings['tile']}"
    goal = 0.9 if settings["precision"] == "bf16" else None
    fastest = f"{settings['precision']}, the fastest of {sizes}"
    return [
        BenchmarkLine("1 network alone", rate / MVOXELS, "Mvoxels/s", note=how),
        BenchmarkLine(
            "  limit by matrix products", limit / flop / MVOXELS, "Mvoxels/s", note=f"{flop:,.0f} FLOP a voxel"
        ),
        BenchmarkLine("  matrix products", limit / TERA, "TFLOP/s", note=fastest),
        BenchmarkLine("  of the limit by matrix products", rate * flop / limit, at_least=goal),
    ]


def default_recomputed_share(margin: Zyx, tile: Zyx, block: Zyx = DEFAULT_BLOCK) -> float:
    """Return the share of a block's voxels that are computed more than once, because tiles overlap."""
    from kasthuri_ray.inference import tiling
    from kasthuri_ray.models.unet import pooling_factors

    return tiling.recomputed_share(Box.at((0, 0, 0), block), (0, 0, 0), margin, pooling_factors(), tile)


def _job_lines(results: SegmentationResults) -> list[BenchmarkLine]:
    jobs, network_rate = results.parts["job"], results.rate("bare")
    assert network_rate is not None
    for job in jobs:
        _check_same_settings(job["arithmetic"], results.parts["bare"][0]["arithmetic"])
    rate = results.median("job", "rate")
    steps = ", ".join(
        f"{step} {statistics.median(s for job in jobs for s in job[f'{step}_seconds'] or [0]):.2f} s"
        for step in ("read", "write", "wait")
    )
    recomputed = default_recomputed_share(
        per_axis(int, jobs[0]["margin"]), per_axis(int, jobs[0]["arithmetic"]["tile"])
    )
    first_block, compiling = results.median("job", "until_first_block"), results.median("job", "compile_seconds")
    whole = f"{_num_output_voxels(jobs[0]) / MVOXELS:,.0f} Mvoxels"
    return [
        BenchmarkLine("2 the whole job", rate / MVOXELS, "Mvoxels/s", note="voxels computed over working time"),
        BenchmarkLine("  of the network alone", rate / network_rate, at_least=0.9, note=f"medians of a block: {steps}"),
        BenchmarkLine("  computed twice", recomputed, at_most=0.2, note=f"of a block of {DEFAULT_BLOCK}"),
        BenchmarkLine("  until the first block", first_block, "s", note="start of Ray and of the job"),
        BenchmarkLine("  compiling", compiling, "s", note="within the first tile"),
        BenchmarkLine("  all of it", results.median("job", "seconds"), "s", note=whole),
    ]


def _check_same_settings(one: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    """Check that the network alone was timed with the settings of the job."""
    differ = {
        key: (one[key], other[key]) for key in ("precision", "compile", "threads", "tile") if one[key] != other[key]
    }
    assert not differ, f"job and network alone differ: {differ}"


def _num_output_voxels(job: Mapping[str, Any]) -> int:
    return parse_box(job["box"], Box((0, 0, 0), (1 << 40,) * 3)).num_voxels


def _comparison_lines(results: SegmentationResults) -> list[BenchmarkLine]:
    rate = statistics.median(_num_output_voxels(job) / job["working_seconds"] for job in results.parts["job"])
    seed, monai = results.rate("seed"), results.rate("monai")
    assert seed is not None
    reduced = results.parts["bare"][0]["arithmetic"]["precision"] == "bf16"
    goal = MIN_SPEEDUP if reduced else None
    seed_note = "float32, eager, tiles of 256, default allocator"
    monai_note = "bf16, eager, 256, overlap 0.25, gaussian, default allocator"
    lines = [
        BenchmarkLine("3 the whole job", rate / MVOXELS, "Mvoxels/s", note="voxels of the output, each once"),
        BenchmarkLine("  the seed", seed / MVOXELS, "Mvoxels/s", note=seed_note),
        BenchmarkLine("  times as fast as the seed", rate / seed, at_least=goal),
    ]
    if monai is None:
        missing = "not installed: pip install --no-deps monai"
        return [*lines, BenchmarkLine("  MONAI's sliding window", None, note=missing)]
    return [
        *lines,
        BenchmarkLine("  MONAI's sliding window", monai / MVOXELS, "Mvoxels/s", note=monai_note),
        BenchmarkLine("  times as fast as MONAI", rate / monai, at_least=goal),
    ]


def _actor_lines(results: SegmentationResults) -> list[BenchmarkLine]:
    schedule = results.parts["schedule"][0]
    before, highest = schedule["rss"] or (0, 0)
    growth = (highest - before) / MB if before else None
    milliseconds = 1000 * schedule["seconds"] / schedule["blocks"]
    recorded = f"{schedule['blocks']:,} blocks, each recorded on the disk"
    one, two = (statistics.median(filter(None, results.all(f"{n} x 1 thread", "steady_rate"))) for n in (1, 2))
    return [
        BenchmarkLine("4 a block without a network", milliseconds, "ms", at_most=1.0, note=recorded),
        BenchmarkLine("  growth of the driver", growth, "MB", at_most=200.0),
        BenchmarkLine("5 one actor of one thread", one / MVOXELS, "Mvoxels/s", note="voxels computed, once warm"),
        BenchmarkLine("  two actors of one thread", two / MVOXELS, "Mvoxels/s"),
        BenchmarkLine("  times as fast as one actor", two / one, at_least=1.8),
    ]


def _memory_lines(results: SegmentationResults) -> list[BenchmarkLine]:
    job = results.usage["job"]
    if job.trainer_peak is None:
        return [BenchmarkLine("6 memory", None, note="is measured on Linux alone")]
    driver, others, store = job.driver_peak or 0, job.others_peak or 0, job.store_peak or 0
    parts = ("job", "bare", "seed", "monai", "1 x 1 thread", "2 x 1 thread", "schedule")
    return [
        BenchmarkLine("6 an actor, peak", job.trainer_peak / GB, "GB", note="resident"),
        BenchmarkLine("  our driver", driver / GB, "GB", note="proportional: shared pages count once"),
        BenchmarkLine("  Ray's other processes", others / GB, "GB", note=f"{job.processes} processes in all"),
        BenchmarkLine("  object store", store / GB, "GB"),
        *(BenchmarkLine(f"  {name}, everything", (results.usage[name].total_peak or 0) / GB, "GB") for name in parts),
    ]


def _precision_lines(results: SegmentationResults) -> list[BenchmarkLine]:
    if "honest" not in results.parts:
        return [BenchmarkLine("7 reduced precision", None, note=NEEDS_RUN)]
    result = results.parts["honest"][0]
    ours, exact = result["f1"]["ours"], result["f1"]["float32"]
    compared = f"{result['task']} in {result['precision']} and float32; at most {result['most']:.3f} apart"
    where = f"{result['box']}, threshold {result['threshold']:.3g}; float32 {exact:.4f}"
    near, plain = result["within"]["ours"], result["within"]["plain"]
    return [
        BenchmarkLine("7 within 0.02 of float32", near, at_least=max(0.99, plain), note=compared),
        BenchmarkLine("  the network as it was trained", plain, note="neither folded nor compiled"),
        BenchmarkLine("  F1", ours, note=where),
        BenchmarkLine("  difference of F1", abs(ours - exact), at_most=0.001),
    ]

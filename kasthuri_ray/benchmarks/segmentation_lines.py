"""Figures of the benchmark of segmentation, beside their goals. Pure arithmetic."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kasthuri_ray.benchmarks.benchmark_lines import BenchmarkLine
from kasthuri_ray.benchmarks.harness import Usage, larger_usage
from kasthuri_ray.geometry import Box, Zyx, parse_box, per_axis

MVOXELS, GB, TERA = 1e6, 1e9, 1e12
MIN_SPEEDUP = 3.0  # over other tools
MAX_MINUTES = 8.0  # of the benchmark
MIN_PRODUCT_SHARE = {"bf16": 0.9}  # of the network alone, of the rate of matrix products, by the kind of processor
NEEDS_RUN = "needs --data vnc.zarr, and --weights with the folder of a run that was trained on it"

DEFAULT_BLOCK: Zyx = (64, 2048, 2048)

# The candidates, the most important first.
BARE, JOB, SEED, MONAI, CHUNKFLOW = "network alone", "whole job", "seed", "MONAI", "chunkflow"
BARE_PLAIN, JOB_PLAIN = "network alone, not folded", "whole job, not folded"
CANDIDATES = (BARE, JOB, SEED, MONAI, CHUNKFLOW, BARE_PLAIN, JOB_PLAIN)


@dataclass
class SegmentationResults:
    """Results of every turn of the parts, by name, and the usage of the turn with the highest memory."""

    parts: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    usage: dict[str, Usage] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)  # that each turn took

    def add(self, name: str, result: dict[str, Any], usage: Usage, seconds: float = 0.0) -> None:
        """Add the result of a turn."""
        self.parts.setdefault(name, []).append(result)
        self.seconds.setdefault(name, []).append(seconds)
        self.usage[name] = larger_usage(self.usage.get(name), usage)

    def all(self, name: str, key: str) -> list[Any]:
        """Return one value of each turn."""
        return [result[key] for result in self.parts[name]]

    def median(self, name: str, key: str) -> float:
        """Return the median of a value over the turns."""
        return statistics.median(self.all(name, key))

    def rates(self, name: str) -> list[float]:
        """Return the rates of all runs of all turns; none if the part could not be measured."""
        return [rate for result in self.parts[name] for rate in result["rates"] or ()]

    def rate(self, name: str) -> float | None:
        """Return the median of all runs of all turns; None if the part could not be measured."""
        rates = self.rates(name)
        return statistics.median(rates) if rates else None

    def repetitions(self, name: str) -> str:
        """Return how often a candidate was measured, as text."""
        turns, runs = len(self.parts[name]), sum(len(each.get("rates") or ()) for each in self.parts[name])
        return f"{turns} turn{'s' if turns > 1 else ''}{f', {runs} runs' if runs else ''}"


def segmentation_lines(results: SegmentationResults, seconds: float = 0.0) -> list[BenchmarkLine]:
    """Return the figures beside their goals. seconds: what the benchmark took."""
    return [
        *_network_lines(results),
        *_job_lines(results),
        *_time_lines(results),
        *_comparison_lines(results),
        *_memory_lines(results),
        *_precision_lines(results),
        BenchmarkLine(
            "7 this benchmark", seconds / 60, "min", at_most=None if "honest" in results.parts else MAX_MINUTES
        ),
    ]


def product_ceiling(results: SegmentationResults) -> float:
    """Return the FLOP/s of square products of the fastest size."""
    products = results.all(BARE, "products")
    return max(statistics.median(rates[size] for rates in products) for size in products[0])


def _network_lines(results: SegmentationResults) -> list[BenchmarkLine]:
    first, rate, limit = results.parts[BARE][0], results.rate(BARE), product_ceiling(results)
    assert rate is not None
    settings, flop, sizes = first["arithmetic"], first["flop_per_voxel"], ", ".join(first["products"])
    compiled = ", compiled" if settings["compile"] else ""
    how = f"{settings['precision']}{compiled}, {settings['threads']} threads, tile {settings['tile']}"
    goal = MIN_PRODUCT_SHARE.get(first["kind"])
    fastest = f"{settings['precision']}, the fastest of {sizes}"
    return [
        BenchmarkLine("1 network alone", rate / MVOXELS, "Mvoxels/s", note=f"{how}; {results.repetitions(BARE)}"),
        *_peak_line(results, BARE, "resident"),
        *_plain_lines(results, BARE, BARE_PLAIN, rate),
        BenchmarkLine(
            "  limit by matrix products", limit / flop / MVOXELS, "Mvoxels/s", note=f"{flop:,.0f} FLOP a voxel"
        ),
        BenchmarkLine("  matrix products", limit / TERA, "TFLOP/s", note=fastest),
        BenchmarkLine("  of the limit by matrix products", rate * flop / limit, at_least=goal),
    ]


def _peak_line(results: SegmentationResults, name: str, note: str) -> list[BenchmarkLine]:
    """Return the peak memory of the process that computes, below its speed; nothing where it is not measured."""
    peaks = [part["actor_peak"] for part in results.parts[name] if "actor_peak" in part]
    peak = max(peaks) if peaks else results.usage[name].trainer_peak
    return [BenchmarkLine("  its peak memory", peak / GB, "GB", note=note)] if peak else []


def _plain_lines(results: SegmentationResults, name: str, plain_name: str, rate: float) -> list[BenchmarkLine]:
    """Return speed and memory of the same without folded norms, and the gain of folding."""
    key = "rate" if plain_name == JOB_PLAIN else "rates"
    rates = results.all(plain_name, key) if key == "rate" else results.rates(plain_name)
    plain = statistics.median(rates)
    return [
        BenchmarkLine(
            f"  {plain_name.rpartition(', ')[2]}", plain / MVOXELS, "Mvoxels/s", note=results.repetitions(plain_name)
        ),
        *_peak_line(results, plain_name, "not folded"),
        BenchmarkLine("  folded, times as fast", rate / plain),
    ]


def _job_lines(results: SegmentationResults) -> list[BenchmarkLine]:
    jobs, network_rate = results.parts[JOB], results.rate(BARE)
    assert network_rate is not None
    for job in jobs:
        _check_same_settings(job["arithmetic"], results.parts[BARE][0]["arithmetic"])
    rate = results.median(JOB, "rate")
    tile = per_axis(int, results.parts[BARE][0]["default_tile"])
    whole = f"{_num_output_voxels(jobs[0]) / MVOXELS:,.0f} Mvoxels"
    note = f"voxels computed over working time; {results.repetitions(JOB)}"
    return [
        BenchmarkLine("2 the whole job", rate / MVOXELS, "Mvoxels/s", note=note),
        *_peak_line(results, JOB, "of an actor, resident"),
        *_plain_lines(results, JOB, JOB_PLAIN, rate),
        BenchmarkLine("  of the network alone", rate / network_rate, at_least=0.9),
        BenchmarkLine("  all of it", results.median(JOB, "seconds"), "s", note=whole),
        BenchmarkLine(
            "  computed twice",
            default_recomputed_share(per_axis(int, jobs[0]["margin"]), tile),
            at_most=0.2,
            note=f"of a block of {DEFAULT_BLOCK}, tile {tile}",
        ),
    ]


def _time_lines(results: SegmentationResults) -> list[BenchmarkLine]:
    """Return where the time of the job goes."""
    jobs, network_rate = results.parts[JOB], results.rate(BARE)
    assert network_rate is not None
    spent = {step: sum(job["spent"][step] for job in jobs) for step in jobs[0]["spent"]}
    total, voxels = sum(spent.values()), sum(job["voxels"] for job in jobs)
    own = voxels / network_rate
    busy = f"a block: read in {_block_median(jobs, 'read'):.2f} s, written in {_block_median(jobs, 'write'):.2f} s"
    return [
        BenchmarkLine("3 time of the job: the network", own / total, note="as fast as alone"),
        BenchmarkLine("  network, slower than alone", (spent["network"] - own) / total, note=f"beside it {busy}"),
        BenchmarkLine("  waiting for reads", spent["reading"] / total, note="the first block's included"),
        BenchmarkLine("  between blocks", spent["between"] / total, note="handed to the network's thread"),
        BenchmarkLine("  writing", spent["writing"] / total, note="of the last block; others while the network runs"),
        BenchmarkLine(
            "  start-up", results.median(JOB, "until_first_block"), "s", note="Ray and job; not of the above"
        ),
        BenchmarkLine("  compiling", results.median(JOB, "compile_seconds"), "s", note="within the first tile"),
    ]


def _block_median(jobs: list[dict[str, Any]], step: str) -> float:
    return statistics.median(seconds for job in jobs for seconds in job[f"{step}_seconds"])


def default_recomputed_share(margin: Zyx, tile: Zyx, block: Zyx = DEFAULT_BLOCK) -> float:
    """Return the share of a block's voxels that are computed more than once, because tiles overlap."""
    from kasthuri_ray.inference import tiling
    from kasthuri_ray.models.unet import pooling_factors

    return tiling.recomputed_share(Box.at((0, 0, 0), block), (0, 0, 0), margin, pooling_factors(), tile)


def _check_same_settings(one: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    """Check that the network alone was timed with the settings of the job."""
    keys = ("precision", "compile", "threads", "tile", "fold")
    differ = {key: (one[key], other[key]) for key in keys if one.get(key) != other.get(key)}
    assert not differ, f"job and network alone differ: {differ}"


def _num_output_voxels(job: Mapping[str, Any]) -> int:
    return parse_box(job["box"], Box((0, 0, 0), (1 << 40,) * 3)).num_voxels


def _comparison_lines(results: SegmentationResults) -> list[BenchmarkLine]:
    rate = statistics.median(_num_output_voxels(job) / job["working_seconds"] for job in results.parts[JOB])
    precision = results.parts[BARE][0]["arithmetic"]["precision"]
    goal = MIN_SPEEDUP if precision == "bf16" else None
    lines = [BenchmarkLine("4 the whole job", rate / MVOXELS, "Mvoxels/s", note="voxels of the output, each once")]
    how = {
        SEED: "float32, eager, tiles of 256, default allocator",
        MONAI: f"sliding window of 256, overlap 0.25, gaussian; {precision}, eager, default allocator",
        CHUNKFLOW: f"patches of 256, overlap 64; {precision}, eager, default allocator",
    }
    for name, note in how.items():
        other = results.rate(name)
        if other is None:
            lines.append(BenchmarkLine(f"  {name}", None, note=f"not installed: pip install --no-deps {name.lower()}"))
            continue
        lines += [
            BenchmarkLine(f"  {name}", other / MVOXELS, "Mvoxels/s", note=f"{note}; {results.repetitions(name)}"),
            *_peak_line(results, name, "resident"),
            BenchmarkLine(f"  times as fast as {name}", rate / other, at_least=goal),
        ]
    return lines


def _memory_lines(results: SegmentationResults) -> list[BenchmarkLine]:
    job = results.usage[JOB]
    if job.trainer_peak is None:
        return [BenchmarkLine("5 memory", None, note="is measured on Linux alone")]
    driver, others, store = job.driver_peak or 0, job.others_peak or 0, job.store_peak or 0
    return [
        BenchmarkLine("5 memory of the job", (job.total_peak or 0) / GB, "GB", note="everything, shared pages once"),
        BenchmarkLine("  our driver", driver / GB, "GB"),
        BenchmarkLine("  Ray's other processes", others / GB, "GB", note=f"{job.processes} processes in all"),
        BenchmarkLine("  object store", store / GB, "GB"),
    ]


def _precision_lines(results: SegmentationResults) -> list[BenchmarkLine]:
    if "honest" not in results.parts:
        return [BenchmarkLine("6 reduced precision", None, note=NEEDS_RUN)]
    result = results.parts["honest"][0]
    ours, exact = result["f1"]["ours"], result["f1"]["float32"]
    compared = f"{result['task']} in {result['precision']} and float32; at most {result['most']:.3f} apart"
    where = f"{result['box']}, threshold {result['threshold']:.3g}; float32 {exact:.4f}"
    near, plain = result["within"]["ours"], result["within"]["plain"]
    return [
        BenchmarkLine("6 within 0.02 of float32", near, at_least=max(0.99, plain), note=compared),
        BenchmarkLine("  the network as it was trained", plain, note="neither folded nor compiled"),
        BenchmarkLine("  F1", ours, note=where),
        BenchmarkLine("  difference of F1", abs(ours - exact), at_most=0.001),
    ]

"""Benchmark of segmentation: the network alone, the whole job, the seed's way, MONAI and chunkflow, within 8 minutes.

Each candidate runs in a process of its own. All have one turn, and then further ones while time is left, so that those
that are compared take turns: the load of a machine changes with time. How much the job segments follows from the speed
of the network alone.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from kasthuri_ray.benchmarks.benchmark_lines import BenchmarkLine, report_lines
from kasthuri_ray.benchmarks.harness import PartRunner
from kasthuri_ray.benchmarks.sample_image import PHANTOM, mirror_image
from kasthuri_ray.benchmarks.segmentation_lines import (
    BARE,
    BARE_PLAIN,
    CANDIDATES,
    JOB,
    JOB_PLAIN,
    MVOXELS,
    SegmentationResults,
    segmentation_lines,
)
from kasthuri_ray.benchmarks.turns import count_job_blocks, next_candidate
from kasthuri_ray.geometry import Zyx

SEGMENTATION_PARTS = "kasthuri_ray.benchmarks.segmentation_processes"
OTHER_TOOLS = "kasthuri_ray.benchmarks.other_tools"

BUDGET_S = 420.0  # after which no turn starts that would not end in time; the limit is 8 minutes


@dataclass(frozen=True)
class SegmentationSize:
    """How much is segmented. Blocks are less wide and deep than by default, so that there are several."""

    block: Zyx = (2, 1024, 1024)
    blocks_yx: int = 2  # along y and x; there are as many along z as the job has time for
    max_blocks: int = 240
    job_seconds: float = 20.0  # of the network, in a job
    plain_seconds: float = 8.0  # the same, in a job without folded norms
    compile: str = "on"
    max_turns: int = 3
    seconds: float = 2.0  # of each of three measurements of the network alone
    tool_seconds: float = 6.0  # of the other tools
    section: tuple[int, int] = (832, 832)  # four windows of 256 with an overlap of 64, along each side


QUICK = SegmentationSize(
    block=(1, 256, 256),
    max_blocks=4,
    compile="off",
    max_turns=1,
    seconds=0.1,
    tool_seconds=0.1,
    section=(256, 256),
)


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
    size, results, start = QUICK if quick else SegmentationSize(), SegmentationResults(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kasthuri_ray_benchmark_") as scratch:
        candidates = _Candidates(parts, size, results, scratch, f"{data}/em" if data else PHANTOM, weights)
        parts.show(f"in turns, about {BUDGET_S / 60:.0f} minutes: {'; '.join(CANDIDATES)}")
        while name := next_candidate(
            CANDIDATES, results.seconds, BUDGET_S - (time.monotonic() - start), size.max_turns
        ):
            candidates.measure(name)
        if data and weights:
            parts.show("the effect of reduced precision")
            results.add("honest", *parts.run("honest", {"data": data, "weights": weights}, module=SEGMENTATION_PARTS))
    lines = segmentation_lines(results, time.monotonic() - start)
    usage = {name: asdict(usage) for name, usage in results.usage.items()}
    more = {"data": data or "phantom", "quick": quick, "size": asdict(size), "parts": results.parts, "usage": usage}
    report_lines("segment", lines, {**more, "seconds": results.seconds}, out, parts.reporter)
    return lines


class _Candidates:
    """What is compared, and how a turn of it is measured."""

    def __init__(
        self,
        parts: PartRunner,
        size: SegmentationSize,
        results: SegmentationResults,
        scratch: str,
        source: str,
        weights: str | None,
    ) -> None:
        from kasthuri_ray.benchmarks.segmentation_processes import make_weights

        self.parts, self.size, self.results, self.scratch, self.source = parts, size, results, scratch, source
        self.weights = weights or make_weights(f"{scratch}/fresh.pt")
        self.images: dict[str, str] = {}

    def measure(self, name: str) -> None:
        """Measure one turn of a candidate, and show it."""
        size, start = self.size, time.monotonic()
        fold = "off" if name in (BARE_PLAIN, JOB_PLAIN) else "on"
        tool = {"seconds": size.tool_seconds, "size": 256}
        bare = {"block": size.block, "seconds": size.seconds, "compile": size.compile, "fold": fold}
        match name:
            case "network alone" | "network alone, not folded":
                found = self.parts.run("bare", bare, module=SEGMENTATION_PARTS)
            case "whole job" | "whole job, not folded":
                found = self.parts.run("job", self._job(name, fold), module=SEGMENTATION_PARTS)
            case "seed":
                found = self.parts.run("seed", tool, module=OTHER_TOOLS)
            case "MONAI":
                found = self.parts.run("monai", {**tool, "overlap": 0.25, "shape": size.section}, module=OTHER_TOOLS)
            case _:
                found = self.parts.run("chunkflow", {**tool, "overlap": 64, "shape": size.section}, module=OTHER_TOOLS)
        self.results.add(name, *found, time.monotonic() - start)
        self.parts.show(f"  {name}: {_describe_result(found[0])}")

    def _job(self, name: str, fold: str) -> dict[str, Any]:
        """Return the arguments of a job, after its image is written."""
        size, turn = self.size, len(self.results.parts.get(name, ()))
        if name not in self.images:
            rate = self.results.rate(BARE)
            assert rate is not None
            seconds = size.job_seconds if name == JOB else size.plain_seconds
            shape = job_shape(size, rate, seconds)
            self.images[name] = mirror_image(f"{self.scratch}/em{len(self.images)}.zarr", self.source, shape)
        output = f"{self.scratch}/{name.replace(' ', '_')}{turn}.zarr"
        common = {"block": size.block, "weights": self.weights, "compile": size.compile, "fold": fold}
        return {"image": self.images[name], "output": output, **common}


def job_shape(size: SegmentationSize, rate: float, seconds: float) -> Zyx:
    """Return the shape of an image that a network of this rate, in voxels/s, segments in about so many seconds."""
    z, y, x = size.block
    layer = size.blocks_yx**2
    blocks = count_job_blocks(rate, seconds, z * y * x, layer, size.max_blocks)
    return z * (blocks // layer), y * size.blocks_yx, x * size.blocks_yx


def _describe_result(result: Mapping[str, Any]) -> str:
    if result.get("rates"):
        return f"{statistics.median(result['rates']) / MVOXELS:.3g} Mvoxels/s"
    if "working_seconds" in result:
        return f"{result['rate'] / MVOXELS:.3g} Mvoxels/s computed, {result['working_seconds']:.1f} s"
    return "not installed" if "rates" in result else ", ".join(f"{key} {value}" for key, value in result.items())

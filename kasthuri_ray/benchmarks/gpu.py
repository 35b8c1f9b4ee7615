"""Check of a GPU machine, in at most 8 minutes: `python -m kasthuri_ray.benchmarks.gpu`.

First whether networks compute on the GPU what they compute on the CPU, then how fast they are beside the limits of the
GPU. Each part runs in a process of its own and has a time limit; what is known is written after every part. Needs torch
and numpy alone, neither Ray nor pydantic.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from kasthuri_ray.benchmarks.benchmark_lines import BenchmarkLine, benchmark_record, lines_table
from kasthuri_ray.benchmarks.harness import PartFailed, PartRunner
from kasthuri_ray.benchmarks.predictor_speed import NETWORKS, predictor_lines
from kasthuri_ray.errors import InputError
from kasthuri_ray.progress import Reporter

GPU_PARTS = "kasthuri_ray.benchmarks.gpu_processes"
MVOXELS = 1e6

# Seconds that each part may take; together less than 8 minutes.
LIMITS_S = {
    **{"ceilings": 15, "predict": 40, "predict_compiled": 60, "train": 30, "train_compiled": 60, "memory": 15},
    **{"measure": 20, "sharing": 20, "training_speed": 35},
}
MIN_NEAR = {"float32": 1.0, "bf16": 0.99, "float16": 0.99}  # share of voxels within 0.02 of the CPU
MAX_LOSS_ERROR = {"float32": 0.01, "bf16": 0.1, "float16": 0.1}  # relative, of any of the first steps


@dataclass
class GpuCheck:
    """The check of a machine.

    parts: runs the parts. seconds: of each measurement of speed. lines: what is known so far.
    """

    parts: PartRunner
    device: str
    out: str
    seconds: float
    quick: bool = False
    lines: list[BenchmarkLine] = field(default_factory=list)

    def run(self) -> list[BenchmarkLine]:
        """Run all parts and return every figure; a part that fails is a line without a figure."""
        self._add("predictor of UNet_2D", partial(self._predictor_lines, "UNet_2D"))
        self._add("training step", self._training_lines)
        if not self.quick:
            self._add("predictor of UNet_3D", partial(self._predictor_lines, "UNet_3D"))
            self._add(
                "predictor, compiled", partial(self._predictor_lines, "UNet_2D", "predict_compiled", compile=True)
            )
            self._add("training step, compiled", partial(self._training_lines, "train_compiled", compile=True))
        if self.device == "cuda":
            self._add("memory", self._memory_lines)
            self._add("two processes a GPU", self._sharing_lines)
        self._add("training speed", self._training_speed_lines)
        self._add("speed of networks", self._network_lines)
        return self.lines

    def _add(self, name: str, measure: Callable[[], list[BenchmarkLine]]) -> None:
        start = time.monotonic()
        try:
            found = measure()
        except PartFailed as error:
            found = [BenchmarkLine(name, None, note=" ".join(str(error).split())[-300:])]
        self.lines += found
        self.parts.show(f"  {name}: {time.monotonic() - start:.0f} s")
        Path(self.out).write_text(json.dumps(benchmark_record("gpu", self.lines, {"device": self.device}), indent=2))

    def _measure(self, part: str, limit: str | None = None, **arguments: Any) -> dict[str, Any]:
        result, _ = self.parts.run(part, arguments, module=GPU_PARTS, timeout_s=LIMITS_S[limit or part])
        return result

    def _predictor_lines(self, name: str, limit: str = "predict", compile: bool = False) -> list[BenchmarkLine]:
        result = self._measure("predict", limit, name=name, device=self.device, compile=compile)
        low, high = result["range"]
        return [
            BenchmarkLine(
                f"{name} {way}",
                row["within"],
                at_least=MIN_NEAR[way.split(",")[0]],
                note=f"within 0.02 of float32 on the CPU; at most {row['most']}/255 apart, of {low} to {high}",
            )
            for way, row in result["rows"].items()
        ]

    def _training_lines(self, limit: str = "train", compile: bool = False) -> list[BenchmarkLine]:
        result = self._measure("train", limit, device=self.device, compile=compile)
        exact = result["exact"]
        note = f"of the loss from the CPU's, relative; {exact[0]:.3f} to {exact[-1]:.3f} in {len(exact)} steps"
        return [
            BenchmarkLine(
                f"training {way}",
                max(abs(loss - other) / other for loss, other in zip(losses, exact, strict=True)),
                at_most=MAX_LOSS_ERROR[way.split(",")[0]],
                note=note,
            )
            for way, losses in result["losses"].items()
        ]

    def _memory_lines(self) -> list[BenchmarkLine]:
        result = self._measure("memory", device=self.device)
        return [
            BenchmarkLine("too large a batch is refused in words", float(result["refused"]), at_least=1.0),
            BenchmarkLine("  and the next block is computed", float(result["resumes"]), at_least=1.0),
        ]

    def _network_arguments(self, name: str) -> dict[str, Any]:
        small = {"block": [2, 128, 128] if "2D" in name else [16, 64, 64], "compile": "off"} if self.quick else {}
        return {"name": name, "device": self.device, "seconds": self.seconds, **small}

    def _sharing_lines(self) -> list[BenchmarkLine]:
        arguments = self._network_arguments("UNet_2D")
        one = self._measure("measure", **arguments)
        with ThreadPoolExecutor(2) as pool:
            both = list(pool.map(lambda _: self._measure("measure", "sharing", **arguments), range(2)))
        alone, together = (sum(statistics.median(each["predict"]) for each in group) for group in ([one], both))
        return [
            BenchmarkLine("one process a GPU", alone / MVOXELS, "Mvoxels/s", note="UNet_2D, blocks in memory"),
            BenchmarkLine("  two processes", together / MVOXELS, "Mvoxels/s", note="--gpus-per-actor 0.5"),
        ]

    def _training_speed_lines(self) -> list[BenchmarkLine]:
        ways = ("auto",) if self.quick else ("auto", "off")
        rows = [self._measure("training_speed", device=self.device, seconds=self.seconds, compile=way) for way in ways]
        return [
            BenchmarkLine(
                "training UNet_2D", row["tiles_per_second"], "tiles/s", note=f"256 x 256, batch 8: {row['plan']}"
            )
            for row in rows
        ]

    def _network_lines(self) -> list[BenchmarkLine]:
        from kasthuri_ray.hardware import Machine

        precision = Machine.detect(self.device).rule.precision
        ceilings = self._measure("ceilings", device=self.device, precision=precision, seconds=self.seconds / 2)
        return predictor_lines(ceilings, dict(self._measured_networks()), precision)

    def _measured_networks(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for name in NETWORKS[:1] if self.quick else NETWORKS:
            yield name, self._measure("measure", **self._network_arguments(name)) | {"host_peak": None}


def run_gpu_check(arguments: Sequence[str]) -> int:
    """Run the check with the options of a command line; return 1 if a figure misses its goal or a part failed."""
    import torch

    parser = argparse.ArgumentParser(prog="kasthuri_ray.benchmarks.gpu", description=__doc__)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu tries the script itself")
    parser.add_argument("--quick", action="store_true", help="few voxels, to try whether it works")
    parser.add_argument("--out", metavar="FILE", default="benchmark_gpu.json", help="default: %(default)s")
    parser.add_argument("--verbose", action="store_true", help="show the output of the parts")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise InputError("torch finds no CUDA GPU on this machine; --device cpu tries the script")
    parts = PartRunner(Reporter(), options.verbose)
    seconds = 0.2 if options.quick else 6.0
    lines = GpuCheck(parts, options.device, options.out, seconds, options.quick).run()
    parts.show(f"\n{lines_table(lines)}")
    parts.reporter.print_result(options.out)
    return int(any(line.ok is False or line.figure is None for line in lines))


if __name__ == "__main__":
    try:
        sys.exit(run_gpu_check(sys.argv[1:]))
    except InputError as error:
        sys.exit(f"kasthuri_ray.benchmarks.gpu: {error}")

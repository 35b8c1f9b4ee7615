"""Benchmark of reading and writing: Mvoxels/s of a core, by format, and how many cores feed one GPU.

The figures of `kasthuri_ray/segmentation/io_rates.py`, which plans of segmentations use, were measured with it.
"""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from kasthuri_ray.benchmarks.benchmark_lines import BenchmarkLine, report_lines
from kasthuri_ray.benchmarks.harness import PartRunner
from kasthuri_ray.benchmarks.sample_image import PHANTOM, mirrored_voxels
from kasthuri_ray.geometry import Zyx

IO_PARTS = "kasthuri_ray.benchmarks.io_processes"
MVOXELS = 1e6
CARD_MVOXELS_PER_S = 500.0  # of a network on one GPU

# The formats that are read, by the names of the table of rates.
FORMATS = {
    "zarr3 zstd": "zarr 3, sharded, zstd",
    "precomputed jpeg": "precomputed, jpeg",
    "precomputed raw": "precomputed, raw",
    "BossDB": "BossDB, blosc",
    "TIFF sections": "TIFF sections, uncompressed",
}
WRITING = "writing"


@dataclass(frozen=True)
class IoSize:
    """How much is read and written, in blocks of this shape."""

    shape: Zyx = (32, 2048, 2048)
    block: Zyx = (32, 1024, 1024)
    seconds: float = 6.0  # of each format


QUICK = IoSize((16, 256, 256), (16, 256, 256), 0.1)


def run_io_benchmark(
    parts: PartRunner, data: str | None = None, quick: bool = False, out: str = "benchmark_io.json"
) -> list[BenchmarkLine]:
    """Measure everything, print the table and write the JSON file.

    Parameters
    ----------
    parts : PartRunner
        Reads and writes.
    data : str, optional
        Zarr group with em; by default the phantom is stored.
    quick : bool
        Take few voxels, to try whether the benchmark works.
    out : str
        Path of the JSON file, with the rates of each run.

    Returns
    -------
    list of BenchmarkLine
        Rates by format, and how many cores feed a GPU.
    """
    size = QUICK if quick else IoSize()
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="kasthuri_ray_benchmark_") as scratch, ExitStack() as stack:
        uris, boss = _make_sources(parts, f"{data}/em" if data else PHANTOM, size, scratch, stack)
        for name, uri in uris.items():
            arguments = {"uri": uri, "boss": boss if name == "BossDB" else None}
            _measure(parts, name, "read", arguments | {"block": size.block, "seconds": size.seconds}, results)
        arguments = {"probabilities": f"{scratch}/probabilities.npy", "output": f"{scratch}/out.zarr"}
        _measure(parts, WRITING, "write", arguments | {"block": size.block, "seconds": size.seconds}, results)
    lines = io_lines(results)
    more = {"data": data or "phantom", "quick": quick, "size": asdict(size), "parts": results}
    report_lines("io", lines, more, out, parts.reporter)
    return lines


def _make_sources(
    parts: PartRunner, source: str, size: IoSize, scratch: str, stack: ExitStack
) -> tuple[dict[str, str], dict[str, str]]:
    """Store an image in each format and serve it; return the URIs by format, and the options of the Boss server."""
    from kasthuri_ray.benchmarks import loopback_boss

    em = mirrored_voxels(source, size.shape)
    np.save(f"{scratch}/em.npy", em)
    np.save(f"{scratch}/probabilities.npy", smooth_probabilities(em))
    uris, _ = parts.run("stores", {"em": f"{scratch}/em.npy", "folder": scratch}, module=IO_PARTS)
    boss = stack.enter_context(loopback_boss.loopback_boss(em))
    return {name: uris.get(name, loopback_boss.URI) for name in FORMATS}, boss


def _measure(
    parts: PartRunner, name: str, part: str, arguments: dict[str, Any], results: dict[str, dict[str, Any]]
) -> None:
    results[name], _ = parts.run(part, arguments, module=IO_PARTS)
    parts.show(f"  {name}: {statistics.median(results[name]['rates']) / MVOXELS:.0f} Mvoxels/s of a core")


def smooth_probabilities(em: np.ndarray) -> np.ndarray:
    """Return voxels like those of a network that finds dark lines: mostly 0 or 255, with smooth borders."""
    smooth: np.ndarray = em.astype(np.float32)
    for _ in range(4):
        for axis in (1, 2):
            smooth = (np.roll(smooth, 1, axis) + smooth + np.roll(smooth, -1, axis)) / 3
    dark = np.quantile(smooth[0], 0.15)
    return np.rint(255 / (1 + np.exp((smooth - dark) / 3))).astype(np.uint8)


def cores_per_card(read_rate: float, write_rate: float) -> float:
    """Return how many cores read and write what a GPU segments. Both rates in Mvoxels/s of a core."""
    return CARD_MVOXELS_PER_S * (1 / read_rate + 1 / write_rate)


def io_lines(results: Mapping[str, Mapping[str, Any]]) -> list[BenchmarkLine]:
    """Return the rate of each format, and the cores that feed a GPU with it."""
    rates = {name: statistics.median(result["rates"]) / MVOXELS for name, result in results.items()}
    lines, writing = [], rates[WRITING]
    for number, (name, text) in enumerate(FORMATS.items(), 1):
        runs = f"decoded, in a second of CPU time; {len(results[name]['rates'])} runs"
        cores = cores_per_card(rates[name], writing)
        note = f"{math.ceil(cores)} cores read and write {CARD_MVOXELS_PER_S:g} Mvoxels/s"
        lines += [
            BenchmarkLine(f"{number} reading {text}", rates[name], "Mvoxels/s", note=runs),
            BenchmarkLine("  cores for one GPU", cores, "cores", note=note),
        ]
    compression = f"compressed {results[WRITING]['compression']:.0f} times; {len(results[WRITING]['rates'])} runs"
    return [*lines, BenchmarkLine(f"{len(FORMATS) + 1} writing the output", writing, "Mvoxels/s", note=compression)]

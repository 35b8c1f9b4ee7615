"""How fast segmentation is, and what it needs: the network alone, the whole job, other ways to segment, scheduling, two
actors, memory, and what reduced precision changes. `run()` measures all of it in one go, each part in a process of its
own.

The parts that are held against each other take turns, since other work on a machine comes and goes.
"""

from __future__ import annotations

import statistics
import tempfile
from dataclasses import asdict, dataclass, field
from typing import Any

from kasthuri_ray.benchmarks.harness import BenchmarkLine, Usage, report_lines, run_part
from kasthuri_ray.geometry import Box, Zyx

MODULE = "kasthuri_ray.benchmarks.segmentation_processes"
MVOXELS, GB, MB, TERA = 1e6, 1e9, 1e6, 1e12
DEFAULT_BLOCK: Zyx = (64, 2048, 2048)
PHANTOM = "phantom://em?shape=20,1024,1024&seed=7"
IMAGE_CHUNK: Zyx = (16, 256, 256)
LEAST_FAST = 3.0  # times the other ways
GIVE_A_RUN = "give --data vnc.zarr and --weights with the folder of a run that was trained on it"


@dataclass(frozen=True)
class SegmentationSize:
    """How much is segmented. Blocks are as wide as by default, and less deep, so that there are several."""

    image: Zyx = (12, 4096, 4096)
    block: Zyx = (12, 2048, 2048)
    compile: str = "on"
    rounds: int = 2
    seconds: float = 6.0  # of each measurement of the network alone
    seed_tiles: int = 60
    section: tuple[int, int] = (1024, 1024)  # of the sliding window
    pair_image: Zyx = (8, 2048, 2048)  # of two actors against one
    pair_block: Zyx = (2, 1024, 1024)
    scheduled: Zyx = (100, 512, 512)  # 102,400 blocks
    scheduled_block: Zyx = (1, 16, 16)


QUICK = SegmentationSize(
    *((4, 512, 512), (2, 256, 512), "off", 1, 0.2, 3, (256, 256), (4, 256, 256), (1, 128, 256), (8, 128, 128)),
    (1, 16, 16),
)


@dataclass
class SegmentationResults:
    """What the parts gave, by name, and what their processes used."""

    parts: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    usage: dict[str, Usage] = field(default_factory=dict)

    def add(self, name: str, given: dict[str, Any], usage: Usage) -> None:
        self.parts.setdefault(name, []).append(given)
        before = self.usage.get(name)
        # Of several turns, the one that took most.
        if before is None or (usage.total_peak or 0) > (before.total_peak or 0):
            self.usage[name] = usage

    def all(self, name: str, key: str) -> list[Any]:
        """What each turn of a part gave under `key`."""
        return [given[key] for given in self.parts[name]]

    def median(self, name: str, key: str) -> float:
        return statistics.median(self.all(name, key))

    def rate(self, name: str) -> float | None:
        """The median of all runs of all turns; None where the part could not be measured."""
        rates = [rate for given in self.parts[name] for rate in given["rates"] or ()]
        return statistics.median(rates) if rates else None


def run_segmentation_benchmark(
    data: str | None = None,
    weights: str | None = None,
    quick: bool = False,
    out: str = "benchmark_segment.json",
    verbose: bool = False,
) -> list[BenchmarkLine]:
    """Measure everything, print the table and write the JSON.

    data: a zarr group with em and the labels that the weights learnt; None segments the phantom. weights: the folder of
    a run of UNet_2D; without one the weights are nobody's, and what precision changes is not measured.
    """
    size, found = QUICK if quick else SegmentationSize(), SegmentationResults()
    with tempfile.TemporaryDirectory(prefix="kasthuri_ray_benchmark_") as scratch:
        _measure(data, weights, size, scratch, found, verbose)
    lines = segmentation_lines(found)
    used = {name: asdict(usage) for name, usage in found.usage.items()}
    more = {"data": data or "phantom", "quick": quick, "size": asdict(size), "parts": found.parts, "usage": used}
    report_lines("segment", lines, more, out)
    return lines


def _measure(
    data: str | None,
    weights: str | None,
    size: SegmentationSize,
    scratch: str,
    found: SegmentationResults,
    verbose: bool,
) -> None:
    from kasthuri_ray.benchmarks.segmentation_processes import make_weights

    source = f"{data}/em" if data else PHANTOM
    image, pair = (
        make_image(f"{scratch}/{n}.zarr", source, s) for n, s in (("em", size.image), ("p", size.pair_image))
    )
    used, fresh = weights or make_weights(f"{scratch}/fresh.pt"), f"{scratch}/fresh.pt"
    if weights:
        make_weights(fresh)

    def part(name: str, what: str, /, threads: int | None = None, **arguments: Any) -> None:
        environment = {"KASTHURI_THREADS": str(threads)} if threads else {}
        given, usage = run_part(what, arguments, environment, verbose, MODULE)
        found.add(name, given, usage)
        print(f"  {name}: {_told(given)}", flush=True)

    print("the network alone, the whole job, and others, in turns", flush=True)
    for turn in range(size.rounds):
        part("bare", "bare", block=size.block, seconds=size.seconds, compile=size.compile)
        told: dict[str, Any] = {"image": image, "weights": used, "block": size.block, "compile": size.compile}
        part("job", "job", output=f"{scratch}/job{turn}.zarr", **told)
        part("seed", "seed", size=256, tiles=size.seed_tiles)
        part("monai", "monai", size=256, overlap=0.25, shape=size.section, seconds=size.seconds)
    part("bare", "bare", block=size.block, seconds=size.seconds, compile=size.compile)
    print("one actor of one thread, and two", flush=True)
    for turn in range(size.rounds):
        for count in (1, 2):
            told = {"image": pair, "weights": used, "block": size.pair_block, "compile": size.compile}
            output = f"{scratch}/pair{turn}{count}.zarr"
            part(f"{count} x 1 thread", "job", threads=1, output=output, actors=count, **told)
    print("blocks of a network that does nothing", flush=True)
    nothing: dict[str, Any] = {"shape": size.scheduled, "block": size.scheduled_block, "weights": fresh}
    part("schedule", "schedule", output=f"{scratch}/nothing.zarr", **nothing)
    if data and weights:
        print("what reduced precision changes", flush=True)
        part("honest", "honest", data=data, weights=weights)


def _told(given: dict[str, Any]) -> str:
    if given.get("rates"):
        return f"{statistics.median(given['rates']) / MVOXELS:.3g} Mvoxels/s"
    if "working_seconds" in given:
        return f"{given['rate'] / MVOXELS:.3g} Mvoxels/s computed, {given['working_seconds']:.1f} s"
    return ", ".join(f"{key} {value}" for key, value in given.items())


def make_image(path: str, source: str, shape: Zyx) -> str:
    """A zarr of `shape` with the voxels of an image, mirrored as often as it takes."""
    import numpy as np
    import zarr

    from kasthuri_ray.volumes.opening import open_volume

    volume = open_volume(source)
    least = Box.at(volume.bounds.start, [min(a, b) for a, b in zip(volume.bounds.shape, shape, strict=True)])
    voxels = volume.read(least)
    wider = [(0, n - m) for n, m in zip(shape, voxels.shape, strict=True)]
    chunk = tuple(min(c, n) for c, n in zip(IMAGE_CHUNK, shape, strict=True))
    array = zarr.create_array(path, shape=shape, chunks=chunk, dtype="uint8")
    array[:] = np.pad(voxels, wider, mode="symmetric")
    return path


def segmentation_lines(found: SegmentationResults) -> list[BenchmarkLine]:
    """The figures held against their goals."""
    return [*_network(found), *_job(found), *_others(found), *_scheduling(found), *_memory(found), *_honest(found)]


def product_ceiling(found: SegmentationResults) -> float:
    """FLOP/s of the square products that are fastest."""
    products = found.all("bare", "products")
    return max(statistics.median(given[size] for given in products) for size in products[0])


def _network(found: SegmentationResults) -> list[BenchmarkLine]:
    bare, flop = found.rate("bare"), found.parts["bare"][0]["flop_per_voxel"]
    assert bare is not None
    how, sizes = found.parts["bare"][0]["arithmetic"], ", ".join(found.parts["bare"][0]["products"])
    about = f"{how['precision']}{', compiled' if how['compile'] else ''}, {how['threads']} threads, tile {how['tile']}"
    goal = 0.9 if how["precision"] == "bf16" else None
    most = product_ceiling(found)
    return [
        BenchmarkLine("1 network alone", bare / MVOXELS, "Mvoxels/s", note=about),
        BenchmarkLine(
            "  what matrix products reach", most / flop / MVOXELS, "Mvoxels/s", note=f"{flop:,.0f} FLOP a voxel"
        ),
        BenchmarkLine("  the same", most / TERA, "TFLOP/s", note=f"{how['precision']}, the fastest of {sizes}"),
        BenchmarkLine("  of what they reach", bare * flop / most, at_least=goal),
    ]


def default_recomputed_share(margin: Zyx, tile: Zyx, block: Zyx = DEFAULT_BLOCK) -> float:
    """The share of a default block's voxels that are computed on top."""
    from kasthuri_ray.inference import tiling
    from kasthuri_ray.models.unet import pooling_factors

    return tiling.recomputed_share(Box.at((0, 0, 0), block), (0, 0, 0), margin, pooling_factors(), tile)


def _job(found: SegmentationResults) -> list[BenchmarkLine]:
    jobs, bare = found.parts["job"], found.rate("bare")
    assert bare is not None
    for given in jobs:
        _check_same(given["arithmetic"], found.parts["bare"][0]["arithmetic"])
    rate = found.median("job", "rate")
    steps = ", ".join(
        f"{what} {statistics.median(s for given in jobs for s in given[f'{what}_seconds'] or [0]):.2f} s"
        for what in ("read", "write", "wait")
    )
    twice = default_recomputed_share(tuple(jobs[0]["margin"]), tuple(jobs[0]["arithmetic"]["tile"]))
    return [
        BenchmarkLine("2 the whole job", rate / MVOXELS, "Mvoxels/s", note="voxels computed over working time"),
        BenchmarkLine("  of the network alone", rate / bare, at_least=0.9, note=f"medians of a block: {steps}"),
        BenchmarkLine("  computed twice", twice, at_most=0.2, note=f"of a block of {DEFAULT_BLOCK}"),
        BenchmarkLine(
            "  until the first block", found.median("job", "until_first_block"), "s", note="Ray's start and ours"
        ),
        BenchmarkLine("  compiling", found.median("job", "compile_seconds"), "s", note="within the first tile"),
        BenchmarkLine(
            "  all of it", found.median("job", "seconds"), "s", note=f"{_unique(jobs[0]) / MVOXELS:,.0f} Mvoxels"
        ),
    ]


def _check_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    """The network alone has to be what the job runs."""
    differ = {
        key: (one[key], other[key]) for key in ("precision", "compile", "threads", "tile") if one[key] != other[key]
    }
    assert not differ, f"job and network alone differ: {differ}"


def _unique(given: dict[str, Any]) -> int:
    from kasthuri_ray.geometry import parse_box

    return parse_box(given["box"], Box((0, 0, 0), (1 << 40,) * 3)).num_voxels


def _others(found: SegmentationResults) -> list[BenchmarkLine]:
    unique = statistics.median(_unique(given) / given["working_seconds"] for given in found.parts["job"])
    seed, monai = found.rate("seed"), found.rate("monai")
    assert seed is not None
    reduced = found.parts["bare"][0]["arithmetic"]["precision"] == "bf16"
    goal = LEAST_FAST if reduced else None
    lines = [
        BenchmarkLine("3 the whole job", unique / MVOXELS, "Mvoxels/s", note="voxels of the output, each once"),
        BenchmarkLine(
            "  the seed's way", seed / MVOXELS, "Mvoxels/s", note="float32, eager, tiles of 256, default allocator"
        ),
        BenchmarkLine("  times as fast", unique / seed, at_least=goal),
    ]
    if monai is None:
        return [
            *lines,
            BenchmarkLine("  MONAI's sliding window", None, note="not installed: pip install --no-deps monai"),
        ]
    about = "bf16, eager, 256, overlap 0.25, gaussian, default allocator"
    return [
        *lines,
        BenchmarkLine("  MONAI's sliding window", monai / MVOXELS, "Mvoxels/s", note=about),
        BenchmarkLine("  times as fast as that", unique / monai, at_least=goal),
    ]


def _scheduling(found: SegmentationResults) -> list[BenchmarkLine]:
    given = found.parts["schedule"][0]
    before, most = given["rss"] or (0, 0)
    grew = (most - before) / MB if before else None
    pair = [statistics.median(filter(None, found.all(f"{n} x 1 thread", "steady_rate"))) for n in (1, 2)]
    return [
        BenchmarkLine(
            "4 a block of nothing", 1000 * given["seconds"] / given["blocks"], "ms", at_most=1.0, note=_blocks(given)
        ),
        BenchmarkLine("  the driver grew", grew, "MB", at_most=200.0),
        BenchmarkLine(
            "5 one actor of one thread", pair[0] / MVOXELS, "Mvoxels/s", note="voxels computed, once it is warm"
        ),
        BenchmarkLine("  two actors of one thread", pair[1] / MVOXELS, "Mvoxels/s"),
        BenchmarkLine("  times as fast", pair[1] / pair[0], at_least=1.8),
    ]


def _blocks(given: dict[str, Any]) -> str:
    return f"{given['blocks']:,} blocks, each recorded on the disk"


def _memory(found: SegmentationResults) -> list[BenchmarkLine]:
    job = found.usage["job"]
    if job.trainer_peak is None:
        return [BenchmarkLine("6 memory", None, note="is measured on Linux alone")]
    other = ("bare", "seed", "monai", "1 x 1 thread", "2 x 1 thread", "schedule")
    return [
        BenchmarkLine("6 an actor, peak", job.trainer_peak / GB, "GB", note="resident"),
        BenchmarkLine(
            "  our driver", (job.driver_peak or 0) / GB, "GB", note="proportional: what is shared counts once"
        ),
        BenchmarkLine(
            "  Ray's other processes", (job.others_peak or 0) / GB, "GB", note=f"{job.processes} processes in all"
        ),
        BenchmarkLine("  object store", (job.store_peak or 0) / GB, "GB"),
        *(
            BenchmarkLine(f"  {name}, everything", (found.usage[name].total_peak or 0) / GB, "GB")
            for name in ("job", *other)
        ),
    ]


def _honest(found: SegmentationResults) -> list[BenchmarkLine]:
    if "honest" not in found.parts:
        return [BenchmarkLine("7 reduced precision", None, note=GIVE_A_RUN)]
    given = found.parts["honest"][0]
    ours, exact = given["f1"]["ours"], given["f1"]["float32"]
    about = f"{given['task']} in {given['precision']} against float32; at most {given['most']:.3f} apart"
    return [
        BenchmarkLine("7 within 0.02 of float32", given["within"], at_least=0.99, note=about),
        BenchmarkLine("  F1", ours, note=f"{given['box']}, threshold {given['threshold']:.3g}; float32 {exact:.4f}"),
        BenchmarkLine("  F1 apart", abs(ours - exact), at_most=0.002),
    ]

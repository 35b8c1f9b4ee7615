"""Benchmark of training: the step alone, the whole pipeline, the seed's recipe, the stream alone, two workers, memory.

`run_training_benchmark` measures all of it, each part in a process of its own. Parts that are compared with each other
take turns, since the load of a machine changes with time.
"""

from __future__ import annotations

import csv
import itertools
import json
import statistics
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kasthuri_ray.benchmarks.benchmark_lines import BenchmarkLine, report_lines
from kasthuri_ray.benchmarks.harness import TRAINER, PartRunner, Usage, larger_usage
from kasthuri_ray.config.defaults import MIN_BATCH_SIZE
from kasthuri_ray.config.loading import GivenSettings, resolve_settings
from kasthuri_ray.geometry import Zyx
from kasthuri_ray.process_resources import usable_cpus

MB, GB = 1e6, 1e9

SMALL, LARGE = (100, 1024, 1024), (1850, 26624, 21504)  # 0.1 GB, and the whole Kasthuri volume at 3 nm
PHANTOM_SEED = 7

# Tiles of a step that two workers share. Of the default, 2, each worker has one, and the fixed cost of a step weighs.
SHARED_BATCH = 8
# Goals by the kind of processor; None where nothing was measured yet.
MIN_STEP_SHARE = {"avx2": 0.9, "avx512": 0.95, "bf16": 0.95, "amx": 0.95, "arm": None}  # of the bare step
MIN_SPEEDUP = {"avx2": 1.6, "avx512": None, "bf16": 3.4, "amx": 4.0, "arm": None}  # over the seed's recipe


@dataclass(frozen=True)
class TrainingSize:
    """How much is trained. Epochs have `tiles` tiles; the first one includes compiling and does not count."""

    epochs: int = 5
    tiles: int = 224
    rounds: int = 2  # turns of the bare step and the pipeline
    worker_epochs: int = 4
    worker_tiles: int = 112
    recipe_steps: int = 5
    stream_tiles: int = 2048
    stream_passes: int = 4
    phantom_tiles: int = 512
    shape: Zyx = (20, 1024, 1024)  # of the volume that is made if none is given


QUICK = TrainingSize(3, 40, 1, 3, 24, 2, 256, 3, 64, (20, 512, 512))


@dataclass
class TrainingResults:
    """Results of the parts by name.

    parts: runs the parts. rates: tiles/s of every epoch that counts. usage: of the turn with the highest memory.
    wait_shares: of each turn of the pipeline. facts: other results, for the JSON file.
    """

    parts: PartRunner
    rates: dict[str, list[float]] = field(default_factory=dict)
    usage: dict[str, Usage] = field(default_factory=dict)
    wait_shares: list[float] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def add(self, name: str, rates: list[float], usage: Usage) -> None:
        """Add the epochs of a turn, and show them."""
        self.rates.setdefault(name, []).extend(rates)
        self.usage[name] = larger_usage(self.usage.get(name), usage)
        self.parts.show(f"  {name}: {', '.join(f'{rate:.2f}' for rate in rates)} tiles/s")

    def rate(self, name: str) -> float:
        """Return the median tiles/s of all epochs."""
        return statistics.median(self.rates[name])


def run_training_benchmark(
    parts: PartRunner, data: str | None = None, quick: bool = False, out: str = "benchmark_train.json"
) -> list[BenchmarkLine]:
    """Measure everything, print the table and write the JSON file.

    Parameters
    ----------
    parts : PartRunner
        Runs the trainings.
    data : str, optional
        Zarr group with em and synapse of at least 17 sections, such as vnc.zarr; by default one is made from the
        phantom.
    quick : bool
        Measure little, to try whether the benchmark works.
    out : str
        Path of the JSON file, with tiles/s of every epoch.

    Returns
    -------
    list of BenchmarkLine
        Speed and memory of training.
    """
    size = QUICK if quick else TrainingSize()
    results = TrainingResults(parts)
    with tempfile.TemporaryDirectory(prefix="kasthuri_ray_benchmark_") as scratch:
        store = data or make_phantom_store(f"{scratch}/phantom.zarr", size.shape)
        _measure(store, size, scratch, results)
    lines = training_lines(results)
    usage = {name: asdict(usage) for name, usage in results.usage.items()}
    more = {"data": data or "phantom", "quick": quick, "tiles_per_second": results.rates, "usage": usage}
    report_lines("train", lines, {**more, **results.facts}, out, parts.reporter)
    return lines


def _measure(store: str, size: TrainingSize, scratch: str, results: TrainingResults) -> None:
    results.parts.show("the step alone and the whole pipeline, in turns")
    for turn in range(size.rounds):
        _measure_step(store, size, scratch, results)
        settings = benchmark_settings(store, size.epochs, size.tiles, f"{scratch}/runs{turn}")
        _measure_pipeline("pipeline", settings, results)
    _measure_step(store, size, scratch, results)
    results.parts.show("the seed's recipe")
    settings = benchmark_settings(store, size.epochs, size.tiles, scratch)
    result, usage = results.parts.run("recipe", {"settings": settings, "steps": size.recipe_steps})
    results.add("seed's recipe", [result["batch_size"] / seconds for seconds in result["step_seconds"]], usage)
    results.parts.show("the stream alone")
    settings = benchmark_settings(store, 1, size.stream_tiles, scratch)
    _measure_stream("stream", settings, size.stream_passes, True, results)
    results.parts.show("one worker of one thread, and two")
    for batch, count in itertools.product((MIN_BATCH_SIZE, SHARED_BATCH), (1, 2)):
        storage = f"{scratch}/workers{count}_{batch}"
        settings = benchmark_settings(store, size.worker_epochs, size.worker_tiles, storage)
        settings["network"]["batch_size"] = batch
        settings["train"]["num_workers"] = count
        _measure_pipeline(workers_name(count, batch), settings, results, {"KASTHURI_THREADS": "1"})
    results.parts.show("a phantom of 0.1 GB, and one of 660 GB")
    for name, shape in (("phantom 0.1 GB", SMALL), ("phantom 660 GB", LARGE)):
        settings = phantom_settings(shape, size.phantom_tiles, scratch)
        _measure_stream(name, settings, 1, False, results)


def _measure_step(store: str, size: TrainingSize, scratch: str, results: TrainingResults) -> None:
    settings = benchmark_settings(store, size.epochs, size.tiles, scratch)
    result, usage = results.parts.run("bare", {"settings": settings})
    results.facts.update(threads=result["threads"], plan=result["plan"])
    results.add("bare step", result["tiles_per_second"][1:], usage)


def workers_name(count: int, batch: int) -> str:
    """Return the name of the result of `count` workers that share steps of `batch` tiles."""
    return f"{count} x 1 thread, steps of {batch}"


def _measure_pipeline(
    name: str,
    settings: dict[str, Any],
    results: TrainingResults,
    environment: dict[str, str] | None = None,
) -> None:
    result, usage = results.parts.run("pipeline", {"settings": settings}, environment)
    with open(f"{result['path']}/history.csv") as file:
        rates = [float(row["tiles_per_second"]) for row in csv.DictReader(file)]
    if name == "pipeline":
        metrics = json.loads(Path(result["path"], "metrics.json").read_text())
        results.wait_shares.append(metrics["wait_share"])
    results.add(name, rates[1:], usage)


def _measure_stream(name: str, settings: dict[str, Any], passes: int, cold: bool, results: TrainingResults) -> None:
    result, usage = results.parts.run("stream", {"settings": settings, "passes": passes, "cold": cold})
    rates = result["tiles_per_second"]
    if cold:
        results.facts["stream_cold"] = rates.pop(0)
    results.add(name, rates, usage)


def benchmark_settings(store: str, epochs: int, tiles: int, storage: str) -> dict[str, Any]:
    """Return the settings that are timed: UNet_2D with our defaults on synapse tiles, half of them on foreground."""
    from kasthuri_ray.volumes.opening import open_volume

    _, height, width = open_volume(f"{store}/em").bounds.shape
    task = {
        "image_chan": f"{store}/em",
        "annotation_chan": f"{store}/synapse",
        "xrange_vol": [0, width],
        "yrange_vol": [0, height],
        "z_train": [0, 14],
        "z_val": [14, 17],
    }
    return _resolve(task, epochs, tiles, storage)


def phantom_settings(shape: Zyx, tiles: int, storage: str) -> dict[str, Any]:
    """Return the settings of one epoch of random tiles from a whole phantom of `shape`."""
    query = f"shape={','.join(map(str, shape))}&seed={PHANTOM_SEED}"
    task = {
        "image_chan": f"phantom://em?{query}",
        "annotation_chan": f"phantom://synapse?{query}",
        "xrange_vol": [0, shape[2]],
        "yrange_vol": [0, shape[1]],
        "z_train": [0, shape[0] - 1],
        "z_val": [shape[0] - 1, shape[0]],
        "foreground_share": 0.0,
    }
    return _resolve(task, 1, tiles, storage)


def _resolve(task: dict[str, Any], epochs: int, tiles: int, storage: str) -> dict[str, Any]:
    """Return all settings, as plain values."""
    task = {**task, "z_test": None, "threshold": False}
    network = {"epochs": epochs, "tiles_per_epoch": tiles, "early_stopping": 0, "batch_size": MIN_BATCH_SIZE}
    train = {"storage": storage, "compile": "on", "cache": "none"}
    flags = {"task": task, "network": network, "train": train}
    settings = resolve_settings(GivenSettings("synapse", "UNet_2D", flags=flags))
    return settings.model_dump(mode="json")


def make_phantom_store(path: str, shape: Zyx, labels: str = "synapse") -> str:
    """Write a zarr group of em and `labels` with the voxels of the phantom, in chunks of a tile; return its path."""
    import zarr

    from kasthuri_ray.volumes.opening import open_volume

    group = zarr.create_group(path)
    for channel in ("em", labels):
        volume = open_volume(f"phantom://{channel}?shape={','.join(map(str, shape))}&seed={PHANTOM_SEED}")
        array = group.create_array(channel, shape=shape, chunks=(1, 256, 256), dtype="uint8")
        array.attrs["voxel_size_nm_zyx"] = list(volume.voxel_size_nm or ())
        for box in volume.bounds.cells((1, shape[1], shape[2])):
            array[box.slices()] = volume.read(box)
    return path


def training_lines(results: TrainingResults) -> list[BenchmarkLine]:
    """Return the figures beside their goals."""
    return [*_speed_lines(results), *_memory_lines(results)]


def _speed_lines(results: TrainingResults) -> list[BenchmarkLine]:
    import torch

    from kasthuri_ray.hardware import processor_kind

    step, pipeline, seed = (results.rate(name) for name in ("bare step", "pipeline", "seed's recipe"))
    kind = processor_kind(torch.device("cpu"))
    min_share, min_speedup = MIN_STEP_SHARE[kind], MIN_SPEEDUP[kind]
    cold, warm = results.facts["stream_cold"], results.rate("stream")
    how = f"{kind}: {results.facts['plan']}, {results.facts['threads']} threads, median of epochs after the first"
    return [
        BenchmarkLine("1 bare step", step, "tiles/s", note=how),
        BenchmarkLine("2 pipeline", pipeline, "tiles/s"),
        BenchmarkLine("  of the bare step", pipeline / step, at_least=min_share),
        BenchmarkLine("  wait_share", max(results.wait_shares), at_most=0.02),
        BenchmarkLine(
            "  share of Ray, readers and driver", _others_share(results), note="of the CPUs, while it trains"
        ),
        BenchmarkLine("3 seed's recipe", seed, "tiles/s", note="float32, eager, arrays in memory, default allocator"),
        BenchmarkLine("  pipeline, times as fast", pipeline / seed, at_least=min_speedup),
        BenchmarkLine("4 stream alone, cold", cold, "tiles/s", note="files not in memory, Ray's readers not started"),
        BenchmarkLine("  warm", warm, "tiles/s", note="median of the epochs after it"),
        BenchmarkLine("  warm, times the bare step", warm / step, at_least=10.0),
        *_worker_lines(results, "5", SHARED_BATCH, 1.8),
        *_worker_lines(results, " ", MIN_BATCH_SIZE, None),
    ]


def _others_share(results: TrainingResults) -> float | None:
    cores = results.usage["pipeline"].cores
    others = [busy for role, busy in cores.items() if role != TRAINER]
    return sum(others) / usable_cpus() if cores else None


def _worker_lines(results: TrainingResults, number: str, batch: int, goal: float | None) -> list[BenchmarkLine]:
    one, two = (results.rate(workers_name(count, batch)) for count in (1, 2))
    return [
        BenchmarkLine(f"{number} one worker of one thread", one, "tiles/s", note=f"steps of {batch} tiles"),
        BenchmarkLine("  two workers of one thread", two, "tiles/s", note=f"steps of {batch} tiles together"),
        BenchmarkLine(f"  times as fast, steps of {batch}", two / one, at_least=goal),
    ]


def _memory_lines(results: TrainingResults) -> list[BenchmarkLine]:
    step, pipeline = results.usage["bare step"], results.usage["pipeline"]
    if step.trainer_peak is None or pipeline.trainer_peak is None:
        return [BenchmarkLine("6 memory", None, note="is measured on Linux alone")]
    small, large = (results.usage[name].total_peak or 0 for name in ("phantom 0.1 GB", "phantom 660 GB"))
    others, store = pipeline.others_peak or 0, pipeline.store_peak or 0
    extra = pipeline.trainer_peak - step.trainer_peak
    totals = [
        BenchmarkLine(f"  {name}, everything", (usage.total_peak or 0) / GB, "GB")
        for name, usage in results.usage.items()
        if name in ("seed's recipe", "stream", workers_name(1, MIN_BATCH_SIZE), workers_name(2, MIN_BATCH_SIZE))
    ]
    return [
        BenchmarkLine("6 bare step, peak", step.trainer_peak / GB, "GB", note="resident"),
        BenchmarkLine("  pipeline's trainer, peak", pipeline.trainer_peak / GB, "GB", note="resident"),
        BenchmarkLine("  more than the bare step", extra / MB, "MB", at_most=500.0),
        BenchmarkLine(
            "  our driver", (pipeline.driver_peak or 0) / GB, "GB", note="proportional: shared pages count once"
        ),
        BenchmarkLine("  Ray's other processes", others / GB, "GB", note=f"{pipeline.processes} processes in all"),
        BenchmarkLine("  object store", store / GB, "GB"),
        BenchmarkLine("  Ray's other processes and object store", (others + store) / GB, "GB", at_most=2.0),
        *totals,
        BenchmarkLine("  phantom of 0.1 GB, everything", small / GB, "GB"),
        BenchmarkLine("  phantom of 660 GB, everything", large / GB, "GB"),
        BenchmarkLine("  660 GB divided by 0.1 GB", large / small, at_least=0.9, at_most=1.1),
    ]

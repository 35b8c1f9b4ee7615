"""How fast training is, and what it needs: the step alone, the whole pipeline, the seed's recipe, the stream alone,
two workers, and memory. `run()` measures all of it in one go, each part in a process of its own.

The parts that are held against each other take turns, since other work on a machine comes and goes.
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

from kasthuri_ray.benchmarks.harness import BenchmarkLine, Usage, report_lines, run_part
from kasthuri_ray.config.loading import resolve_settings
from kasthuri_ray.config.settings import MIN_BATCH_SIZE
from kasthuri_ray.geometry import Zyx

MB, GB = 1e6, 1e9
SMALL, LARGE = (100, 1024, 1024), (1850, 26624, 21504)  # 0.1 GB, and all of the Kasthuri volume at 3 nm
PHANTOM_SEED = 7
# Tiles of a step that two workers share. Of the default, 2, each has one, and what a step takes besides tiles weighs.
SHARED_BATCH = 8


@dataclass(frozen=True)
class TrainingSize:
    """How long the parts run. Epochs hold `tiles` tiles, and the first, in which is compiled, does not count."""

    epochs: int = 5
    tiles: int = 224
    rounds: int = 2  # turns of the bare step and the pipeline
    worker_epochs: int = 4
    worker_tiles: int = 112
    recipe_steps: int = 5
    stream_tiles: int = 2048
    stream_passes: int = 4
    phantom_tiles: int = 512
    shape: Zyx = (20, 1024, 1024)  # of the local store, where it is made


QUICK = TrainingSize(3, 40, 1, 3, 24, 2, 256, 3, 64, (20, 512, 512))


@dataclass
class TrainingResults:
    """What the parts gave, by name: tiles per second of every epoch that counts, memory and CPU, and whatever else."""

    rates: dict[str, list[float]] = field(default_factory=dict)
    usage: dict[str, Usage] = field(default_factory=dict)
    waits: list[float] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def add(self, name: str, rates: list[float], usage: Usage) -> None:
        self.rates.setdefault(name, []).extend(rates)
        before = self.usage.get(name)
        # Of several turns, the one that took most.
        if before is None or (usage.total_peak or 0) > (before.total_peak or 0):
            self.usage[name] = usage
        print(f"  {name}: {', '.join(f'{rate:.2f}' for rate in rates)} tiles/s", flush=True)

    def rate(self, name: str) -> float:
        return statistics.median(self.rates[name])


def run_training_benchmark(
    data: str | None = None, quick: bool = False, out: str = "benchmark_train.json", verbose: bool = False
) -> list[BenchmarkLine]:
    """Measure everything, print the table and write the JSON.

    data: a zarr group with em and synapse of at least 17 sections, such as vnc.zarr; None makes one from the phantom.
    """
    size = QUICK if quick else TrainingSize()
    found = TrainingResults()
    with tempfile.TemporaryDirectory(prefix="kasthuri_ray_benchmark_") as scratch:
        store = data or make_store(f"{scratch}/phantom.zarr", size.shape)
        _measure(store, size, scratch, found, verbose)
    lines = training_lines(found)
    used = {name: asdict(usage) for name, usage in found.usage.items()}
    more = {"data": data or "phantom", "quick": quick, "tiles_per_second": found.rates, "usage": used, **found.facts}
    report_lines("train", lines, more, out)
    return lines


def _measure(store: str, size: TrainingSize, scratch: str, found: TrainingResults, verbose: bool) -> None:
    print("the step alone, and the whole pipeline in turns", flush=True)
    for turn in range(size.rounds):
        _bare(store, size, scratch, found, verbose)
        _pipeline(
            "pipeline", benchmark_settings(store, size.epochs, size.tiles, f"{scratch}/runs{turn}"), found, verbose
        )
    _bare(store, size, scratch, found, verbose)
    print("the seed's recipe", flush=True)
    sections = benchmark_settings(store, size.epochs, size.tiles, scratch)
    given, usage = run_part("recipe", {"settings": sections, "steps": size.recipe_steps}, verbose=verbose)
    found.add("seed's recipe", [given["batch_size"] / each for each in given["step_seconds"]], usage)
    print("the stream alone", flush=True)
    _stream(
        "stream", benchmark_settings(store, 1, size.stream_tiles, scratch), size.stream_passes, True, found, verbose
    )
    print("one worker of one thread, and two", flush=True)
    for batch, count in itertools.product((MIN_BATCH_SIZE, SHARED_BATCH), (1, 2)):
        name = workers_name(count, batch)
        sections = benchmark_settings(store, size.worker_epochs, size.worker_tiles, f"{scratch}/workers{count}_{batch}")
        sections["network"]["batch_size"] = batch
        sections["train"]["num_workers"] = count
        _pipeline(name, sections, found, verbose, {"KASTHURI_THREADS": "1"})
    print("a phantom of 0.1 GB, and one of 660 GB", flush=True)
    for name, shape in (("phantom 0.1 GB", SMALL), ("phantom 660 GB", LARGE)):
        _stream(name, phantom_settings(shape, size.phantom_tiles, scratch), 1, False, found, verbose)


def _bare(store: str, size: TrainingSize, scratch: str, found: TrainingResults, verbose: bool) -> None:
    given, usage = run_part(
        "bare", {"settings": benchmark_settings(store, size.epochs, size.tiles, scratch)}, verbose=verbose
    )
    found.facts.update(threads=given["threads"], precision=given["precision"])
    found.add("bare step", given["tiles_per_second"][1:], usage)


def workers_name(count: int, batch: int) -> str:
    return f"{count} x 1 thread, steps of {batch}"


def _pipeline(
    name: str,
    sections: dict[str, Any],
    found: TrainingResults,
    verbose: bool,
    environment: dict[str, str] | None = None,
) -> None:
    given, usage = run_part("pipeline", {"settings": sections}, environment, verbose)
    with open(f"{given['path']}/history.csv") as file:
        rates = [float(row["tiles_per_second"]) for row in csv.DictReader(file)]
    if name == "pipeline":
        found.waits.append(json.loads(Path(given["path"], "metrics.json").read_text())["wait_share"])
    found.add(name, rates[1:], usage)


def _stream(
    name: str, sections: dict[str, Any], passes: int, cold: bool, found: TrainingResults, verbose: bool
) -> None:
    given, usage = run_part("stream", {"settings": sections, "passes": passes, "cold": cold}, verbose=verbose)
    rates = given["tiles_per_second"]
    if cold:
        found.facts["stream_cold"] = rates.pop(0)
    found.add(name, rates, usage)


def benchmark_settings(store: str, epochs: int, tiles: int, storage: str) -> dict[str, Any]:
    """The settings that are timed: UNet_2D with our defaults; synapse tiles, half of which have to be found."""
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
    return _sections(task, epochs, tiles, storage)


def phantom_settings(shape: Zyx, tiles: int, storage: str) -> dict[str, Any]:
    """An epoch of random tiles from all over a phantom of `shape`."""
    given = f"shape={','.join(map(str, shape))}&seed={PHANTOM_SEED}"
    task = {
        "image_chan": f"phantom://em?{given}",
        "annotation_chan": f"phantom://synapse?{given}",
        "xrange_vol": [0, shape[2]],
        "yrange_vol": [0, shape[1]],
        "z_train": [0, shape[0] - 1],
        "z_val": [shape[0] - 1, shape[0]],
        "foreground_share": 0.0,
    }
    return _sections(task, 1, tiles, storage)


def _sections(task: dict[str, Any], epochs: int, tiles: int, storage: str) -> dict[str, Any]:
    task = {**task, "z_test": None, "threshold": False}
    network = {"epochs": epochs, "tiles_per_epoch": tiles, "early_stopping": 0, "batch_size": MIN_BATCH_SIZE}
    train = {"storage": storage, "compile": "on", "cache": "none"}
    found = resolve_settings("synapse", "UNet_2D", flags={"task": task, "network": network, "train": train})
    return found.model_dump(mode="json")


def make_store(path: str, shape: Zyx, labels: str = "synapse") -> str:
    """A zarr of em and labels with the phantom's voxels, in chunks of a tile."""
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


def training_lines(found: TrainingResults) -> list[BenchmarkLine]:
    """The figures held against their goals."""
    return [*_speed(found), *_memory(found)]


def _speed(found: TrainingResults) -> list[BenchmarkLine]:
    import torch

    from kasthuri_ray.hardware import supports_bf16

    bare, pipeline, seed = (found.rate(name) for name in ("bare step", "pipeline", "seed's recipe"))
    faster = 4.0 if supports_bf16(torch.device("cpu")) else None
    cold = found.facts["stream_cold"]
    about = f"{found.facts['precision']}, {found.facts['threads']} threads, median of epochs after the first"
    return [
        BenchmarkLine("1 bare step", bare, "tiles/s", note=about),
        BenchmarkLine("2 pipeline", pipeline, "tiles/s"),
        BenchmarkLine("  of the bare step", pipeline / bare, at_least=0.95),
        BenchmarkLine("  wait_share", max(found.waits), at_most=0.02),
        BenchmarkLine("3 seed's recipe", seed, "tiles/s", note="float32, eager, arrays in memory, default allocator"),
        BenchmarkLine("  pipeline, times as fast", pipeline / seed, at_least=faster),
        BenchmarkLine("4 stream alone, cold", cold, "tiles/s", note="files not in memory, Ray's readers not started"),
        BenchmarkLine("  warm", found.rate("stream"), "tiles/s", note="median of the epochs after it"),
        BenchmarkLine("  warm, times what training eats", found.rate("stream") / bare, at_least=10.0),
        *_workers(found, "5", SHARED_BATCH, 1.8),
        *_workers(found, " ", MIN_BATCH_SIZE, None),
    ]


def _workers(found: TrainingResults, number: str, batch: int, goal: float | None) -> list[BenchmarkLine]:
    one, two = (found.rate(workers_name(count, batch)) for count in (1, 2))
    return [
        BenchmarkLine(f"{number} one worker of one thread", one, "tiles/s", note=f"steps of {batch} tiles"),
        BenchmarkLine("  two workers of one thread", two, "tiles/s", note=f"steps of {batch} tiles together"),
        BenchmarkLine(f"  times as fast, steps of {batch}", two / one, at_least=goal),
    ]


def _memory(found: TrainingResults) -> list[BenchmarkLine]:
    bare, whole = found.usage["bare step"], found.usage["pipeline"]
    if bare.trainer_peak is None or whole.trainer_peak is None:
        return [BenchmarkLine("6 memory", None, note="is measured on Linux alone")]
    small, large = (found.usage[name].total_peak or 0 for name in ("phantom 0.1 GB", "phantom 660 GB"))
    others, store = whole.others_peak or 0, whole.store_peak or 0
    other = [
        BenchmarkLine(f"  {name}, everything", (usage.total_peak or 0) / GB, "GB")
        for name, usage in found.usage.items()
        if name in ("seed's recipe", "stream", workers_name(1, MIN_BATCH_SIZE), workers_name(2, MIN_BATCH_SIZE))
    ]
    return [
        BenchmarkLine("6 bare step, peak", bare.trainer_peak / GB, "GB", note="resident"),
        BenchmarkLine("  pipeline's trainer, peak", whole.trainer_peak / GB, "GB", note="resident"),
        BenchmarkLine("  more than the bare step", (whole.trainer_peak - bare.trainer_peak) / MB, "MB", at_most=500.0),
        BenchmarkLine(
            "  our driver", (whole.driver_peak or 0) / GB, "GB", note="proportional: what is shared counts once"
        ),
        BenchmarkLine("  Ray's other processes", others / GB, "GB", note=f"{whole.processes} processes in all"),
        BenchmarkLine("  object store", store / GB, "GB"),
        BenchmarkLine("  these two", (others + store) / GB, "GB", at_most=2.0),
        *other,
        BenchmarkLine("  phantom of 0.1 GB, everything", small / GB, "GB"),
        BenchmarkLine("  phantom of 660 GB, everything", large / GB, "GB"),
        BenchmarkLine("  660 GB against 0.1 GB", large / small, at_least=0.9, at_most=1.1),
    ]

"""What the processes of the segmentation's benchmark do: see `segment.py`. Parts take and give what JSON holds."""

from __future__ import annotations

import itertools
import json
import math
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from kasthuri_ray.benchmarks.harness import run_as_part
from kasthuri_ray.geometry import Box, Zyx
from kasthuri_ray.output.pyramid import SHARD
from kasthuri_ray.segmentation.block_worker import BlockWorker, Cutout

NETWORK = "UNet_2D"
SPAN = 3.0  # half the range of logits that fresh weights are made to give
RSS_PERIOD_S = 0.5
CLASSES = 2


TIMES = "times"  # a folder beside the output, a file of JSON lines an actor


def job(
    image: str, weights: str, output: str, block: Zyx, actors: int | None = None, compile: str = "on"
) -> dict[str, Any]:
    """Segment as jobs/segment.py does, with times: gives `work_of` what the actors wrote down, and more."""
    begun, start = time.time(), time.perf_counter()
    shard = [min(b, s) for b, s in zip(block, SHARD, strict=True)]
    flags = {"image": image, "block": block, "shard": shard, "actors": actors, "compile": compile}
    num_set_aside = _run_job(TimedBlockWorker, weights, output, flags)
    seconds = time.perf_counter() - start
    assert num_set_aside == 0, f"{num_set_aside} blocks were set aside"
    by_actor = [
        [json.loads(line) for line in file.read_text().splitlines()] for file in Path(f"{output}.{TIMES}").iterdir()
    ]
    settings = json.loads(Path(f"{output}.ledger", "settings.json").read_text())
    return {
        **summarize_times(by_actor),
        "seconds": seconds,
        "until_first_block": min(row["start"] for rows in by_actor for row in rows) - begun,
        "arithmetic": settings["arithmetic"],
        "box": settings["box"],
        "margin": settings["margin"],
    }


def _run_job(actor: type[BlockWorker], weights: str, output: str, flags: dict[str, Any]) -> int:
    from kasthuri_ray.segmentation import actor_resources, segment

    asked = {name: value for name, value in flags.items() if value is not None}
    asked |= {"weights": weights, "output": output, "cache": "none", "device": "cpu"}
    layers: dict[str, Any] = {"config": None, "assignments": [], "flags": {"segment": asked}}
    task, network = ("synapse", NETWORK) if weights.endswith(".pt") else (None, None)
    with mock.patch.object(actor_resources, "BlockWorker", actor):
        return segment.segment_from_flags(task, network, layers).num_set_aside


def bare(block: Zyx, seconds: float, compile: str = "on") -> dict[str, Any]:
    """The network alone, as the job runs it, on a tile that stays in memory; and square products in turns with it.

    voxels/s of each run, FLOP/s by size, FLOP a voxel.
    """
    from kasthuri_ray import hardware

    hardware.configure_allocator()

    from kasthuri_ray.benchmarks import predictor_processes as parts
    from kasthuri_ray.hardware import Machine
    from kasthuri_ray.inference.predictor import Predictor, prepare_process
    from kasthuri_ray.models.receptive_field import find_receptive_field

    network = parts.make_network(NETWORK)
    reach = find_receptive_field(network, 2)
    arithmetic = parts.decide_inference(network, 2, reach, Machine.here("cpu"), tuple(block), compile=compile)  # type: ignore[arg-type]
    prepare_process(arithmetic)
    flop = parts.flop_per_voxel(network, 2)
    alone = parts.resident_predictor(Predictor(network, 2, CLASSES, reach, arithmetic))
    start = time.perf_counter()
    alone()
    first, rates, products = time.perf_counter() - start, [], {}
    for size in parts.SIZES["cpu"]:
        rates += [math.prod(arithmetic.tile) / run for run in parts.time_runs(alone, seconds, "cpu")]
        products[str(size)] = parts.product_rate("cpu", arithmetic.precision, size, seconds / 4)
    return {
        "rates": rates,
        "products": products,
        "flop_per_voxel": flop,
        "arithmetic": {**arithmetic.__dict__, "tile": list(arithmetic.tile)},
        "first_seconds": first,
    }


def seed(size: int, tiles: int) -> dict[str, Any]:
    """As the Kasthuri Challenge's code segments: float32, eager, a tile of size x size at a time; voxels/s of each."""
    import torch

    from kasthuri_ray import hardware
    from kasthuri_ray.benchmarks.predictor_processes import make_network

    threads = hardware.set_threads(1)
    network, rates = make_network(NETWORK), []
    grey = np.random.default_rng(0).integers(0, 256, (tiles + 1, size, size), np.uint8)
    found = np.zeros((tiles + 1, size, size), np.float32)
    for number, image in enumerate(grey):
        start = time.perf_counter()
        with torch.no_grad():
            logits = network(torch.from_numpy(image.astype(np.float32) / 255)[None, None])
            found[number] = torch.softmax(logits, dim=1)[0, 1].numpy()
        rates.append(size * size / (time.perf_counter() - start))
    return {"rates": rates[1:], "threads": threads}


def monai(size: int, overlap: float, shape: tuple[int, int], seconds: float) -> dict[str, Any]:
    """MONAI's sliding window with gaussian weights, in bf16, on a section of `shape`: unique voxels/s of each run.

    Of one tile at a time and of four, what is faster. Nothing where MONAI is not installed.
    """
    try:
        from monai.inferers import sliding_window_inference
    except ImportError:
        return {"rates": None}
    import torch

    from kasthuri_ray import hardware
    from kasthuri_ray.benchmarks.predictor_processes import make_network, time_runs

    threads = hardware.set_threads(1)
    network, image = make_network(NETWORK), torch.rand(1, 1, *shape)
    best: list[float] = []

    for batch in (1, 4):

        @torch.inference_mode()
        def section(batch: int = batch) -> Any:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits = sliding_window_inference(image, (size, size), batch, network, overlap=overlap, mode="gaussian")
            return torch.softmax(logits.float(), dim=1)  # type: ignore[union-attr]

        section()
        rates = [math.prod(shape) / run for run in time_runs(section, seconds, "cpu")]
        best = max(best, rates, key=lambda rates: statistics.median(rates) if rates else 0.0)
    return {"rates": best, "threads": threads}


def schedule(shape: Zyx, block: Zyx, weights: str, output: str) -> dict[str, Any]:
    """Segment with actors that do nothing but write the ledger: how long all blocks took, and what the driver grew.

    seconds: from the first record to the last. rss: of this process, the driver, in bytes: before the first block, and
    at most after.
    """
    ledger = Path(f"{output}.ledger", "s0")
    rss: list[int] = []
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(RSS_PERIOD_S):
            if ledger.exists():
                rss.append(resident_bytes())

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    flags = {"image": f"phantom://em?shape={','.join(map(str, shape))}", "block": block, "shard": block, "chunk": block}
    num_set_aside = _run_job(IdleBlockWorker, weights, output, flags)
    ended.set()
    watching.join()
    assert num_set_aside == 0, f"{num_set_aside} blocks were set aside"
    with os.scandir(ledger) as entries:
        times = [entry.stat().st_mtime for entry in entries]
    seconds = max(times) - min(times)
    return {"blocks": len(times), "seconds": seconds, "rss": [rss[0], max(rss)] if rss else None}


def resident_bytes() -> int:
    """The resident memory of this process; 0 where /proc does not tell."""
    with suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def honest(data: str, weights: str) -> dict[str, Any]:
    """A trained network in the job's own precision against float32, eager, on the test sections of a zarr with labels.

    within: the share of voxels whose probabilities are within 0.02. f1: of both, at the run's threshold.
    """
    from kasthuri_ray import hardware

    hardware.configure_allocator()
    from dataclasses import replace

    from kasthuri_ray.benchmarks.predictor_processes import decide_inference
    from kasthuri_ray.config.settings import Settings
    from kasthuri_ray.hardware import Machine
    from kasthuri_ray.inference.predictor import Predictor, prepare_process
    from kasthuri_ray.labels import to_uint8
    from kasthuri_ray.models.receptive_field import find_receptive_field
    from kasthuri_ray.segmentation.trained_network import build_trained_network, read_trained_network
    from kasthuri_ray.volumes.opening import open_volume

    trained = read_trained_network(weights)
    assert trained.settings is not None, f"{weights} is no run: its task is not known"
    settings = Settings.model_validate(trained.settings)
    image = open_volume(f"{data}/em")
    truth = open_volume(f"{data}/{settings.task.task_type}")
    first = settings.task.z_test[0] if settings.task.z_test else image.bounds.stop[0] - 3
    box = Box((first, *image.bounds.start[1:]), image.bounds.stop).intersect(truth.bounds)
    voxels = to_uint8(image.read(box), trained.intensity or (0.0, 255.0))
    network = build_trained_network(settings, trained)
    reach = find_receptive_field(network, settings.network.dim)
    chosen = decide_inference(network, settings.network.dim, reach, Machine.here("cpu"), box.shape, compile="on")
    prepare_process(chosen)
    found = {}
    for name, how in (("ours", chosen), ("float32", replace(chosen, precision="float32", compile=False))):
        predictor = Predictor(network, settings.network.dim, settings.network.classes, reach, how)
        found[name] = predictor.predict(voxels, box, box, box)
    labels = truth.read(box)
    threshold = trained.threshold or 0.5
    apart = np.abs(found["ours"].astype(np.int16) - found["float32"]) / 255
    return {
        "within": float((apart <= 0.02).mean()),
        "most": float(apart.max()),
        "f1": {name: _f1(probabilities, labels, threshold) for name, probabilities in found.items()},
        "threshold": threshold,
        "task": settings.task.task_type,
        "box": str(box),
        "precision": chosen.precision,
        "spans": [int(found["float32"].min()), int(found["float32"].max())],
    }


def _f1(probabilities: np.ndarray, labels: np.ndarray, threshold: float) -> float:
    from kasthuri_ray.metrics.voxel_counts import VoxelCounts, foreground_f1

    foreground = np.minimum(probabilities.sum(axis=0, dtype=np.float64) / 255, 1.0)
    counts = VoxelCounts.zeros()
    counts.add(foreground, (foreground > 0.5).astype(np.int64), labels)
    return foreground_f1(counts, threshold)


def make_weights(path: str) -> str:
    """A file of weights of UNet_2D that nobody trained, whose probabilities spread over 0.05 to 0.95."""
    import torch

    from kasthuri_ray.benchmarks.predictor_processes import make_network
    from kasthuri_ray.models.checkpoints import checkpoint_bytes

    network: Any = make_network(NETWORK)
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.random((1, 1, 16, 16), np.float32).repeat(8, 2).repeat(8, 3))
    with torch.no_grad():
        logits = network(image)
        apart = logits[:, 1] - logits[:, 0]
        final = network.conv_final
        final.weight.sub_(final.weight[:1].clone())
        final.bias.sub_(final.bias[:1].clone())
        low, high = (float(torch.quantile(apart, q)) for q in (0.02, 0.98))
        final.weight[1].mul_(2 * SPAN / (high - low))
        final.bias[1].sub_((low + high) / 2).mul_(2 * SPAN / (high - low))
    Path(path).write_bytes(checkpoint_bytes(network.state_dict()))
    return path


class TimedBlockWorker(BlockWorker):
    """Writes down when each step of its blocks began and ended, and when each of its tiles was done."""

    def _segment(self, block: Box) -> tuple[dict[str, Any], bool]:
        with self._noted("block", block):
            return super()._segment(block)

    def _fetch(self, block: Box) -> Cutout:
        with self._noted("read", block):
            return super()._fetch(block)

    def _predict(
        self, cutout: Cutout, block: Box, on_voxels: Callable[[int], None] = lambda voxels: None
    ) -> np.ndarray:
        tiles: list[tuple[float, int]] = []

        def note(voxels: int) -> None:
            tiles.append((time.time(), voxels))
            on_voxels(voxels)

        with self._noted("compute", block, tiles):
            return super()._predict(cutout, block, note)

    @contextmanager
    def _noted(self, what: str, block: Box, tiles: list[tuple[float, int]] | None = None) -> Iterator[None]:
        start = time.time()
        yield
        row = {"what": what, "block": block.start, "start": start, "stop": time.time(), "tiles": tiles or []}
        file = Path(f"{self.job.output}.{TIMES}", f"{os.getpid()}.jsonl")
        file.parent.mkdir(exist_ok=True)
        with file.open("a") as target:
            target.write(json.dumps(row) + "\n")  # one write: threads do not come between


class IdleBlockWorker(BlockWorker):
    """Has no network, reads nothing and writes nothing but the ledger."""

    def _set_up(self) -> dict[str, Any]:
        return {"machine": ""}

    def _segment(self, block: Box) -> tuple[dict[str, Any], bool]:
        return {}, False


def summarize_times(by_actor: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """What actors' notes come to; voxels are those that went through the network, margins included.

    working_seconds: from the first block begun to the last written, less what the first tile took beyond the others:
    it was compiled meanwhile (compile_seconds, of the actor that took longest). rate: voxels/s of that time.
    steady_rate: voxels/s from when every actor had its first tile to when one had its last. By block: read, compute and
    write; waits: between one block's last tile and the next one's computing.
    """
    rows = [row for rows in by_actor for row in rows]
    blocks, reads, computed = ([row for row in rows if row["what"] == what] for what in ("block", "read", "compute"))
    firsts, lasts, slowest, waits = [], [], 0.0, []
    for mine in by_actor:
        in_order = sorted((row for row in mine if row["what"] == "compute"), key=lambda row: row["start"])
        waits += [after["start"] - row["stop"] for row, after in itertools.pairwise(in_order)]
        firsts.append(in_order[0]["tiles"][0][0])
        lasts.append(in_order[-1]["tiles"][-1][0])
        usual = statistics.median(_tile_seconds(in_order)) if len(_tile_seconds(in_order)) > 1 else 0.0
        slowest = max(slowest, firsts[-1] - in_order[0]["start"] - usual)
    start, stop = max(firsts), min(lasts)
    voxels = sum(voxels for row in computed for _, voxels in row["tiles"])
    steady = sum(voxels for row in computed for at, voxels in row["tiles"] if start < at <= stop)
    compiled = max(0.0, slowest)
    working = max(row["stop"] for row in blocks) - min(row["start"] for row in blocks) - compiled
    ends = {tuple(row["block"]): row["stop"] for row in computed}
    return {
        "voxels": voxels,
        "working_seconds": working,
        "compile_seconds": compiled,
        "rate": voxels / working,
        "steady_rate": steady / (stop - start) if stop > start else None,
        "tile_seconds": [s for mine in by_actor for s in _tile_seconds([r for r in mine if r["what"] == "compute"])],
        "read_seconds": [row["stop"] - row["start"] for row in reads],
        "write_seconds": [row["stop"] - ends[tuple(row["block"])] for row in blocks],
        "wait_seconds": waits,
        "actors": len(by_actor),
    }


def _tile_seconds(computed: list[dict[str, Any]]) -> list[float]:
    """What tiles took, but for the first of each block."""
    return [b[0] - a[0] for row in computed for a, b in itertools.pairwise(row["tiles"])]


if __name__ == "__main__":
    run_as_part({part.__name__: part for part in (job, bare, seed, monai, schedule, honest)})

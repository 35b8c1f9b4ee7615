"""Parts of the benchmark of segmentation.

`PartRunner` starts them as `python -m kasthuri_ray.benchmarks.segmentation_processes PART GIVEN.json FOUND.json`.
Arguments and results are plain values, as JSON takes them.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from kasthuri_ray.benchmarks.harness import run_as_part
from kasthuri_ray.geometry import Box, Zyx, per_axis
from kasthuri_ray.output.layout import SHARD
from kasthuri_ray.segmentation.block_segmenter import BlockSegmenter, Cutout
from kasthuri_ray.segmentation.block_worker import BlockWorker

NETWORK = "UNet_2D"
CLASSES = 2
HALF_LOGIT_RANGE = 3.0  # of random weights, once they are scaled
RSS_PERIOD_S = 0.5
TIMES = "times"  # suffix of a folder beside the output, with a file of JSON lines for each actor


def run_segmentation_job(
    image: str, weights: str, output: str, block: Zyx, actors: int | None = None, compile: str = "on"
) -> dict[str, Any]:
    """Segment as jobs/segment.py does, with times; return the result of `summarize_times` and more."""
    start_time, start = time.time(), time.perf_counter()
    shard = list(per_axis(min, block, SHARD))
    flags = {"image": image, "block": block, "shard": shard, "actors": actors, "compile": compile}
    num_set_aside = _segment(BlockWorkerWithTimes, weights, output, flags)
    seconds = time.perf_counter() - start
    assert num_set_aside == 0, f"{num_set_aside} blocks were set aside"
    by_actor = [
        [json.loads(line) for line in file.read_text().splitlines()] for file in Path(f"{output}.{TIMES}").iterdir()
    ]
    settings = json.loads(Path(f"{output}.ledger", "settings.json").read_text())
    return {
        **summarize_times(by_actor),
        "seconds": seconds,
        "until_first_block": min(row["start"] for rows in by_actor for row in rows) - start_time,
        "arithmetic": settings["arithmetic"],
        "box": settings["box"],
        "margin": settings["margin"],
    }


def _segment(worker: type[BlockWorker], weights: str, output: str, flags: dict[str, Any]) -> int:
    """Segment with actors of a class; return the number of blocks that were set aside."""
    from kasthuri_ray.config.loading import GivenSettings
    from kasthuri_ray.progress import Reporter
    from kasthuri_ray.segmentation.segment import segment_from_flags

    requested = {name: value for name, value in flags.items() if value is not None}
    requested |= {"weights": weights, "output": output, "cache": "none", "device": "cpu"}
    task, network = ("synapse", NETWORK) if weights.endswith(".pt") else (None, None)
    given = GivenSettings(task, network, flags={"segment": requested})
    return segment_from_flags(given, Reporter(), "the same benchmark", worker).num_set_aside


def time_network(block: Sequence[int], seconds: float, compile: str = "on") -> dict[str, Any]:
    """Time the network alone, as the job runs it, on a tile that stays in memory, in turns with square products.

    Return voxels/s of each run, FLOP/s by size, and FLOP a voxel.
    """
    from kasthuri_ray import process_resources

    process_resources.configure_allocator()

    from kasthuri_ray.benchmarks import predictor_processes as parts
    from kasthuri_ray.hardware import Machine
    from kasthuri_ray.inference.predictor import Predictor, prepare_process
    from kasthuri_ray.models.receptive_field import find_receptive_field

    network = parts.make_network(NETWORK)
    receptive_field = find_receptive_field(network, 2)
    machine = Machine.detect("cpu")
    settings = parts.choose_benchmark_settings(network, 2, receptive_field, machine, block, compile=compile)
    prepare_process(settings)
    flop = parts.flop_per_voxel(network, 2)
    run_network = parts.make_network_call(Predictor(network, 2, CLASSES, receptive_field, settings))
    start = time.perf_counter()
    run_network()
    first_seconds, rates, products = time.perf_counter() - start, [], {}
    for size in parts.PRODUCT_SIZES["cpu"]:
        rates += [math.prod(settings.tile) / run for run in parts.time_runs(run_network, seconds, "cpu")]
        products[str(size)] = parts.product_rate("cpu", settings.precision, size, seconds / 4)
    return {
        "rates": rates,
        "products": products,
        "flop_per_voxel": flop,
        "arithmetic": {**settings.__dict__, "tile": list(settings.tile)},
        "first_seconds": first_seconds,
    }


def time_seed_segmentation(size: int, tiles: int) -> dict[str, Any]:
    """Segment as the seed does: float32, eager, one tile of size x size at a time; return voxels/s of each tile."""
    import torch

    from kasthuri_ray import process_resources
    from kasthuri_ray.benchmarks.predictor_processes import make_network

    threads = process_resources.set_threads(1)
    network, rates = make_network(NETWORK), []
    images = np.random.default_rng(0).integers(0, 256, (tiles + 1, size, size), np.uint8)
    probabilities = np.zeros((tiles + 1, size, size), np.float32)
    for number, image in enumerate(images):
        start = time.perf_counter()
        with torch.no_grad():
            logits = network(torch.from_numpy(image.astype(np.float32) / 255)[None, None])
            probabilities[number] = torch.softmax(logits, dim=1)[0, 1].numpy()
        rates.append(size * size / (time.perf_counter() - start))
    return {"rates": rates[1:], "threads": threads}


def time_monai(size: int, overlap: float, shape: tuple[int, int], seconds: float) -> dict[str, Any]:
    """Time MONAI's sliding window, gaussian weights, bf16, on a section of `shape`; return unique voxels/s of each run.

    These are the rates of one tile at a time or of four, whichever is faster; None if MONAI is not installed.
    """
    try:
        from monai.inferers import sliding_window_inference
    except ImportError:
        return {"rates": None}
    import torch

    from kasthuri_ray import process_resources
    from kasthuri_ray.benchmarks.predictor_processes import make_network, time_runs

    threads = process_resources.set_threads(1)
    network, image = make_network(NETWORK), torch.rand(1, 1, *shape)
    best: list[float] = []

    for batch in (1, 4):

        @torch.inference_mode()
        def segment_section(batch: int = batch) -> Any:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits = sliding_window_inference(image, (size, size), batch, network, overlap=overlap, mode="gaussian")
            return torch.softmax(logits.float(), dim=1)  # type: ignore[union-attr]

        segment_section()
        rates = [math.prod(shape) / run for run in time_runs(segment_section, seconds, "cpu")]
        best = max(best, rates, key=lambda rates: statistics.median(rates) if rates else 0.0)
    return {"rates": best, "threads": threads}


def time_scheduling(shape: Zyx, block: Zyx, weights: str, output: str) -> dict[str, Any]:
    """Segment with actors that only write the ledger; return the time of all blocks and the memory of the driver.

    seconds: from the first record to the last. rss: resident bytes of this process, the driver, before the first block,
    and the highest afterwards.
    """
    ledger = Path(f"{output}.ledger", "s0")
    rss: list[int] = []
    stop = threading.Event()

    def sample_rss() -> None:
        while not stop.wait(RSS_PERIOD_S):
            if ledger.exists():
                rss.append(resident_bytes())

    sampler = threading.Thread(target=sample_rss, daemon=True)
    sampler.start()
    flags = {"image": f"phantom://em?shape={','.join(map(str, shape))}", "block": block, "shard": block, "chunk": block}
    num_set_aside = _segment(BlockWorkerWithoutNetwork, weights, output, flags)
    stop.set()
    sampler.join()
    assert num_set_aside == 0, f"{num_set_aside} blocks were set aside"
    with os.scandir(ledger) as entries:
        times = [entry.stat().st_mtime for entry in entries]
    seconds = max(times) - min(times)
    return {"blocks": len(times), "seconds": seconds, "rss": [rss[0], max(rss)] if rss else None}


def resident_bytes() -> int:
    """Return the resident memory of this process; 0 without /proc."""
    with suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def compare_precisions(data: str, weights: str) -> dict[str, Any]:
    """Compare a trained network in the precision of the job with float32, eager, on the test sections of a zarr.

    within: share of voxels whose probabilities differ by at most 0.02. most: the largest difference. f1: of both, at
    the threshold of the run. The zarr holds em and labels.
    """
    from kasthuri_ray import process_resources

    process_resources.configure_allocator()
    from dataclasses import replace

    from kasthuri_ray.benchmarks.predictor_processes import choose_benchmark_settings
    from kasthuri_ray.config.settings import Settings
    from kasthuri_ray.hardware import Machine
    from kasthuri_ray.inference.predictor import Predictor, prepare_process
    from kasthuri_ray.inference.tiling import VolumePart
    from kasthuri_ray.labels import to_uint8
    from kasthuri_ray.models.receptive_field import find_receptive_field
    from kasthuri_ray.segmentation.trained_network import build_trained_network, read_trained_network
    from kasthuri_ray.volumes.opening import open_volume

    trained = read_trained_network(weights)
    assert trained.settings is not None, f"{weights} is not a run: its task is unknown"
    settings = Settings.model_validate(trained.settings)
    image = open_volume(f"{data}/em")
    truth = open_volume(f"{data}/{settings.task.task_type}")
    first = settings.task.z_test[0] if settings.task.z_test else image.bounds.stop[0] - 3
    box = Box((first, *image.bounds.start[1:]), image.bounds.stop).intersect(truth.bounds)
    voxels = to_uint8(image.read(box), trained.intensity or (0.0, 255.0))
    network, dim = build_trained_network(settings, trained), settings.network.dim
    receptive_field = find_receptive_field(network, dim)
    chosen = choose_benchmark_settings(network, dim, receptive_field, Machine.detect("cpu"), box.shape, compile="on")
    prepare_process(chosen)
    plain = replace(chosen, fold=False, compile=False)
    ways = {"ours": chosen, "plain": plain, "float32": replace(plain, precision="float32")}
    probabilities = {}
    for name, inference in ways.items():
        predictor = Predictor(network, dim, settings.network.classes, receptive_field, inference)
        probabilities[name] = predictor.predict(VolumePart(voxels, box, box), box)
    labels = truth.read(box)
    threshold = trained.threshold or 0.5
    assert isinstance(threshold, float), f"{weights} has several classes"
    exact = probabilities["float32"].astype(np.int16)
    differences = {name: np.abs(probabilities[name] - exact) / 255 for name in ("ours", "plain")}
    return {
        "within": {name: float((difference <= 0.02).mean()) for name, difference in differences.items()},
        "most": float(differences["ours"].max()),
        "f1": {name: _f1(values, labels, threshold) for name, values in probabilities.items()},
        "threshold": threshold,
        "task": settings.task.task_type,
        "box": str(box),
        "precision": f"{chosen.precision}{', folded' if chosen.fold else ''}",
        "spans": [int(probabilities["float32"].min()), int(probabilities["float32"].max())],
    }


def _f1(probabilities: np.ndarray, labels: np.ndarray, threshold: float) -> float:
    from kasthuri_ray.metrics.thresholds import outcomes_at
    from kasthuri_ray.metrics.voxel_counts import VoxelCounts

    foreground = probabilities / 255
    counts = VoxelCounts.zeros()
    counts.add(foreground, (foreground[0] > 0.5).astype(np.int64), labels)
    return outcomes_at(counts.by_class[0], threshold).f1


def make_weights(path: str) -> str:
    """Write random weights of UNet_2D, scaled so that probabilities spread over 0.05 to 0.95; return the path."""
    import torch

    from kasthuri_ray.benchmarks.predictor_processes import make_network
    from kasthuri_ray.models.checkpoints import checkpoint_bytes

    network: Any = make_network(NETWORK)
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.random((1, 1, 16, 16), np.float32).repeat(8, 2).repeat(8, 3))
    with torch.no_grad():
        logits = network(image)
        differences = logits[:, 1] - logits[:, 0]
        final = network.conv_final
        final.weight.sub_(final.weight[:1].clone())
        final.bias.sub_(final.bias[:1].clone())
        low, high = (float(torch.quantile(differences, q)) for q in (0.02, 0.98))
        final.weight[1].mul_(2 * HALF_LOGIT_RANGE / (high - low))
        final.bias[1].sub_((low + high) / 2).mul_(2 * HALF_LOGIT_RANGE / (high - low))
    Path(path).write_bytes(checkpoint_bytes(network.state_dict()))
    return path


class SegmenterWithTimes(BlockSegmenter):
    """Segmenter that writes down when each step of its blocks started and stopped, and when each tile was done."""

    def segment(self, block: Box, write: Callable[[np.ndarray], bool]) -> tuple[dict[str, Any], bool]:
        with self._timed("block", block):
            return super().segment(block, write)

    def fetch(self, block: Box) -> Cutout:
        with self._timed("read", block):
            return super().fetch(block)

    def predict(self, cutout: Cutout, block: Box, on_voxels: Callable[[int], None] = lambda voxels: None) -> np.ndarray:
        tiles: list[tuple[float, int]] = []

        def add_tile(voxels: int) -> None:
            tiles.append((time.time(), voxels))
            on_voxels(voxels)

        with self._timed("compute", block, tiles):
            return super().predict(cutout, block, add_tile)

    @contextmanager
    def _timed(self, what: str, block: Box, tiles: list[tuple[float, int]] | None = None) -> Iterator[None]:
        start = time.time()
        yield
        row = {"what": what, "block": block.start, "start": start, "stop": time.time(), "tiles": tiles or []}
        file = Path(f"{self.job.output}.{TIMES}", f"{os.getpid()}.jsonl")
        file.parent.mkdir(exist_ok=True)
        with file.open("a") as target:
            target.write(json.dumps(row) + "\n")  # in one write, so that threads do not mix their lines


class SegmenterWithoutNetwork(BlockSegmenter):
    """Segmenter that reads and writes nothing."""

    def set_up(self) -> dict[str, Any]:
        return {"machine": ""}

    def segment(self, block: Box, write: Callable[[np.ndarray], bool]) -> tuple[dict[str, Any], bool]:
        return {}, False


# The names of these classes begin with BlockWorker: by that `harness` knows the role of their processes.
class BlockWorkerWithTimes(BlockWorker):
    """Worker that writes down the times of its blocks."""

    segmenter_class = SegmenterWithTimes


class BlockWorkerWithoutNetwork(BlockWorker):
    """Worker that writes only the ledger."""

    segmenter_class = SegmenterWithoutNetwork


def summarize_times(by_actor: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """Return what the times of the actors add up to; voxels are those that the network computed, with margins.

    working_seconds: from the start of the first block to the end of the last, without compile_seconds.
    compile_seconds: what the first tile took longer than the others, on the slowest actor: it included compiling.
    rate: voxels/s of the working seconds.
    steady_rate: voxels/s from when all actors had done their first tile to when one had done its last.
    read_seconds, write_seconds: by block. wait_seconds: from the last tile of a block to the start of the next one.
    """
    rows = [row for rows in by_actor for row in rows]
    blocks, reads, computed = (_select(rows, what) for what in ("block", "read", "compute"))
    by_actor = [sorted(_select(rows, "compute"), key=lambda row: row["start"]) for rows in by_actor]
    first_tiles = [rows[0]["tiles"][0][0] for rows in by_actor]
    last_tiles = [rows[-1]["tiles"][-1][0] for rows in by_actor]
    tile_seconds = [_tile_seconds(rows) for rows in by_actor]
    compile_seconds = 0.0
    for first_tile, compute_rows, seconds in zip(first_tiles, by_actor, tile_seconds, strict=True):
        usual = statistics.median(seconds) if len(seconds) > 1 else 0.0
        compile_seconds = max(compile_seconds, first_tile - compute_rows[0]["start"] - usual)
    start, stop = max(first_tiles), min(last_tiles)
    voxels = sum(voxels for row in computed for _, voxels in row["tiles"])
    steady = sum(voxels for row in computed for at, voxels in row["tiles"] if start < at <= stop)
    working = max(row["stop"] for row in blocks) - min(row["start"] for row in blocks) - compile_seconds
    ends = {tuple(row["block"]): row["stop"] for row in computed}
    return {
        "voxels": voxels,
        "working_seconds": working,
        "compile_seconds": compile_seconds,
        "rate": voxels / working,
        "steady_rate": steady / (stop - start) if stop > start else None,
        "tile_seconds": [seconds for each in tile_seconds for seconds in each],
        "read_seconds": [row["stop"] - row["start"] for row in reads],
        "write_seconds": [row["stop"] - ends[tuple(row["block"])] for row in blocks],
        "wait_seconds": [b["start"] - a["stop"] for rows in by_actor for a, b in itertools.pairwise(rows)],
        "actors": len(by_actor),
    }


def _select(rows: list[dict[str, Any]], what: str) -> list[dict[str, Any]]:
    return [row for row in rows if row["what"] == what]


def _tile_seconds(computed: list[dict[str, Any]]) -> list[float]:
    """Return the seconds of each tile except for the first one of each block."""
    return [b[0] - a[0] for row in computed for a, b in itertools.pairwise(row["tiles"])]


if __name__ == "__main__":
    run_as_part(
        {
            "job": run_segmentation_job,
            "bare": time_network,
            "seed": time_seed_segmentation,
            "monai": time_monai,
            "schedule": time_scheduling,
            "honest": compare_precisions,
        }
    )

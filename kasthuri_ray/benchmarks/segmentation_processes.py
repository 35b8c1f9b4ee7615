"""Parts of the benchmark of segmentation.

`PartRunner` starts them as `python -m kasthuri_ray.benchmarks.segmentation_processes PART GIVEN.json FOUND.json`.
Arguments and results are plain values, as JSON takes them.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from kasthuri_ray.benchmarks.harness import run_as_part, sample_process
from kasthuri_ray.benchmarks.job_times import summarize_times
from kasthuri_ray.geometry import Box, Zyx, per_axis
from kasthuri_ray.output.layout import SHARD
from kasthuri_ray.segmentation.block_segmenter import BlockSegmenter, Cutout
from kasthuri_ray.segmentation.block_worker import BlockWorker

NETWORK = "UNet_2D"
CLASSES = 2
HALF_LOGIT_RANGE = 3.0  # of random weights, once they are scaled
TIMES = "times"  # suffix of a folder beside the output, with a file of JSON lines for each actor


def run_segmentation_job(
    image: str,
    weights: str,
    output: str,
    block: Zyx,
    actors: int | None = None,
    compile: str = "on",
    fold: str = "auto",
) -> dict[str, Any]:
    """Segment as jobs/segment.py does, with times; return the result of `summarize_times` and more."""
    start_time, start = time.time(), time.perf_counter()
    shard = list(per_axis(min, block, SHARD))
    flags = {"image": image, "block": block, "shard": shard, "actors": actors, "compile": compile, "fold": fold}
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
        "actor_peak": max(row["peak"] for rows in by_actor for row in rows),
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


def time_network(block: Sequence[int], seconds: float, compile: str = "on", fold: str = "auto") -> dict[str, Any]:
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
    settings = parts.choose_benchmark_settings(network, 2, receptive_field, machine, block, compile, fold)
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
        "kind": machine.kind,
        "default_tile": list(parts.choose_benchmark_settings(network, 2, receptive_field, machine).tile),
    }


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


def peak_resident_bytes() -> int:
    """Return the highest resident memory of this process; 0 without /proc."""
    with suppress(OSError):
        return sample_process(os.getpid(), "").peak
    return 0


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
        row["peak"] = peak_resident_bytes() if what == "block" else 0
        file = Path(f"{self.job.output}.{TIMES}", f"{os.getpid()}.jsonl")
        file.parent.mkdir(exist_ok=True)
        with file.open("a") as target:
            target.write(json.dumps(row) + "\n")  # in one write, so that threads do not mix their lines


# The name of this class begins with BlockWorker: by that `harness` knows the role of its processes.
class BlockWorkerWithTimes(BlockWorker):
    """Worker that writes down the times of its blocks."""

    segmenter_class = SegmenterWithTimes


if __name__ == "__main__":
    run_as_part(
        {
            "job": run_segmentation_job,
            "bare": time_network,
            "honest": compare_precisions,
        }
    )

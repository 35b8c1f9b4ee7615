"""What the processes of the segmentation's benchmark do: see `segment.py`. Parts take and give what JSON holds."""

from __future__ import annotations

import json
import math
import os
import statistics
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from kasthuri_ray.benchmarks.processes import be_a_part
from kasthuri_ray.benchmarks.segment_times import TIMES, SegmenterOfNothing, SegmenterWithTimes, work_of
from kasthuri_ray.geometry import Box, Zyx
from kasthuri_ray.segmentation.actor import Segmenter
from kasthuri_ray.segmentation.grid import SHARD

NETWORK = "UNet_2D"
SPAN = 3.0  # half the range of logits that fresh weights are made to give
RSS_PERIOD_S = 0.5
CLASSES = 2


def job(
    image: str, weights: str, output: str, block: Zyx, actors: int | None = None, compile: str = "on"
) -> dict[str, Any]:
    """Segment as jobs/segment.py does, with times: gives `work_of` what the actors wrote down, and more."""
    begun, start = time.time(), time.perf_counter()
    shard = [min(b, s) for b, s in zip(block, SHARD, strict=True)]
    flags = {"image": image, "block": block, "shard": shard, "actors": actors, "compile": compile}
    code = _run_job(SegmenterWithTimes, weights, output, flags)
    seconds = time.perf_counter() - start
    assert code == 0, f"the job ended with {code}"
    by_actor = [
        [json.loads(line) for line in file.read_text().splitlines()] for file in Path(f"{output}.{TIMES}").iterdir()
    ]
    settings = json.loads(Path(f"{output}.ledger", "settings.json").read_text())
    return {
        **work_of(by_actor),
        "seconds": seconds,
        "until_first_block": min(row["start"] for rows in by_actor for row in rows) - begun,
        "arithmetic": settings["arithmetic"],
        "box": settings["box"],
        "margin": settings["margin"],
    }


def _run_job(actor: type[Segmenter], weights: str, output: str, flags: dict[str, Any]) -> int:
    from kasthuri_ray.segmentation import crew, segment

    asked = {name: value for name, value in flags.items() if value is not None}
    asked |= {"weights": weights, "output": output, "cache": "none", "device": "cpu"}
    layers: dict[str, Any] = {"config": None, "assignments": [], "flags": {"segment": asked}}
    task, network = ("synapse", NETWORK) if weights.endswith(".pt") else (None, None)
    with mock.patch.object(crew, "Segmenter", actor):
        return segment.segment_as_told(task, network, layers, "segment.py", [])


def bare(block: Zyx, seconds: float, compile: str = "on") -> dict[str, Any]:
    """The network alone, as the job runs it, on a tile that stays in memory; and square products in turns with it.

    voxels/s of each run, FLOP/s by size, FLOP a voxel.
    """
    from kasthuri_ray import device as hardware

    hardware.keep_memory()

    from kasthuri_ray.benchmarks import predictor_parts as parts
    from kasthuri_ray.models.receptive_field import reach_of
    from kasthuri_ray.segmentation.predictor import Machine, Predictor, prepare

    network = parts.make_network(NETWORK)
    reach = reach_of(network, 2)
    arithmetic = parts.decide_for(network, 2, reach, Machine.here("cpu"), tuple(block), compile=compile)  # type: ignore[arg-type]
    prepare(arithmetic)
    flop = parts.flop_per_voxel(network, 2)
    alone = parts.resident(Predictor(network, 2, CLASSES, reach, arithmetic))
    start = time.perf_counter()
    alone()
    first, rates, products = time.perf_counter() - start, [], {}
    for size in parts.SIZES["cpu"]:
        rates += [math.prod(arithmetic.tile) / run for run in parts.timed(alone, seconds, "cpu")]
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

    from kasthuri_ray import device as hardware
    from kasthuri_ray.benchmarks.predictor_parts import make_network

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

    from kasthuri_ray import device as hardware
    from kasthuri_ray.benchmarks.predictor_parts import make_network, timed

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
        rates = [math.prod(shape) / run for run in timed(section, seconds, "cpu")]
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
    code = _run_job(SegmenterOfNothing, weights, output, flags)
    ended.set()
    watching.join()
    assert code == 0, f"the job ended with {code}"
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
    from kasthuri_ray import device as hardware

    hardware.keep_memory()
    from dataclasses import replace

    from kasthuri_ray.benchmarks.predictor_parts import decide_for
    from kasthuri_ray.config import Settings
    from kasthuri_ray.models.receptive_field import reach_of
    from kasthuri_ray.segmentation.predictor import Machine, Predictor, prepare
    from kasthuri_ray.segmentation.trained import build_trained, read_trained
    from kasthuri_ray.volumes import open_volume
    from kasthuri_ray.volumes.labels import to_uint8

    trained = read_trained(weights)
    assert trained.settings is not None, f"{weights} is no run: its task is not known"
    settings = Settings.model_validate(trained.settings)
    image = open_volume(f"{data}/em")
    truth = open_volume(f"{data}/{settings.task.task_type}")
    first = settings.task.z_test[0] if settings.task.z_test else image.bounds.stop[0] - 3
    box = Box((first, *image.bounds.start[1:]), image.bounds.stop).intersect(truth.bounds)
    voxels = to_uint8(image.read(box), trained.intensity or (0.0, 255.0))
    network = build_trained(settings, trained)
    reach = reach_of(network, settings.network.dim)
    chosen = decide_for(network, settings.network.dim, reach, Machine.here("cpu"), box.shape, compile="on")
    prepare(chosen)
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
    from kasthuri_ray.evaluation.metrics import Counts, foreground_f1

    foreground = np.minimum(probabilities.sum(axis=0, dtype=np.float64) / 255, 1.0)
    counts = Counts.zeros()
    counts.add(foreground, (foreground > 0.5).astype(np.int64), labels)
    return foreground_f1(counts, threshold)


def make_weights(path: str) -> str:
    """A file of weights of UNet_2D that nobody trained, whose probabilities spread over 0.05 to 0.95."""
    import torch

    from kasthuri_ray.benchmarks.predictor_parts import make_network
    from kasthuri_ray.models.weights import pack

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
    Path(path).write_bytes(pack(network.state_dict()))
    return path


if __name__ == "__main__":
    be_a_part({part.__name__: part for part in (job, bare, seed, monai, schedule, honest)})

"""Parts of the check of a GPU machine. Need torch and numpy alone.

`PartRunner` starts them as `python -m kasthuri_ray.benchmarks.gpu_processes PART GIVEN.json FOUND.json`.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from kasthuri_ray.benchmarks.harness import run_as_part
from kasthuri_ray.benchmarks.predictor_processes import (
    make_network,
    measure_ceilings,
    measure_network,
    network_settings,
)
from kasthuri_ray.errors import GpuMemoryTooSmall
from kasthuri_ray.geometry import Box, Zyx
from kasthuri_ray.hardware import Machine
from kasthuri_ray.inference.inference_settings import InferenceSettings
from kasthuri_ray.inference.predictor import Predictor, prepare_process
from kasthuri_ray.inference.tiling import VolumePart
from kasthuri_ray.models.folded_unet import can_fold
from kasthuri_ray.models.receptive_field import find_receptive_field
from kasthuri_ray.models.unet import UNet, build_network
from kasthuri_ray.training.compute_plan import ComputePlan, choose_compute_plan
from kasthuri_ray.training.learner import Learner, LearnerSettings

LEARNER = LearnerSettings(
    optimizer="AdamW", learning_rate=0.001, weight_decay=0.01, momentum=0.9, beta1=0.9, beta2=0.999,
    scheduler="constant", warmup=0.0, plateau_factor=0.1, plateau_patience=3, gradient_clip=1.0, ema=0.0,
    task_type="synapse", dim=2, classes=2, loss="dice_ce", class_weights=None, augmentations="em", seed=0, epochs=1,
    batch=8,
)  # fmt: skip
TILES: dict[int, Zyx] = {2: (1, 240, 240), 3: (128, 120, 120)}  # little more than the margins
BLOCKS: dict[int, Zyx] = {2: (2, 150, 140), 3: (8, 16, 16)}
NEAR = 5  # of 255: 0.02


@dataclass
class ConstantBatch:
    """Tiles and labels that stay in memory: uint8 N, z, y, x, and their numbers."""

    image: np.ndarray
    label: np.ndarray
    number: np.ndarray


def compare_predictors(name: str, device: str, compile: bool = False, **changes: Any) -> dict[str, Any]:
    """Compare probabilities of a network on a device with those on the CPU in float32, whole and in blocks.

    changes: settings of the network that differ. Returns `rows`: for each way the share of voxels within 0.02, and the
    largest difference of 255.
    """
    dim = int(network_settings(name)["dim"])
    image = _blobs(BLOCKS[dim])
    network = _spread_network(name, image, changes)
    exact = _predict(network, dim, image, InferenceSettings("cpu", "float32", False, 2, TILES[dim], 1))
    rule = Machine.detect(device).rule
    plain = InferenceSettings(device, "float32", False, 2, TILES[dim], 2)
    ways = {"float32": plain}
    if compile:
        ways = {"float32, compiled": replace(plain, compile=True)}
    else:
        ways["float32, tta"] = replace(plain, tta=True)
    if rule.precision != "float32" and not compile:
        ways[rule.precision] = replace(plain, precision=rule.precision)
    if can_fold(network):
        ways |= {f"{way}, folded": replace(settings, fold=True) for way, settings in ways.items()}
    rows = {}
    for way, settings in ways.items():
        expected = exact
        if settings.tta:
            expected = _predict(network, dim, image, replace(settings, device="cpu", fold=False))
        difference = np.abs(_predict(network, dim, image, settings).astype(int) - expected)
        rows[way] = {"within": float((difference <= NEAR).mean()), "most": int(difference.max())}
    return {"rows": rows, "range": [int(exact.min()), int(exact.max())]}


def _predict(network: nn.Module, dim: int, image: np.ndarray, settings: InferenceSettings) -> np.ndarray:
    """Return probabilities of two halves of an image, one after the other."""
    bounds = Box((0, 0, 0), image.shape)
    part = VolumePart(image, bounds, bounds)
    predictor = Predictor(copy.deepcopy(network), dim, 2, find_receptive_field(network, dim), settings)
    halves = list(bounds.cells((image.shape[0], image.shape[1], image.shape[2] // 2), bounds.start))
    return np.concatenate([predictor.predict(part, half)[0] for half in halves], axis=-1)


def _blobs(shape: Zyx) -> np.ndarray:
    """Return grey levels with large and small structures."""
    rng = np.random.default_rng(0)
    coarse = np.kron(rng.random([-(-n // 6) for n in shape]), np.ones((6, 6, 6)))[tuple(map(slice, shape))]
    return (190 * coarse + 60 * rng.random(shape)).astype(np.uint8)


@torch.no_grad()
def _spread_network(name: str, image: np.ndarray, changes: dict[str, Any]) -> nn.Module:
    """Return a network whose probabilities on an image are spread over 0 to 1, as those of a trained one."""
    network = make_network(name, **changes)
    dim = int(network_settings(name)["dim"])
    side = 2 * max(cast(UNet, network).factors)
    tensor = torch.from_numpy(np.resize(image, (side,) * dim)).float().div(255)[None, None]
    for _ in range(10):  # statistics of batch norms
        network.train()(tensor)
    logits = network.eval()(tensor)
    difference = logits[:, 1] - logits[:, 0]
    final: Any = network.conv_final
    scale = 3 / difference.std()
    final.weight.mul_(scale)
    final.bias.mul_(scale)
    final.bias[1] -= scale * difference.median()
    return network


def compare_training(device: str, compile: bool = False) -> dict[str, Any]:
    """Train on one batch on the CPU in float32 and in each way of a device; return the losses of every step."""
    batch = _make_batch(8, 64)
    best = Machine.detect(device).rule.precision
    if compile:
        ways = {f"{precision}, compiled": ComputePlan(precision, True, 1) for precision in ("float32", best)}
    else:
        ways = {precision: ComputePlan(precision, False, 1) for precision in ("float32", best)}
        ways["float32, contiguous"] = ComputePlan("float32", False, 1, channels_last=False)
    losses = {way: _losses(device, plan, batch) for way, plan in ways.items()}
    return {"exact": _losses("cpu", ComputePlan("float32", False, 1), batch), "losses": losses}


def _losses(device: str, plan: ComputePlan, batch: ConstantBatch, steps: int = 8) -> list[float]:
    torch.manual_seed(0)
    network = build_network({"start_filters": 8, "dim": 2})
    settings = replace(LEARNER, augmentations="none")  # random numbers differ between devices
    learner = Learner(network, settings, torch.device(device), plan)
    return [learner.train_epoch(epoch, [batch], []) for epoch in range(steps)]


def _make_batch(num_tiles: int, size: int) -> ConstantBatch:
    images = np.stack([_blobs((1, size, size)) for _ in range(num_tiles)])
    return ConstantBatch(images, (images > 140).astype(np.uint8), np.arange(num_tiles))


def exhaust_memory(device: str) -> dict[str, Any]:
    """Ask for more memory than the GPU has; return whether the error is ours, and whether the next block works."""
    network, box = make_network("UNet_2D"), Box((0, 0, 0), (1, 64, 64))
    settings = InferenceSettings(device, "float32", False, 1, TILES[2], 1)
    field = find_receptive_field(network, 2)
    part = VolumePart(_blobs(box.shape), box, box)
    refused = False
    try:
        Predictor(network, 2, 2, field, replace(settings, batch=200_000)).predict(part, box)
    except GpuMemoryTooSmall:
        refused = True
    torch.cuda.empty_cache()
    return {"refused": refused, "resumes": bool(Predictor(network, 2, 2, field, settings).predict(part, box).any())}


def time_training(device: str, seconds: float, compile: str = "auto") -> dict[str, Any]:
    """Return tiles/s of training UNet_2D on one batch of 256 x 256 that stays in memory, by the rule of the device."""
    prepare_process(InferenceSettings(device, "float32", False, 2, TILES[2], 1))
    network = build_network(network_settings("UNet_2D"))
    machine = Machine.detect(device)
    plan, _ = choose_compute_plan(machine, "auto", compile, 1, 10**12, 2_000_000)
    learner, batch = Learner(network, LEARNER, torch.device(device), plan), _make_batch(LEARNER.batch, 256)
    learner.train_epoch(0, [batch], [])
    rates: list[float] = []
    start = time.perf_counter()
    while time.perf_counter() - start < seconds or len(rates) < 2:
        before = time.perf_counter()
        learner.train_epoch(0, [batch], [])  # ends with the loss, for which it waits
        rates.append(LEARNER.batch / (time.perf_counter() - before))
    return {"tiles_per_second": statistics.median(rates), "plan": str(plan), "machine": asdict(machine)}


PARTS: dict[str, Callable[..., dict[str, Any]]] = {
    "ceilings": measure_ceilings,
    "measure": measure_network,
    "predict": compare_predictors,
    "train": compare_training,
    "memory": exhaust_memory,
    "training_speed": time_training,
}

if __name__ == "__main__":
    run_as_part(PARTS)

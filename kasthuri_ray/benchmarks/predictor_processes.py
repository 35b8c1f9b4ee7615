"""Parts of the benchmark of the predictor, and the limits of the device. Needs neither Ray nor pydantic.

`PartRunner` starts them as `python -m kasthuri_ray.benchmarks.predictor_processes PART GIVEN.json FOUND.json`.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kasthuri_ray import hardware, process_resources
from kasthuri_ray.benchmarks.harness import run_as_part
from kasthuri_ray.geometry import Box, Zyx, per_axis
from kasthuri_ray.hardware import Machine
from kasthuri_ray.inference.inference_settings import (
    InferenceSettings,
    InferenceWork,
    RequestedInference,
    choose_inference_settings,
)
from kasthuri_ray.inference.predictor import Predictor, prepare_process
from kasthuri_ray.inference.tiling import VolumePart
from kasthuri_ray.models.receptive_field import ReceptiveField, find_receptive_field
from kasthuri_ray.models.unet import build_network
from kasthuri_ray.output.block_grid import default_block_shape
from kasthuri_ray.output.layout import plan_layout

NETWORK_CONFIGS = Path(__file__).parents[1] / "networkconfig"
LARGE_VOLUME: Zyx = (1850, 26624, 21504)  # the whole Kasthuri volume at 3 nm, for which settings are chosen

PRODUCT_SIZES = {"cpu": (1024, 2048, 4096), "cuda": (2048, 4096, 8192)}  # of square matrices
COPY_BYTES = {"cpu": 1 << 28, "cuda": 1 << 30}  # more than any cache holds
MIN_RUNS = 3  # of each measurement, however long one takes

CONVOLUTIONS = (nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose2d, nn.ConvTranspose3d)
POOLS = (nn.MaxPool2d, nn.MaxPool3d)


def network_settings(name: str) -> dict[str, Any]:
    """Return the content of the file of a built-in network."""
    return dict(json.loads((NETWORK_CONFIGS / f"{name}.json").read_text()))


def make_network(name: str, **changes: Any) -> nn.Module:
    """Return a built-in network with random weights, the same each time. changes: settings that differ."""
    torch.manual_seed(0)
    return build_network(network_settings(name) | changes).eval()


def choose_benchmark_settings(
    network: nn.Module,
    dim: int,
    receptive_field: ReceptiveField,
    machine: Machine,
    block: Sequence[int] | None = None,
    compile: str = "auto",
    fold: str = "auto",
) -> InferenceSettings:
    """Return the inference settings of a large job on such machines. block: z, y, x; by default that of the job."""
    if block is None:
        block = default_block_shape(LARGE_VOLUME, plan_layout(LARGE_VOLUME), receptive_field.margin)
    work, requested = (
        InferenceWork(per_axis(int, block), math.prod(LARGE_VOLUME)),
        RequestedInference(compile=compile, fold=fold),
    )
    return choose_inference_settings(network, dim, receptive_field, machine, work, requested)


def time_runs(run: Callable[[], Any], seconds: float, device: str) -> list[float]:
    """Return the seconds of each of several runs: as many as fit into `seconds`, and at least MIN_RUNS."""
    durations: list[float] = []
    while sum(durations) < seconds or len(durations) < MIN_RUNS:
        _synchronize(device)
        start = time.perf_counter()
        run()
        _synchronize(device)
        durations.append(time.perf_counter() - start)
    return durations


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def product_rate(device: str, precision: str, size: int, seconds: float) -> float:
    """Return the median FLOP/s of products of square matrices."""
    a, b = (torch.rand(size, size, device=device).to(hardware.NUMBER_FORMATS[precision]) for _ in range(2))
    product = torch.empty_like(a)
    torch.mm(a, b, out=product)
    runs = time_runs(lambda: torch.mm(a, b, out=product), seconds, device)
    return 2 * size**3 / float(np.median(runs))


def copy_rate(device: str, seconds: float) -> float:
    """Return the median bytes/s that a copy reads and writes together."""
    source = torch.ones(COPY_BYTES[device], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    runs = time_runs(lambda: target.copy_(source), seconds, device)
    return 2 * source.numel() / float(np.median(runs))


def make_network_call(predictor: Predictor) -> Callable[[], Tensor]:
    """Return a function that runs the network alone, once, on a batch of whole tiles that stays on the device."""
    settings, dim = predictor.settings, predictor.dim
    shape = (settings.batch, 1, *settings.tile[-dim:])
    grey = torch.randint(0, 256, shape, dtype=torch.uint8, device=predictor.device)
    image = grey.contiguous(memory_format=hardware.memory_format(dim, predictor.device)).float().div_(255)

    @torch.inference_mode()
    def run() -> Tensor:
        with hardware.autocast(settings.precision, predictor.device):
            return predictor.network(image)

    return run


def network_work(network: nn.Module, dim: int, precision: str) -> list[tuple[str, float, float]]:
    """Return the work of each convolution and pool: name, FLOP a voxel of the tile, bytes a voxel read and written.

    Elementwise operations count as nothing, since they can be fused with these layers.
    """
    work: list[tuple[str, float, float]] = []
    sides = tuple(4 * factor for factor in getattr(network, "factors", (8,) * dim))
    num_voxels, item_bytes = math.prod(sides), hardware.NUMBER_FORMATS[precision].itemsize

    def make_hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            flop = 0.0
            if isinstance(layer, CONVOLUTIONS):
                flop = 2 * output.numel() * layer.weight.numel() / layer.out_channels
            elif isinstance(layer, TRANSPOSED):
                flop = 2 * inputs[0].numel() * layer.weight.numel() / layer.in_channels
            num_bytes = item_bytes * (inputs[0].numel() + output.numel())
            work.append((name, flop / num_voxels, num_bytes / num_voxels))

        return hook

    layers = [(n, m) for n, m in network.named_modules() if isinstance(m, CONVOLUTIONS + TRANSPOSED + POOLS)]
    hooks = [layer.register_forward_hook(make_hook(name)) for name, layer in layers]  # type: ignore[arg-type]
    try:
        with torch.inference_mode():
            network(torch.zeros(1, getattr(network, "in_channels", 1), *sides))
    finally:
        for handle in hooks:
            handle.remove()
    return work


def flop_per_voxel(network: nn.Module, dim: int) -> float:
    """Return the FLOP of all convolutions; a multiplication and an addition count as one each."""
    return sum(flop for _, flop, _ in network_work(network, dim, "float32"))


def measure_ceilings(device: str, precision: str, seconds: float) -> dict[str, Any]:
    """Return the limits of this device: bytes/s of a copy, and FLOP/s of square products by their size."""
    if device == "cpu":
        process_resources.configure_allocator()
        torch.set_num_threads(process_resources.set_threads(1))
    products = {str(size): product_rate(device, precision, size, seconds) for size in PRODUCT_SIZES[device]}
    return {"copy": copy_rate(device, seconds), "products": products}


def measure_network(
    name: str,
    device: str,
    seconds: float,
    block: list[int] | None = None,
    compile: str = "auto",
    fold: str = "auto",
) -> dict[str, Any]:
    """Return voxels/s of a network alone and of `Predictor.predict`, its work a voxel, and its memory.

    block: z, y, x, for which settings are chosen; by default that of a large volume.
    """
    if device == "cpu":
        process_resources.configure_allocator()
    network = make_network(name)
    dim = int(network_settings(name)["dim"])
    machine, receptive_field = Machine.detect(device), find_receptive_field(network, dim)
    settings = choose_benchmark_settings(network, dim, receptive_field, machine, block, compile, fold)
    prepare_process(settings)
    work = network_work(network, dim, settings.precision)
    start = time.perf_counter()
    predictor = Predictor(network, dim, 2, receptive_field, settings)
    run_network = make_network_call(predictor)
    run_network()
    _synchronize(device)
    first_seconds = time.perf_counter() - start
    network_seconds = time_runs(run_network, seconds, device)
    num_predicted, predict_seconds = _time_predict(predictor, seconds)
    num_voxels = math.prod(settings.tile) * settings.batch
    return {
        "arithmetic": settings.__dict__,
        "margin": receptive_field.margin,
        "machine": machine.__dict__,
        "first_seconds": first_seconds,
        "resident": [num_voxels / run for run in network_seconds],
        "predict": [num_predicted / run for run in predict_seconds],
        "layers": work,
        "card_peak": torch.cuda.max_memory_allocated() if device == "cuda" else None,
    }


def _time_predict(predictor: Predictor, seconds: float) -> tuple[int, list[float]]:
    """Return the voxels that are computed for a small block of whole tiles in memory, and the seconds of each run."""
    settings, margin = predictor.settings, predictor.margin
    core = [n - 2 * m for n, m in zip(settings.tile, margin, strict=True)]
    if predictor.dim == 2:
        core[0] = max(2, 2 * settings.batch)
    block = Box.at((0, 0, 0), core)
    grown = block.grown(margin)
    part = VolumePart(np.random.default_rng(0).integers(0, 256, grown.shape, np.uint8), grown, grown)
    computed: list[int] = []
    predictor.predict(part, block, on_voxels=computed.append)
    runs = time_runs(lambda: predictor.predict(part, block), seconds, settings.device)
    return sum(computed), runs


if __name__ == "__main__":
    run_as_part({"ceilings": measure_ceilings, "measure": measure_network})

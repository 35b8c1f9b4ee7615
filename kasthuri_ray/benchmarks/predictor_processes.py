"""What the processes of the predictor's benchmark do, and what its figures are held against: see `predictor.py`.

Needs torch and numpy alone, neither Ray nor pydantic.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kasthuri_ray import hardware
from kasthuri_ray.benchmarks.harness import run_as_part
from kasthuri_ray.geometry import Box, Zyx
from kasthuri_ray.hardware import Machine
from kasthuri_ray.inference.inference_settings import choose_inference_settings
from kasthuri_ray.inference.memory import InferenceSettings
from kasthuri_ray.inference.predictor import Predictor, prepare_process
from kasthuri_ray.models.receptive_field import ReceptiveField, find_receptive_field
from kasthuri_ray.models.unet import build_network
from kasthuri_ray.output.block_grid import default_block_shape
from kasthuri_ray.output.pyramid import plan_layout

NETWORKS = Path(__file__).parents[1] / "networkconfig"
A_LARGE_JOB: Zyx = (1850, 26624, 21504)  # all of the Kasthuri volume at 3 nm: what `decide` is asked for
SIZES = {"cpu": (1024, 2048, 4096), "cuda": (2048, 4096, 8192)}  # of square products
COPIED = {"cpu": 1 << 28, "cuda": 1 << 30}  # bytes: more than any cache holds
DTYPES = {"bf16": torch.bfloat16, "float32": torch.float32}
CONVOLUTIONS = (nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose2d, nn.ConvTranspose3d)
POOLS = (nn.MaxPool2d, nn.MaxPool3d)
LEAST = 3  # runs, however long one takes


def network_settings(name: str) -> dict[str, Any]:
    """What the file of one of our networks holds."""
    return dict(json.loads((NETWORKS / f"{name}.json").read_text()))


def make_network(name: str) -> nn.Module:
    """One of our networks with fresh weights, the same each time."""
    torch.manual_seed(0)
    return build_network(network_settings(name)).eval()


def decide_inference(
    network: nn.Module,
    dim: int,
    reach: ReceptiveField,
    machine: Machine,
    block: Zyx | None = None,
    precision: str = "auto",
    compile: str = "auto",
) -> InferenceSettings:
    """How a large job is computed on machines of this kind. block: z, y, x; its default where none is given."""
    layout = plan_layout(A_LARGE_JOB)
    shape = block or default_block_shape(A_LARGE_JOB, layout, reach.margin)
    voxels = math.prod(A_LARGE_JOB)
    return choose_inference_settings(
        network, dim, reach, machine, block=shape, voxels=voxels, precision=precision, compile=compile
    )


def time_runs(run: Callable[[], Any], seconds: float, device: str) -> list[float]:
    """How long each of several runs takes, in seconds: as many as fit into `seconds`, and at least LEAST."""
    found: list[float] = []
    while sum(found) < seconds or len(found) < LEAST:
        _wait(device)
        start = time.perf_counter()
        run()
        _wait(device)
        found.append(time.perf_counter() - start)
    return found


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def product_rate(device: str, precision: str, size: int, seconds: float) -> float:
    """FLOP/s of products of square matrices, as the median has it."""
    a, b = (torch.rand(size, size, device=device).to(DTYPES[precision]) for _ in range(2))
    into = torch.empty_like(a)
    torch.mm(a, b, out=into)
    runs = time_runs(lambda: torch.mm(a, b, out=into), seconds, device)
    return 2 * size**3 / float(np.median(runs))


def copy_rate(device: str, seconds: float) -> float:
    """Bytes/s that a copy reads and writes together, as the median has it."""
    source = torch.ones(COPIED[device], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    runs = time_runs(lambda: target.copy_(source), seconds, device)
    return 2 * source.numel() / float(np.median(runs))


def resident_predictor(predictor: Predictor) -> Callable[[], Tensor]:
    """The network alone, on a batch of whole tiles that lies on the device; each call runs it once."""
    arithmetic, dim = predictor.arithmetic, predictor.dim
    shape = (arithmetic.batch, 1, *arithmetic.tile[-dim:])
    grey = torch.randint(0, 256, shape, dtype=torch.uint8, device=predictor.device)
    image = grey.contiguous(memory_format=hardware.memory_format(dim, predictor.device)).float().div_(255)

    @torch.inference_mode()
    def run() -> Tensor:
        with hardware.autocast(arithmetic.precision, predictor.device):
            return predictor.network(image)

    return run


def network_work(network: nn.Module, dim: int, precision: str) -> list[tuple[str, float, float]]:
    """Of each convolution and pool: its name, FLOP a voxel of the tile, and bytes a voxel that it reads and writes.

    What is done element by element is taken to cost nothing, since it can be joined to these.
    """
    found: list[tuple[str, float, float]] = []
    sides = tuple(4 * factor for factor in getattr(network, "factors", (8,) * dim))
    voxels, size = math.prod(sides), DTYPES[precision].itemsize

    def note(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(layer: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> None:
            flop = 0.0
            if isinstance(layer, CONVOLUTIONS):
                flop = 2 * made.numel() * layer.weight.numel() / layer.out_channels
            elif isinstance(layer, TRANSPOSED):
                flop = 2 * given[0].numel() * layer.weight.numel() / layer.in_channels
            found.append((name, flop / voxels, size * (given[0].numel() + made.numel()) / voxels))

        return hook

    layers = [(n, m) for n, m in network.named_modules() if isinstance(m, CONVOLUTIONS + TRANSPOSED + POOLS)]
    hooks = [layer.register_forward_hook(note(name)) for name, layer in layers]  # type: ignore[arg-type]
    try:
        with torch.inference_mode():
            network(torch.zeros(1, getattr(network, "in_channels", 1), *sides))
    finally:
        for handle in hooks:
            handle.remove()
    return found


def flop_per_voxel(network: nn.Module, dim: int) -> float:
    """Of convolutions; multiplying and adding count as one each."""
    return sum(flop for _, flop, _ in network_work(network, dim, "float32"))


def ceilings(device: str, precision: str, seconds: float) -> dict[str, Any]:
    """What this device reaches: bytes/s of a copy, and FLOP/s of square products by their size."""
    if device == "cpu":
        hardware.configure_allocator()
        torch.set_num_threads(hardware.set_threads(1))
    products = {str(size): product_rate(device, precision, size, seconds) for size in SIZES[device]}
    return {"copy": copy_rate(device, seconds), "products": products}


def measure(
    name: str, device: str, seconds: float, block: list[int] | None = None, compile: str = "auto"
) -> dict[str, Any]:
    """One network: voxels/s of the network alone and of `Predictor.predict`, what it computes a voxel, and memory.

    block: z, y, x, what `decide` is asked for; the default of a large volume where it is None.
    """
    if device == "cpu":
        hardware.configure_allocator()
    network = make_network(name)
    dim = int(network_settings(name)["dim"])
    machine, reach = Machine.here(device), find_receptive_field(network, dim)
    arithmetic = decide_inference(network, dim, reach, machine, tuple(block) if block else None, compile=compile)  # type: ignore[arg-type]
    prepare_process(arithmetic)
    work = network_work(network, dim, arithmetic.precision)
    start = time.perf_counter()
    predictor = Predictor(network, dim, 2, reach, arithmetic)
    alone = resident_predictor(predictor)
    alone()
    _wait(device)
    first = time.perf_counter() - start
    runs = time_runs(alone, seconds, device)
    computed, blocks = _predict(predictor, seconds)
    voxels = math.prod(arithmetic.tile) * arithmetic.batch
    return {
        "arithmetic": arithmetic.__dict__,
        "margin": reach.margin,
        "machine": machine.__dict__,
        "first_seconds": first,
        "resident": [voxels / run for run in runs],
        "predict": [computed / run for run in blocks],
        "layers": work,
        "card_peak": torch.cuda.max_memory_allocated() if device == "cuda" else None,
    }


def _predict(predictor: Predictor, seconds: float) -> tuple[int, list[float]]:
    """How many voxels are computed for a small block of whole tiles in memory, and how long that takes."""
    arithmetic, margin = predictor.arithmetic, predictor.margin
    core = [n - 2 * m for n, m in zip(arithmetic.tile, margin, strict=True)]
    if predictor.dim == 2:
        core[0] = max(2, 2 * arithmetic.batch)
    block = Box.at((0, 0, 0), core)
    grown = Box.at([-m for m in margin], [n + 2 * m for n, m in zip(core, margin, strict=True)])
    voxels = np.random.default_rng(0).integers(0, 256, grown.shape, np.uint8)
    computed: list[int] = []
    predictor.predict(voxels, grown, block, grown, on_voxels=computed.append)
    runs = time_runs(lambda: predictor.predict(voxels, grown, block, grown), seconds, arithmetic.device)
    return sum(computed), runs


if __name__ == "__main__":
    run_as_part({"ceilings": ceilings, "measure": measure})

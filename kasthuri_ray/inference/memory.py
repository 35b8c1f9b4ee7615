"""What changes a voxel's arithmetic, decided once for a whole job: `decide`. Needs torch and numpy alone.

A rule from the network, the settings and the kind of machine, never a stopwatch: every actor, and every run that goes
on, computes the same bytes.
"""

from __future__ import annotations

import copy
import math
import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kasthuri_ray import hardware
from kasthuri_ray.geometry import Zyx
from kasthuri_ray.hardware import Machine, count_parameters
from kasthuri_ray.models.receptive_field import FACTORS

# What a tile may hold: wider ones compute hardly less twice. In 3D margins weigh more.
MAX_VOXELS = {"cpu": {2: 5_000_000, 3: 16_000_000}, "cuda": {2: 16_000_000, 3: 32_000_000}}
MAX_ELEMENTS = 2**31 - 1  # of one tensor: above it libraries take slower ways, or fail
MEMORY_SHARE = {"cpu": 0.4, "cuda": 0.7}  # of an actor's part of the machine, for activations


PROCESS_BYTES = {"cpu": 600 << 20, "cuda": 3 << 30}  # Python, torch, its libraries and what they keep
# What the peak of live tensors leaves out: scratch space of libraries, and holes in memory that is kept.
OVERHEAD = {"cpu": 2.2, "cuda": 1.15}
OVERHEAD_COMPILED = {"cpu": 1.1, "cuda": 1.15}  # layers are joined, and fewer tensors made


@dataclass(frozen=True)
class InferenceSettings:
    """How the network is run. asdict() of it is JSON.

    device: cpu or cuda. precision: float32 or bf16. threads: of an actor, on the CPU. tile: the largest that goes
    through the network, margins included, z, y, x; blocks that need less take smaller ones. batch: tiles at once.
    tta: whether probabilities are the mean over flips and turns.
    """

    device: str
    precision: str
    compile: bool
    threads: int
    tile: Zyx
    batch: int
    tta: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "tile", tuple(int(n) for n in self.tile))  # JSON has lists


def inference_memory_bytes(network: nn.Module, dim: int, arithmetic: InferenceSettings) -> int:
    """What the network takes while it runs on a batch of the largest tiles: activations and weights, of CPU or card."""
    voxels = math.prod(arithmetic.tile) * arithmetic.batch
    overhead = (OVERHEAD_COMPILED if arithmetic.compile else OVERHEAD)[arithmetic.device]
    activations = overhead * activation_bytes_per_voxel(network, arithmetic.precision, dim) * voxels
    return int(activations) + 8 * count_parameters(network)  # weights, and their copies in bf16 or rearranged


def actor_memory_bytes(
    network: nn.Module, dim: int, arithmetic: InferenceSettings, block: Zyx, halo: Zyx, classes: int, itemsize: int = 1
) -> int:
    """The memory of an actor's process on its node, at its peak: one block computed, the next read, the last written.

    block, halo: z, y, x. itemsize: bytes of a voxel of the image.
    """
    read = math.prod(n + 2 * h for n, h in zip(block, halo, strict=True)) * (itemsize + (itemsize > 1))
    written = math.prod(block) * (classes - 1)
    network_here = inference_memory_bytes(network, dim, arithmetic) if arithmetic.device == "cpu" else 0
    return PROCESS_BYTES[arithmetic.device] + network_here + 2 * (read + written)


def activation_bytes_per_voxel(network: nn.Module, precision: str, dim: int) -> float:
    """The most bytes of tensors that are alive at once, for each voxel of a tile, until its answer is used.

    Counted from what a copy of the network allocates on small tiles, on the CPU. See OVERHEAD for what comes on top.
    """
    return _activations(network, precision, dim)[0]


def _max_voxels(network: nn.Module, dim: int, precision: str, machine: Machine, threads: int, share: float) -> int:
    """The most voxels that go through the network at once."""
    live, elements = _activations(network, precision, dim)
    actors = max(1, machine.cpus // threads) if machine.device == "cpu" else 1 / share
    memory = machine.memory_bytes * MEMORY_SHARE[machine.device] / actors
    return min(
        MAX_VOXELS[machine.device][dim],
        int(MAX_ELEMENTS / elements),
        int(memory / (OVERHEAD[machine.device] * live)),
    )


@torch.no_grad()
def _activations(network: nn.Module, precision: str, dim: int) -> tuple[float, float]:
    """What a voxel more of a tile takes: bytes alive at the peak, and elements of the largest tensor."""
    cpu = torch.device("cpu")
    copied = copy.deepcopy(network).to(cpu, memory_format=hardware.memory_format(dim, cpu)).eval()  # type: ignore[call-overload]
    sides = getattr(network, "factors", (FACTORS[-1],) * dim)
    shape = [max(f, least) for f, least in zip(sides, (16, 32, 32) if dim == 3 else (64, 64), strict=True)]
    peaks, largest = [], []
    for width in (shape[-1], 2 * shape[-1]):
        image = torch.zeros((1, getattr(network, "in_channels", 1), *shape[:-1], width))
        with _LiveTensorBytes() as watch, hardware.autocast(precision, cpu):
            torch.softmax(copied(image).float(), dim=1)
        peaks.append(watch.peak)
        largest.append(watch.largest)
    voxels = math.prod(shape)
    # The difference leaves out what does not grow, such as weights in another precision.
    return (peaks[1] - peaks[0]) / voxels, max(1.0, largest[1] / (2 * voxels))


class _LiveTensorBytes(TorchDispatchMode):
    """Counts the bytes of tensors that are made, while they are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = self.largest = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {_pointer(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and _pointer(tensor) not in self.known | given:
                self._add(tensor)
        return made

    def _add(self, tensor: torch.Tensor) -> None:
        pointer, size = _pointer(tensor), tensor.untyped_storage().nbytes()
        self.known.add(pointer)
        self.live += size
        self.peak = max(self.peak, self.live)
        self.largest = max(self.largest, tensor.numel())
        weakref.finalize(tensor.untyped_storage(), self._drop, pointer, size)

    def _drop(self, pointer: int, size: int) -> None:
        self.known.discard(pointer)
        self.live -= size


def _pointer(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata

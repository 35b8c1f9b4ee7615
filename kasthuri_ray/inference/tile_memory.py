"""The memory that a network takes, measured on small tiles, and how many voxels fit into a machine at once."""

from __future__ import annotations

import copy
import math
import weakref
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kasthuri_ray import hardware
from kasthuri_ray.hardware import Machine
from kasthuri_ray.models.receptive_field import POOLING_FACTORS

# Memory used over the peak of live tensors: scratch space of libraries, and holes in memory that an allocator keeps.
OVERHEAD = {"cpu": 2.2, "cuda": 1.15}
OVERHEAD_COMPILED = {"cpu": 1.1, "cuda": 1.15}  # fused layers make fewer tensors
PROCESS_BYTES = {"cpu": 600 << 20, "cuda": 3 << 30}  # Python, torch, its libraries, and the memory that they keep
MAX_ELEMENTS = 2**31 - 1  # of one tensor: above this, libraries switch to slower kernels or fail
MEMORY_SHARE = {"cpu": 0.4, "cuda": 0.7}  # for activations, of an actor's part of the machine


def activation_bytes_per_voxel(network: nn.Module, precision: str, dim: int) -> float:
    """Return the peak of bytes in live tensors, for each voxel of a tile, until its output is used.

    Multiply it by `OVERHEAD` for the memory that is used.
    """
    return measure_activations(network, precision, dim)[0]


@lru_cache(maxsize=4)  # a plan asks several times
@torch.no_grad()
def measure_activations(network: nn.Module, precision: str, dim: int) -> tuple[float, float]:
    """Return, for each voxel of a tile, the peak of live bytes and the elements of the largest tensor.

    A copy of the network runs on two small tiles on the CPU. Their difference leaves out what does not grow with the
    tile, such as weights in another precision.
    """
    cpu = torch.device("cpu")
    copied = copy.deepcopy(network).to(cpu, memory_format=hardware.memory_format(dim, cpu)).eval()  # type: ignore[call-overload]
    factors = getattr(network, "factors", (POOLING_FACTORS[-1],) * dim)
    shape = [max(f, n) for f, n in zip(factors, (16, 32, 32) if dim == 3 else (64, 64), strict=True)]
    peaks, largest = [], []
    for width in (shape[-1], 2 * shape[-1]):
        image = torch.zeros((1, getattr(network, "in_channels", 1), *shape[:-1], width))
        with _LiveTensors() as tensors, hardware.autocast(precision, cpu):
            torch.softmax(copied(image).float(), dim=1)
        peaks.append(tensors.peak_bytes)
        largest.append(tensors.largest)
    num_voxels = math.prod(shape)
    return (peaks[1] - peaks[0]) / num_voxels, max(1.0, largest[1] / (2 * num_voxels))


def max_voxels_at_once(
    network: nn.Module, dim: int, precision: str, machine: Machine, threads: int, gpu_share: float
) -> int:
    """Return how many voxels may go through the network at once."""
    live_bytes, elements = measure_activations(network, precision, dim)
    actors = max(1, machine.cpus // threads) if machine.device == "cpu" else 1 / gpu_share
    memory_bytes = machine.memory_bytes * MEMORY_SHARE[machine.device] / actors
    return min(
        machine.rule.tile_voxels[dim - 2],
        int(MAX_ELEMENTS / elements),
        int(memory_bytes / (OVERHEAD[machine.device] * live_bytes)),
    )


class _LiveTensors(TorchDispatchMode):
    """Counts the bytes of the tensors that are created, while they are alive, and the elements of the largest."""

    def __init__(self) -> None:
        super().__init__()
        self.live_bytes = self.peak_bytes = self.largest = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = {_storage_id(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and _storage_id(tensor) not in self.known | inputs:
                self._add(tensor)
        return result

    def _add(self, tensor: torch.Tensor) -> None:
        storage_id, size = _storage_id(tensor), tensor.untyped_storage().nbytes()
        self.known.add(storage_id)
        self.live_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        self.largest = max(self.largest, tensor.numel())
        weakref.finalize(tensor.untyped_storage(), self._drop, storage_id, size)

    def _drop(self, storage_id: int, size: int) -> None:
        self.known.discard(storage_id)
        self.live_bytes -= size


def _storage_id(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata

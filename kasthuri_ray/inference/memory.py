"""The memory that a network and an actor take, estimated from the inference settings."""

from __future__ import annotations

import math

from torch import nn

from kasthuri_ray.geometry import Box, Zyx
from kasthuri_ray.hardware import count_parameters
from kasthuri_ray.inference.activations import OVERHEAD, OVERHEAD_COMPILED, activation_bytes_per_voxel
from kasthuri_ray.inference.inference_settings import InferenceSettings

PROCESS_BYTES = {"cpu": 600 << 20, "cuda": 3 << 30}  # Python, torch, its libraries, and the memory that they keep


def inference_memory_bytes(network: nn.Module, dim: int, settings: InferenceSettings) -> int:
    """Return the memory of activations and weights, on the CPU or the GPU, for a batch of the largest tiles."""
    num_voxels = math.prod(settings.tile) * settings.batch
    overhead = (OVERHEAD_COMPILED if settings.compile else OVERHEAD)[settings.device]
    activations = overhead * activation_bytes_per_voxel(network, settings.precision, dim) * num_voxels
    return int(activations) + 8 * count_parameters(network)  # weights, and copies in bf16 or another memory format


def actor_memory_bytes(
    network: nn.Module, dim: int, settings: InferenceSettings, block: Zyx, halo: Zyx, classes: int, itemsize: int = 1
) -> int:
    """Return the peak memory of an actor's process on its node.

    At the peak one block is computed, the next is read and the last is written.

    Parameters
    ----------
    network, dim : torch.nn.Module, int
        As for `choose_inference_settings`.
    settings : InferenceSettings
        How the network is run.
    block, halo : tuple of int
        Shape of a block, and the context around it, z, y, x.
    classes : int
        Number of classes, background included.
    itemsize : int
        Bytes of a voxel of the image.

    Returns
    -------
    int
        Bytes; on a GPU without the memory of the GPU.
    """
    read = Box((0, 0, 0), block).grown(halo).num_voxels * (itemsize + (itemsize > 1))
    written = math.prod(block) * (classes - 1)
    inference = inference_memory_bytes(network, dim, settings) if settings.device == "cpu" else 0
    return PROCESS_BYTES[settings.device] + inference + 2 * (read + written)

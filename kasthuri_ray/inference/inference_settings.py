"""Settings for running a network: `InferenceSettings`, chosen once for a whole job by `choose_inference_settings`.

The settings decide how voxels are rounded. They follow from the network, the job and the kind of machine, never from a
stopwatch, so that every actor and every resumed run computes the same bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn

from kasthuri_ray.errors import InputError
from kasthuri_ray.geometry import Zyx, per_axis
from kasthuri_ray.hardware import Machine, choose_precision, count_parameters, should_compile_inference
from kasthuri_ray.inference.tile_memory import (
    OVERHEAD,
    OVERHEAD_COMPILED,
    PROCESS_BYTES,
    activation_bytes_per_voxel,
    max_voxels_at_once,
)
from kasthuri_ray.inference.tiling import check_tile_shape, choose_tile_shape
from kasthuri_ray.models.folded_unet import can_fold, fold_network
from kasthuri_ray.models.receptive_field import ReceptiveField
from kasthuri_ray.process_resources import choose_actor_threads


@dataclass(frozen=True)
class InferenceSettings:
    """Settings for running a network. `dataclasses.asdict` of them is JSON.

    Parameters
    ----------
    device : str
        `cpu` or `cuda`.
    precision : str
        A key of `kasthuri_ray.hardware.NUMBER_FORMATS`.
    compile : bool
        Whether the network is compiled.
    threads : int
        Of an actor, on the CPU.
    tile : tuple of int
        Largest tile that the network gets, margins included, z, y, x. Blocks that need less get smaller ones.
    batch : int
        Number of tiles at once.
    tta : bool
        Test-time augmentation: whether probabilities are the mean over flips and transpositions.
    fold : bool
        Whether batch norms are folded into the convolutions (`kasthuri_ray.models.folded_unet`).
    """

    device: str
    precision: str
    compile: bool
    threads: int
    tile: Zyx
    batch: int
    tta: bool = False
    fold: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "tile", tuple(int(n) for n in self.tile))  # JSON has lists


@dataclass(frozen=True)
class InferenceWork:
    """What a job computes.

    Parameters
    ----------
    block : tuple of int
        Shape of a whole block, z, y, x.
    num_voxels : int
        Voxels of the whole job.
    phase : tuple of int
        Position of the first voxel of blocks in a cell of the pooling grid, as `pooling_phase` returns it.
    halo : tuple of int, optional
        As for `Predictor`: context around blocks that is smaller than the margin of the receptive field.
    """

    block: Zyx
    num_voxels: int
    phase: Zyx = (0, 0, 0)
    halo: Zyx | None = None


@dataclass(frozen=True)
class RequestedInference:
    """What a person asked for.

    Parameters
    ----------
    precision, compile, fold : str
        `auto` to choose.
    tile : tuple of int, optional
        Shape, z, y, x; None to choose.
    batch : int, optional
        Tiles at once; None to choose.
    tta : bool
        Whether to use test-time augmentation.
    gpu_share : float
        Share of a GPU that an actor has.
    """

    precision: str = "auto"
    compile: str = "auto"
    tile: Zyx | None = None
    batch: int | None = None
    tta: bool = False
    gpu_share: float = 1.0
    fold: str = "auto"


def choose_inference_settings(
    network: nn.Module,
    dim: int,
    receptive_field: ReceptiveField,
    machine: Machine,
    work: InferenceWork,
    requested: RequestedInference = RequestedInference(),
) -> InferenceSettings:
    """Choose how to run a network on machines of one kind.

    Parameters
    ----------
    network : torch.nn.Module
        The network.
    dim : int
        2 or 3.
    receptive_field : ReceptiveField
        Of the network.
    machine : Machine
        The kind of machine.
    work : InferenceWork
        What is computed.
    requested : RequestedInference
        What a person asked for.

    Returns
    -------
    InferenceSettings
        The same for the same arguments.

    Raises
    ------
    InputError
        If the network cannot take the tile that was asked for, or the machine not the number format.
    """
    tta, precision = requested.tta, choose_precision(requested.precision, machine)
    receptive_field = receptive_field.widened_for_tta() if tta else receptive_field
    margin, factors = tile_margin(receptive_field, work.halo), receptive_field.factors
    fold = should_fold(requested.fold, network, is_exact=margin == receptive_field.margin)
    if fold:
        network = fold_network(network, precision)
    threads = choose_actor_threads(machine.cpus) if machine.device == "cpu" else 1
    max_voxels = max_voxels_at_once(network, dim, precision, machine, threads, requested.gpu_share)
    if requested.tile is None:
        tile = choose_tile_shape(work.block, margin, factors, max_voxels, dim, work.phase)
    else:
        tile = check_tile_shape(requested.tile, margin, factors, dim)
    batch = requested.batch
    if batch is None:
        fits_batch = machine.rule.batches_tiles and dim == 2
        batch = max(1, min(max_voxels // math.prod(tile), work.block[0])) if fits_batch else 1
    operations = work.num_voxels * count_parameters(network) * (8 if tta else 1)
    should_compile = should_compile_inference(requested.compile, machine, operations)
    return InferenceSettings(machine.device, precision, should_compile, threads, tile, batch, tta, fold)


def should_fold(setting: str, network: nn.Module, is_exact: bool) -> bool:
    """Return whether batch norms are folded into convolutions.

    Parameters
    ----------
    setting : str
        `auto` (wherever the result is the same), `on` or `off`.
    network : torch.nn.Module
        The network.
    is_exact : bool
        Whether tiles have the whole margin of the receptive field. Nearer to the border of a tile results differ.

    Returns
    -------
    bool
        Whether to fold.

    Raises
    ------
    InputError
        If the setting is `on` and the result would be wrong.
    """
    if setting == "on" and not can_fold(network):
        raise InputError("segment.fold is on, but only plain U-Nets with batch norms can be folded; use auto")
    if setting == "on" and not is_exact:
        raise InputError("segment.fold is on, but --halo is smaller than the receptive field, which it needs whole")
    return setting != "off" and is_exact and can_fold(network)


def tile_margin(receptive_field: ReceptiveField, halo: Zyx | None) -> Zyx:
    """Return the margin of tiles: that of the receptive field, or the halo where it is smaller."""
    return receptive_field.margin if halo is None else per_axis(min, receptive_field.margin, halo)


def inference_memory_bytes(network: nn.Module, dim: int, settings: InferenceSettings) -> int:
    """Return the memory of activations and weights, on the CPU or the GPU, for a batch of the largest tiles."""
    if settings.fold:
        network = fold_network(network, settings.precision)
    num_voxels = math.prod(settings.tile) * settings.batch
    overhead = (OVERHEAD_COMPILED if settings.compile else OVERHEAD)[settings.device]
    activations = overhead * activation_bytes_per_voxel(network, settings.precision, dim) * num_voxels
    return int(activations) + 8 * count_parameters(network)  # weights, and copies in bf16 or another memory format


def actor_memory_bytes(
    network: nn.Module, dim: int, settings: InferenceSettings, read_bytes: int, written_bytes: int
) -> int:
    """Return the peak memory of an actor's process on its node.

    At the peak one block is computed, the next is read and the last is written.

    Parameters
    ----------
    network, dim : torch.nn.Module, int
        As for `choose_inference_settings`.
    settings : InferenceSettings
        How the network is run.
    read_bytes, written_bytes : int
        What a block takes in memory once it is read, and what is written of it.

    Returns
    -------
    int
        Bytes; on a GPU without the memory of the GPU.
    """
    inference = inference_memory_bytes(network, dim, settings) if settings.device == "cpu" else 0
    return PROCESS_BYTES[settings.device] + inference + 2 * (read_bytes + written_bytes)

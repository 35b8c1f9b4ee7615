"""What a run begins with: does the network fit the tiles, and do the weights fit the network."""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn

from kasthuri_ray import device as hardware
from kasthuri_ray.config import Network, Settings
from kasthuri_ray.models.receptive_field import normalizes_by_tile
from kasthuri_ray.models.unet import (
    DEPTH_BLOCKS,
    PLAIN_BLOCKS,
    build_network,
    check_shape,
    load_weights,
    pooling_factors,
)
from kasthuri_ray.models.weights import check_finite, read_weights, weights_file
from kasthuri_ray.storage import read_anywhere

FLOAT_BYTES = 4


def check_network(settings: Settings) -> nn.Module:
    """The network, with weights of no account.

    Raises ValueError if it cannot be built or learn, or cannot halve the tiles as often as it pools.
    """
    network, tile = settings.network, settings.task.tile
    if network.dim == 2 and tile[0] != 1:
        raise ValueError(f"a 2D network (network.dim 2) takes single sections: task.volume_z is {tile[0]}, use 1")
    shape = tile[-network.dim :]
    if "." not in network.model:
        blocks = network.n_blocks or (DEPTH_BLOCKS if network.model_type == "depth" else PLAIN_BLOCKS)
        try:
            check_shape(shape, pooling_factors(blocks, network.dim, network.pool_z)[-network.dim :])
        except ValueError as error:
            given = f"network.n_blocks {blocks}, task.volume_z {tile[0]}, task.tile_size {settings.task.tile_size}"
            raise ValueError(f"{given}: {error}") from None
        _check_size(network, blocks)
    built = build_network(network.model_dump(), shape)
    if not any(parameter.requires_grad for parameter in built.parameters()):
        raise ValueError(f"network.model {network.model} has no parameters that learn; expected at least one")
    return built


def _check_size(network: Network, blocks: int) -> None:
    """Raise a ValueError, with the numbers, for more parameters than fit in the memory of who trains them.

    Where that is another machine, they must at least fit here, where the network is built once.
    """
    with torch.device("meta"):  # shapes alone
        built = build_network(network.model_dump())
    number = sum(parameter.numel() for parameter in built.parameters())
    copies = 1 if os.environ.get("RAY_ADDRESS") else 4 + bool(network.ema)  # weights, gradients, two of the optimizer
    needed, there = FLOAT_BYTES * number * copies, hardware.memory_bytes()
    if needed > there:
        what = "they" if copies == 1 else "with gradients and the optimizer's state they"
        raise ValueError(
            f"network.start_filters {network.start_filters} with network.n_blocks {blocks} makes "
            f"{number / 1e6:,.0f} million parameters; {what} take {needed / 2**30:,.0f} GiB, and this machine has "
            f"{there / 2**30:,.0f}. Give fewer filters (our own files have 32)"
        )


def norm_warning(network: nn.Module) -> str:
    """What a person should know of how it normalizes; "" if nothing."""
    note = normalizes_by_tile(network)
    return note and f"{note}, so that what it segments will change a little with --block and --tile"


def read_start_weights(settings: Settings) -> dict[str, Tensor] | None:
    """The weights to start from, held against the network; None without `--weights`."""
    path = settings.train.weights
    if path is None:
        return None
    path = weights_file(path)
    weights = read_weights(read_anywhere(path), path)
    try:
        load_weights(build_network(settings.network.model_dump()), weights)
    except ValueError as error:
        raise ValueError(f"--weights {path}: {error}") from None
    check_finite(weights, path)
    return weights

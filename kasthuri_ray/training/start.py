"""What a run begins with: does the network fit the tiles, and do the weights fit the network."""

from __future__ import annotations

from torch import Tensor, nn

from kasthuri_ray.config import Settings
from kasthuri_ray.models.receptive_field import normalizes_by_tile
from kasthuri_ray.models.unet import (
    DEPTH_BLOCKS,
    PLAIN_BLOCKS,
    build_network,
    check_shape,
    load_weights,
    pooling_factors,
)
from kasthuri_ray.models.weights import read_weights, weights_file
from kasthuri_ray.storage import read_anywhere


def check_network(settings: Settings) -> nn.Module:
    """The network, with weights of no account. Raises ValueError if it cannot be built, or cannot halve the tiles as
    often as it pools."""
    network, tile = settings.network, settings.task.tile
    if network.dim == 2 and tile[0] != 1:
        raise ValueError(f"a 2D network (network.dim 2) takes single sections: task.volume_z is {tile[0]}, use 1")
    shape = tile[-network.dim :]
    if "." not in network.model:
        blocks = network.n_blocks or (DEPTH_BLOCKS if network.model_type == "depth" else PLAIN_BLOCKS)
        try:
            check_shape(shape, pooling_factors(blocks, network.dim, network.pool_z)[-network.dim :])
        except ValueError as error:
            raise ValueError(f"task.volume_z {tile[0]}, task.tile_size {settings.task.tile_size}: {error}") from None
    return build_network(network.model_dump(), shape)


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
    return weights

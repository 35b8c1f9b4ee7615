"""The validation or test tiles of one worker, as a stream: all ranks together read each tile once."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from torch import nn

from kasthuri_ray.geometry import per_axis
from kasthuri_ray.models.receptive_field import find_receptive_field
from kasthuri_ray.models.unet import is_plain_unet
from kasthuri_ray.tiles.sampling import GridTiles
from kasthuri_ray.tiles.streaming import TileStream, plan_grid_tiles

if TYPE_CHECKING:  # it needs pydantic, and a stream does not
    from kasthuri_ray.training.training_job import TrainingJob, WorkerContext

MAX_CONTEXT = 0.25  # of a tile, on each side: in 2D a tile with its context is at most 2.25 times as large


def open_grid_stream(tiles: GridTiles, job: TrainingJob, context: WorkerContext, num_passes: int = 1) -> TileStream:
    """Return a stream of a worker's share of the tiles; the caller closes it."""
    batch_size = max(1, job.settings.network.batch // context.world_size)
    return TileStream(plan_grid_tiles(tiles, batch_size, context.rank, context.world_size) for _ in range(num_passes))


def with_context(tiles: GridTiles, network: nn.Module) -> GridTiles:
    """Return tiles that are predicted with the image around them, as a segmentation predicts them.

    Parameters
    ----------
    tiles : GridTiles
        Tiles without context.
    network : torch.nn.Module
        Predicts them.

    Returns
    -------
    GridTiles
        With the margin of the receptive field, as far as MAX_CONTEXT and the images allow. Without context if the
        network is not a `UNet` (it may take tiles of one shape alone), or normalizes by the tile.
    """
    if not is_plain_unet(network):
        return tiles
    field = find_receptive_field(network, 2 if tiles.tile[0] == 1 else 3)
    if not field.exact:
        return tiles

    def along_axis(margin: int, factor: int, length: int, *images: int) -> int:
        room = min((image - length) // 2 for image in images)
        return min(margin, int(MAX_CONTEXT * length), room) // factor * factor

    images = [source.image.bounds.shape for source in tiles.sources]
    return replace(tiles, context=per_axis(along_axis, field.margin, field.factors, tiles.tile, *images))

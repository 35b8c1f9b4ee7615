"""The validation or test tiles of one worker, as a stream: all ranks together read each tile once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kasthuri_ray.tiles.sampling import GridTiles
from kasthuri_ray.tiles.streaming import TileStream, plan_grid_tiles

if TYPE_CHECKING:  # it needs pydantic, and a stream does not
    from kasthuri_ray.training.training_job import TrainingJob, WorkerContext


def open_grid_stream(tiles: GridTiles, job: TrainingJob, context: WorkerContext, num_passes: int = 1) -> TileStream:
    """Return a stream of a worker's share of the tiles; the caller closes it."""
    batch_size = max(1, job.settings.network.batch // context.world_size)
    return TileStream(plan_grid_tiles(tiles, batch_size, context.rank, context.world_size) for _ in range(num_passes))

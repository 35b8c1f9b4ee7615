"""Parts of the benchmarks of training and accuracy.

`PartRunner` starts them as `python -m kasthuri_ray.benchmarks.training_processes PART GIVEN.json FOUND.json`.
Arguments and results are plain values, as JSON takes them; `settings` are those of a --config file.
"""

from __future__ import annotations

import itertools
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from kasthuri_ray.benchmarks.harness import run_as_part
from kasthuri_ray.config.settings import Settings
from kasthuri_ray.progress import Reporter


def train_one_batch(settings: dict[str, Any]) -> dict[str, Any]:
    """Train on one batch that stays in memory, without reading and without Ray; return tiles/s of each epoch."""
    from kasthuri_ray import process_resources

    process_resources.configure_allocator()
    threads = process_resources.set_threads(1)

    import torch

    from kasthuri_ray.tiles.sampling import read_tile
    from kasthuri_ray.tiles.splits import open_task_tiles
    from kasthuri_ray.tiles.streaming import TileBatch
    from kasthuri_ray.training.training_job import TrainingJob, WorkerContext
    from kasthuri_ray.training.worker import make_learner

    resolved = Settings.model_validate(settings)
    tiles = open_task_tiles(resolved, Reporter().print_line)
    device = torch.device("cuda" if resolved.train.device != "cpu" and torch.cuda.is_available() else "cpu")
    context = WorkerContext(0, 1, 1, device, report=lambda history: None, show=lambda message: None)
    learner = make_learner(TrainingJob(resolved, "", tiles), context, None)
    batch_size, num_tiles = resolved.network.batch, tiles.train.tiles_per_epoch
    read = [read_tile(tiles.train.sources, tiles.train.address(0, number))[:2] for number in range(batch_size)]
    images, labels = (np.stack(each) for each in zip(*read, strict=True))
    batch = TileBatch(images, labels, np.arange(batch_size))
    rates = []
    for epoch in range(resolved.network.epochs):
        start = time.perf_counter()
        learner.train_epoch(epoch, itertools.repeat(batch, num_tiles // batch_size), [])
        rates.append(num_tiles / (time.perf_counter() - start))
    return {"tiles_per_second": rates, "threads": threads, "plan": str(learner.plan)}


def run_training(settings: dict[str, Any]) -> dict[str, Any]:
    """Train as jobs/train.py does; return the path of the run's folder, and the seconds of the whole training."""
    from kasthuri_ray.training.train import train

    start = time.perf_counter()
    path = train(Settings.model_validate(settings), Reporter(), resume_command=str).path
    return {"path": path, "seconds": time.perf_counter() - start}


def stream_tiles(settings: dict[str, Any], passes: int = 2, cold: bool = False) -> dict[str, Any]:
    """Stream epochs of training tiles, one after the other, and discard them; return tiles/s of each pass.

    cold: drop the files of local volumes from the system's memory first, where that is possible. The first pass
    includes the start of the processes that read.
    """
    from kasthuri_ray.ray_cluster.connection import connect_ray
    from kasthuri_ray.tiles.splits import open_task_tiles
    from kasthuri_ray.tiles.streaming import TileStream, plan_training_tiles

    resolved = Settings.model_validate(settings)
    tiles = open_task_tiles(resolved, Reporter().print_line).train
    connect_ray(Reporter())
    if cold:
        drop_cached_files([source.image.uri for source in tiles.sources])
        drop_cached_files([source.annotation.uri for source in tiles.sources if source.annotation is not None])
    rates = []
    for epoch in range(passes):
        # Each pass has its own stream, so that no tile is read while the previous pass is timed.
        start, num_streamed = time.perf_counter(), 0
        stream = TileStream(iter([plan_training_tiles(tiles, epoch, resolved.network.batch, 0, 1)]))
        for batch in stream.batches():
            num_streamed += len(batch.number)
        stream.close()
        assert num_streamed == tiles.tiles_per_epoch, (num_streamed, tiles.tiles_per_epoch)
        rates.append(num_streamed / (time.perf_counter() - start))
    return {"tiles_per_second": rates, "tiles": tiles.tiles_per_epoch}


def drop_cached_files(paths: list[str]) -> None:
    """Ask the system to drop the files below local folders from its memory; paths that are no folders are skipped."""
    for file in itertools.chain.from_iterable(Path(path).rglob("*") for path in paths if os.path.isdir(path)):
        with suppress(OSError):
            handle = os.open(file, os.O_RDONLY)
            try:
                os.fsync(handle)
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(handle)


def run_seed_recipe(settings: dict[str, Any], steps: int, whole: bool = False) -> dict[str, Any]:
    """Time the seed's recipe on the arrays of the task; return seconds of each of `steps` steps and of a training.

    whole: train for all epochs and test the network, instead of computing the time of that from the steps.
    """
    from kasthuri_ray.benchmarks.seed_recipe import SeedRecipe
    from kasthuri_ray.process_resources import set_threads
    from kasthuri_ray.tiles.sampling import TileAddress, read_tile
    from kasthuri_ray.tiles.splits import open_task_tiles

    threads = set_threads(1)
    resolved = Settings.model_validate(settings)
    tiles = open_task_tiles(resolved, Reporter().print_line)
    sources = [each.sources[0] for each in (tiles.train, tiles.val, tiles.test or tiles.val)]
    arrays = [read_tile((source,), TileAddress(0, source.box, source.box))[:2] for source in sources]
    tile_size, epochs = resolved.task.tile_size[0], resolved.network.epochs
    recipe = SeedRecipe(resolved.task.task_type, arrays[0], arrays[1], arrays[2], tile_size, seed=resolved.network.seed)
    if whole:
        return {**recipe.run(epochs), "threads": threads}
    step_seconds, validation_seconds = recipe.time_steps(steps), recipe.time_validation()
    training = epochs * tiles.train.tiles_per_epoch / recipe.batch_size * float(np.median(step_seconds))
    validation = recipe.count_validation_batches(epochs) * validation_seconds
    return {
        "step_seconds": step_seconds,
        "batch_size": recipe.batch_size,
        "judging_seconds": validation_seconds,
        "seconds": training + validation,
        "threads": threads,
    }


if __name__ == "__main__":
    run_as_part(
        {
            "bare": train_one_batch,
            "pipeline": run_training,
            "stream": stream_tiles,
            "recipe": run_seed_recipe,
        }
    )

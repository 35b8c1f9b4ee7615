"""What the processes of a benchmark do: `python -m kasthuri_ray.benchmarks.training_processes PART GIVEN.json FOUND.json`.

Each part takes and gives what JSON can hold; `processes.run_part` starts them.
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

Sections = dict[str, Any]  # settings as a --config file holds them


def bare(settings: Sections) -> dict[str, Any]:
    """Train on one batch that stays in memory: no reading, no Ray. Tiles per second of each epoch."""
    from kasthuri_ray import hardware

    hardware.configure_allocator()
    threads = hardware.set_threads(1)

    import torch

    from kasthuri_ray.tiles.sampling import read_tile
    from kasthuri_ray.tiles.splits import open_task_tiles
    from kasthuri_ray.tiles.streaming import TileBatch
    from kasthuri_ray.training.training_job import TrainingJob, WorkerContext
    from kasthuri_ray.training.worker import make_learner

    own = Settings.model_validate(settings)
    tiles = open_task_tiles(own, print)
    device = torch.device("cuda" if own.train.device != "cpu" and torch.cuda.is_available() else "cpu")
    ranks = WorkerContext(0, 1, 1, device, report=print, show=print)
    learner = make_learner(TrainingJob(own, "", tiles.train, tiles.val, None, None, ""), ranks, None)
    size, total = own.network.batch, tiles.train.tiles_per_epoch
    read = [read_tile(tiles.train.sources, tiles.train.address(0, number))[:2] for number in range(size)]
    images, labels = (np.stack(each) for each in zip(*read, strict=True))
    batch = TileBatch(images, labels, np.arange(size))
    rates = []
    for epoch in range(own.network.epochs):
        start = time.perf_counter()
        learner.train_epoch(epoch, itertools.repeat(batch, total // size), [])
        rates.append(total / (time.perf_counter() - start))
    return {"tiles_per_second": rates, "threads": threads, "precision": learner.plan.precision}


def pipeline(settings: Sections) -> dict[str, Any]:
    """Train as jobs/train.py does. The path of the run's folder, and the seconds that all of it took."""
    from kasthuri_ray.training.train import train

    start = time.perf_counter()
    path = train(Settings.model_validate(settings))
    return {"path": path, "seconds": time.perf_counter() - start}


def stream(settings: Sections, passes: int = 2, cold: bool = False) -> dict[str, Any]:
    """Draw epochs from a stream of training tiles, one after the other, and do nothing with them.

    cold: the files of local volumes are put out of the system's memory first, where it can be done. Tiles per second
    of each pass; the first holds Ray's start of the processes that read.
    """
    from kasthuri_ray.ray_cluster.connection import connect_ray
    from kasthuri_ray.tiles.splits import open_task_tiles
    from kasthuri_ray.tiles.streaming import TileStream, plan_training_tiles

    own = Settings.model_validate(settings)
    tiles = open_task_tiles(own, print).train
    connect_ray()
    if cold:
        forget([source.image.uri for source in tiles.sources])
        forget([source.annotation.uri for source in tiles.sources if source.annotation is not None])
    rates = []
    for number in range(passes):
        # Each pass has a stream of its own, so that none is read while the pass before is timed.
        start, taken = time.perf_counter(), 0
        running = TileStream(iter([plan_training_tiles(tiles, number, own.network.batch, 0, 1)]))
        for batch in running.batches():
            taken += len(batch.number)
        running.close()
        assert taken == tiles.tiles_per_epoch, (taken, tiles.tiles_per_epoch)
        rates.append(taken / (time.perf_counter() - start))
    return {"tiles_per_second": rates, "tiles": tiles.tiles_per_epoch}


def forget(paths: list[str]) -> None:
    """Ask the system to drop the files below local folders from its memory; what is not a folder is left alone."""
    for file in itertools.chain.from_iterable(Path(path).rglob("*") for path in paths if os.path.isdir(path)):
        with suppress(OSError):
            handle = os.open(file, os.O_RDONLY)
            try:
                os.fsync(handle)
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(handle)


def recipe(settings: Sections, steps: int, whole: bool = False) -> dict[str, Any]:
    """The seed's recipe on the arrays of the task: seconds of each of `steps` steps, and what a training would take.

    whole: train all epochs instead, and judge.
    """
    from kasthuri_ray.benchmarks.seed_recipe import SeedRecipe
    from kasthuri_ray.hardware import set_threads
    from kasthuri_ray.tiles.sampling import TileAddress, read_tile
    from kasthuri_ray.tiles.splits import open_task_tiles

    threads = set_threads(1)
    own = Settings.model_validate(settings)
    tiles = open_task_tiles(own, print)
    sources = [each.sources[0] for each in (tiles.train, tiles.val, tiles.test or tiles.val)]
    arrays = [read_tile((source,), TileAddress(0, source.box, source.box))[:2] for source in sources]
    size, epochs = own.task.tile_size[0], own.network.epochs
    training = SeedRecipe(own.task.task_type, arrays[0], arrays[1], arrays[2], size, seed=own.network.seed)
    if whole:
        return {**training.run(epochs), "threads": threads}
    times, judging = training.time_steps(steps), training.time_judging()
    learning = epochs * tiles.train.tiles_per_epoch / training.batch_size * float(np.median(times))
    seconds = learning + training.judged_batches(epochs) * judging
    return {
        "step_seconds": times,
        "batch_size": training.batch_size,
        "judging_seconds": judging,
        "seconds": seconds,
        "threads": threads,
    }


if __name__ == "__main__":
    run_as_part({part.__name__: part for part in (bare, pipeline, stream, recipe)})

"""What the processes of a benchmark do: `python -m kasthuri_ray.benchmarks.parts PART GIVEN.json FOUND.json`.

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

from kasthuri_ray.benchmarks.processes import be_a_part
from kasthuri_ray.config import Settings

Sections = dict[str, Any]  # settings as a --config file holds them


def bare(settings: Sections) -> dict[str, Any]:
    """Train on one batch that stays in memory: no reading, no Ray. Tiles per second of each epoch."""
    from kasthuri_ray import device as hardware

    hardware.keep_memory()
    threads = hardware.set_threads(1)

    import torch

    from kasthuri_ray.tiles.sampling import read_tile
    from kasthuri_ray.tiles.stream import Batch
    from kasthuri_ray.training.job import Job, Ranks
    from kasthuri_ray.training.sources import open_task
    from kasthuri_ray.training.worker import make_learner

    own = Settings.model_validate(settings)
    tiles = open_task(own, print)
    device = torch.device("cuda" if own.train.device != "cpu" and torch.cuda.is_available() else "cpu")
    ranks = Ranks(0, 1, 1, device, report=print, show=print)
    learner = make_learner(Job(own, "", tiles.train, tiles.val, None, None, ""), ranks, None)
    size, total = own.network.batch, tiles.train.tiles_per_epoch
    read = [read_tile(tiles.train.sources, tiles.train.address(0, number))[:2] for number in range(size)]
    images, labels = (np.stack(each) for each in zip(*read, strict=True))
    batch = Batch(images, labels, np.arange(size))
    rates = []
    for epoch in range(own.network.epochs):
        start = time.perf_counter()
        learner.train_epoch(epoch, itertools.repeat(batch, total // size), [])
        rates.append(total / (time.perf_counter() - start))
    return {"tiles_per_second": rates, "threads": threads, "precision": learner.plan.precision}


def pipeline(settings: Sections) -> dict[str, Any]:
    """Train as jobs/train.py does. The path of the run's folder, and the seconds that all of it took."""
    from kasthuri_ray.training.fit import fit

    start = time.perf_counter()
    path = fit(Settings.model_validate(settings))
    return {"path": path, "seconds": time.perf_counter() - start}


def stream(settings: Sections, passes: int = 2, cold: bool = False) -> dict[str, Any]:
    """Draw epochs from a stream of training tiles, one after the other, and do nothing with them.

    cold: the files of local volumes are put out of the system's memory first, where it can be done. Tiles per second
    of each pass; the first holds Ray's start of the processes that read.
    """
    from kasthuri_ray.resources import attach_or_start
    from kasthuri_ray.tiles.stream import TileStream, training_plan
    from kasthuri_ray.training.sources import open_task

    own = Settings.model_validate(settings)
    tiles = open_task(own, print).train
    attach_or_start()
    if cold:
        forget([source.image.uri for source in tiles.sources])
        forget([source.annotation.uri for source in tiles.sources if source.annotation is not None])
    rates = []
    for number in range(passes):
        # Each pass has a stream of its own, so that none is read while the pass before is timed.
        start, taken = time.perf_counter(), 0
        running = TileStream(iter([training_plan(tiles, number, own.network.batch, 0, 1)]))
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
    from kasthuri_ray.benchmarks.seed_recipe import Recipe
    from kasthuri_ray.device import set_threads
    from kasthuri_ray.tiles.sampling import TileAddress, read_tile
    from kasthuri_ray.training.sources import open_task

    threads = set_threads(1)
    own = Settings.model_validate(settings)
    tiles = open_task(own, print)
    sources = [each.sources[0] for each in (tiles.train, tiles.val, tiles.test or tiles.val)]
    arrays = [read_tile((source,), TileAddress(0, source.box, source.box))[:2] for source in sources]
    size, epochs = own.task.tile_size[0], own.network.epochs
    training = Recipe(own.task.task_type, arrays[0], arrays[1], arrays[2], size, seed=own.network.seed)
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
    be_a_part({part.__name__: part for part in (bare, pipeline, stream, recipe)})

"""What one worker of a training run does, from the first epoch to the page: `train` in order of events.

Every rank goes the same way; rank 0 alone writes. It knows nothing of Ray Train: `Ranks` brings what it needs from it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from kasthuri_ray import device as hardware
from kasthuri_ray.evaluation import metrics
from kasthuri_ray.models.unet import build_network, load_weights
from kasthuri_ray.models.weights import Checkpoint
from kasthuri_ray.storage import open_storage
from kasthuri_ray.tiles.sampling import GridTiles
from kasthuri_ray.tiles.stream import TilePlan, TileStream, grid_plan, training_plan
from kasthuri_ray.training.job import Job, Progress, Ranks
from kasthuri_ray.training.loop import Learner, Plan, Step
from kasthuri_ray.training.optimize import should_stop
from kasthuri_ray.training.run_folder import RunFolder
from kasthuri_ray.training.trackers import Trackers


def train(job: Job, ranks: Ranks) -> None:
    """Train until the last epoch or until it no longer helps, then judge the best weights and leave the report."""
    hardware.keep_memory()
    hardware.set_threads(ranks.size_here)
    folder = RunFolder(open_storage(job.path))
    checkpoint = folder.read_checkpoint("last")
    last = checkpoint.about["resume"] if checkpoint else None
    progress = Progress(**last["progress"]) if last else Progress()
    settings = job.settings.network
    stream = _training_stream(job, ranks, progress.epoch)
    learner = make_learner(job, ranks, last)
    val = _grid_stream(job.val, job, ranks, settings.epochs - progress.epoch)
    trackers = Trackers.start(job.settings, job.path, progress.epoch) if ranks.rank == 0 else None
    try:
        while not _finished(job, progress):
            _run_epoch(job, ranks, learner, stream, val, progress)
            if ranks.rank == 0:
                _save(job, folder, learner, progress)
                assert trackers is not None
                trackers.log(progress.history[-1])
            ranks.report(progress.history[-1])
    finally:
        stream.close()
        val.close()
        if trackers is not None:
            trackers.close()
    from kasthuri_ray.training import finish  # draws figures, which nobody needs before

    finish.judge_and_report(job, ranks, learner, folder, progress)


def make_learner(job: Job, ranks: Ranks, last: dict[str, Any] | None) -> Learner:
    """The learner where `last` left it, or a fresh one."""
    settings = job.settings.network
    torch.manual_seed(settings.seed)
    network = build_network(settings.model_dump())
    if last is None and job.weights is not None:
        load_weights(network, job.weights)
    plan = Plan(**last["plan"]) if last else _decide(job, ranks, network)
    if plan.compile and ranks.device.type == "cpu" and hardware.find_compiler() is None:
        ranks.show({"line": "no C++ compiler here: the run goes on uncompiled, and its last digits may differ"})
        plan = Plan(plan.precision, False, plan.steps_per_epoch)
    learner = Learner(network, settings, job.settings.task, ranks.device, plan)
    if last:
        learner.load_state_dict(last["learner"])
    return learner


def _decide(job: Job, ranks: Ranks, network: nn.Module) -> Plan:
    settings = job.settings.network
    voxels = settings.epochs * job.train.tiles_per_epoch * math.prod(job.train.tile)
    num_parameters = sum(parameter.numel() for parameter in network.parameters())
    compiled, line = hardware.choose_compile(job.settings.train.compile, ranks.device, voxels, num_parameters)
    if line:
        ranks.show({"line": line})
    return Plan(
        precision=hardware.choose_precision(settings.precision, ranks.device),
        compile=compiled,
        steps_per_epoch=job.train.tiles_per_epoch // settings.batch_size,
    )


def _training_stream(job: Job, ranks: Ranks, epoch: int) -> TileStream:
    def plans() -> Iterator[TilePlan]:
        for number in range(epoch, job.settings.network.epochs):
            yield training_plan(job.train, number, job.settings.network.batch_size, ranks.rank, ranks.size)

    return TileStream(plans())


def _grid_stream(tiles: GridTiles, job: Job, ranks: Ranks, times: int) -> TileStream:
    batch_size = max(1, job.settings.network.batch_size // ranks.size)
    return TileStream(grid_plan(tiles, batch_size, ranks.rank, ranks.size) for _ in range(times))


def _finished(job: Job, progress: Progress) -> bool:
    losses = [row["val.loss"] for row in progress.history]
    return progress.epoch >= job.settings.network.epochs or should_stop(job.settings.network, losses)


def _run_epoch(
    job: Job, ranks: Ranks, learner: Learner, stream: TileStream, val: TileStream, progress: Progress
) -> None:
    start, waited = time.perf_counter(), stream.waited_seconds
    watch = _Watch(job, ranks, progress, stream)
    losses = [row["val.loss"] for row in progress.history]
    loss = learner.train_epoch(progress.epoch, stream.batches(), losses, watch.step)
    seconds = time.perf_counter() - start
    counts, val_loss = learner.evaluate(val.batches())
    _, f1 = metrics.best_threshold(counts)
    progress.epoch += 1
    progress.waited += stream.waited_seconds - waited
    progress.blank_chunks = sorted({*progress.blank_chunks, *stream.blank_chunks, *val.blank_chunks})
    progress.history.append(
        {
            "epoch": progress.epoch,
            "train.loss": loss,
            "val.loss": val_loss,
            "val.foreground_f1": f1,
            "val.average_precision": metrics.average_precision(counts),
            "learning_rate": learner.learning_rate,
            "seconds": time.perf_counter() - start,
            "tiles_per_second": job.train.tiles_per_epoch / seconds,
            "training_seconds": seconds,
        }
    )
    _keep_best(progress, counts)
    ranks.show({"epoch_done": progress.history[-1], "background": metrics.calls_background_everywhere(counts)})


def _keep_best(progress: Progress, counts: metrics.Counts) -> None:
    score = progress.history[-1]["val.average_precision"]
    if progress.best is None or score > progress.best["average_precision"]:
        threshold, _ = metrics.best_threshold(counts)
        progress.best = {
            "epoch": progress.epoch,
            "average_precision": score,
            "threshold": threshold,
            "val": metrics.test_metrics(counts, threshold),
        }


def _save(job: Job, folder: RunFolder, learner: Learner, progress: Progress) -> None:
    """Leave the epoch behind: `last.pt` comes last of what resuming needs, so it is never ahead of `best.pt`."""
    assert progress.best is not None
    settings = job.settings.model_dump(mode="json")
    weights = learner.judged_weights()
    about = {"best": progress.best, "image_intensity": list(job.train.sources[0].intensity)}
    if progress.best["epoch"] == progress.epoch:
        folder.write_checkpoint("best", Checkpoint(weights, settings, about))
    resume = {"learner": learner.state_dict(), "plan": asdict(learner.plan), "progress": asdict(progress)}
    folder.write_checkpoint("last", Checkpoint(weights, settings, {**about, "resume": resume}))
    folder.write_history(progress.history)
    folder.write_events(progress.history)


class _Watch:
    """Tells how an epoch goes, at most twice a second."""

    def __init__(self, job: Job, ranks: Ranks, progress: Progress, stream: TileStream) -> None:
        self.job, self.ranks, self.progress, self.stream = job, ranks, progress, stream
        self.start = self.told = time.perf_counter()
        self.waited = stream.waited_seconds

    def step(self, step: Step) -> None:
        now = time.perf_counter()
        steps = self.job.train.tiles_per_epoch // self.job.settings.network.batch_size
        if self.ranks.rank or (now - self.told < 0.5 and step.number + 1 < steps):
            return
        self.told = now
        done = self.progress.epoch + (step.number + 1) / steps
        each = [row["seconds"] for row in self.progress.history[-3:]] or [
            (now - self.start) / ((step.number + 1) / steps)
        ]
        self.ranks.show(
            {
                "epoch": self.progress.epoch + 1,
                "epochs": self.job.settings.network.epochs,
                "step": step.number + 1,
                "steps": steps,
                "loss": float(step.loss),
                "tiles_per_second": (step.number + 1) * self.job.settings.network.batch_size / (now - self.start),
                "seconds_left": (self.job.settings.network.epochs - done) * sum(each) / len(each),
                "wait_share": (self.stream.waited_seconds - self.waited) / (now - self.start),
            }
        )

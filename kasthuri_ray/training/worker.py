"""What one worker of a training run does, from the first epoch to the page: `train` in order of events.

Every rank goes the same way; rank 0 alone writes. It knows nothing of Ray Train: `Ranks` brings what it needs from it.
"""

from __future__ import annotations

import itertools
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
from kasthuri_ray.training.job import JUDGE, STOP, WITHOUT_FOREGROUND, Job, Progress, Ranks
from kasthuri_ray.training.loop import Learner, Plan, Step, gather_over_ranks
from kasthuri_ray.training.optimize import should_stop
from kasthuri_ray.training.run_folder import RunFolder, standing
from kasthuri_ray.training.trackers import Trackers


def train(job: Job, ranks: Ranks) -> None:
    """Train until the last epoch or until it no longer helps, then judge the best weights and leave the report.

    Who is told of the epochs may end it: at once, or with the report of what there is.
    """
    hardware.keep_memory()
    hardware.set_threads(ranks.size_here)
    folder = RunFolder(open_storage(job.path))
    checkpoint = folder.read_checkpoint("last")
    last = checkpoint.about["resume"] if checkpoint else None
    progress = Progress(**last["progress"]) if last else Progress()
    if checkpoint and ranks.rank == 0:
        _write_what_follows(folder, checkpoint, progress)
    answer = ranks.report(progress.history) if progress.history else None
    settings = job.settings.network
    stream = _training_stream(job, ranks, progress.epoch)
    learner = make_learner(job, ranks, last)
    val = _grid_stream(job.val, job, ranks, settings.epochs - progress.epoch)
    trackers = Trackers.start(job.settings, job.path, progress.epoch) if ranks.rank == 0 else None
    try:
        while answer not in (STOP, JUDGE) and not _finished(job, progress):
            _run_epoch(job, ranks, learner, stream, val, progress)
            if ranks.rank == 0:
                _save(job, folder, learner, progress)
                assert trackers is not None
                trackers.log(progress.history[-1])
            answer = ranks.report(progress.history)
    finally:
        stream.close()
        val.close()
        if trackers is not None:
            trackers.close()
    if answer == STOP:
        return
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
        steps_per_epoch=job.train.tiles_per_epoch // settings.batch,
    )


def _training_stream(job: Job, ranks: Ranks, epoch: int) -> TileStream:
    def plans() -> Iterator[TilePlan]:
        for number in range(epoch, job.settings.network.epochs):
            yield training_plan(job.train, number, job.settings.network.batch, ranks.rank, ranks.size)

    return TileStream(plans())


def _grid_stream(tiles: GridTiles, job: Job, ranks: Ranks, times: int) -> TileStream:
    batch_size = max(1, job.settings.network.batch // ranks.size)
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
    _count_blank_chunks(ranks, progress, stream.blank_chunks | val.blank_chunks)
    _see_foreground(ranks, progress, counts)
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
    _keep_best(progress, counts, job.settings.network.metric)
    if ranks.rank == 0:
        ranks.show({"epoch_done": progress.history[-1], "background": metrics.calls_background_everywhere(counts)})


def _count_blank_chunks(ranks: Ranks, progress: Progress, met: set[str]) -> None:
    """Take in what all ranks met, and say so when the first is met."""
    first = not progress.blank_chunks
    progress.add_blank_chunks(itertools.chain.from_iterable(gather_over_ranks(met)))
    if first and progress.blank_chunks and ranks.rank == 0:
        words = "chunks of the image hold nothing but zeros and may be missing at the source, for instance"
        ranks.show({"line": f"{len(progress.blank_chunks)} {words} {progress.blank_chunks[0]}"})


def _see_foreground(ranks: Ranks, progress: Progress, counts: metrics.Counts) -> None:
    """Say once that the validation box can judge nothing."""
    none = not counts.histogram[1].any()
    if none and not progress.without_foreground and ranks.rank == 0:
        ranks.show({"line": WITHOUT_FOREGROUND})
    progress.without_foreground = none


def _keep_best(progress: Progress, counts: metrics.Counts, metric: str) -> None:
    """The epoch that is best by the metric is the best; among equals the one with the lowest loss."""
    row = progress.history[-1]
    before = progress.history[progress.best["epoch"] - 1] if progress.best else None
    if before is None or standing(row, metric) > standing(before, metric):
        threshold, _ = metrics.best_threshold(counts)
        progress.best = {
            "epoch": progress.epoch,
            "average_precision": row["val.average_precision"],
            "loss": row["val.loss"],
            "threshold": threshold,
            "val": metrics.test_metrics(counts, threshold),
        }


def _save(job: Job, folder: RunFolder, learner: Learner, progress: Progress) -> None:
    """Leave the epoch behind."""
    resume = {"learner": learner.state_dict(), "plan": asdict(learner.plan), "progress": asdict(progress)}
    source = job.train.sources[0]
    size = source.image.voxel_size_nm
    about = {
        "best": progress.best,
        "image_intensity": list(source.intensity),
        "voxel_size_nm": list(size) if size else None,
        "resume": resume,
    }
    last = Checkpoint(learner.judged_weights(), job.settings.of_training(), about)
    folder.write_checkpoint("last", last)
    _write_what_follows(folder, last, progress)


def _write_what_follows(folder: RunFolder, last: Checkpoint, progress: Progress) -> None:
    """What follows from `last.pt`, and is written anew where a run was killed in between: the best epoch, history."""
    assert progress.best is not None
    if progress.best["epoch"] == progress.epoch:
        about = {name: value for name, value in last.about.items() if name != "resume"}
        folder.write_checkpoint("best", Checkpoint(last.weights, last.settings, about))
    folder.write_history(progress.history)
    folder.write_events(progress.history)


class _Watch:
    """Tells how an epoch goes, at most once a second."""

    def __init__(self, job: Job, ranks: Ranks, progress: Progress, stream: TileStream) -> None:
        self.job, self.ranks, self.progress, self.stream = job, ranks, progress, stream
        self.start = self.told = time.perf_counter()
        self.waited = stream.waited_seconds

    def step(self, step: Step) -> None:
        now = time.perf_counter()
        steps = self.job.train.tiles_per_epoch // self.job.settings.network.batch
        if self.ranks.rank or (now - self.told < 1 and step.number + 1 < steps):
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
                "tiles_per_second": (step.number + 1) * self.job.settings.network.batch / (now - self.start),
                "seconds_left": (self.job.settings.network.epochs - done) * sum(each) / len(each),
                "wait_share": (self.stream.waited_seconds - self.waited) / (now - self.start),
            }
        )

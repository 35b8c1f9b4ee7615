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

from kasthuri_ray import hardware
from kasthuri_ray.metrics import voxel_counts
from kasthuri_ray.models.checkpoints import Checkpoint
from kasthuri_ray.models.unet import build_network, load_weights
from kasthuri_ray.storage.folder import open_storage
from kasthuri_ray.tiles.sampling import GridTiles
from kasthuri_ray.tiles.streaming import TilePlan, TileStream, plan_grid_tiles, plan_training_tiles
from kasthuri_ray.training.learner import ComputePlan, Learner, StepProgress, gather_over_ranks
from kasthuri_ray.training.optimizer import should_stop_early
from kasthuri_ray.training.run_folder import RunFolder, epoch_rank
from kasthuri_ray.training.trackers import Trackers
from kasthuri_ray.training.training_job import (
    JUDGE,
    STOP,
    WITHOUT_FOREGROUND,
    TrainingJob,
    TrainingProgress,
    WorkerContext,
    learner_settings,
)


def train_worker(job: TrainingJob, ranks: WorkerContext) -> None:
    """Train until the last epoch or until it no longer helps, then judge the best weights and leave the report.

    Who is told of the epochs may end it: at once, or with the report of what there is.
    """
    hardware.configure_allocator()
    hardware.set_threads(ranks.size_here)
    folder = RunFolder(open_storage(job.path))
    checkpoint = folder.read_checkpoint("last")
    last = checkpoint.about["resume"] if checkpoint else None
    progress = TrainingProgress(**last["progress"]) if last else TrainingProgress()
    if checkpoint and ranks.rank == 0:
        _write_derived_files(folder, checkpoint, progress)
    answer = ranks.report(progress.history) if progress.history else None
    settings = job.settings.network
    stream = _training_stream(job, ranks, progress.epoch)
    learner = make_learner(job, ranks, last)
    val = _grid_stream(job.val, job, ranks, settings.epochs - progress.epoch)
    trackers = Trackers.start(job.settings, job.path, progress.epoch) if ranks.rank == 0 else None
    try:
        while answer not in (STOP, JUDGE) and not _is_finished(job, progress):
            _run_epoch(job, ranks, learner, stream, val, progress)
            if ranks.rank == 0:
                _save_epoch(job, folder, learner, progress)
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
    from kasthuri_ray.training import final_report  # draws figures, which nobody needs before

    final_report.report_best_weights(job, ranks, learner, folder, progress)


def make_learner(job: TrainingJob, ranks: WorkerContext, last: dict[str, Any] | None) -> Learner:
    """The learner where `last` left it, or a fresh one."""
    settings = job.settings.network
    torch.manual_seed(settings.seed)
    network = build_network(settings.model_dump())
    if last is None and job.weights is not None:
        load_weights(network, job.weights)
    plan = ComputePlan(**last["plan"]) if last else _make_plan(job, ranks, network)
    if plan.compile and ranks.device.type == "cpu" and hardware.find_compiler() is None:
        ranks.show({"line": "no C++ compiler here: the run goes on uncompiled, and its last digits may differ"})
        plan = ComputePlan(plan.precision, False, plan.steps_per_epoch)
    learner = Learner(network, learner_settings(settings, job.settings.task.task_type), ranks.device, plan)
    if last:
        learner.load_state_dict(last["learner"])
    return learner


def _make_plan(job: TrainingJob, ranks: WorkerContext, network: nn.Module) -> ComputePlan:
    settings = job.settings.network
    voxels = settings.epochs * job.train.tiles_per_epoch * math.prod(job.train.tile)
    num_parameters = sum(parameter.numel() for parameter in network.parameters())
    compiled, line = hardware.should_compile_training(job.settings.train.compile, ranks.device, voxels, num_parameters)
    if line:
        ranks.show({"line": line})
    return ComputePlan(
        precision=hardware.choose_precision(settings.precision, ranks.device),
        compile=compiled,
        steps_per_epoch=job.train.tiles_per_epoch // settings.batch,
    )


def _training_stream(job: TrainingJob, ranks: WorkerContext, epoch: int) -> TileStream:
    def plans() -> Iterator[TilePlan]:
        for number in range(epoch, job.settings.network.epochs):
            yield plan_training_tiles(job.train, number, job.settings.network.batch, ranks.rank, ranks.size)

    return TileStream(plans())


def _grid_stream(tiles: GridTiles, job: TrainingJob, ranks: WorkerContext, times: int) -> TileStream:
    batch_size = max(1, job.settings.network.batch // ranks.size)
    return TileStream(plan_grid_tiles(tiles, batch_size, ranks.rank, ranks.size) for _ in range(times))


def _is_finished(job: TrainingJob, progress: TrainingProgress) -> bool:
    losses = [row["val.loss"] for row in progress.history]
    network = job.settings.network
    stopped = should_stop_early(losses, network.early_stopping, network.early_stopping_delta)
    return progress.epoch >= network.epochs or stopped


def _run_epoch(
    job: TrainingJob,
    ranks: WorkerContext,
    learner: Learner,
    stream: TileStream,
    val: TileStream,
    progress: TrainingProgress,
) -> None:
    start, waited = time.perf_counter(), stream.waited_seconds
    watch = _StepReporter(job, ranks, progress, stream)
    losses = [row["val.loss"] for row in progress.history]
    loss = learner.train_epoch(progress.epoch, stream.batches(), losses, watch.step)
    seconds = time.perf_counter() - start
    counts, val_loss = learner.evaluate(val.batches())
    _, f1 = voxel_counts.best_threshold(counts)
    progress.epoch += 1
    progress.waited += stream.waited_seconds - waited
    _count_blank_chunks(ranks, progress, stream.blank_chunks | val.blank_chunks)
    _warn_without_foreground(ranks, progress, counts)
    progress.history.append(
        {
            "epoch": progress.epoch,
            "train.loss": loss,
            "val.loss": val_loss,
            "val.foreground_f1": f1,
            "val.average_precision": voxel_counts.average_precision(counts),
            "learning_rate": learner.learning_rate,
            "seconds": time.perf_counter() - start,
            "tiles_per_second": job.train.tiles_per_epoch / seconds,
            "training_seconds": seconds,
        }
    )
    _update_best(progress, counts, job.settings.network.metric)
    if ranks.rank == 0:
        ranks.show({"epoch_done": progress.history[-1], "background": voxel_counts.predicts_only_background(counts)})


def _count_blank_chunks(ranks: WorkerContext, progress: TrainingProgress, met: set[str]) -> None:
    """Take in what all ranks met, and say so when the first is met."""
    first = not progress.blank_chunks
    progress.add_blank_chunks(itertools.chain.from_iterable(gather_over_ranks(met)))
    if first and progress.blank_chunks and ranks.rank == 0:
        words = "chunks of the image hold nothing but zeros and may be missing at the source, for instance"
        ranks.show({"line": f"{len(progress.blank_chunks)} {words} {progress.blank_chunks[0]}"})


def _warn_without_foreground(
    ranks: WorkerContext, progress: TrainingProgress, counts: voxel_counts.VoxelCounts
) -> None:
    """Say once that the validation box can judge nothing."""
    none = not counts.histogram[1].any()
    if none and not progress.without_foreground and ranks.rank == 0:
        ranks.show({"line": WITHOUT_FOREGROUND})
    progress.without_foreground = none


def _update_best(progress: TrainingProgress, counts: voxel_counts.VoxelCounts, metric: str) -> None:
    """The epoch that is best by the metric is the best; among equals the one with the lowest loss."""
    row = progress.history[-1]
    before = progress.history[progress.best["epoch"] - 1] if progress.best else None
    if before is None or epoch_rank(row, metric) > epoch_rank(before, metric):
        threshold, _ = voxel_counts.best_threshold(counts)
        progress.best = {
            "epoch": progress.epoch,
            "average_precision": row["val.average_precision"],
            "loss": row["val.loss"],
            "threshold": threshold,
            "val": voxel_counts.split_metrics(counts, threshold),
        }


def _save_epoch(job: TrainingJob, folder: RunFolder, learner: Learner, progress: TrainingProgress) -> None:
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
    _write_derived_files(folder, last, progress)


def _write_derived_files(folder: RunFolder, last: Checkpoint, progress: TrainingProgress) -> None:
    """What follows from `last.pt`, and is written anew where a run was killed in between: the best epoch, history."""
    assert progress.best is not None
    if progress.best["epoch"] == progress.epoch:
        about = {name: value for name, value in last.about.items() if name != "resume"}
        folder.write_checkpoint("best", Checkpoint(last.weights, last.settings, about))
    folder.write_history(progress.history)
    folder.write_events(progress.history)


class _StepReporter:
    """Tells how an epoch goes, at most once a second."""

    def __init__(self, job: TrainingJob, ranks: WorkerContext, progress: TrainingProgress, stream: TileStream) -> None:
        self.job, self.ranks, self.progress, self.stream = job, ranks, progress, stream
        self.start = self.told = time.perf_counter()
        self.waited = stream.waited_seconds

    def step(self, step: StepProgress) -> None:
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

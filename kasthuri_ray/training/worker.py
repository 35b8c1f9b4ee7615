"""One worker of a training run, from the first epoch to the final report: `train_worker`, in order of events.

All ranks run the same code, and rank 0 alone writes. Nothing here knows Ray Train: `WorkerContext` brings everything
that is needed of it.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from kasthuri_ray import hardware, process_resources
from kasthuri_ray.config.network import NetworkSettings
from kasthuri_ray.config.settings import Settings
from kasthuri_ray.metrics import voxel_counts, voxel_scores
from kasthuri_ray.models.checkpoints import Checkpoint
from kasthuri_ray.models.unet import build_network, load_weights
from kasthuri_ray.module_path import import_in_background
from kasthuri_ray.storage.folder import open_storage
from kasthuri_ray.tiles.streaming import TilePlan, TileStream, plan_training_tiles
from kasthuri_ray.training.annotated_objects import count_annotated_objects
from kasthuri_ray.training.compute_plan import ComputePlan, check_resumed_plan, choose_compute_plan
from kasthuri_ray.training.grid_stream import open_grid_stream
from kasthuri_ray.training.learner import Learner, StepProgress
from kasthuri_ray.training.optimizer import should_stop_early
from kasthuri_ray.training.process_group import gather_over_ranks
from kasthuri_ray.training.run_folder import RunFolder, epoch_sort_key
from kasthuri_ray.training.trackers import Trackers
from kasthuri_ray.training.training_job import (
    EVALUATE,
    NO_FOREGROUND_WARNING,
    STOP,
    TrainingJob,
    WorkerContext,
    make_learner_settings,
)
from kasthuri_ray.training.training_messages import EpochMessage, StepMessage, TextMessage
from kasthuri_ray.training.training_state import TrainingProgress, TrainingState

SHOW_PERIOD_S = 1.0  # between two messages about the progress of an epoch


def train_worker(job: TrainingJob, context: WorkerContext) -> None:
    """Train until the last epoch or an early stop, then test the best weights and write the final report.

    A run that has a checkpoint resumes from it. `context.report` may end the run after any epoch: at once, or with the
    report of the epochs so far.

    Parameters
    ----------
    job : TrainingJob
        The run.
    context : WorkerContext
        The place of this worker among the others.
    """
    process_resources.configure_allocator()
    process_resources.set_threads(context.workers_per_node)
    folder = RunFolder(open_storage(job.path))
    last = folder.read_checkpoint("last")
    saved = TrainingState.of(last) if last else None
    progress = saved.progress if saved else TrainingProgress()
    if last and context.rank == 0:
        _write_derived_files(folder, last, progress)
    if context.rank == 0 and progress.annotated_objects is None:
        progress.annotated_objects = _count_annotated_objects(job)
    answer = context.report(progress.history) if progress.history else None
    settings = job.settings.network
    stream = _training_stream(job, context, progress.epoch)
    if context.rank == 0:
        import_in_background("kasthuri_ray.training.run_report")  # with its figures, while the first tiles are read
    learner = make_learner(job, context, saved)
    val_stream = open_grid_stream(job.tiles.val, job, context, settings.epochs - progress.epoch)
    trackers = Trackers.start(job.settings, job.path, progress.epoch) if context.rank == 0 else None
    try:
        while answer not in (STOP, EVALUATE) and not _is_finished(job, progress):
            _run_epoch(job, context, learner, stream, val_stream, progress)
            if context.rank == 0:
                _save_epoch(job, folder, learner, progress)
                assert trackers is not None
                trackers.log(progress.history[-1])
            answer = context.report(progress.history)
    finally:
        stream.close()
        val_stream.close()
        if trackers is not None:
            trackers.close()
    if answer == STOP:
        return
    if answer != EVALUATE and progress.epoch < settings.epochs and context.rank == 0:
        context.show(TextMessage(_early_stop_text(progress.epoch, settings)))
    from kasthuri_ray.training import run_report  # with the figures, which nothing needs before

    run_report.write_run_report(job, context, learner, folder, progress)


def _count_annotated_objects(job: TrainingJob) -> dict[str, Any] | None:
    counted = count_annotated_objects(job.tiles.train.sources, job.settings.class_names)
    return None if counted is None else counted.to_plain()


def make_learner(job: TrainingJob, context: WorkerContext, saved: TrainingState | None) -> Learner:
    """Make the learner of a new or a resumed run.

    Parameters
    ----------
    job : TrainingJob
        The run.
    context : WorkerContext
        The worker.
    saved : TrainingState or None
        State of a resumed run; None starts with the job's weights, or random ones.

    Returns
    -------
    Learner
        On the device of the worker.
    """
    settings = job.settings.network
    torch.manual_seed(settings.seed)
    network = build_network(settings.model_dump())
    if saved is None and job.weights is not None:
        load_weights(network, job.weights)
    plan = _resume_compute_plan(job, context, saved.plan) if saved else _make_compute_plan(job, context, network)
    task_type = job.settings.task.task_type
    learner = Learner(network, make_learner_settings(settings, task_type), context.device, plan)
    if saved:
        learner.load_state_dict(saved.learner)
    return learner


def _make_compute_plan(job: TrainingJob, context: WorkerContext, network: nn.Module) -> ComputePlan:
    settings, tiles = job.settings.network, job.tiles.train
    plan, line = choose_compute_plan(
        hardware.Machine.detect(context.device.type),
        settings.precision,
        job.settings.train.compile,
        tiles.tiles_per_epoch // settings.batch,
        settings.epochs * tiles.tiles_per_epoch * math.prod(tiles.tile),
        hardware.count_parameters(network),
    )
    if line:
        context.show(TextMessage(line))
    return replace(plan, by_labelled_voxels=tiles.labelled is not None)


def _resume_compute_plan(job: TrainingJob, context: WorkerContext, plan: ComputePlan) -> ComputePlan:
    machine = hardware.Machine.detect(context.device.type)
    if line := check_resumed_plan(plan, machine, job.settings.network.precision):
        context.show(TextMessage(line))
    if plan.compile and context.device.type == "cpu" and not machine.compiler:
        line = "this machine has no C++ compiler: the run continues uncompiled, and its last digits may differ"
        context.show(TextMessage(line))
        return replace(plan, compile=False)
    return plan


def _training_stream(job: TrainingJob, context: WorkerContext, first_epoch: int) -> TileStream:
    tiles, network = job.tiles.train, job.settings.network

    def plans() -> Iterator[TilePlan]:
        for epoch in range(first_epoch, network.epochs):
            yield plan_training_tiles(tiles, epoch, network.batch, context.rank, context.world_size)

    return TileStream(plans())


def _early_stop_text(epoch: int, settings: NetworkSettings) -> str:
    return (
        f"stopped after epoch {epoch} of {settings.epochs}: the validation loss did not fall by "
        f"{settings.early_stopping_delta:g} in {settings.early_stopping} epochs (network.early_stopping=0 trains on)"
    )


def _is_finished(job: TrainingJob, progress: TrainingProgress) -> bool:
    network = job.settings.network
    stopped_early = should_stop_early(progress.val_losses, network.early_stopping, network.early_stopping_delta)
    return progress.epoch >= network.epochs or stopped_early


def _run_epoch(
    job: TrainingJob,
    context: WorkerContext,
    learner: Learner,
    stream: TileStream,
    val_stream: TileStream,
    progress: TrainingProgress,
) -> None:
    """Train and validate one epoch, and add it to `progress`."""
    start, waited_before = time.perf_counter(), stream.waited_seconds
    reporter = _StepReporter(job, context, progress, stream)
    loss = learner.train_epoch(progress.epoch, stream.batches(), progress.val_losses, reporter.report)
    training_seconds = time.perf_counter() - start
    counts, val_loss = learner.evaluate(val_stream.batches())
    _, f1 = voxel_scores.best_thresholds(counts)
    progress.epoch += 1
    progress.waited += stream.waited_seconds - waited_before
    _add_blank_chunks(context, progress, stream.blank_chunks | val_stream.blank_chunks)
    _warn_without_foreground(context, progress, counts)
    progress.history.append(
        {
            "epoch": progress.epoch,
            "train.loss": loss,
            "val.loss": val_loss,
            "val.foreground_f1": f1,
            "val.average_precision": voxel_scores.mean_average_precision(counts),
            "learning_rate": learner.learning_rate,
            "seconds": time.perf_counter() - start,
            "tiles_per_second": job.tiles.train.tiles_per_epoch / training_seconds,
            "training_seconds": training_seconds,
        }
    )
    _update_best(progress, counts, job.settings)
    if context.rank == 0:
        only_background = voxel_scores.predicts_only_background(counts)
        context.show(EpochMessage(progress.history[-1], only_background))


def _add_blank_chunks(context: WorkerContext, progress: TrainingProgress, chunks: set[str]) -> None:
    """Add the blank chunks of all ranks to `progress`, and show a warning about the first ones."""
    is_first = not progress.blank_chunks
    progress.add_blank_chunks(itertools.chain.from_iterable(gather_over_ranks(chunks)))
    if is_first and progress.blank_chunks and context.rank == 0:
        text = "chunks of the image hold nothing but zeros and may be missing at the source, for instance"
        context.show(TextMessage(f"{len(progress.blank_chunks)} {text} {progress.blank_chunks[0]}"))


def _warn_without_foreground(
    context: WorkerContext, progress: TrainingProgress, counts: voxel_counts.VoxelCounts
) -> None:
    """Show once that the validation box holds no foreground."""
    without_foreground = not counts.num_foreground
    if without_foreground and not progress.without_foreground and context.rank == 0:
        context.show(TextMessage(NO_FOREGROUND_WARNING))
    progress.without_foreground = without_foreground


def _update_best(progress: TrainingProgress, counts: voxel_counts.VoxelCounts, settings: Settings) -> None:
    """Keep the last epoch as the best if it is better by the metric, or equal with a lower loss."""
    row, metric = progress.history[-1], settings.network.metric
    best_row = progress.history[progress.best["epoch"] - 1] if progress.best else None
    if best_row is None or epoch_sort_key(row, metric) > epoch_sort_key(best_row, metric):
        thresholds, _ = voxel_scores.best_thresholds(counts)
        val = voxel_scores.split_metrics(counts, thresholds, settings.class_names)
        progress.best = {
            "epoch": progress.epoch,
            "average_precision": row["val.average_precision"],
            "loss": row["val.loss"],
            "threshold": val["threshold"],
            "val": val,
        }


def _save_epoch(job: TrainingJob, folder: RunFolder, learner: Learner, progress: TrainingProgress) -> None:
    """Write the checkpoint `last` and the files that follow from it."""
    source = job.tiles.train.sources[0]
    voxel_size = source.image.voxel_size_nm
    last = Checkpoint(
        weights=learner.evaluation_weights(),
        settings=job.settings.training_record(),
        best=progress.best,
        image_intensity=list(source.intensity),
        voxel_size_nm=list(voxel_size) if voxel_size else None,
        annotated_objects=progress.annotated_objects,
        resume=TrainingState(learner.state_dict(), learner.plan, progress).to_plain(),
        learnt_from=job.history.learnt_from.to_plain(),
    )
    folder.write_checkpoint("last", last)
    _write_derived_files(folder, last, progress)


def _write_derived_files(folder: RunFolder, last: Checkpoint, progress: TrainingProgress) -> None:
    """Write what follows from `last.pt`: the best epoch and the history. A resumed run writes them again."""
    assert progress.best is not None
    if progress.best["epoch"] == progress.epoch:
        folder.write_checkpoint("best", replace(last, resume=None))
    folder.write_history(progress.history)
    folder.write_events(progress.history)


class _StepReporter:
    """Shows the progress of an epoch on rank 0, at most every SHOW_PERIOD_S and after the last step."""

    def __init__(
        self, job: TrainingJob, context: WorkerContext, progress: TrainingProgress, stream: TileStream
    ) -> None:
        self.job, self.context, self.progress, self.stream = job, context, progress, stream
        self.start = self.last_shown = time.perf_counter()
        self.first_step_end = 0.0  # the first step waits for tiles, and is no measure of the others
        self.waited_before = stream.waited_seconds

    def report(self, step: StepProgress) -> None:
        now, num_done = time.perf_counter(), step.number + 1
        network = self.job.settings.network
        steps = self.job.tiles.train.tiles_per_epoch // network.batch
        if num_done == 1:
            self.first_step_end = now
        if self.context.rank or (now - self.last_shown < SHOW_PERIOD_S and num_done < steps):
            return
        self.last_shown, elapsed = now, now - self.start
        epochs_left = network.epochs - self.progress.epoch - num_done / steps
        epoch_seconds = [row["seconds"] for row in self.progress.history[-3:]]
        if not epoch_seconds and num_done > 1:
            epoch_seconds = [(now - self.first_step_end) / (num_done - 1) * steps]
        self.context.show(
            StepMessage(
                epoch=self.progress.epoch + 1,
                num_epochs=network.epochs,
                step=num_done,
                num_steps=steps,
                loss=float(step.loss),
                tiles_per_second=num_done * network.batch / elapsed,
                seconds_left=epochs_left * sum(epoch_seconds) / len(epoch_seconds) if epoch_seconds else None,
                wait_share=(self.stream.waited_seconds - self.waited_before) / elapsed,
            )
        )

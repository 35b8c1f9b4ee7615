"""The end of a training run: test the weights of the best epoch, and write metrics, figures and the run's page."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from kasthuri_ray.geometry import Box
from kasthuri_ray.labels import IGNORE_LABEL
from kasthuri_ray.metrics import voxel_counts
from kasthuri_ray.metrics.object_comparison import object_classes
from kasthuri_ray.metrics.voxel_outcomes import VoxelOutcomes
from kasthuri_ray.models.checkpoints import Checkpoint, checkpoint_bytes
from kasthuri_ray.models.unet import is_plain_unet
from kasthuri_ray.reports import figures
from kasthuri_ray.reports.learnt_text import learnt_percent
from kasthuri_ray.reports.run_page import RunReport, metrics_report, run_page
from kasthuri_ray.reports.section_images import NUM_EXAMPLES, SectionResult, choose_examples
from kasthuri_ray.tiles.sampling import GridTiles, read_tile
from kasthuri_ray.tiles.streaming import TileBatch
from kasthuri_ray.training.augmented_test import augmented_logits, should_test_augmented
from kasthuri_ray.training.final_metrics import final_metrics
from kasthuri_ray.training.grid_stream import open_grid_stream, with_context
from kasthuri_ray.training.learner import Learner
from kasthuri_ray.training.process_group import gather_over_ranks
from kasthuri_ray.training.run_folder import RunFolder
from kasthuri_ray.training.split_results import AUGMENTED_FILE, FILE, SplitResults
from kasthuri_ray.training.temperature import choose_temperature, temperature_lines, with_temperature
from kasthuri_ray.training.tile_results import TileResults, TileScore, TileScorer, foreground_probabilities
from kasthuri_ray.training.training_job import NO_FOREGROUND_WARNING, TrainingJob, WorkerContext
from kasthuri_ray.training.training_messages import TextMessage
from kasthuri_ray.training.training_state import TrainingProgress
from kasthuri_ray.training.val_objects import choice_lines, choose_object_settings, predict_val_objects


def write_run_report(
    job: TrainingJob, context: WorkerContext, learner: Learner, folder: RunFolder, progress: TrainingProgress
) -> None:
    """Test `best.pt` on the test box, else the validation box, on all ranks; write metrics and page on rank 0."""
    best = folder.read_checkpoint("best")
    assert best is not None
    learner.load_evaluation_weights(best.weights)
    class_numbers = object_classes(job.settings.class_names)
    if class_numbers and is_plain_unet(learner.network):
        best = _divide_logits(job, context, learner, best)
        learner.load_evaluation_weights(best.weights)
        progress = replace(progress, best=best.best)
    results = _evaluate_tiles(job, context, learner, progress)
    val, packed_val = job.tiles.val, dict[int, bytes]()
    if class_numbers:
        val, packed_val = predict_val_objects(job, context, learner, results, progress.thresholds)
    if context.rank:
        return
    choice = None
    if class_numbers:
        choice = choose_object_settings(
            val,
            packed_val,
            job.tiles.train.sources,
            job.settings.class_names,
            class_numbers,
            progress.thresholds,
        )
        best = replace(best, objects=choice.to_plain())
        folder.write_checkpoint("best", best)
    results = results.with_objects(class_numbers, None if choice is None else choice.settings, progress.thresholds)
    metrics = final_metrics(job, progress, results, choice, best.temperature)
    _write_page(job, learner, folder, progress, results, metrics)
    _write_results(folder, results)
    folder.write(_weights_file_name(job), checkpoint_bytes(best.weights))
    for line in [
        *temperature_lines(best.temperature),
        *choice_lines(choice),
        *(f"warning: {warning}" for warning in metrics["warnings"]),
    ]:
        context.show(TextMessage(line))
    folder.write_metrics(metrics)  # the last file: it marks the run as finished


def _divide_logits(job: TrainingJob, context: WorkerContext, learner: Learner, best: Checkpoint) -> Checkpoint:
    """Return the best epoch with divided logits, and the threshold and scores of val that go with them."""
    if best.temperature is not None:  # by this run, before it was killed or was given more epochs
        return best
    with closing(open_grid_stream(with_context(job.tiles.val, learner.network), job, context)) as stream:
        temperature, counts = choose_temperature(learner, stream.batches())
    return with_temperature(best, temperature, counts, job.settings.class_names)


def _write_results(folder: RunFolder, results: TileResults) -> None:
    """Write the counts of the test, for pooling with those of other runs."""
    for name, part in ((FILE, results), (AUGMENTED_FILE, results.augmented)):
        if part is not None and part.counts.num_voxels:
            pooled = SplitResults(part.counts, part.confusion, part.sample(), part.objects)
            folder.write(name, pooled.to_bytes())
        else:
            folder.storage.delete(name)  # of a run that is extended, and measured differently now


def choose_example_tiles(scores: list[TileScore], max_tiles: int = NUM_EXAMPLES) -> list[int]:
    """Return the numbers of the tiles to show; see `choose_examples`."""
    outcomes = [VoxelOutcomes.of_confusion(score.confusion) for score in scores]
    found, missed, wrong = np.array([[o.found, o.missed, o.wrong] for o in outcomes], int).reshape(-1, 3).T
    return [scores[index].number for index in choose_examples(found, missed, wrong, max_tiles)]


def _evaluate_tiles(
    job: TrainingJob, context: WorkerContext, learner: Learner, progress: TrainingProgress
) -> TileResults:
    """Return the results of the test tiles, else of the validation tiles, with context; the same on all ranks."""
    assert progress.best is not None
    has_objects = bool(object_classes(job.settings.class_names))
    tiles = job.tiles.test or job.tiles.val
    if job.tiles.test or has_objects:  # else the scores are those of val after its best epoch, without context
        tiles = with_context(tiles, learner.network)
    scorers = [TileScorer(tiles, progress.thresholds, has_objects)]
    if job.tiles.test is not None and job.history.test_share:
        learnt = [part.boxes for part in job.history.test]
        scorers.append(TileScorer(tiles, progress.thresholds, has_objects, learnt))
    nothing_learnt: list[tuple[Box, ...]] = [()] * len(tiles.sources)
    is_augmented = should_test_augmented(job, tiles.context)
    augmented = TileScorer(tiles, progress.thresholds, has_objects, nothing_learnt) if is_augmented else None

    def score_batch(batch: Any, logits: Tensor, labels: Tensor) -> None:
        for scorer in scorers:
            scorer.add(batch.number, logits, labels)
        if augmented is not None:
            augmented.add(batch.number, augmented_logits(learner, batch, logits), labels)

    with closing(open_grid_stream(tiles, job, context)) as stream:
        counts, _ = learner.evaluate(stream.batches(), score_batch)
    progress.add_blank_chunks(itertools.chain.from_iterable(gather_over_ranks(stream.blank_chunks)))
    whole, *unseen = (scorer.results(counts if scorer.learnt is None else None) for scorer in scorers)
    return replace(
        whole, unseen=unseen[0] if unseen else None, augmented=None if augmented is None else augmented.results()
    )


def _write_page(
    job: TrainingJob,
    learner: Learner,
    folder: RunFolder,
    progress: TrainingProgress,
    results: TileResults,
    metrics: dict[str, Any],
) -> None:
    """Write the run's page, and its figures and its text report as files of their own."""
    gallery = _predict_examples(learner, results, progress.thresholds)
    _write_figures(job, folder, progress, gallery)
    folder.write("report.rpt", metrics_report(metrics["test"], _report_heading(job, metrics), _report_names(job)))
    names, shown = job.settings.class_names, results.headline
    counts, voxel_size = shown.counts, results.tiles.sources[0].image.voxel_size_nm
    report = RunReport(
        name=folder.storage.path.rstrip("/").rsplit("/", 1)[-1],
        task_type=job.settings.task.task_type,
        network=job.settings.network.outweightfilename,
        metrics=metrics,
        history=progress.history,
        counts=counts if counts.num_voxels else None,
        counts_of="test" if metrics["test"] else "val",
        gallery=gallery,
        thresholds=progress.thresholds,
        class_names=names if len(names) > 1 else (),
        confusion=shown.confusion.tolist() if len(names) > 1 and counts.num_voxels else None,
        weights=job.settings.training_record()["train"]["weights"] or "",
        settings=job.settings.training_record(),
        notes=run_notes(job, progress, results.counts),
        view_flags=["--run", folder.storage.path],
        next_text="Resume the training for more epochs:",
        next_command=job.next_command if progress.epoch == job.settings.network.epochs else "",
        num_tiles=progress.epoch * job.tiles.train.tiles_per_epoch,
        pixel_size_nm=voxel_size[1:] if voxel_size else None,
    )
    folder.write("index.html", run_page(report))


def _predict_examples(learner: Learner, results: TileResults, thresholds: Sequence[float]) -> list[SectionResult]:
    tiles = results.tiles
    numbers = choose_example_tiles(_complete_tiles(tiles, results.headline.labelled))
    return [_predict_section(learner, tiles, number, thresholds) for number in numbers]


def _write_figures(
    job: TrainingJob, folder: RunFolder, progress: TrainingProgress, gallery: Sequence[SectionResult]
) -> None:
    for number, section in enumerate(sorted(gallery, key=lambda section: section.z)):
        figure = figures.plot_section(section, job.settings.class_names)
        folder.write(f"test_outputs/slice_{number}.png", figures.figure_png(figure))
    assert progress.best is not None
    curve = figures.plot_learning_curve(progress.history, progress.best["epoch"])
    folder.write("learning_curve.png", figures.figure_png(curve))


def _complete_tiles(tiles: GridTiles, scores: list[TileScore]) -> list[TileScore]:
    """Return the scores of tiles in which every voxel counts, since a picture shows the whole tile; else all scores."""
    addresses = [tiles.without_context(score.number) for score in scores]
    return [s for s, address in zip(scores, addresses, strict=True) if address.own == address.box] or scores


def _predict_section(learner: Learner, tiles: GridTiles, number: int, thresholds: Sequence[float]) -> SectionResult:
    """Predict a tile; return its only section, or of a 3D tile the one with most foreground, else the middle one."""
    shown = tiles.without_context(number).box
    address = replace(tiles.address(number), own=shown)
    image, label, _ = read_tile(tiles.sources, address)
    images, _ = learner.load(TileBatch(image[None], label[None], np.array([number])))
    with learner.evaluation_mode():
        probability = foreground_probabilities(learner.logits(images))[0].reshape(-1, *image.shape)
    inside = shown.slices(address.box.start)
    image, label, probability = image[inside], label[inside], probability[(slice(None), *inside)]
    num_true = ((label > 0) & (label != IGNORE_LABEL)).sum((1, 2))
    z = int(num_true.argmax()) if num_true.any() else len(image) // 2
    truth = None if tiles.sources[address.source].annotation is None else label[z]
    return SectionResult(shown.start[0] + z, image[z], truth, probability[:, z], thresholds, str(shown))


def _report_heading(job: TrainingJob, metrics: dict[str, Any]) -> dict[str, Any]:
    settings = job.settings
    return {
        "task": settings.task.name,
        "network": settings.network.outweightfilename,
        "best epoch": f"{metrics['best_epoch']} of {metrics['epochs']}",
        **_learnt_heading(metrics["test"]),
    }


def _learnt_heading(test: dict[str, Any] | None) -> dict[str, str]:
    """Return what is known about the part of the test box that was learnt from, for the text report."""
    if test is None:
        return {}
    learnt = test["learnt_from"]
    unknown = "" if learnt["known"] else ", as far as it is known"
    return {"learnt from": f"{learnt_percent(learnt['share'])} of the test box{unknown}"}


def _report_names(job: TrainingJob) -> tuple[str, ...]:
    """Return the names of several classes for the text report; empty for its own names of two."""
    names = job.settings.class_names
    return ("background", *names) if len(names) > 1 else ()


def _weights_file_name(job: TrainingJob) -> str:
    return f"{job.settings.network.outweightfilename}_{job.settings.task.task_type}.pt"


def run_notes(job: TrainingJob, progress: TrainingProgress, counts: voxel_counts.VoxelCounts) -> list[str]:
    """Return the notes of the run's page: what is to be known of its boxes and of what it read."""
    notes = []
    if progress.without_foreground:
        notes.append(NO_FOREGROUND_WARNING)
    if job.tiles.test is None or not counts.num_voxels:
        notes.append(
            "There is no annotation for test: the metrics are those of the validation box, which also selected the "
            "best epoch and the threshold."
        )
    if job.history.val_share:
        notes.append(
            f"{learnt_percent(job.history.val_share)} of the validation box, which selected the best epoch and the "
            "threshold, was learnt from before."
        )
    if progress.blank_chunks:
        notes.append(
            "Image chunks that hold nothing but zeros and may be missing at the source: "
            f"{len(progress.blank_chunks)}, for instance {progress.blank_chunks[0]}."
        )
    return notes

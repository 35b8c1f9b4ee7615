"""The end of a training run: test the weights of the best epoch, and write metrics, figures and the run's page."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kasthuri_ray.labels import IGNORE_LABEL
from kasthuri_ray.metrics import voxel_counts, voxel_scores
from kasthuri_ray.models.checkpoints import checkpoint_bytes
from kasthuri_ray.reports import figures
from kasthuri_ray.reports.run_page import RunReport, metrics_report, run_page
from kasthuri_ray.reports.section_images import NUM_EXAMPLES, SectionResult, choose_examples
from kasthuri_ray.tiles.sampling import GridTiles, read_tile
from kasthuri_ray.tiles.streaming import TileBatch, TileStream, plan_grid_tiles
from kasthuri_ray.training.learner import Learner, foreground_probability, gather_over_ranks
from kasthuri_ray.training.run_folder import RunFolder
from kasthuri_ray.training.training_job import NO_FOREGROUND_WARNING, TrainingJob, WorkerContext
from kasthuri_ray.training.training_state import TrainingProgress


@dataclass(frozen=True)
class TileScore:
    """The foreground voxels of one tile, compared with the prediction at the threshold."""

    number: int
    true_positives: int
    false_negatives: int
    false_positives: int


@dataclass(frozen=True)
class TileResults:
    """The tiles of a split, their counts, and the score of each."""

    tiles: GridTiles
    counts: voxel_counts.VoxelCounts
    scores: list[TileScore]


def write_run_report(
    job: TrainingJob, context: WorkerContext, learner: Learner, folder: RunFolder, progress: TrainingProgress
) -> None:
    """Test `best.pt` on the test box, else the validation box, on all ranks; write metrics and page on rank 0."""
    best = folder.read_checkpoint("best")
    assert best is not None
    learner.load_evaluation_weights(best.weights)
    results = _evaluate_tiles(job, context, learner, progress)
    if context.rank:
        return
    _write_pages(job, learner, folder, progress, results)
    folder.write(_weights_file_name(job), checkpoint_bytes(best.weights))
    # The last file: it marks the run as finished.
    folder.write_metrics(_final_metrics(job, progress, results.counts))


def choose_example_tiles(scores: list[TileScore], max_tiles: int = NUM_EXAMPLES) -> list[int]:
    """Return the numbers of the tiles to show; see `choose_examples`."""
    outcomes = [(score.true_positives, score.false_negatives, score.false_positives) for score in scores]
    found, missed, wrong = np.array(outcomes, int).reshape(-1, 3).T
    return [scores[index].number for index in choose_examples(found, missed, wrong, max_tiles)]


def _evaluate_tiles(
    job: TrainingJob, context: WorkerContext, learner: Learner, progress: TrainingProgress
) -> TileResults:
    """Return the results of the test tiles, else of the validation tiles, the same on all ranks."""
    assert progress.best is not None
    tiles = job.tiles.test or job.tiles.val
    threshold, scores = progress.best["threshold"], list[TileScore]()
    batch_size = max(1, job.settings.network.batch // context.world_size)
    stream = TileStream(iter([plan_grid_tiles(tiles, batch_size, context.rank, context.world_size)]))

    def score_batch(batch: Any, logits: Tensor, labels: Tensor) -> None:
        predicted = foreground_probability(torch.softmax(logits.float(), 1)) >= threshold
        true, valid = (labels > 0) & (labels != IGNORE_LABEL), labels != IGNORE_LABEL
        outcomes = [predicted & true, ~predicted & true, predicted & ~true & valid]
        rows = torch.stack([outcome.flatten(1).sum(1) for outcome in outcomes], 1).tolist()
        scores.extend(TileScore(int(number), *row) for number, row in zip(batch.number, rows, strict=True))

    try:
        counts, _ = learner.evaluate(stream.batches(), score_batch)
    finally:
        stream.close()
    progress.add_blank_chunks(itertools.chain.from_iterable(gather_over_ranks(stream.blank_chunks)))
    all_scores = itertools.chain.from_iterable(gather_over_ranks(scores))
    return TileResults(tiles, counts, sorted(all_scores, key=lambda score: score.number))


def _write_pages(
    job: TrainingJob, learner: Learner, folder: RunFolder, progress: TrainingProgress, results: TileResults
) -> None:
    assert progress.best is not None
    threshold, tiles, counts = progress.best["threshold"], results.tiles, results.counts
    examples = choose_example_tiles(_complete_tiles(tiles, results.scores))
    gallery = [_predict_section(learner, tiles, number) for number in examples]
    task_type = job.settings.task.task_type
    for number, section in enumerate(sorted(gallery, key=lambda section: section.z)):
        figure = figures.plot_section(section, threshold, task_type)
        folder.write(f"test_outputs/slice_{number}.png", figures.figure_png(figure))
    curve = figures.plot_learning_curve(progress.history, progress.best["epoch"])
    folder.write("learning_curve.png", figures.figure_png(curve))
    metrics = _final_metrics(job, progress, counts)
    folder.write("report.rpt", metrics_report(metrics["test"], _report_heading(job, metrics)))
    voxel_size = tiles.sources[0].image.voxel_size_nm
    report = RunReport(
        name=folder.storage.path.rstrip("/").rsplit("/", 1)[-1],
        task_type=task_type,
        network=job.settings.network.outweightfilename,
        metrics=metrics,
        history=progress.history,
        counts=counts if counts.num_voxels else None,
        counts_of="test" if metrics["test"] else "val",
        gallery=gallery,
        threshold=threshold,
        settings=job.settings.training_record(),
        notes=_warnings(job, progress, counts),
        next_text="Resume the training for more epochs:",
        next_command=job.next_command if progress.epoch == job.settings.network.epochs else "",
        num_tiles=progress.epoch * job.tiles.train.tiles_per_epoch,
        pixel_size_nm=voxel_size[1:] if voxel_size else None,
    )
    folder.write("index.html", run_page(report))


def _complete_tiles(tiles: GridTiles, scores: list[TileScore]) -> list[TileScore]:
    """Return the scores of tiles in which every voxel counts, since a picture shows the whole tile; else all scores."""
    addresses = [tiles.address(score.number) for score in scores]
    return [s for s, address in zip(scores, addresses, strict=True) if address.own == address.box] or scores


def _predict_section(learner: Learner, tiles: GridTiles, number: int) -> SectionResult:
    """Predict a tile; return its only section, or of a 3D tile the one with most foreground, else the middle one."""
    address = tiles.address(number)
    image, label, _ = read_tile(tiles.sources, replace(address, own=address.box))
    images, _ = learner.load(TileBatch(image[None], label[None], np.array([number])))
    with learner.evaluation_mode():
        probability = foreground_probability(torch.softmax(learner.logits(images).float(), 1))[0].cpu().numpy()
    probability = probability.reshape(image.shape)
    num_true = ((label > 0) & (label != IGNORE_LABEL)).sum((1, 2))
    z = int(num_true.argmax()) if num_true.any() else len(image) // 2
    truth = None if tiles.sources[address.source].annotation is None else label[z]
    return SectionResult(address.box.start[0] + z, image[z], truth, probability[z], str(address.box))


def _report_heading(job: TrainingJob, metrics: dict[str, Any]) -> dict[str, Any]:
    settings = job.settings
    return {
        "task": settings.task.name,
        "network": settings.network.outweightfilename,
        "best epoch": f"{metrics['best_epoch']} of {metrics['epochs']}",
    }


def _weights_file_name(job: TrainingJob) -> str:
    return f"{job.settings.network.outweightfilename}_{job.settings.task.task_type}.pt"


def _final_metrics(job: TrainingJob, progress: TrainingProgress, counts: voxel_counts.VoxelCounts) -> dict[str, Any]:
    """Return the content of metrics.json."""
    assert progress.best is not None
    training_seconds = sum(row["training_seconds"] for row in progress.history)
    is_tested = job.tiles.test is not None and counts.num_voxels > 0
    return {
        "test": voxel_scores.split_metrics(counts, progress.best["threshold"]) if is_tested else None,
        "val": progress.best["val"],
        "best_epoch": progress.best["epoch"],
        "epochs": progress.epoch,
        "tiles_per_second": progress.epoch * job.tiles.train.tiles_per_epoch / training_seconds,
        "wait_share": progress.waited / training_seconds,
        "seconds": sum(row["seconds"] for row in progress.history),
        "blank_chunks": len(progress.blank_chunks),
        "absent_chunks": {kind: list(counts) for kind, counts in job.tiles.absent_chunks.items()},
    }


def _warnings(job: TrainingJob, progress: TrainingProgress, counts: voxel_counts.VoxelCounts) -> list[str]:
    warnings = []
    if progress.without_foreground:
        warnings.append(NO_FOREGROUND_WARNING)
    if job.tiles.test is None or not counts.num_voxels:
        warnings.append(
            "There is no annotation for test: the metrics are those of the validation box, which also selected the "
            "best epoch and the threshold."
        )
    if progress.blank_chunks:
        warnings.append(
            "Image chunks that hold nothing but zeros and may be missing at the source: "
            f"{len(progress.blank_chunks)}, for instance {progress.blank_chunks[0]}."
        )
    return warnings

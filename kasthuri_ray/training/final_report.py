"""The end of a training run: the best weights judged on the test boxes, and the report that a person looks at."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kasthuri_ray.labels import IGNORE_LABEL
from kasthuri_ray.metrics import voxel_counts
from kasthuri_ray.models.checkpoints import checkpoint_bytes
from kasthuri_ray.models.unet import load_weights
from kasthuri_ray.reports import figures
from kasthuri_ray.reports.run_page import RunReport, metrics_report, run_page
from kasthuri_ray.reports.section_images import NUM_EXAMPLES, SectionResult, choose_examples
from kasthuri_ray.tiles.sampling import GridTiles, read_tile
from kasthuri_ray.tiles.streaming import TileBatch, TileStream, plan_grid_tiles
from kasthuri_ray.training.learner import Learner, foreground_probability, gather_over_ranks
from kasthuri_ray.training.run_folder import RunFolder
from kasthuri_ray.training.training_job import WITHOUT_FOREGROUND, TrainingJob, TrainingProgress, WorkerContext


@dataclass(frozen=True)
class TileScore:
    """Foreground voxels of one tile at the threshold."""

    number: int
    found: int
    missed: int
    wrong: int


def choose_tiles(scores: list[TileScore], most: int = NUM_EXAMPLES) -> list[int]:
    """Return the numbers of the tiles to show; see `choose_examples`."""
    found, missed, wrong = (
        np.array([(score.found, score.missed, score.wrong) for score in scores], int).reshape(-1, 3).T
    )
    return [scores[index].number for index in choose_examples(found, missed, wrong, most)]


def report_best_weights(
    job: TrainingJob, ranks: WorkerContext, learner: Learner, folder: RunFolder, progress: TrainingProgress
) -> None:
    """Judge `best.pt` on the test boxes, on all ranks; leave metrics, figures and page, on rank 0."""
    best = folder.read_checkpoint("best")
    assert best is not None
    assert progress.best is not None
    load_weights(learner.network, best.weights)
    learner.average = None  # best.pt holds the averaged weights already
    tiles = job.test or job.val
    counts, scores = _report_best_weights(job, ranks, learner, tiles, progress)
    if ranks.rank:
        return
    _write_report(job, learner, folder, progress, tiles, counts, scores)
    folder.write(_weights_name(job), checkpoint_bytes(best.weights))
    # Last of all: it says that the run is finished.
    folder.write_metrics(_all_metrics(job, progress, counts))


def _weights_name(job: TrainingJob) -> str:
    return f"{job.settings.network.outweightfilename}_{job.settings.task.task_type}.pt"


def _report_best_weights(
    job: TrainingJob, ranks: WorkerContext, learner: Learner, tiles: GridTiles, progress: TrainingProgress
) -> tuple[voxel_counts.VoxelCounts, list[TileScore]]:
    assert progress.best is not None
    threshold, scores = progress.best["threshold"], list[TileScore]()
    batch_size = max(1, job.settings.network.batch // ranks.size)
    stream = TileStream(iter([plan_grid_tiles(tiles, batch_size, ranks.rank, ranks.size)]))

    def score(batch: Any, logits: Tensor, labels: Tensor) -> None:
        called = foreground_probability(torch.softmax(logits.float(), 1)) >= threshold
        true, kept = (labels > 0) & (labels != IGNORE_LABEL), labels != IGNORE_LABEL
        columns = [called & true, ~called & true, called & ~true & kept]
        found = torch.stack([column.flatten(1).sum(1) for column in columns], 1).tolist()
        scores.extend(TileScore(int(n), *row) for n, row in zip(batch.number, found, strict=True))

    try:
        counts, _ = learner.evaluate(stream.batches(), score)
    finally:
        stream.close()
    progress.add_blank_chunks(itertools.chain.from_iterable(gather_over_ranks(stream.blank_chunks)))
    every = itertools.chain.from_iterable(gather_over_ranks(scores))
    return counts, sorted(every, key=lambda each: each.number)


def _whole(tiles: GridTiles, scores: list[TileScore]) -> list[TileScore]:
    """The scores of tiles that own all their voxels, which are the ones that a picture of the tile shows; if any."""
    addresses = [tiles.address(score.number) for score in scores]
    return [s for s, address in zip(scores, addresses, strict=True) if address.own == address.box] or scores


def _write_report(
    job: TrainingJob,
    learner: Learner,
    folder: RunFolder,
    progress: TrainingProgress,
    tiles: GridTiles,
    counts: voxel_counts.VoxelCounts,
    scores: list[TileScore],
) -> None:
    assert progress.best is not None
    threshold = progress.best["threshold"]
    gallery = [_section_result(learner, tiles, number) for number in choose_tiles(_whole(tiles, scores))]
    task_type = job.settings.task.task_type
    for number, section in enumerate(sorted(gallery, key=lambda s: s.z)):
        folder.write(
            f"test_outputs/slice_{number}.png", figures.figure_png(figures.slice_figure(section, threshold, task_type))
        )
    curve = figures.learning_curve(progress.history, progress.best["epoch"])
    folder.write("learning_curve.png", figures.figure_png(curve))
    found = _all_metrics(job, progress, counts)
    folder.write("report.rpt", metrics_report(found["test"], _heading(job, found)))
    voxel_size = tiles.sources[0].image.voxel_size_nm
    report = RunReport(
        name=folder.storage.path.rstrip("/").rsplit("/", 1)[-1],
        task_type=task_type,
        network=job.settings.network.outweightfilename,
        metrics=found,
        history=progress.history,
        counts=counts if counts.num_voxels else None,
        counts_of="test" if found["test"] else "val",
        gallery=gallery,
        threshold=threshold,
        settings=job.settings.of_training(),
        notes=_warnings(job, progress, counts),
        next_words="Train it for longer, from where it is now:",
        next_command=job.next_command if progress.epoch == job.settings.network.epochs else "",
        num_tiles=progress.epoch * job.train.tiles_per_epoch,
        pixel_size_nm=voxel_size[1:] if voxel_size else None,
    )
    folder.write("index.html", run_page(report))


def _heading(job: TrainingJob, found: dict[str, Any]) -> dict[str, Any]:
    settings = job.settings
    return {
        "task": settings.task.name,
        "network": settings.network.outweightfilename,
        "best epoch": f"{found['best_epoch']} of {found['epochs']}",
    }


def _section_result(learner: Learner, tiles: GridTiles, number: int) -> SectionResult:
    """The tile as the network sees it; of a 3D tile the section with most foreground, or else the middle one."""
    address = tiles.address(number)
    image, label, _ = read_tile(tiles.sources, replace(address, own=address.box))
    images, _ = learner.load(TileBatch(image[None], label[None], np.array([number])))
    with learner.judged():
        probability = foreground_probability(torch.softmax(learner.logits(images).float(), 1))[0].cpu().numpy()
    probability = probability.reshape(image.shape)
    true = ((label > 0) & (label != IGNORE_LABEL)).sum((1, 2))
    z = int(true.argmax()) if true.any() else len(image) // 2
    truth = None if tiles.sources[address.source].annotation is None else label[z]
    return SectionResult(address.box.start[0] + z, image[z], truth, probability[z], str(address.box))


def _all_metrics(job: TrainingJob, progress: TrainingProgress, counts: voxel_counts.VoxelCounts) -> dict[str, Any]:
    """What metrics.json holds."""
    assert progress.best is not None
    training = sum(row["training_seconds"] for row in progress.history)
    judged = job.test is not None and counts.num_voxels > 0
    return {
        "test": voxel_counts.split_metrics(counts, progress.best["threshold"]) if judged else None,
        "val": progress.best["val"],
        "best_epoch": progress.best["epoch"],
        "epochs": progress.epoch,
        "tiles_per_second": progress.epoch * job.train.tiles_per_epoch / training,
        "wait_share": progress.waited / training,
        "seconds": sum(row["seconds"] for row in progress.history),
        "blank_chunks": len(progress.blank_chunks),
    }


def _warnings(job: TrainingJob, progress: TrainingProgress, counts: voxel_counts.VoxelCounts) -> list[str]:
    notes = []
    if progress.without_foreground:
        notes.append(WITHOUT_FOREGROUND)
    if job.test is None or not counts.num_voxels:
        notes.append("There is no annotation for test: the figures are those of the validation box, which chose them.")
    if progress.blank_chunks:
        notes.append(
            "Chunks of the image that hold nothing but zeros and may be missing at the source: "
            f"{len(progress.blank_chunks)}, for instance {progress.blank_chunks[0]}."
        )
    return notes

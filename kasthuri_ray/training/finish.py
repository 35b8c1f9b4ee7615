"""The end of a training run: the best weights judged on the test boxes, and the report that a person looks at."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kasthuri_ray.evaluation import metrics
from kasthuri_ray.models.unet import load_weights
from kasthuri_ray.models.weights import pack
from kasthuri_ray.reports import figures
from kasthuri_ray.reports.page import RunReport, run_page
from kasthuri_ray.reports.slices import TestSlice
from kasthuri_ray.tiles.sampling import GridTiles, read_tile
from kasthuri_ray.tiles.stream import Batch, TileStream, grid_plan
from kasthuri_ray.training.job import WITHOUT_FOREGROUND, Job, Progress, Ranks
from kasthuri_ray.training.loop import Learner, foreground_of, gather_over_ranks
from kasthuri_ray.training.run_folder import RunFolder

GALLERY = 6  # tiles shown: the best, the worst and what lies between


@dataclass(frozen=True)
class TileScore:
    """Foreground voxels of one tile at the threshold."""

    number: int
    found: int
    missed: int
    wrong: int

    @property
    def f1(self) -> float:
        total = 2 * self.found + self.missed + self.wrong
        return 2 * self.found / total if total else 0.0


def judge_and_report(job: Job, ranks: Ranks, learner: Learner, folder: RunFolder, progress: Progress) -> None:
    """Judge `best.pt` on the test boxes, on all ranks; leave metrics, figures and page, on rank 0."""
    best = folder.read_checkpoint("best")
    assert best is not None
    assert progress.best is not None
    load_weights(learner.network, best.weights)
    learner.average = None  # best.pt holds the averaged weights already
    tiles = job.test or job.val
    counts, scores = _judge(job, ranks, learner, tiles, progress)
    if ranks.rank:
        return
    _write_report(job, learner, folder, progress, tiles, counts, scores)
    folder.write(_weights_name(job), pack(best.weights))
    # Last of all: it says that the run is finished.
    folder.write_metrics(_all_metrics(job, progress, counts))


def _weights_name(job: Job) -> str:
    return f"{job.settings.network.outweightfilename}_{job.settings.task.task_type}.pt"


def _judge(
    job: Job, ranks: Ranks, learner: Learner, tiles: GridTiles, progress: Progress
) -> tuple[metrics.Counts, list[TileScore]]:
    assert progress.best is not None
    threshold, scores = progress.best["threshold"], list[TileScore]()
    batch_size = max(1, job.settings.network.batch // ranks.size)
    stream = TileStream(iter([grid_plan(tiles, batch_size, ranks.rank, ranks.size)]))

    def score(batch: Any, logits: Tensor, labels: Tensor) -> None:
        called = foreground_of(torch.softmax(logits.float(), 1)) >= threshold
        true, kept = (labels > 0) & (labels != metrics.IGNORE_LABEL), labels != metrics.IGNORE_LABEL
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


def choose_gallery(scores: list[TileScore], most: int = GALLERY) -> list[int]:
    """The numbers of the tiles to show: of those with foreground the best, the worst, and evenly what lies between.

    Tiles that a foreground object just touches (less than half of the mean) say little and are left out. Where no
    tile has foreground, tiles spread over the box.
    """
    sizes = [s.found + s.missed for s in scores if s.found + s.missed]
    enough = sum(sizes) / len(sizes) / 2 if sizes else 0.0
    shown = [s for s in scores if s.found + s.missed >= max(1.0, enough)]
    shown = sorted(shown, key=lambda s: (s.f1, s.number)) or scores
    places = np.unique(np.linspace(0, len(shown) - 1, min(most, len(shown))).round().astype(int))
    return [shown[place].number for place in places]


def _write_report(
    job: Job,
    learner: Learner,
    folder: RunFolder,
    progress: Progress,
    tiles: GridTiles,
    counts: metrics.Counts,
    scores: list[TileScore],
) -> None:
    assert progress.best is not None
    threshold = progress.best["threshold"]
    gallery = [_look_at(learner, tiles, number) for number in choose_gallery(_whole(tiles, scores))]
    task_type = job.settings.task.task_type
    for number, section in enumerate(sorted(gallery, key=lambda s: s.z)):
        folder.write(
            f"test_outputs/slice_{number}.png", figures.png(figures.slice_figure(section, threshold, task_type))
        )
    curve = figures.learning_curve(progress.history, progress.best["epoch"])
    folder.write("learning_curve.png", figures.png(curve))
    found = _all_metrics(job, progress, counts)
    folder.write("report.rpt", metrics.report_text(found["test"], _heading(job, found)))
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
        notes=_notes(job, progress, counts),
        next_words="Train it for longer, from where it is now:",
        next_command=job.next_command if progress.epoch == job.settings.network.epochs else "",
        num_tiles=progress.epoch * job.train.tiles_per_epoch,
        pixel_size_nm=voxel_size[1:] if voxel_size else None,
    )
    folder.write("index.html", run_page(report))


def _heading(job: Job, found: dict[str, Any]) -> dict[str, Any]:
    settings = job.settings
    return {
        "task": settings.task.name,
        "network": settings.network.outweightfilename,
        "best epoch": f"{found['best_epoch']} of {found['epochs']}",
    }


def _look_at(learner: Learner, tiles: GridTiles, number: int) -> TestSlice:
    """The tile as the network sees it; of a 3D tile the section with most foreground, or else the middle one."""
    address = tiles.address(number)
    image, label, _ = read_tile(tiles.sources, replace(address, own=address.box))
    images, _ = learner.load(Batch(image[None], label[None], np.array([number])))
    with learner.judged():
        probability = foreground_of(torch.softmax(learner.logits(images).float(), 1))[0].cpu().numpy()
    probability = probability.reshape(image.shape)
    true = ((label > 0) & (label != metrics.IGNORE_LABEL)).sum((1, 2))
    z = int(true.argmax()) if true.any() else len(image) // 2
    truth = None if tiles.sources[address.source].annotation is None else label[z]
    return TestSlice(address.box.start[0] + z, image[z], truth, probability[z], str(address.box))


def _all_metrics(job: Job, progress: Progress, counts: metrics.Counts) -> dict[str, Any]:
    """What metrics.json holds."""
    assert progress.best is not None
    training = sum(row["training_seconds"] for row in progress.history)
    judged = job.test is not None and counts.num_voxels > 0
    return {
        "test": metrics.test_metrics(counts, progress.best["threshold"]) if judged else None,
        "val": progress.best["val"],
        "best_epoch": progress.best["epoch"],
        "epochs": progress.epoch,
        "tiles_per_second": progress.epoch * job.train.tiles_per_epoch / training,
        "wait_share": progress.waited / training,
        "seconds": sum(row["seconds"] for row in progress.history),
        "blank_chunks": len(progress.blank_chunks),
    }


def _notes(job: Job, progress: Progress, counts: metrics.Counts) -> list[str]:
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

"""The end of a training run: test the weights of the best epoch, and write metrics, figures and the run's page."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from kasthuri_ray.geometry import Box
from kasthuri_ray.labels import IGNORE_LABEL
from kasthuri_ray.metrics import sanity, voxel_counts, voxel_scores
from kasthuri_ray.metrics.object_choice import ObjectChoice
from kasthuri_ray.metrics.object_comparison import add_object_scores, object_classes
from kasthuri_ray.metrics.object_density import AnnotatedObjects, imaged_um3, object_warnings
from kasthuri_ray.metrics.object_outcomes import object_metrics
from kasthuri_ray.metrics.thresholds import class_outcomes
from kasthuri_ray.metrics.voxel_outcomes import VoxelOutcomes
from kasthuri_ray.models.checkpoints import checkpoint_bytes
from kasthuri_ray.reports import figures
from kasthuri_ray.reports.learnt_text import all_learnt_warning, learnt_entry, learnt_percent
from kasthuri_ray.reports.run_page import RunReport, metrics_report, run_page
from kasthuri_ray.reports.section_images import NUM_EXAMPLES, SectionResult, choose_examples
from kasthuri_ray.tiles.label_census import class_counts
from kasthuri_ray.tiles.sampling import GridTiles, read_tile
from kasthuri_ray.tiles.streaming import TileBatch, TileStream, plan_grid_tiles
from kasthuri_ray.training.augmented_test import augmented_logits, measures_augmented
from kasthuri_ray.training.label_report import labelled_voxels, score_intervals
from kasthuri_ray.training.learner import Learner
from kasthuri_ray.training.process_group import gather_over_ranks
from kasthuri_ray.training.run_folder import RunFolder
from kasthuri_ray.training.split_results import AUGMENTED_FILE, FILE, SplitResults
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
    results = _evaluate_tiles(job, context, learner, progress)
    numbers = object_classes(_class_names(job))
    packed_val = predict_val_objects(job, context, learner, results, _thresholds(progress)) if numbers else {}
    if context.rank:
        return
    choice = None
    if numbers:
        choice = choose_object_settings(
            job.tiles.val, packed_val, job.tiles.train.sources, _class_names(job), numbers, _thresholds(progress)
        )
        folder.write_checkpoint("best", replace(best, objects=choice.to_plain()))
    results = results.with_objects(numbers, None if choice is None else choice.settings, _thresholds(progress))
    _write_pages(job, learner, folder, progress, results, choice)
    for name, part in ((FILE, results), (AUGMENTED_FILE, results.augmented)):
        if part is not None and part.counts.num_voxels:
            pooled = SplitResults(part.counts, part.confusion, part.sample(), part.objects)
            folder.write(name, pooled.to_bytes())
        else:
            folder.storage.delete(name)  # of a run that is extended, and measured differently now
    folder.write(_weights_file_name(job), checkpoint_bytes(best.weights))
    metrics = _final_metrics(job, progress, results, choice)
    for line in choice_lines(choice):
        context.show(TextMessage(line))
    for warning in metrics["warnings"]:
        context.show(TextMessage(f"warning: {warning}"))
    folder.write_metrics(metrics)  # the last file: it marks the run as finished


def choose_example_tiles(scores: list[TileScore], max_tiles: int = NUM_EXAMPLES) -> list[int]:
    """Return the numbers of the tiles to show; see `choose_examples`."""
    outcomes = [VoxelOutcomes.of_confusion(score.confusion) for score in scores]
    found, missed, wrong = np.array([[o.found, o.missed, o.wrong] for o in outcomes], int).reshape(-1, 3).T
    return [scores[index].number for index in choose_examples(found, missed, wrong, max_tiles)]


def _evaluate_tiles(
    job: TrainingJob, context: WorkerContext, learner: Learner, progress: TrainingProgress
) -> TileResults:
    """Return the results of the test tiles, else of the validation tiles, the same on all ranks."""
    assert progress.best is not None
    tiles = job.tiles.test or job.tiles.val
    has_objects = bool(object_classes(_class_names(job)))
    scorers = [TileScorer(tiles, _thresholds(progress), has_objects)]
    if job.tiles.test is not None and job.history.test_share:
        learnt = [part.boxes for part in job.history.test]
        scorers.append(TileScorer(tiles, _thresholds(progress), has_objects, learnt))
    nothing_learnt: list[tuple[Box, ...]] = [()] * len(tiles.sources)
    augmented = (
        TileScorer(tiles, _thresholds(progress), has_objects, nothing_learnt) if measures_augmented(job) else None
    )
    batch_size = max(1, job.settings.network.batch // context.world_size)
    stream = TileStream(iter([plan_grid_tiles(tiles, batch_size, context.rank, context.world_size)]))

    def score_batch(batch: Any, logits: Tensor, labels: Tensor) -> None:
        for scorer in scorers:
            scorer.add(batch.number, logits, labels)
        if augmented is not None:
            augmented.add(batch.number, augmented_logits(learner, batch, logits), labels)

    try:
        counts, _ = learner.evaluate(stream.batches(), score_batch)
    finally:
        stream.close()
    progress.add_blank_chunks(itertools.chain.from_iterable(gather_over_ranks(stream.blank_chunks)))
    whole, *unseen = (scorer.results(counts if scorer.learnt is None else None) for scorer in scorers)
    return replace(
        whole, unseen=unseen[0] if unseen else None, augmented=None if augmented is None else augmented.results()
    )


def _write_pages(
    job: TrainingJob,
    learner: Learner,
    folder: RunFolder,
    progress: TrainingProgress,
    results: TileResults,
    choice: ObjectChoice | None,
) -> None:
    assert progress.best is not None
    shown = results.headline
    thresholds, tiles, counts = _thresholds(progress), results.tiles, shown.counts
    examples = choose_example_tiles(_complete_tiles(tiles, shown.labelled))
    gallery = [_predict_section(learner, tiles, number, thresholds) for number in examples]
    names = _class_names(job)
    for number, section in enumerate(sorted(gallery, key=lambda section: section.z)):
        figure = figures.plot_section(section, names)
        folder.write(f"test_outputs/slice_{number}.png", figures.figure_png(figure))
    curve = figures.plot_learning_curve(progress.history, progress.best["epoch"])
    folder.write("learning_curve.png", figures.figure_png(curve))
    metrics = _final_metrics(job, progress, results, choice)
    folder.write("report.rpt", metrics_report(metrics["test"], _report_heading(job, metrics), _report_names(job)))
    voxel_size = tiles.sources[0].image.voxel_size_nm
    report = RunReport(
        name=folder.storage.path.rstrip("/").rsplit("/", 1)[-1],
        task_type=job.settings.task.task_type,
        network=job.settings.network.outweightfilename,
        metrics=metrics,
        history=progress.history,
        counts=counts if counts.num_voxels else None,
        counts_of="test" if metrics["test"] else "val",
        gallery=gallery,
        thresholds=thresholds,
        class_names=names if len(names) > 1 else (),
        confusion=shown.confusion.tolist() if len(names) > 1 and counts.num_voxels else None,
        weights=job.settings.training_record()["train"]["weights"] or "",
        settings=job.settings.training_record(),
        notes=_warnings(job, progress, results.counts),
        view_flags=["--run", folder.storage.path],
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


def _thresholds(progress: TrainingProgress) -> list[float]:
    """Return the threshold of each class at the best epoch."""
    assert progress.best is not None
    threshold = progress.best["threshold"]
    return threshold if isinstance(threshold, list) else [threshold]


def _class_names(job: TrainingJob) -> list[str]:
    return job.settings.task.class_names(job.settings.network.classes)


def _predict_section(learner: Learner, tiles: GridTiles, number: int, thresholds: Sequence[float]) -> SectionResult:
    """Predict a tile; return its only section, or of a 3D tile the one with most foreground, else the middle one."""
    address = tiles.address(number)
    image, label, _ = read_tile(tiles.sources, replace(address, own=address.box))
    images, _ = learner.load(TileBatch(image[None], label[None], np.array([number])))
    with learner.evaluation_mode():
        probability = foreground_probabilities(learner.logits(images))[0]
    probability = probability.reshape(-1, *image.shape)
    num_true = ((label > 0) & (label != IGNORE_LABEL)).sum((1, 2))
    z = int(num_true.argmax()) if num_true.any() else len(image) // 2
    truth = None if tiles.sources[address.source].annotation is None else label[z]
    z_in_volume = address.box.start[0] + z
    return SectionResult(z_in_volume, image[z], truth, probability[:, z], thresholds, str(address.box))


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
    names = _class_names(job)
    return ("background", *names) if len(names) > 1 else ()


def _weights_file_name(job: TrainingJob) -> str:
    return f"{job.settings.network.outweightfilename}_{job.settings.task.task_type}.pt"


def _final_metrics(
    job: TrainingJob, progress: TrainingProgress, results: TileResults, choice: ObjectChoice | None = None
) -> dict[str, Any]:
    """Return the content of metrics.json."""
    counts, shown, names = results.counts, results.headline, _class_names(job)
    assert progress.best is not None
    training_seconds = sum(row["training_seconds"] for row in progress.history)
    is_tested = job.tiles.test is not None and counts.num_voxels > 0
    intervals = score_intervals(results.sample(), counts) if counts.num_voxels and not job.tiles.test else {}
    val = progress.best["val"]
    return {
        "test": _test_metrics(job, progress, results) if is_tested else None,
        "test_tta": _split_scores(progress, results.augmented, names) if is_tested and results.augmented else None,
        "warnings": _score_warnings(job, progress, results),
        "better_than_chance": sanity.is_better_than_chance(shown.counts, shown.sample()) if counts.num_voxels else None,
        "val": val if is_tested else _add_objects(val | intervals, results, names),
        "labelled_voxels": labelled_voxels(job.tiles, val["confusion"], counts if job.tiles.test else None),
        "best_epoch": progress.best["epoch"],
        "epochs": progress.epoch,
        "tiles_per_second": progress.epoch * job.tiles.train.tiles_per_epoch / training_seconds,
        "wait_share": progress.waited / training_seconds,
        "seconds": sum(row["seconds"] for row in progress.history),
        **({} if choice is None else {"object_settings": choice.to_metrics()}),
        **_object_density(results),
        "blank_chunks": len(progress.blank_chunks),
        "absent_chunks": {kind: list(counts) for kind, counts in job.tiles.absent_chunks.items()},
    }


def _object_density(results: TileResults) -> dict[str, Any]:
    """Return how many objects there are per um^3 of the labelled voxels; nothing without objects or a voxel size."""
    shown = results.headline
    size = results.tiles.sources[0].image.voxel_size_nm if shown.objects.outcomes else None
    if size is None or not shown.counts.num_voxels:
        return {}
    volume = imaged_um3(shown.counts.num_voxels, size)
    rows = [object_metrics(each) for each in shown.objects.outcomes.values()]
    numbers = (sum(int(row[key]) for row in rows) for key in ("num_predicted", "num_true"))
    predicted, true = (number / volume for number in numbers)
    return {"object_density": {"predicted_per_um3": predicted, "true_per_um3": true, "um3": volume}}


def _test_metrics(job: TrainingJob, progress: TrainingProgress, results: TileResults) -> dict[str, Any]:
    """Return the scores of the test box, those of the part that was not learnt from, and what is known about that."""
    names = _class_names(job)
    learnt, unseen = _learnt_entry(job, results), results.unseen or results
    is_unseen = unseen.counts.num_voxels and (learnt["known"] or learnt["share"])
    of_unseen = _split_scores(progress, unseen, names) if is_unseen else None
    return {**_split_scores(progress, results, names), "learnt_from": learnt, "unseen": of_unseen}


def _split_scores(progress: TrainingProgress, of: TileResults, names: Sequence[str]) -> dict[str, Any]:
    """Return the scores of voxels, with intervals, and of objects."""
    voxels = voxel_scores.split_metrics(of.counts, _thresholds(progress), names)
    return _add_objects(voxels | score_intervals(of.sample(), of.counts), of, names)


def _add_objects(voxels: dict[str, Any], of: TileResults, names: Sequence[str]) -> dict[str, Any]:
    return add_object_scores(voxels, of.objects.outcomes, names, of.objects.distances)


def _learnt_entry(job: TrainingJob, results: TileResults) -> dict[str, Any]:
    """Return what is known about the part of the test box that was learnt from."""
    part, unseen = job.history.test_part, results.unseen or results
    return learnt_entry(
        results.counts.num_voxels,
        unseen.counts.num_voxels,
        is_known=part.is_known,
        is_same_image=part.is_same_image,
        images=part.images,
    )


def _score_warnings(job: TrainingJob, progress: TrainingProgress, results: TileResults) -> list[str]:
    """Return the signs that the scores which come first mean nothing."""
    assert progress.best is not None
    shown, thresholds, names, val = results.headline, _thresholds(progress), _class_names(job), progress.best["val"]
    counts, split = shown.counts, "test" if job.tiles.test is not None else "val"
    warnings = [all_learnt_warning(_learnt_entry(job, results) if split == "test" else None, "the test box")]
    if counts.num_voxels:
        warnings += sanity.count_warnings(
            counts, class_outcomes(counts, thresholds), shown.sample(), names, f"the {split} box"
        )
        warnings += object_warnings(
            {names[number - 1]: object_metrics(each) for number, each in shown.objects.outcomes.items()},
            counts.num_voxels,
            results.tiles.sources[0].image.voxel_size_nm if shown.objects.outcomes else None,
            AnnotatedObjects.from_plain(progress.annotated_objects),
        )
    voxels = {"val": np.sum(val["confusion"], axis=1).tolist()}
    if any(source.annotation is not None for source in results.tiles.sources):
        voxels[split] = counts.confusion.sum(1).tolist()
    by_class = {key: dict(zip(["background", *names], row, strict=True)) for key, row in voxels.items()}
    train = {} if job.tiles.census is None else {job.tiles.census.train_name: class_counts(job.tiles.census, names)}
    warnings += sanity.missing_class_warnings({**train, **by_class})
    if split == "test" and counts.num_voxels:
        test_f1 = voxel_scores.split_metrics(counts, thresholds, names)["foreground_f1"]
        warnings.append(sanity.difference_warning(val["foreground_f1"], test_f1))
    return [warning for warning in warnings if warning]


def _warnings(job: TrainingJob, progress: TrainingProgress, counts: voxel_counts.VoxelCounts) -> list[str]:
    warnings = []
    if progress.without_foreground:
        warnings.append(NO_FOREGROUND_WARNING)
    if job.tiles.test is None or not counts.num_voxels:
        warnings.append(
            "There is no annotation for test: the metrics are those of the validation box, which also selected the "
            "best epoch and the threshold."
        )
    if job.history.val_share:
        warnings.append(
            f"{learnt_percent(job.history.val_share)} of the validation box, which selected the best epoch and the "
            "threshold, was learnt from before."
        )
    if progress.blank_chunks:
        warnings.append(
            "Image chunks that hold nothing but zeros and may be missing at the source: "
            f"{len(progress.blank_chunks)}, for instance {progress.blank_chunks[0]}."
        )
    return warnings

"""The content of a run's metrics.json: the scores of its test, on what they rest, and signs that they mean nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kasthuri_ray.metrics import sanity, voxel_scores
from kasthuri_ray.metrics.object_choice import ObjectChoice
from kasthuri_ray.metrics.object_comparison import add_object_scores
from kasthuri_ray.metrics.object_density import AnnotatedObjects, imaged_um3, object_warnings
from kasthuri_ray.metrics.object_outcomes import object_metrics
from kasthuri_ray.metrics.thresholds import class_outcomes
from kasthuri_ray.reports.learnt_text import all_learnt_warning, learnt_entry
from kasthuri_ray.tiles.label_census import class_counts
from kasthuri_ray.training.label_report import labelled_voxels, score_intervals
from kasthuri_ray.training.tile_results import TileResults
from kasthuri_ray.training.training_job import TrainingJob
from kasthuri_ray.training.training_state import TrainingProgress


def final_metrics(
    job: TrainingJob,
    progress: TrainingProgress,
    results: TileResults,
    choice: ObjectChoice | None = None,
    temperature: float | None = None,
) -> dict[str, Any]:
    """Return the content of metrics.json.

    Parameters
    ----------
    job : TrainingJob
        The run.
    progress : TrainingProgress
        With its best epoch.
    results : TileResults
        Of the test box, else of the validation box.
    choice : ObjectChoice, optional
        How objects are found; None without objects.
    temperature : float, optional
        By which the logits were divided; None if they were not.

    Returns
    -------
    dict
        Plain values.
    """
    counts, shown, names = results.counts, results.headline, job.settings.class_names
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
        **({} if temperature is None else {"temperature": temperature}),
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
    names = job.settings.class_names
    learnt, unseen = _learnt_entry(job, results), results.unseen or results
    is_unseen = unseen.counts.num_voxels and (learnt["known"] or learnt["share"])
    of_unseen = _split_scores(progress, unseen, names) if is_unseen else None
    return {**_split_scores(progress, results, names), "learnt_from": learnt, "unseen": of_unseen}


def _split_scores(progress: TrainingProgress, of: TileResults, names: Sequence[str]) -> dict[str, Any]:
    """Return the scores of voxels, with intervals, and of objects."""
    voxels = voxel_scores.split_metrics(of.counts, progress.thresholds, names)
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
    shown, thresholds, names, val = (
        results.headline,
        progress.thresholds,
        job.settings.class_names,
        progress.best["val"],
    )
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

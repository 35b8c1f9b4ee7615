"""Training by folds: every part of a volume is tested once, by a network that did not see it, and scores are pooled.

Each fold is an ordinary run in the folder of the folds, with the parts of the volume as its boxes. So it resumes, fails
and is extended as any run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kasthuri_ray.config.differences import refuse_differences, setting_differences
from kasthuri_ray.config.settings import Settings
from kasthuri_ray.config.task import RANGES, SPLITS, SplitBoxes
from kasthuri_ray.errors import AlreadyFinished, InputError, WorkFailed, missing_is_bad_input
from kasthuri_ray.geometry import Box
from kasthuri_ray.progress import Reporter, format_count
from kasthuri_ray.ray_cluster.driver import exit_on_sigterm
from kasthuri_ray.ray_cluster.output_paths import check_shared_path
from kasthuri_ray.reports.folds_page import FoldRow, FoldsReport, folds_page
from kasthuri_ray.storage.folder import open_storage
from kasthuri_ray.storage.lease import Lease
from kasthuri_ray.tiles.fold_plan import plan_folds
from kasthuri_ray.tiles.volume_split import annotated_box
from kasthuri_ray.training.begun_recipe import keep_begun_recipe
from kasthuri_ray.training.preflight import (
    absolute_volume_paths,
    check_run_location,
    prepare_training,
    run_path,
)
from kasthuri_ray.training.run_folder import RunFolder, run_description
from kasthuri_ray.training.split_results import (
    AUGMENTED_FILE,
    FILE,
    SplitResults,
    class_outcomes_of,
    pool_results,
    pooled_metrics,
)
from kasthuri_ray.training.train import TrainResult, connect_and_place_run, train

UNTESTED = "no voxel of its test part is labelled; the pooled scores leave it out"


def find_fold_region(settings: Settings) -> Box:
    """Return the voxels that are divided into folds.

    Parameters
    ----------
    settings : Settings
        Settings of the training.

    Returns
    -------
    Box
        All sections of the task's ranges; without ranges, what is annotated.

    Raises
    ------
    InputError
        If the task divides its volume in another way.
    InputNotFound, InputDenied, VolumeError
        If a volume cannot be opened.
    """
    task = settings.task
    if task.boxes is not None:
        raise InputError(
            "--folds divides one volume by itself, and the task has boxes (task.boxes): leave out the boxes or --folds"
        )
    if task.z_gap:
        raise InputError(f"--folds leaves no gap between parts, and task.z_gap is {task.z_gap}: leave one of them out")
    ranges = [each for each in (task.z_train, task.z_val, task.z_test) if each is not None]
    if task.xrange_vol is None or task.yrange_vol is None or not ranges:
        whole = annotated_box(settings)
    else:
        (y, y_stop), (x, x_stop) = task.yrange_vol, task.xrange_vol
        whole = Box((0, y, x), (0, y_stop, x_stop))
    if not ranges:
        return whole
    first, last = min(start for start, _ in ranges), max(stop for _, stop in ranges)
    return Box((first, *whole.start[1:]), (last, *whole.stop[1:]))


def make_fold_settings(settings: Settings, path: str = "") -> list[Settings]:
    """Return the settings of the run of each fold.

    Parameters
    ----------
    settings : Settings
        With `train.folds`.
    path : str
        Folder of the folds; "" for runs that are only checked.

    Returns
    -------
    list of Settings
        Ordinary runs, named fold_0, fold_1, ...

    Raises
    ------
    InputError
        As of `plan_folds` and `find_fold_region`.
    """
    num_folds, folds = settings.train.folds, []
    assert num_folds is not None
    settings = absolute_volume_paths(settings)
    planned = plan_folds(find_fold_region(settings), num_folds, settings.train.fold_axes)
    for number, parts in enumerate(planned):
        boxes = SplitBoxes.model_validate({split: [{"box": str(box)} for box in parts[split]] for split in SPLITS})
        task = settings.task.model_copy(update={**dict.fromkeys(RANGES), "boxes": boxes})
        changes = {"folds": None, "fold_axes": "yx", "name": f"fold_{number}" if path else None}
        changes |= {"storage": path} if path else {}
        folds.append(
            settings.model_copy(update={"task": task, "train": settings.train.model_copy(update=changes), "notes": {}})
        )
    return folds


@missing_is_bad_input()
def train_folds(settings: Settings, reporter: Reporter, resume_command: Callable[[str], str]) -> TrainResult:
    """Train one network for each fold, one after another, and pool what their tests found.

    Parameters
    ----------
    settings, reporter, resume_command : Settings, Reporter, callable
        As of `train`, with `train.folds`.

    Returns
    -------
    TrainResult
        The folder of the folds, and its metrics.json.

    Raises
    ------
    InputError
        For bad input, before anything is written; AlreadyFinished if all folds are finished.
    WorkFailed
        If the work fails after it has started; the same name resumes it.
    """
    for note in settings.notes.values():
        reporter.print_stderr(note)
    check_run_location(settings)
    if settings.train.name is not None:
        settings, notes = keep_begun_recipe(settings, run_path(settings, settings.train.name))
        for note in notes:
            reporter.print_stderr(note)
    for fold in make_fold_settings(settings):
        prepare_training(fold, is_new=True)  # refuses what does not fit before anything starts
    if settings.train.name is not None:
        _check_same_folds(RunFolder(open_storage(run_path(settings, settings.train.name))), settings)
    cluster, name, path = connect_and_place_run(settings, reporter)
    check_shared_path(path, cluster)
    folder, command = RunFolder(open_storage(path)), resume_command(name)
    _check_same_folds(folder, settings)
    folds = make_fold_settings(settings, path)
    reporter.print_result(path)  # the first line, for scripts
    reporter.print_line(f"to resume after a stop: {command}")
    with exit_on_sigterm(), Lease.acquire(folder.storage, report=reporter.print_line):
        write_fold_settings(folder, settings)
        was_finished = folder.read_metrics() is not None
        num_trained = sum(_train_fold(fold, reporter, command) for fold in folds)
        if was_finished and not num_trained:
            raise AlreadyFinished(
                f"the folds {name} are finished: {path}. To train them for longer, add --set "
                f"network.epochs={2 * settings.network.epochs} (in Python, to settings)",
                path,
            )
        write_pooled_results(folder, settings, folds, reporter)
    reporter.print_result(path)
    return TrainResult.read(path)


def write_fold_settings(folder: RunFolder, settings: Settings) -> None:
    """Write the settings of all folds, and delete pooled scores of another number of epochs.

    Parameters
    ----------
    folder : RunFolder
        Folder of the folds.
    settings : Settings
        Of all folds.
    """
    before = folder.read_settings()
    if before is not None and before["network"]["epochs"] != settings.network.epochs:
        folder.delete_metrics()
    folder.write_settings(run_description(settings))


def _check_same_folds(folder: RunFolder, settings: Settings) -> None:
    """Raise an InputError if something else was begun under this name; more epochs are the one difference allowed."""
    before = folder.read_settings()
    if before is None:
        return
    differences = setting_differences(before, settings.training_record())
    is_extension = settings.network.epochs > before["network"]["epochs"]
    others = [line for line in differences if not (is_extension and line.startswith("network.epochs:"))]
    refuse_differences(folder.storage.name, others)


def _train_fold(fold: Settings, reporter: Reporter, command: str) -> bool:
    """Train a fold; return whether there was anything left to do."""
    reporter.print_line(f"{fold.train.name} of {fold.train.storage}")
    try:
        train(fold, reporter, lambda _: command)
    except AlreadyFinished as finished:
        reporter.print_line(str(finished).partition(": ")[0])
        return False
    return True


def write_pooled_results(folder: RunFolder, settings: Settings, folds: Sequence[Settings], reporter: Reporter) -> None:
    """Write metrics.json and the page of all folds together; a fold without a labelled test voxel has no scores.

    Parameters
    ----------
    folder : RunFolder
        Folder of the folds.
    settings : Settings
        Of all folds.
    folds : sequence of Settings
        Of each fold, whose run is finished.
    reporter : Reporter
        Shows the scores.

    Raises
    ------
    WorkFailed
        If no fold has scores, or the results of a fold are missing.
    """
    runs = {str(fold.train.name): RunFolder(folder.storage.child(str(fold.train.name))) for fold in folds}
    metrics = {name: run.read_metrics() or {} for name, run in runs.items()}
    rows = [
        FoldRow(name, fold.task.regions("test")[0].box_text(), each["test"])
        for fold, (name, each) in zip(folds, metrics.items(), strict=True)
        if each["test"]
    ]
    if not rows:
        raise WorkFailed(
            f"{folder.storage.path}: no fold has a labelled voxel in its test part, so there are no scores"
        )
    tested = [runs[row.name] for row in rows]
    pooled, augmented = pool_results([_read_results(run) for run in tested]), _pool_augmented(tested)
    content = _pooled_content(settings.class_names, pooled, augmented, rows, metrics)
    folder.write("index.html", folds_page(_make_report(folder, settings, pooled, rows, content)))
    for row in rows:
        reporter.print_line(f"{row.name}: {_describe_scores(row.metrics)}")
    for name in sorted(runs.keys() - {row.name for row in rows}):
        reporter.print_line(f"warning: {name}: {UNTESTED}")
    reporter.print_line(f"pooled over {format_count(len(rows), 'fold')}: {_describe_scores(content['test'])}")
    folder.write_metrics(content)  # the last file: it marks the folds as finished


def _pooled_content(
    names: Sequence[str],
    pooled: SplitResults,
    augmented: SplitResults | None,
    rows: Sequence[FoldRow],
    metrics: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """Return the content of metrics.json; `metrics` is that of each fold, by its name."""
    untested = metrics.keys() - {row.name for row in rows}
    return {
        "test": pooled_metrics(pooled, names),
        "test_tta": None if augmented is None else pooled_metrics(augmented, names),
        "folds": [{"name": row.name, "box": row.box, **_fold_scores(row.metrics)} for row in rows],
        "warnings": [
            *(f"{name}: {UNTESTED}" for name in sorted(untested)),
            *(f"{name}: {text}" for name, each in metrics.items() for text in each["warnings"]),
        ],
        "epochs": min(each["epochs"] for each in metrics.values()),
        "seconds": sum(each["seconds"] for each in metrics.values()),
    }


def _make_report(
    folder: RunFolder, settings: Settings, pooled: SplitResults, rows: Sequence[FoldRow], content: Mapping[str, Any]
) -> FoldsReport:
    names = settings.class_names
    return FoldsReport(
        name=folder.storage.name,
        task_type=settings.task.task_type,
        network=settings.network.outweightfilename,
        metrics=content,
        rows=rows,
        counts=pooled.counts,
        outcomes=class_outcomes_of(pooled),
        class_names=names if len(names) > 1 else (),
        settings=settings.training_record(),
        view_flags=["--run", f"{folder.storage.path}/{rows[0].name}"],
    )


def _read_results(run: RunFolder) -> SplitResults:
    try:
        return SplitResults.from_bytes(run.storage.read_bytes(FILE))
    except FileNotFoundError:
        raise WorkFailed(
            f"{run.storage.path} has no {FILE}, which earlier versions did not write: its results cannot be pooled. "
            "Train the folds under another --name"
        ) from None


def _pool_augmented(runs: Sequence[RunFolder]) -> SplitResults | None:
    """Return what the tests with test-time augmentation found; None if a fold has none, see `train.test_tta`."""
    if not all(run.storage.exists(AUGMENTED_FILE) for run in runs):
        return None
    return pool_results([SplitResults.from_bytes(run.storage.read_bytes(AUGMENTED_FILE)) for run in runs])


def _fold_scores(test: Mapping[str, Any]) -> dict[str, Any]:
    keys = ("foreground_f1", "precision", "recall", "average_precision", "threshold", "objects")
    return {key: test[key] for key in keys if key in test}


def _describe_scores(test: Mapping[str, Any]) -> str:
    parts = [f"F1 {test['foreground_f1']:.3f}", f"average precision {test['average_precision']:.3f}"]
    if "objects" in test:
        objects, overlap = test["objects"], test["objects"]["by"]["overlap"]
        parts.append(
            f"objects: F1 {overlap['f1']:.3f} by overlap, {overlap['true_positives']} of {objects['num_true']} found, "
            f"{objects['num_predicted']} marked"
        )
    return "  ".join(parts)

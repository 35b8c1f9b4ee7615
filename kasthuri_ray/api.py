"""The Python API: what the jobs and notebooks call.

Keyword arguments have the names of the flags (`--num-workers 2` is `num_workers=2`). `settings={"network.epochs": 3}`
and `settings=["network.epochs=3"]` are `--set network.epochs=3`. Tasks and networks are names, files or mappings of
what such a file holds. Images, annotations and masks are URIs, paths, or arrays (z, y, x) that fit into memory.
kasthuri_ray/config/flags.py lists the flags of each function, and `python jobs/train.py --settings` all settings.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Unpack

from kasthuri_ray.config import defaults
from kasthuri_ray.config.flags import DataFlags, EvaluateFlags, SegmentFlags, TrainFlags, TuneFlags, ViewFlags
from kasthuri_ray.config.keyword_arguments import (
    SAME_CALL,
    as_assignments,
    as_setting,
    check_keywords,
    check_sections,
    check_task_or_network,
    set_by_keywords,
)
from kasthuri_ray.errors import AlreadyFinished
from kasthuri_ray.progress import Reporter

if TYPE_CHECKING:
    from kasthuri_ray.config.loading import GivenSettings
    from kasthuri_ray.evaluation.evaluate import EvaluateResult
    from kasthuri_ray.geometry import Nm
    from kasthuri_ray.segmentation.segment import SegmentResult
    from kasthuri_ray.training.train import TrainResult
    from kasthuri_ray.tuning.tune import TuneResult
    from kasthuri_ray.volumes.volume import Volume

ARRAY_FLAGS = ("image", "annotation", "mask", "prediction", "instances")
FILE_FLAGS = ("network", "config", "settings")  # and `task`: they are no settings themselves

ResumeCommand = Callable[[str], str]
SAME_CALL_WITH_NAME = (SAME_CALL + " with name={!r}").format
INSTALLED_COMMAND = "kasthuri-{}".format


def open_volume(
    uri: str | os.PathLike[str],
    *,
    mip: int | None = None,
    voxel_size: Nm | str | None = None,
    **flags: Unpack[DataFlags],
) -> Volume:
    """Open a volume and read its metadata, not yet its voxels.

    Parameters
    ----------
    uri : str or path
        A volume in any format that the jobs read: `bossdb://collection/experiment/channel`, the path or URL of a zarr,
        N5, precomputed, HDF5 or TIFF volume, `phantom://em?shape=z,y,x`.
    mip : int, optional
        Resolution level, 0 is the finest.
    voxel_size : tuple of float, optional
        Size of a voxel along z, y, x, in nm, for a source that does not state it.
    **flags
        `boss`, `cache` and `cache_size`.

    Returns
    -------
    Volume
        `volume[z0:z1, y0:y1, x0:x1]` reads voxels into a numpy array; `shape`, `dtype`, `bounds` and `voxel_size_nm`
        describe it.

    Raises
    ------
    InputError
        If there is no such volume, it cannot be read, or an argument is malformed.
    VolumeError
        If the source does not answer.
    """
    check_keywords("open_volume", flags, DataFlags.__annotations__)
    from kasthuri_ray.volumes.opening import VolumeOpener, parse_voxel_size

    opener = VolumeOpener(flags.get("boss"), flags.get("cache"), flags.get("cache_size", defaults.CACHE_SIZE))
    return opener.open(os.fspath(uri) if isinstance(uri, os.PathLike) else uri, mip, parse_voxel_size(voxel_size))


def train(
    task: str | Mapping[str, Any] | None = None,
    *,
    reporter: Reporter | None = None,
    resume_command: ResumeCommand = SAME_CALL_WITH_NAME,
    return_finished: bool = True,
    **flags: Unpack[TrainFlags],
) -> TrainResult:
    """Train a network on a task with Ray Train; the same call with the same `name` resumes an unfinished run.

    Parameters
    ----------
    task : str, path or mapping
        Name of a built-in task, path of a task file, or what such a file holds.
    reporter : Reporter, optional
        Where progress is shown; standard output by default.
    resume_command : callable, optional
        Returns what a person types to resume the run of a name.
    return_finished : bool
        Whether the result of a run of this `name` and these settings is returned if it is finished already; otherwise
        AlreadyFinished, an InputError, is raised.
    **flags
        Flags of jobs/train.py: `network`, `image`, `annotation`, `weights`, `storage`, `name`, `num_workers`,
        `settings`, ... All are in `TrainFlags` in kasthuri_ray/config/flags.py, and `python jobs/train.py --help`
        (`kasthuri-train --help`) says what they mean. `--settings` lists all settings.

    Returns
    -------
    TrainResult
        `path` of the run's folder, and `metrics` as in its metrics.json.

    Raises
    ------
    InputError
        For bad input, before any work.
    WorkFailed
        If the work fails after it has started; the same `name` resumes it.
    """
    check_keywords("train", flags, TrainFlags.__annotations__)
    given = given_settings("train", {"task": task, **flags}, flags.get("storage"))
    from kasthuri_ray.training import train as training
    from kasthuri_ray.training.initial_weights import resolve_with_weights

    reporter = reporter or Reporter()
    with _ray_as_found():
        try:
            settings = resolve_with_weights(given)
            if settings.train.folds is None:
                return training.train(settings, reporter, resume_command)
            from kasthuri_ray.training.folds import train_folds  # imports matplotlib, as the workers of a run do

            return train_folds(settings, reporter, resume_command)
        except AlreadyFinished as finished:
            _report_finished(finished, return_finished, reporter)
            return training.TrainResult.read(finished.path)


def tune(
    task: str | Mapping[str, Any] | None = None,
    *,
    reporter: Reporter | None = None,
    resume_command: ResumeCommand = SAME_CALL_WITH_NAME,
    job_command: Callable[[str], str] = INSTALLED_COMMAND,
    return_finished: bool = True,
    **flags: Unpack[TuneFlags],
) -> TuneResult:
    """Search for the network and the settings that suit a task best, with Ray Tune.

    Parameters
    ----------
    task : str, path or mapping, optional
        As of `train`; not needed to resume a sweep by its `name`.
    reporter, resume_command : Reporter, callable
        As of `train`.
    job_command : callable, optional
        Returns what a person types to start a job such as "train"; for the commands that use the winner.
    return_finished : bool
        As of `train`, for a sweep.
    **flags
        Flags of jobs/tune.py: `networks`, `space` (a file, or a mapping of what it holds), `samples`, `hours`,
        `concurrent`, `storage`, `name`, `settings`, ... All are in `TuneFlags` in kasthuri_ray/config/flags.py, and
        `python jobs/tune.py --help` (`kasthuri-tune --help`) says what they mean.

    Returns
    -------
    TuneResult
        `path` of the sweep's folder, `leaderboard` (the trials, best first), the `best` trial and its `metrics`, as in
        its metrics.json.

    Raises
    ------
    InputError
        For bad input, before any work.
    WorkFailed
        If the work fails after it has started, or if no trial finishes.
    """
    check_keywords("tune", flags, TuneFlags.__annotations__)
    given = given_settings("tune", {"task": task, **flags}, flags.get("storage"))
    from kasthuri_ray.config.sweep_settings import resolve_sweep
    from kasthuri_ray.training.initial_weights import read_network_of_weights
    from kasthuri_ray.tuning import tune as tuning

    reporter = reporter or Reporter()
    with _ray_as_found():
        try:
            return tuning.tune(resolve_sweep(given, read_network_of_weights), reporter, resume_command, job_command)
        except AlreadyFinished as finished:
            _report_finished(finished, return_finished, reporter)
            return tuning.TuneResult.read(finished.path)


def segment(
    weights: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
    output: str | os.PathLike[str] | None = None,
    *,
    reporter: Reporter | None = None,
    resume_command: str = SAME_CALL,
    **flags: Unpack[SegmentFlags],
) -> SegmentResult:
    """Segment a volume with a trained network; the same call resumes an unfinished output.

    Parameters
    ----------
    weights : str, path, or list of these
        Folder of a run (`run.path`), or a `.pt` file together with `network` and `task`; a path, https:// or s3://. Of
        several runs, such as the folds of a training, the probabilities are averaged. None to `export` a finished
        output.
    output : str or path
        Path or `s3://` URL of the OME-Zarr of probabilities.
    reporter : Reporter, optional
        As of `train`.
    resume_command : str, optional
        What a person types to resume the segmentation.
    **flags
        Flags of jobs/segment.py: `image`, `box` (text, or `np.s_[0:10, :, :]`), `save_mask`, `objects`, `export`,
        `actors`, `dry_run`, ... All are in `SegmentFlags` in kasthuri_ray/config/flags.py, and
        `python jobs/segment.py --help` (`kasthuri-segment --help`) says what they mean.

    Returns
    -------
    SegmentResult
        `path` of the output, `metrics`, `table` (a row for each object, with `objects=True`), `num_set_aside` and
        `export_path`.

    Raises
    ------
    InputError
        For bad input, before any work.
    WorkFailed
        If the segmentation stops after it started; the same call resumes it.
    """
    check_keywords("segment", flags, SegmentFlags.__annotations__)
    several = weights if isinstance(weights, list | tuple) else [weights]
    first, *more = (as_setting("weights", each) for each in several or [None])
    values = {"weights": first, "more_weights": more or None, "output": as_setting("output", output), **flags}
    given = given_settings("segment", values, values["output"] and os.path.dirname(values["output"]))
    from kasthuri_ray.segmentation import segment as segmentation

    with _ray_as_found():
        return segmentation.segment_from_flags(
            given, reporter or Reporter(plain_period_s=defaults.SEGMENT_PLAIN_PERIOD_S), resume_command
        )


def evaluate(
    prediction: Any, annotation: Any = None, *, reporter: Reporter | None = None, **flags: Unpack[EvaluateFlags]
) -> EvaluateResult:
    """Compare a prediction with an annotation where they overlap.

    Parameters
    ----------
    prediction : str, path or array
        Probabilities: an output of `segment`, any other volume, or an array; floats, or uint8 where 255 is 1.
    annotation : str, path or array, optional
        Ground truth; not needed with `reviewed`, the file of verdicts of a review.
    reporter : Reporter, optional
        As of `train`.
    **flags
        Flags of jobs/evaluate.py: `task`, `box`, `threshold`, `instances`, `out`, `settings`, ... All are in
        `EvaluateFlags` in kasthuri_ray/config/flags.py, and `python jobs/evaluate.py --help`
        (`kasthuri-evaluate --help`) says what they mean. Settings such as `{"task.threshold": True}` change the task
        that the prediction names, or that `task` gives.

    Returns
    -------
    EvaluateResult
        `path` of the results' folder, and `metrics` as in its evaluation.json.

    Raises
    ------
    InputError
        For bad input, before any work.
    WorkFailed
        If the work fails after it has started.
    """
    check_keywords("evaluate", flags, EvaluateFlags.__annotations__)
    values = {"prediction": prediction, "annotation": annotation, **flags}
    given = given_settings("evaluate", values, flags.get("out"))
    from kasthuri_ray.config.loading import resolve_section
    from kasthuri_ray.config.settings import EvaluateSettings
    from kasthuri_ray.evaluation import evaluate as evaluation

    settings = resolve_section(EvaluateSettings, given)
    if settings.reviewed is not None:
        from kasthuri_ray.evaluation.reviewed_precision import evaluate_reviewed

        return evaluate_reviewed(settings, reporter or Reporter())
    with _ray_as_found():
        return evaluation.evaluate(settings, reporter or Reporter(), task_changes=given.typed_values("task"))


def view(
    output: str | os.PathLike[str] | None = None, *, reporter: Reporter | None = None, **flags: Unpack[ViewFlags]
) -> str:
    """Show an output, a run, an evaluation or an image in Neuroglancer.

    Parameters
    ----------
    output : str or path, optional
        Output of `segment`.
    reporter : Reporter, optional
        As of `train`.
    **flags
        Flags of jobs/view.py: `run`, `evaluation`, `image`, `annotation`, `position`, `screenshot`, ... All are in
        `ViewFlags` in kasthuri_ray/config/flags.py, and `python jobs/view.py --help` (`kasthuri-view --help`) says what
        they mean.

    Returns
    -------
    str
        Address of the viewer, which this process serves until it ends; in Jupyter a frame shows it too. Path of the
        picture with `screenshot`, address of a public Neuroglancer with `link`.

    Raises
    ------
    InputError
        For bad input, before anything is served.
    WorkFailed
        If a screenshot fails.
    """
    check_keywords("view", flags, ViewFlags.__annotations__)
    given = given_settings("view", {"output": output, **flags})
    from kasthuri_ray.config.loading import resolve_section
    from kasthuri_ray.config.view_settings import ViewSettings
    from kasthuri_ray.viewer.notebook_frame import in_notebook, show_frame
    from kasthuri_ray.viewer.view import view as show

    viewing = show(resolve_section(ViewSettings, given), reporter or Reporter(), opens_browser=not in_notebook())
    if viewing.server is not None and in_notebook():
        show_frame(viewing.url)
    return viewing.url


def _report_finished(finished: AlreadyFinished, return_finished: bool, reporter: Reporter) -> None:
    """Show that the result which follows is an earlier one, or raise the error if no such result is wanted."""
    if not return_finished:
        raise finished
    reporter.print_line(str(finished))
    reporter.print_result(finished.path)


def given_settings(section: str, values: Mapping[str, Any], folder: str | None = None) -> GivenSettings:
    """Return what the arguments of a function, or the flags of a job, say about the settings.

    Parameters
    ----------
    section : str
        Section of most of them, which is the name of the function: `train`, `tune`, `segment`, `evaluate`, `check`.
    values : mapping
        Arguments by name; None counts as not given.
    folder : str, optional
        Path or URL below which arrays are written; `outputs` by default.

    Returns
    -------
    GivenSettings
        Neither merged nor checked.

    Raises
    ------
    InputError
        If an argument is of a kind that its name does not allow, such as a volume that is neither a URI nor an array.
    """
    from kasthuri_ray.config.loading import GivenSettings

    task, network = (check_task_or_network(name, values.get(name)) for name in ("task", "network"))
    files = FILE_FLAGS if section in ("evaluate", "check") else (*FILE_FLAGS, "task")
    others = {name: value for name, value in values.items() if name not in files and value is not None}
    arrays = {name: others[name] for name in ARRAY_FLAGS if not isinstance(others.get(name, ""), str | os.PathLike)}
    if arrays:
        from kasthuri_ray.volumes.array_volume import volume_uri

        folder = os.fspath(folder or defaults.STORAGE)
        others |= {name: volume_uri(value, name, folder) for name, value in arrays.items()}
    config, assignments = as_setting("config", values.get("config")), as_assignments(values.get("settings"))
    check_sections(section, assignments)
    return GivenSettings(task, network, config, assignments, set_by_keywords(section, others))


@contextmanager
def _ray_as_found() -> Iterator[None]:
    """Stop Ray at the end, unless it ran before. Ray is not imported here: its environment is set before that."""
    was_running = "ray" in sys.modules and sys.modules["ray"].is_initialized()
    try:
        yield
    finally:
        if not was_running and "ray" in sys.modules:
            sys.modules["ray"].shutdown()

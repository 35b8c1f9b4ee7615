"""The Python API: what the jobs and notebooks call.

Keyword arguments have the names of the flags (`--num-workers 2` is `num_workers=2`). `settings={"network.epochs": 3}`
and `settings=["network.epochs=3"]` are `--set network.epochs=3`. Tasks and networks are names, files or mappings of
what such a file holds. Images, annotations and masks are URIs, or arrays (z, y, x) that fit into memory.
"""

from __future__ import annotations

import difflib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Unpack

from kasthuri_ray.config import defaults
from kasthuri_ray.config.flags import TARGETS, DataFlags, EvaluateFlags, SegmentFlags, TrainFlags, TuneFlags
from kasthuri_ray.errors import InputError, missing_is_bad_input
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
SAME_CALL = "the same call"
SAME_CALL_WITH_NAME = "the same call with name={!r}".format
INSTALLED_COMMAND = "kasthuri-{}".format


def open_volume(
    uri: str, *, mip: int | None = None, voxel_size: Nm | None = None, **flags: Unpack[DataFlags]
) -> Volume:
    """Open a volume and read its metadata, not yet its voxels.

    Parameters
    ----------
    uri : str
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
        `volume[z0:z1, y0:y1, x0:x1]` reads voxels; `shape`, `dtype`, `bounds` and `voxel_size_nm` describe it.

    Raises
    ------
    InputError
        If there is no such volume, or it cannot be read.
    VolumeError
        If the source does not answer.
    """
    _check_flags("open_volume", flags, DataFlags)
    from kasthuri_ray.volumes.opening import VolumeOpener

    opener = VolumeOpener(flags.get("boss"), flags.get("cache"), flags.get("cache_size", defaults.CACHE_SIZE))
    return opener.open(uri, mip, voxel_size)


def train(
    task: str | Mapping[str, Any] | None = None,
    *,
    reporter: Reporter | None = None,
    resume_command: ResumeCommand = SAME_CALL_WITH_NAME,
    **flags: Unpack[TrainFlags],
) -> TrainResult:
    """Train a network on a task with Ray Train; the same `name` resumes an unfinished run.

    Parameters
    ----------
    task : str or mapping
        Name of a built-in task, path of a task file, or what such a file holds.
    reporter : Reporter, optional
        Where progress is shown; standard error by default.
    resume_command : callable, optional
        Returns what a person types to resume the run of a name.
    **flags
        Flags of jobs/train.py: `network`, `image`, `annotation`, `weights`, `storage`, `name`, `num_workers`,
        `settings`, ... (`TrainFlags` lists them).

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
    _check_flags("train", flags, TrainFlags)
    given = given_settings("train", {"task": task, **flags}, flags.get("storage"))
    from kasthuri_ray.config.loading import resolve_settings
    from kasthuri_ray.training import train as training

    with _ray_as_found():
        return training.train(resolve_settings(given), reporter or Reporter(), resume_command)


def tune(
    task: str | Mapping[str, Any] | None = None,
    *,
    reporter: Reporter | None = None,
    resume_command: ResumeCommand = SAME_CALL_WITH_NAME,
    job_command: Callable[[str], str] = INSTALLED_COMMAND,
    **flags: Unpack[TuneFlags],
) -> TuneResult:
    """Search for the network and the settings that suit a task best, with Ray Tune.

    Parameters
    ----------
    task : str or mapping, optional
        As of `train`; not needed to resume a sweep by its `name`.
    reporter, resume_command : Reporter, callable
        As of `train`.
    job_command : callable, optional
        Returns what a person types to start a job such as "train"; for the commands that use the winner.
    **flags
        Flags of jobs/tune.py: `networks`, `space`, `samples`, `hours`, `concurrent`, `storage`, `name`, `settings`, ...
        (`TuneFlags` lists them).

    Returns
    -------
    TuneResult
        `path` of the sweep's folder, `leaderboard` (the trials, best first) and the `best` trial.

    Raises
    ------
    InputError
        For bad input, before any work.
    WorkFailed
        If the work fails after it has started, or if no trial finishes.
    """
    _check_flags("tune", flags, TuneFlags)
    given = given_settings("tune", {"task": task, **flags}, flags.get("storage"))
    from kasthuri_ray.config.sweep_settings import resolve_sweep
    from kasthuri_ray.tuning import tune as tuning

    with _ray_as_found():
        return tuning.tune(resolve_sweep(given), reporter or Reporter(), resume_command, job_command)


def segment(
    weights: str | None = None,
    output: str | None = None,
    *,
    reporter: Reporter | None = None,
    resume_command: str = SAME_CALL,
    **flags: Unpack[SegmentFlags],
) -> SegmentResult:
    """Segment a volume with a trained network; the same call resumes an unfinished output.

    Parameters
    ----------
    weights : str
        Folder of a run, or a `.pt` file together with `network` and `task`; a path, https:// or s3://. None to `export`
        a finished output.
    output : str
        Path or `s3://` URL of the OME-Zarr of probabilities.
    reporter : Reporter, optional
        As of `train`.
    resume_command : str, optional
        What a person types to resume the segmentation.
    **flags
        Flags of jobs/segment.py: `image`, `box`, `save_mask`, `objects`, `export`, `actors`, `dry_run`, ...
        (`SegmentFlags` lists them).

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
    _check_flags("segment", flags, SegmentFlags)
    values = {"weights": weights, "output": output, **flags}
    given = given_settings("segment", values, output and os.path.dirname(output))
    from kasthuri_ray.segmentation import segment as segmentation

    with _ray_as_found():
        return segmentation.segment_from_flags(
            given, reporter or Reporter(plain_period_s=defaults.SEGMENT_PLAIN_PERIOD_S), resume_command
        )


def evaluate(
    prediction: Any, annotation: Any, *, reporter: Reporter | None = None, **flags: Unpack[EvaluateFlags]
) -> EvaluateResult:
    """Compare a prediction with an annotation where they overlap.

    Parameters
    ----------
    prediction : str or array
        Probabilities: an output of `segment`, any other volume, or an array; floats, or uint8 where 255 is 1.
    annotation : str or array
        Ground truth.
    reporter : Reporter, optional
        As of `train`.
    **flags
        Flags of jobs/evaluate.py: `task`, `box`, `threshold`, `instances`, `out`, ... (`EvaluateFlags` lists them).

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
    _check_flags("evaluate", flags, EvaluateFlags)
    values = {"prediction": prediction, "annotation": annotation, **flags}
    given = given_settings("evaluate", values, flags.get("out"))
    from kasthuri_ray.config.loading import resolve_section
    from kasthuri_ray.config.settings import EvaluateSettings
    from kasthuri_ray.evaluation import evaluate as evaluation

    with _ray_as_found():
        return evaluation.evaluate(resolve_section(EvaluateSettings, given), reporter or Reporter())


def _check_flags(function: str, flags: Mapping[str, Any], allowed: type) -> None:
    """Raise a TypeError for a keyword argument that is no flag; it names the nearest."""
    names = allowed.__annotations__
    for name in flags:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; it takes {', '.join(sorted(names))}"
            raise TypeError(f"{function}() got an unexpected keyword argument {name!r}{hint}")


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
        If a volume is neither a URI nor an array.
    """
    from kasthuri_ray.config.loading import GivenSettings

    flags: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        if value is None or name in FILE_FLAGS or (name == "task" and section not in ("evaluate", "check")):
            continue
        target_section, key = TARGETS.get(section, {}).get(name, f"{section}.{name}").split(".")
        flags.setdefault(target_section, {})[key] = _as_uri(value, folder) if name in ARRAY_FLAGS else _as_path(value)
    settings = values.get("settings") or ()
    if isinstance(settings, Mapping):
        settings = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    task, network, config = (_as_path(values.get(name)) for name in ("task", "network", "config"))
    return GivenSettings(task, network, config, settings, flags)


def _as_path(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


@missing_is_bad_input()
def _as_uri(volume: Any, folder: str | None) -> str:
    """Return the URI of a volume that may be an array."""
    if isinstance(volume, str | os.PathLike):
        return os.fspath(volume)
    if not hasattr(volume, "__array__"):
        raise InputError(f"a volume is a URI or an array with axes z, y, x, not {type(volume).__name__}")
    from kasthuri_ray.volumes.array_volume import array_uri

    return array_uri(volume, folder or defaults.STORAGE)


@contextmanager
def _ray_as_found() -> Iterator[None]:
    """Stop Ray at the end, unless it ran before. Ray is not imported here: its environment is set before that."""
    was_running = "ray" in sys.modules and sys.modules["ray"].is_initialized()
    try:
        yield
    finally:
        if not was_running and "ray" in sys.modules:
            sys.modules["ray"].shutdown()

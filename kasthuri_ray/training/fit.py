"""Ray Train around the loop: check everything, hold the run's name, start the workers, and tell how it goes."""

from __future__ import annotations

import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from kasthuri_ray.board import Board
from kasthuri_ray.cli import WorkFailed, command_again, ending_on_sigterm
from kasthuri_ray.config import SMALLEST_BATCH, SPLITS, Settings
from kasthuri_ray.lease import Lease, LeaseLost
from kasthuri_ray.placement import ONE_NODE, check_seen_everywhere, check_writable, place_output
from kasthuri_ray.progress import Reporter, counted
from kasthuri_ray.resources import (
    WORKER_CPUS,
    Cluster,
    Demand,
    attach_or_start,
    check_demand,
    root_cause,
)
from kasthuri_ray.storage import in_ray_job, open_storage, whole_uri
from kasthuri_ray.tiles.stream import READ_CPUS
from kasthuri_ray.training.job import Job
from kasthuri_ray.training.optimize import should_stop
from kasthuri_ray.training.run_folder import RunFolder, differences
from kasthuri_ray.training.sources import open_task
from kasthuri_ray.training.start import check_network, norm_warning, read_start_weights
from kasthuri_ray.training.trackers import check_trackers
from kasthuri_ray.training.workers import make_trainer, shown_by, wait_for

PACKAGES = ("kasthuri_ray", "torch", "ray", "intern", "numpy", "zarr", "tensorstore")


def fit(settings: Settings, program: str = "jobs/train.py", given: Sequence[str] = ()) -> str:
    """Train as the settings say; gives the path of the run's folder.

    program, given: the command line, for the command that goes on. Raises ValueError before anything is written, and
    WorkFailed once the work has begun.
    """
    settings = with_absolute_paths(settings)
    for note in settings.notes.values():  # at once: an error that follows may come of what it says
        print(note, file=sys.stderr, flush=True)
    notes = kept_notes(settings)
    check_place(settings)
    check_trackers(settings.train)
    if warning := norm_warning(check_network(settings)):
        notes.append(warning)
    weights = _start_weights(settings)
    tiles = open_task(settings, notes.append)
    cluster = attach_or_start(settings.train.verbose)
    name = settings.train.name or default_name(settings)
    path = run_path(settings, name, cluster)
    check_writable(path)
    folder = RunFolder(open_storage(path))
    settings = settle_batch_size(settings, cluster, folder.read_settings())
    workers, gpu = plan_workers(settings, cluster)
    check_seen_everywhere(path, cluster)
    check_resumable(folder, settings)
    again = command_again(program, given, name)
    print(path, flush=True)  # the first line, for scripts
    if gpu and settings.train.workers is None and workers[1] < int(cluster.gpus):
        notes.append(
            f"{workers[1]} of {cluster.gpus:g} GPUs are used: each takes at least one tile of network.batch_size "
            f"{settings.network.batch}; a larger one uses more"
        )
    reporter = Reporter()
    for note in [*notes, f"to go on after a stop: {again}"]:
        reporter.line(note)
    check_demand(Demand(workers[0], WORKER_CPUS, int(gpu), READ_CPUS), settings.train.wait_for_resources, reporter.line)
    train_tiles = tiles.train.in_whole_batches(settings.network.batch)
    job = Job(
        settings, path, train_tiles, tiles.val, tiles.test, weights, extend_command(program, given, name, settings)
    )
    with ending_on_sigterm(), Lease.acquire(folder.storage, say=reporter.line) as lease:
        check_resumable(folder, settings)
        folder.write_settings(describe(settings))
        try:
            _run(job, workers, gpu, reporter, lease)
        except WorkFailed as error:
            raise WorkFailed(f"{error}\nto go on: {again}") from error.__cause__
        except (KeyboardInterrupt, SystemExit):
            reporter.line(f"to go on: {again}")
            raise
    print(path, flush=True)
    return path


def kept_notes(settings: Settings) -> list[str]:
    """A line that names the keys that nobody reads, if there are any."""
    return [f"carried along and not read: {', '.join(sorted(settings.kept))}"] if settings.kept else []


def _start_weights(settings: Settings) -> dict[str, Any] | None:
    """The weights to start from; a run that goes on by its name does not need them again, if they are gone."""
    try:
        return read_start_weights(settings)
    except (ValueError, OSError):
        name = settings.train.name
        if name is None or not open_storage(run_path(settings, name)).exists("checkpoint/last.pt"):
            raise
        return None


def run_path(settings: Settings, name: str, cluster: Cluster = ONE_NODE) -> str:
    """Where the run of a name lies."""
    return f"{place_output(settings.train.storage, cluster).rstrip('/')}/{name}"


def with_absolute_paths(settings: Settings) -> Settings:
    """The settings with volumes of this machine by their whole paths: a run goes on from anywhere on the same ones."""
    task = settings.task.model_copy(deep=True)
    named: list[Any] = [
        region for boxes in (task.boxes,) if boxes for split in SPLITS for region in getattr(boxes, split)
    ]
    for holder, keys in [
        (task, ("image_chan", "annotation_chan")),
        *((region, ("image", "annotation")) for region in named),
    ]:
        for key in keys:
            uri = getattr(holder, key)
            if uri and key in holder.model_fields_set:
                setattr(holder, key, whole_uri(uri))
    return settings.model_copy(update={"task": task})


def check_place(settings: Settings) -> None:
    """Raise a ValueError if the storage is none or takes no files, or if a name would lead out of it."""
    open_storage(settings.train.storage)
    name, task = settings.train.name, settings.task
    if name is not None and not is_file_name(name):
        raise ValueError(f"--name {name!r} is no name of a folder; where it lies is said by --storage")
    named = {"task.name": task.name, "task.task_type": task.task_type}
    for key, value in {**named, "network.outweightfilename": settings.network.outweightfilename}.items():
        if not is_file_name(value):
            raise ValueError(f"{key} is {value!r}: it becomes a part of files' names, which have no / and end no line")
    if not in_ray_job():  # there the place follows from the cluster
        check_writable(run_path(settings, name or "run"))


def is_file_name(name: str) -> bool:
    """Whether a name can be a file's or a folder's, in one line and not too long."""
    return name not in ("", ".", "..") and "/" not in name and name.isprintable() and len(name.encode()) <= 200


def default_name(settings: Settings) -> str:
    task = settings.task.name.removesuffix("_task")
    return f"{task}_{settings.network.outweightfilename}_{time.strftime('%Y%m%d-%H%M%S')}"


def extend_command(program: str, given: Sequence[str], name: str, settings: Settings) -> str:
    """The command that trains a finished run for as long again."""
    return f"{command_again(program, given, name)} --set network.epochs={2 * settings.network.epochs}"


def settle_batch_size(settings: Settings, cluster: Cluster, before: Mapping[str, Any] | None) -> Settings:
    """The settings with a batch size: where they leave it open that of the run `before`, or else a tile a worker, and
    no fewer than SMALLEST_BATCH."""
    if settings.network.batch_size is not None:
        return settings
    gpus = int(cluster.gpus) if uses_gpus(settings, cluster) else 1
    _, most = settings.train.workers or (1, gpus)
    size = before["network"]["batch_size"] if before else max(SMALLEST_BATCH, most)
    network = settings.network.model_copy(update={"batch_size": size})
    return settings.model_copy(update={"network": network})


def uses_gpus(settings: Settings, cluster: Cluster) -> bool:
    device = settings.train.device
    return device == "cuda" or (device == "auto" and cluster.gpus >= 1)


def plan_workers(settings: Settings, cluster: Cluster) -> tuple[tuple[int, int], bool]:
    """The fewest and the most workers, and whether each has a GPU."""
    gpu = uses_gpus(settings, cluster)
    all_gpus = min(max(1, int(cluster.gpus)), settings.network.batch)  # each needs at least one tile
    fewest, most = settings.train.workers or ((all_gpus,) * 2 if gpu else (1, 1))
    if settings.network.batch < most:
        raise ValueError(
            f"network.batch_size {settings.network.batch} is smaller than the {most} workers that share it "
            "(--num-workers); each needs at least one tile"
        )
    return (fewest, most), gpu


def check_resumable(folder: RunFolder, settings: Settings) -> None:
    """Raise a ValueError for a run that is finished, or that was begun with other settings."""
    before = folder.read_settings()
    if before is None:
        return
    name, epochs = folder.storage.name, before["network"]["epochs"]
    metrics = folder.read_metrics()
    differ = differences(before, settings.of_training())
    early = metrics is not None and stopped_early(folder, settings, metrics["epochs"])
    ended = early or (metrics is not None and metrics["epochs"] >= epochs)  # an extension that was cut off has not
    more = settings.network.epochs > epochs
    longer = ended and more and [line.split(":")[0] for line in differ] == ["network.epochs"]
    if differ and not longer:
        shown = "\n  ".join(differ)
        raise ValueError(f"the run {name} was begun with other settings:\n  {shown}\nGive another --name, or those.")
    if metrics and early:
        raise ValueError(
            f"the run {name} is finished: it stopped early after {counted(metrics['epochs'], 'epoch')}, as the "
            f"validation loss no longer fell (network.early_stopping {settings.network.early_stopping}): "
            f"{folder.storage.path}. To train on, begin another run with --weights {folder.storage.path}"
        )
    if metrics and not longer and metrics["epochs"] >= epochs:
        raise ValueError(
            f"the run {name} is finished, after {counted(metrics['epochs'], 'epoch')}: {folder.storage.path}. To train "
            f"it longer, add --set network.epochs={2 * epochs}"
        )


def stopped_early(folder: RunFolder, settings: Settings, epochs: int) -> bool:
    """Whether the run that ended after so many epochs ended because it no longer got better."""
    last = folder.read_checkpoint("last")
    losses = [row["val.loss"] for row in last.about["resume"]["progress"]["history"]] if last else []
    return len(losses) == epochs and should_stop(settings.network, losses)


def describe(settings: Settings) -> dict[str, Any]:
    """What settings.json holds: everything that would be needed to do it again, and no secret."""
    return {
        **settings.of_training(),
        "seed": settings.network.seed,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "git_commit": git_commit(),
    }


def git_commit() -> str | None:
    """The commit of the checkout that this package lies in, None outside one."""
    with suppress(OSError, subprocess.SubprocessError):
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10
        )
        return found.stdout.strip() or None
    return None


def _run(job: Job, workers: tuple[int, int], gpu: bool, reporter: Reporter, lease: Lease) -> None:
    """Train on Ray's workers. Whatever ends it early ends them too, before the run's name is given back."""
    with scratch_folder() as scratch, working("training", reporter, lease), Board(shown_by(reporter)) as board:
        wait_for(make_trainer(job, workers, gpu, scratch, board.post).fit, lease.check)


def scratch_folder() -> tempfile.TemporaryDirectory[str]:
    """A folder of this machine for what Ray notes for itself; a context that gives its path."""
    return tempfile.TemporaryDirectory(prefix="kasthuri_ray_", ignore_cleanup_errors=True)


@contextmanager
def working(what: str, reporter: Reporter, lease: Lease) -> Iterator[None]:
    """Inside, what fails is a WorkFailed, and what ends this process early ends its work on Ray too."""
    import ray

    try:
        yield
        lease.check()
    except LeaseLost as error:
        ray.shutdown()
        raise WorkFailed(str(error)) from error
    except WorkFailed:
        raise
    except Exception as error:
        raise WorkFailed(f"{what} failed: {root_cause(error)}") from error
    except BaseException:  # Ctrl-C, or the end of this process
        ray.shutdown()
        raise
    finally:
        reporter.end()

"""Ray Train around the loop: check everything, hold the run's name, start the workers, and tell how it goes."""

from __future__ import annotations

import sys
from collections.abc import Callable

from kasthuri_ray.config.settings import Settings
from kasthuri_ray.errors import WorkFailed
from kasthuri_ray.progress import Reporter
from kasthuri_ray.ray_cluster.connection import WORKER_CPUS, connect_ray
from kasthuri_ray.ray_cluster.driver import exit_on_sigterm, guard_ray_work, run_in_thread, scratch_folder
from kasthuri_ray.ray_cluster.output_paths import check_shared_path, check_writable_path
from kasthuri_ray.ray_cluster.resources import ResourceDemand, require_resources
from kasthuri_ray.ray_cluster.worker_messages import WorkerMessages
from kasthuri_ray.storage.folder import open_storage
from kasthuri_ray.storage.lease import Lease
from kasthuri_ray.tiles.splits import open_task_tiles
from kasthuri_ray.tiles.streaming import READ_CPUS
from kasthuri_ray.training.preflight import (
    _start_weights,
    absolute_volume_paths,
    build_checked_network,
    check_run_location,
    check_run_resumable,
    choose_batch_size,
    default_run_name,
    most_workers,
    normalization_warning,
    plan_workers,
    run_path,
    unread_keys_notes,
)
from kasthuri_ray.training.ray_trainer import make_trainer, worker_message_handler
from kasthuri_ray.training.run_folder import RunFolder, run_description
from kasthuri_ray.training.trackers import check_trackers
from kasthuri_ray.training.training_job import TrainingJob

RESUME_COMMAND = "the same command with --name {}".format  # where nobody passed the words


def train(settings: Settings, resume_command: Callable[[str], str] = RESUME_COMMAND) -> str:
    """Train a network on Ray's workers.

    Parameters
    ----------
    settings : Settings
        All settings of the job.
    resume_command : callable
        Returns the command that resumes the run of a name, for people to type.

    Returns
    -------
    str
        Path of the run's folder.

    Raises
    ------
    ValueError
        For bad input, before anything is written.
    WorkFailed
        If the work stops after it began.
    """
    settings = absolute_volume_paths(settings)
    for note in settings.notes.values():  # at once: an error that follows may come of what it says
        print(note, file=sys.stderr, flush=True)
    notes = unread_keys_notes(settings)
    check_run_location(settings)
    check_trackers(settings.train)
    if warning := normalization_warning(build_checked_network(settings)):
        notes.append(warning)
    weights = _start_weights(settings)
    tiles = open_task_tiles(settings, notes.append)
    cluster = connect_ray(settings.train.verbose)
    name = settings.train.name or default_run_name(settings)
    path = run_path(settings, name, cluster)
    check_writable_path(path)
    folder = RunFolder(open_storage(path))
    settings = choose_batch_size(settings, most_workers(settings, cluster), folder.read_settings())
    workers, gpu = plan_workers(settings, cluster)
    check_shared_path(path, cluster)
    check_run_resumable(folder, settings)
    again = resume_command(name)
    print(path, flush=True)  # the first line, for scripts
    if gpu and settings.train.workers is None and workers[1] < int(cluster.gpus):
        notes.append(
            f"{workers[1]} of {cluster.gpus:g} GPUs are used: each takes at least one tile of network.batch_size "
            f"{settings.network.batch}; a larger one uses more"
        )
    reporter = Reporter()
    for note in [*notes, f"to go on after a stop: {again}"]:
        reporter.line(note)
    require_resources(
        ResourceDemand(workers[0], WORKER_CPUS, int(gpu), READ_CPUS), settings.train.wait_for_resources, reporter.line
    )
    train_tiles = tiles.train.in_whole_batches(settings.network.batch)
    job = TrainingJob(
        settings,
        path,
        train_tiles,
        tiles.val,
        tiles.test,
        weights,
        f"{again} --set network.epochs={2 * settings.network.epochs}",
    )
    with exit_on_sigterm(), Lease.acquire(folder.storage, say=reporter.line) as lease:
        check_run_resumable(folder, settings)
        folder.write_settings(run_description(settings))
        try:
            _run(job, workers, gpu, reporter, lease)
        except WorkFailed as error:
            raise WorkFailed(f"{error}\nto go on: {again}") from error.__cause__
        except (KeyboardInterrupt, SystemExit):
            reporter.line(f"to go on: {again}")
            raise
    print(path, flush=True)
    return path


def _run(job: TrainingJob, workers: tuple[int, int], gpu: bool, reporter: Reporter, lease: Lease) -> None:
    """Train on Ray's workers. Whatever ends it early ends them too, before the run's name is given back."""
    with (
        scratch_folder() as scratch,
        guard_ray_work("training", reporter, lease),
        WorkerMessages(worker_message_handler(reporter)) as board,
    ):
        run_in_thread(make_trainer(job, workers, gpu, scratch, board.post).fit, lease.check)

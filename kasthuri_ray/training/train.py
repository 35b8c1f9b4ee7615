"""A training run on Ray: check everything, hold the lease of the run's folder, and train on Ray's workers."""

from __future__ import annotations

import sys
from collections.abc import Callable

from kasthuri_ray.config.settings import Settings
from kasthuri_ray.errors import WorkFailed, missing_is_bad_input
from kasthuri_ray.progress import Reporter
from kasthuri_ray.ray_cluster.connection import WORKER_CPUS, connect_ray
from kasthuri_ray.ray_cluster.driver import exit_on_sigterm, guard_ray_work, run_in_thread, scratch_folder
from kasthuri_ray.ray_cluster.output_paths import check_shared_path, check_writable_path
from kasthuri_ray.ray_cluster.resources import ClusterResources, ResourceDemand, require_resources
from kasthuri_ray.ray_cluster.worker_messages import WorkerMessages
from kasthuri_ray.storage.folder import open_storage
from kasthuri_ray.storage.lease import Lease
from kasthuri_ray.tiles.splits import open_task_tiles
from kasthuri_ray.tiles.streaming import READ_CPUS
from kasthuri_ray.training.preflight import (
    absolute_volume_paths,
    build_checked_network,
    check_run_location,
    check_run_resumable,
    choose_batch_size,
    default_run_name,
    max_workers,
    normalization_warning,
    plan_workers,
    read_weights_unless_resumed,
    run_path,
    unused_keys_notes,
)
from kasthuri_ray.training.ray_trainer import make_message_handler, make_trainer
from kasthuri_ray.training.run_folder import RunFolder, run_description
from kasthuri_ray.training.trackers import check_trackers
from kasthuri_ray.training.training_job import TrainingJob

RESUME_COMMAND = "the same command with --name {}".format  # for callers that do not know the command


@missing_is_bad_input()
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
    InputError
        For bad input, before anything is written.
    WorkFailed
        If the work fails after it has started.
    """
    settings = absolute_volume_paths(settings)
    for note in settings.notes.values():  # at once, because a note may explain an error that follows
        print(note, file=sys.stderr, flush=True)
    notes = unused_keys_notes(settings)
    check_run_location(settings)
    check_trackers(settings.train)
    if warning := normalization_warning(build_checked_network(settings)):
        notes.append(warning)
    weights = read_weights_unless_resumed(settings)
    tiles = open_task_tiles(settings, notes.append)
    cluster = connect_ray(settings.train.verbose)
    name = settings.train.name or default_run_name(settings)
    path = run_path(settings, name, cluster)
    check_writable_path(path)
    folder = RunFolder(open_storage(path))
    settings = choose_batch_size(settings, max_workers(settings, cluster), folder.read_settings())
    workers, gpu = plan_workers(settings, cluster)
    check_shared_path(path, cluster)
    check_run_resumable(folder, settings)
    command = resume_command(name)
    print(path, flush=True)  # the first line, for scripts
    reporter = Reporter()
    notes += _unused_gpus_notes(settings, workers[1] if gpu else 0, cluster)
    for note in [*notes, f"to resume after a stop: {command}"]:
        reporter.print_line(note)
    demand = ResourceDemand(workers[0], WORKER_CPUS, int(gpu), READ_CPUS)
    require_resources(demand, settings.train.wait_for_resources, reporter.print_line)
    job = TrainingJob(
        settings=settings,
        path=path,
        train=tiles.train.in_whole_batches(settings.network.batch),
        val=tiles.val,
        test=tiles.test,
        weights=weights,
        next_command=f"{command} --set network.epochs={2 * settings.network.epochs}",
    )
    _train_under_lease(job, workers, gpu, reporter, command)
    print(path, flush=True)
    return path


def _unused_gpus_notes(settings: Settings, num_used: int, cluster: ClusterResources) -> list[str]:
    """Return a line if a small batch leaves GPUs unused; none if the number of workers is set, or 0 GPUs are used."""
    if not num_used or settings.train.worker_range is not None or num_used >= int(cluster.gpus):
        return []
    return [
        f"{num_used} of {cluster.gpus:g} GPUs are used: each needs at least one tile of network.batch_size "
        f"{settings.network.batch}; a larger batch size uses more of them"
    ]


def _train_under_lease(
    job: TrainingJob, workers: tuple[int, int], gpu: bool, reporter: Reporter, resume_command: str
) -> None:
    """Train while this process alone may write to the run's folder; name the command that resumes if it fails."""
    folder = RunFolder(open_storage(job.path))
    with exit_on_sigterm(), Lease.acquire(folder.storage, report=reporter.print_line) as lease:
        check_run_resumable(folder, job.settings)
        folder.write_settings(run_description(job.settings))
        try:
            _run_workers(job, workers, gpu, reporter, lease)
        except WorkFailed as error:
            raise WorkFailed(f"{error}\nto resume: {resume_command}") from error.__cause__
        except (KeyboardInterrupt, SystemExit):
            reporter.print_line(f"to resume: {resume_command}")
            raise


def _run_workers(job: TrainingJob, workers: tuple[int, int], gpu: bool, reporter: Reporter, lease: Lease) -> None:
    """Train on Ray's workers; whatever ends this early also ends the workers, before the lease is released."""
    with (
        scratch_folder() as scratch,
        guard_ray_work("training", reporter, lease),
        WorkerMessages(make_message_handler(reporter)) as messages,
    ):
        run_in_thread(make_trainer(job, workers, gpu, scratch, messages.post).fit, lease.check)

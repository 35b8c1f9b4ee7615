"""A training run on Ray: check everything, hold the lease of the run's folder, and train on Ray's workers."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kasthuri_ray.config.keyword_arguments import SAME_CALL
from kasthuri_ray.config.settings import Settings
from kasthuri_ray.errors import missing_is_bad_input
from kasthuri_ray.progress import Reporter
from kasthuri_ray.ray_cluster.connection import check_local_cpus, check_local_gpu, connect_ray
from kasthuri_ray.ray_cluster.driver import (
    exit_on_sigterm,
    guard_ray_work,
    name_resume_command,
    run_in_thread,
    scratch_folder,
)
from kasthuri_ray.ray_cluster.output_paths import check_shared_path, check_writable_path
from kasthuri_ray.ray_cluster.resources import ClusterResources, require_resources
from kasthuri_ray.ray_cluster.worker_messages import WorkerMessages
from kasthuri_ray.storage.folder import open_storage
from kasthuri_ray.storage.lease import Lease
from kasthuri_ray.tiles.streaming import start_reading_services
from kasthuri_ray.training.preflight import (
    check_run_location,
    check_run_resumable,
    default_run_name,
    prepare_training,
    run_path,
)
from kasthuri_ray.training.ray_trainer import make_message_handler, make_trainer
from kasthuri_ray.training.run_folder import RunFolder, run_description
from kasthuri_ray.training.training_job import TrainingJob
from kasthuri_ray.training.worker_plan import WorkerPlan, plan_workers, uses_gpus


@dataclass(frozen=True)
class TrainResult:
    """Result of a training.

    Parameters
    ----------
    path : str
        Path or URL of the run's folder.
    metrics : dict
        Content of metrics.json.
    """

    path: str
    metrics: dict[str, Any]

    @property
    def history(self) -> list[dict[str, Any]]:
        """Rows of history.csv, one for each epoch, such as `{"epoch": 1, "train.loss": 0.7, ...}`; none of folds."""
        return RunFolder(open_storage(self.path)).read_history()

    @classmethod
    def read(cls, path: str) -> TrainResult:
        """Return the result of a finished run."""
        return cls(path, RunFolder(open_storage(path)).read_metrics() or {})


@missing_is_bad_input()
def train(settings: Settings, reporter: Reporter, resume_command: Callable[[str], str]) -> TrainResult:
    """Train a network on Ray's workers.

    Parameters
    ----------
    settings : Settings
        All settings of the job.
    reporter : Reporter
        Shows path, notes and progress.
    resume_command : callable
        Returns the command that resumes the run of a name, for people to type.

    Returns
    -------
    TrainResult
        Where the run is, and its metrics.

    Raises
    ------
    InputError
        For bad input, before anything is written; AlreadyFinished for a run that is finished.
    WorkFailed
        If the work fails after it has started.
    """
    for note in settings.notes.values():  # at once, because a note may explain an error that follows
        reporter.print_stderr(note)
    check_run_location(settings)
    prepared = prepare_training(settings)
    _check_without_cluster(prepared.settings)
    cluster, name, path = connect_and_place_run(settings, reporter)
    folder = RunFolder(open_storage(path))
    settings, workers = plan_workers(
        prepared.settings, uses_gpus(settings, cluster), cluster.gpus, folder.read_batch_size()
    )
    check_shared_path(path, cluster)
    check_run_resumable(folder, settings)
    command = resume_command(name)
    reporter.print_result(path)  # the first line, for scripts
    for note in [*prepared.notes, *_unused_gpus_notes(settings, workers, cluster)]:
        reporter.print_line(note)
    reporter.print_line(f"to resume after a stop: {command}")
    require_resources(workers.demand(), settings.train.wait_for_resources, reporter.print_line)
    more_epochs = command_with_epochs(command, 2 * settings.network.epochs)
    _train_under_lease(prepared.make_job(settings, path, more_epochs), workers, reporter, command)
    reporter.print_result(path)
    return TrainResult.read(path)


def connect_and_place_run(settings: Settings, reporter: Reporter) -> tuple[ClusterResources, str, str]:
    """Connect to Ray; return the cluster, and the name and the path of the run, which can be written to."""
    cluster = connect_ray(reporter, settings.train.verbose)
    name = settings.train.name or default_run_name(settings)
    path = run_path(settings, name, cluster)
    check_writable_path(path)
    return cluster, name, path


def command_with_epochs(command: str, num_epochs: int) -> str:
    """Return a command that resumes a run, with another number of epochs in place of the one that it sets.

    Parameters
    ----------
    command : str
        Shell command, or a sentence about a call in Python.
    num_epochs : int
        Number of epochs.

    Returns
    -------
    str
        The command with one `--set network.epochs=`, or the sentence with that setting.
    """
    if command.startswith(SAME_CALL):
        return f'{command} and "network.epochs": {num_epochs} in its settings'
    if "network.epochs=" in command:
        words = [word for word in shlex.split(command) if not word.removeprefix("--set=").startswith("network.epochs=")]
        pairs = zip(words, [*words[1:], "--"], strict=True)
        command = shlex.join(word for word, after in pairs if word != "--set" or not after.startswith("--"))
    return f"{command} --set network.epochs={num_epochs}"


def _check_without_cluster(settings: Settings) -> None:
    """Refuse, before Ray starts, a device and workers that cannot be, other settings and a finished run."""
    check_local_gpu(settings.train.device, settings.network.precision)
    name = settings.train.name
    folder = None if name is None else RunFolder(open_storage(run_path(settings, name)))
    recorded = None if folder is None else folder.read_batch_size()
    planned, workers = plan_workers(settings, use_gpu=False, recorded_batch_size=recorded)
    check_local_cpus(workers.demand(), settings.train.wait_for_resources, settings.train.device)
    if folder is not None:
        check_run_resumable(folder, planned)


def _unused_gpus_notes(settings: Settings, workers: WorkerPlan, cluster: ClusterResources) -> list[str]:
    """Return a line if a small batch leaves GPUs unused, and the number of workers is not set."""
    if not workers.use_gpu or settings.train.worker_range is not None or workers.most >= int(cluster.gpus):
        return []
    return [
        f"{workers.most} of {cluster.gpus:g} GPUs are used: each needs at least one tile of network.batch_size "
        f"{settings.network.batch}; a larger batch size uses more of them"
    ]


def _train_under_lease(job: TrainingJob, workers: WorkerPlan, reporter: Reporter, resume_command: str) -> None:
    """Train while this process alone may write to the run's folder; name the command that resumes if it fails."""
    folder = RunFolder(open_storage(job.path))
    with exit_on_sigterm(), Lease.acquire(folder.storage, report=reporter.print_line) as lease:
        check_run_resumable(folder, job.settings)
        folder.write_settings(run_description(job.settings, job.history.learnt_from.to_plain()))
        with name_resume_command(resume_command, reporter):
            _run_workers(job, workers, reporter, lease)


def _run_workers(job: TrainingJob, workers: WorkerPlan, reporter: Reporter, lease: Lease) -> None:
    """Train on Ray's workers; whatever ends this early also ends the workers, before the lease is released."""
    start_reading_services()
    with (
        scratch_folder() as scratch,
        guard_ray_work("training", reporter, lease),
        WorkerMessages(make_message_handler(reporter)) as messages,
    ):
        run_in_thread(make_trainer(job, workers, scratch, messages.post).fit, lease.check)

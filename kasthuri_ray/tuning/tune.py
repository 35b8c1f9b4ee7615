"""Search the network and the settings that suit a task, with Ray Tune.

Tune runs the trials, its schedulers stop poor trials early, and its searcher interface asks this module for the next
trial. Tune's own state of a sweep is discarded: a resumed sweep is a new one to Tune. Its scheduler receives the
histories of the trials that have ended, interrupted trials start first, and each of them resumes from its own
checkpoint. So a driver may be killed at any moment, on a disk or on S3. Only our own record must be right
(`leaderboard.py`); it is small and written whole. (`Tuner.restore` keeps a state of its own, which lags behind, knows
nothing of the checkpoints of a trial, and fails where a trial had ended unnoticed.)
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kasthuri_ray.config.sweep_settings import SweepSettings
from kasthuri_ray.errors import WorkFailed, missing_is_bad_input
from kasthuri_ray.progress import Reporter, Throttle
from kasthuri_ray.ray_cluster.connection import WORKER_CPUS
from kasthuri_ray.ray_cluster.driver import (
    exit_on_sigterm,
    guard_ray_work,
    name_resume_command,
    run_in_thread,
    scratch_folder,
)
from kasthuri_ray.ray_cluster.resources import require_resources
from kasthuri_ray.ray_cluster.worker_messages import WorkerMessages
from kasthuri_ray.storage.folder import open_storage
from kasthuri_ray.storage.lease import Lease
from kasthuri_ray.tiles.streaming import start_reading_services
from kasthuri_ray.training.run_folder import RunFolder
from kasthuri_ray.tuning.epoch_barrier import start_epoch_barrier
from kasthuri_ray.tuning.leaderboard import BEST_FOLDER, LEADERBOARD_JSON, Leaderboard, recover_trials
from kasthuri_ray.tuning.ray_tune import make_scheduler, make_tuner
from kasthuri_ray.tuning.sweep_plan import JobCommand, SweepPlan, check_sweep_resumable, plan_sweep
from kasthuri_ray.tuning.sweep_report import describe_search, describe_winner
from kasthuri_ray.tuning.sweep_trials import SweepTrials
from kasthuri_ray.tuning.trial import MAX_FAILURES, run_trial, trains_in_process
from kasthuri_ray.tuning.trial_record import FAILED, FINISHED, STOPPED, TrialRecord

DRAW_INTERVAL_S = 0.5  # between two drawings of the table
TUNE_ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",  # the new output prints a heading even with verbose=0
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the trials' folders hold what these would write
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that fails at once has no score
}


@dataclass(frozen=True)
class TuneResult:
    """Result of a sweep.

    Parameters
    ----------
    path : str
        Path or URL of the sweep's folder.
    leaderboard : list of dict
        One row for each trial, the best first, as in leaderboard.json.
    best : dict
        Row of the best trial that finished or was stopped early.
    metrics : dict
        Content of the metrics.json of the best trial.
    """

    path: str
    leaderboard: list[dict[str, Any]]
    best: dict[str, Any]
    metrics: dict[str, Any]

    @classmethod
    def read(cls, path: str) -> TuneResult:
        """Return the result of a finished sweep. Raise WorkFailed if none of its trials finished."""
        storage = open_storage(path)
        metric = json.loads(storage.read_bytes(LEADERBOARD_JSON))["metric"]
        return cls.of(Leaderboard.read(storage, metric))

    @classmethod
    def of(cls, leaderboard: Leaderboard) -> TuneResult:
        """Return the result that a leaderboard holds. Raise WorkFailed if none of its trials finished."""
        best, rows = _find_winner(leaderboard), leaderboard.rows()
        return cls(
            path=leaderboard.storage.path,
            leaderboard=rows,
            best=next(row for row in rows if row["id"] == best.id),
            metrics=RunFolder(leaderboard.storage.child(BEST_FOLDER)).read_metrics() or {},
        )


@missing_is_bad_input()
def tune(
    sweep: SweepSettings, reporter: Reporter, resume_command: Callable[[str], str], job_command: JobCommand
) -> TuneResult:
    """Search the network and the settings that suit a task.

    Parameters
    ----------
    sweep : SweepSettings
        Settings of each network that is tried.
    reporter : Reporter
        Shows path, notes and trials.
    resume_command : callable
        Returns the command that resumes the sweep of a name, for users to type.
    job_command : callable
        Returns the command that starts a job such as "train", for users to type.

    Returns
    -------
    TuneResult
        Where the sweep is, and its trials.

    Raises
    ------
    InputError
        For bad input, before anything is written; AlreadyFinished for a sweep that is finished.
    WorkFailed
        If the work fails after it has started, or if no trial finishes.
    """
    plan = plan_sweep(sweep, reporter, job_command)
    check_sweep_resumable(plan)
    command = resume_command(plan.storage.name)
    reporter.print_result(plan.path)  # the first line, for scripts
    for note in [*plan.notes, *describe_search(plan), f"to resume after a stop: {command}"]:
        reporter.print_line(note)
    require_resources(plan.demand, plan.settings.train.wait_for_resources, reporter.print_line)
    with exit_on_sigterm(), Lease.acquire(plan.storage, report=reporter.print_line) as lease:
        leaderboard = check_sweep_resumable(plan)
        plan.storage.write_bytes("settings.json", (json.dumps(plan.description, indent=2) + "\n").encode())
        recover_trials(leaderboard)
        leaderboard.finished = False
        with name_resume_command(command, reporter):
            _run_trials(plan, leaderboard, reporter, lease)
        for line in describe_winner(plan, leaderboard, _find_winner(leaderboard)):
            reporter.print_line(line)
    reporter.print_result(plan.path)
    return TuneResult.of(leaderboard)


def _run_trials(plan: SweepPlan, leaderboard: Leaderboard, reporter: Reporter, lease: Lease) -> None:
    """Run the trials, then write the best trial and the page. An early end for any reason ends the trials too."""
    _configure_tune(plan.settings.train.verbose)
    start_reading_services()
    with scratch_folder() as scratch, guard_ray_work("the sweep", reporter, lease):
        barrier, in_process = start_epoch_barrier(), trains_in_process(plan.workers)
        sweep = SweepTrials(plan, leaderboard, reporter, barrier)
        with WorkerMessages(sweep.display.receive) as messages:
            post = messages.post
            scheduler = make_scheduler(plan.tune, plan.settings.network.epochs, leaderboard)
            # Else Ray Train starts the workers of a trial again, and Tune only waits for them.
            cpus, max_failures = (WORKER_CPUS, MAX_FAILURES) if in_process else (0.0, 0)
            tuner = make_tuner(
                lambda id: run_trial(id, barrier, post, in_process), sweep, scheduler, scratch, cpus, max_failures
            )
            run_in_thread(tuner.fit, _make_periodic_check(sweep, lease), sweep.interrupt)
            if sweep.stop_reason:
                raise WorkFailed(f"the sweep cannot continue: {sweep.stop_reason}")
            run_in_thread(lambda: sweep.finish(post), lease.check)


def _configure_tune(verbose: bool) -> None:
    """Set Ray Tune's environment variables, except for those that the user has set, and quieten its log."""
    for name, value in TUNE_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if not verbose:
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # failed trials are shown by `SweepReporter`


def _make_periodic_check(sweep: SweepTrials, lease: Lease) -> Callable[[], None]:
    """Return the function that the main thread calls repeatedly while trials run."""
    draw = Throttle(DRAW_INTERVAL_S)

    def check() -> None:
        lease.check()
        if draw.due():
            sweep.display.draw_table()

    return check


def _find_winner(leaderboard: Leaderboard) -> TrialRecord:
    """Return the best trial. Raise WorkFailed if no trial finished."""
    states, best = [trial.state for trial in leaderboard.trials], leaderboard.best()
    if not {FINISHED, STOPPED} & set(states):
        reasons = [trial.why for trial in leaderboard.trials if trial.state == FAILED]
        if reasons:
            raise WorkFailed(f"none of the {len(states)} trials finished; the first failed with: {reasons[0]}")
        partial = f"; the best one so far is in {leaderboard.storage.path}/{BEST_FOLDER}" if best is not None else ""
        raise WorkFailed(
            f"no trial finished before the sweep's time was used up; {len(states)} had started{partial}. Give more "
            "--hours"
        )
    assert best is not None
    return best

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
import math
import os
import shlex
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from kasthuri_ray.config.loading import override_settings
from kasthuri_ray.errors import WorkFailed, missing_is_bad_input
from kasthuri_ray.progress import Reporter, Throttle
from kasthuri_ray.ray_cluster.driver import exit_on_sigterm, guard_ray_work, run_in_thread, scratch_folder
from kasthuri_ray.ray_cluster.ray_errors import failure_reason
from kasthuri_ray.ray_cluster.resources import require_resources
from kasthuri_ray.ray_cluster.worker_messages import WorkerMessages
from kasthuri_ray.storage.lease import Lease
from kasthuri_ray.training.preflight import choose_batch_size
from kasthuri_ray.training.ray_trainer import MessageHandler
from kasthuri_ray.training.train import RESUME_COMMAND
from kasthuri_ray.tuning.epoch_barrier import start_epoch_barrier
from kasthuri_ray.tuning.leaderboard import (
    BEST_CONFIG,
    BEST_FOLDER,
    Leaderboard,
    delete_trial_weights,
    recover_trials,
    write_best_trial,
)
from kasthuri_ray.tuning.ray_tune import NO_TRIALS_LEFT, SweepInterrupted, make_scheduler, make_tuner
from kasthuri_ray.tuning.sampler import propose_trial
from kasthuri_ray.tuning.search_space import NETWORK_KEY
from kasthuri_ray.tuning.sweep_plan import SweepPlan, check_sweep_resumable, plan_sweep
from kasthuri_ray.tuning.sweep_report import (
    SweepReporter,
    describe_search,
    describe_trial,
    metric_name,
    write_sweep_page,
)
from kasthuri_ray.tuning.trial import (
    INTERRUPTED,
    TrialPlan,
    TrialWorkers,
    evaluate_stopped_trial,
    prepare_trial,
    run_trial,
)
from kasthuri_ray.tuning.trial_record import (
    FAILED,
    FINISHED,
    OUT_OF_TIME,
    RUNNING,
    STOPPED,
    TrialRecord,
    finished_reason,
    out_of_time_reason,
)

WRITE_INTERVAL_S = 5.0  # between two writes of the record while trials run
DRAW_INTERVAL_S = 0.5  # between two drawings of the table
TUNE_ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",  # the new output prints a heading even with verbose=0
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the trials' folders hold what these would write
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that fails at once has no score
}
RESULT_FIELDS = ("score", "best_epoch", "epochs", "seconds", "tiles_per_second", "state", "why")


@missing_is_bad_input()
def tune(task: str | None, layers: Mapping[str, Any], resume_command: Callable[[str], str] = RESUME_COMMAND) -> str:
    """Search the network and the settings that suit a task.

    Parameters
    ----------
    task : str or None
        Name or file of the task (`--task`); None if the layers hold it, or to resume a sweep by its name.
    layers : mapping
        The rest of the command line, as `resolve_settings` takes it: `config`, `assignments` and `flags`.
    resume_command : callable
        Returns the command that resumes the sweep of a name, for users to type.

    Returns
    -------
    str
        Path of the sweep's folder.

    Raises
    ------
    InputError
        For bad input, before anything is written.
    WorkFailed
        If the work fails after it has started, or if no trial finishes.
    """
    reporter, notes = Reporter(), list[str]()
    plan = plan_sweep(task, layers, resume_command, notes.append)
    check_sweep_resumable(plan)
    print(plan.path, flush=True)  # the first line, for scripts
    for note in [*notes, *describe_search(plan), f"to resume after a stop: {plan.resume_command}"]:
        reporter.print_line(note)
    require_resources(plan.demand, plan.settings.train.wait_for_resources, reporter.print_line)
    with exit_on_sigterm(), Lease.acquire(plan.storage, report=reporter.print_line) as lease:
        leaderboard = check_sweep_resumable(plan)
        plan.storage.write_bytes("settings.json", (json.dumps(plan.description, indent=2) + "\n").encode())
        recover_trials(leaderboard)
        leaderboard.finished = False
        try:
            _run_trials(plan, leaderboard, reporter, lease)
        except WorkFailed as error:
            raise WorkFailed(f"{error}\nto resume: {plan.resume_command}") from error.__cause__
        except (KeyboardInterrupt, SystemExit):
            reporter.print_line(f"to resume: {plan.resume_command}")
            raise
        _report_winner(plan, leaderboard, reporter)
    print(plan.path, flush=True)
    return plan.path


def _run_trials(plan: SweepPlan, leaderboard: Leaderboard, reporter: Reporter, lease: Lease) -> None:
    """Run the trials, then write the best trial and the page. An early end for any reason ends the trials too."""
    _configure_tune(plan.settings.train.verbose)
    sweep = SweepTrials(plan, leaderboard, reporter)
    with (
        scratch_folder() as scratch,
        guard_ray_work("the sweep", reporter, lease),
        WorkerMessages(sweep.display.receive) as messages,
    ):
        barrier, post = start_epoch_barrier(), messages.post
        sweep.barrier = barrier
        scheduler = make_scheduler(plan.tune, plan.settings.network.epochs, leaderboard)
        tuner = make_tuner(lambda id: run_trial(id, barrier, post), sweep, scheduler, scratch)
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


class SweepTrials:
    """The trials of a sweep, in Ray Tune (as its `TrialSource`) and on the leaderboard.

    All methods but `interrupt` are called from Tune's thread. `barrier` is set once the epoch barrier runs.
    `stop_reason` says why no trial can be trained for now, such as a full disk; else it is "".
    """

    def __init__(self, plan: SweepPlan, leaderboard: Leaderboard, reporter: Reporter) -> None:
        self.plan, self.leaderboard = plan, leaderboard
        self.barrier: Any = None
        self.stop_reason = ""
        self.display = SweepReporter(reporter, leaderboard, plan.num_trials, self.seconds_left)
        self._interrupt_requested = threading.Event()
        self._interrupted_trials = [trial for trial in leaderboard.trials if trial.state == RUNNING]
        self._running: dict[str, tuple[TrialRecord, float]] = {}  # with the time of the start
        self._earlier_seconds, self._started_at, self._written_at = leaderboard.seconds, time.monotonic(), -math.inf

    @property
    def seconds(self) -> float:
        """Return the working time, over all jobs of the sweep."""
        return self._earlier_seconds + time.monotonic() - self._started_at

    def seconds_left(self) -> float | None:
        """Return the rest of the sweep's time; None without a limit."""
        hours = self.plan.tune.hours
        return None if hours is None else 3600 * hours - self.seconds

    def interrupt(self) -> None:
        """Make Tune stop at once; called from another thread."""
        self._interrupt_requested.set()

    def raise_if_interrupted(self) -> None:
        if self._interrupt_requested.is_set():
            raise SweepInterrupted

    def next_trial(self) -> str | None:
        """Return the id of the next trial; None if none may start yet, `NO_TRIALS_LEFT` if there is none."""
        left = self.seconds_left()
        if self.stop_reason or (left is not None and left <= 0):
            return NO_TRIALS_LEFT
        if len(self._running) >= self.plan.num_concurrent:
            return None
        while (trial := self._choose_trial()) is not None:
            if self._start(trial):
                return trial.id
        return NO_TRIALS_LEFT

    def _choose_trial(self) -> TrialRecord | None:
        """Return an interrupted trial, else a new one; None if there is none."""
        if self._interrupted_trials:
            return self._interrupted_trials.pop(0)
        leaderboard, tune = self.leaderboard, self.plan.tune
        trials, number = leaderboard.trials, len(leaderboard.trials)
        if self.plan.num_trials is not None and number >= self.plan.num_trials:
            return None
        values = propose_trial(tune.search, self.plan.space, tune.seed, number, trials, leaderboard.higher_is_better)
        if values is None:
            leaderboard.exhausted = True
            return None
        trials.append(TrialRecord(number, values.get(NETWORK_KEY, next(iter(self.plan.bases))), values))
        return trials[-1]

    def _start(self, trial: TrialRecord) -> bool:
        """Store the trial's plan at the barrier; record a failure and return False if its values are not valid."""
        import ray

        self._running[trial.id] = trial, time.monotonic()
        self._write()
        self.display.show_start(trial)
        try:
            plan = self._prepare(trial)
        except (ValueError, FileNotFoundError) as error:
            self.end_trial(trial.id, error)
            return False
        trial.parameters = plan.num_parameters
        ray.get(self.barrier.store_plan.remote(trial.id, [ray.put(plan)]))
        return True

    def _prepare(self, trial: TrialRecord) -> TrialPlan:
        plan, left = self.plan, self.seconds_left()
        values = {key: value for key, value in trial.values.items() if key != NETWORK_KEY}
        settings = override_settings(plan.bases[trial.network], values, f"trial {trial.id}")
        settings = choose_batch_size(settings, plan.num_workers[1])
        train = settings.train.model_copy(update={"storage": f"{plan.path}/trials", "name": trial.id})
        settings = settings.model_copy(update={"train": train})
        workers = TrialWorkers(plan.num_workers, plan.use_gpu, plan.workers_per_node)
        deadline = None if left is None else time.time() + left
        return prepare_trial(trial.id, settings, self.leaderboard.folder(trial).storage.path, workers, deadline)

    def record_result(self, id: str, result: Mapping[str, Any]) -> None:
        """Record the result that a trial reports after an epoch or at its end."""
        trial, _ = self._running[id]
        if result.get("state") == INTERRUPTED:
            self.stop_reason = result["why"]
            return
        fields = {name: result[name] for name in RESULT_FIELDS if name in result}
        trial.update({name: value for name, value in fields.items() if not (name == "score" and math.isnan(value))})
        if time.monotonic() - self._written_at > WRITE_INTERVAL_S:
            self._write()

    def end_trial(self, id: str, error: BaseException | None = None) -> None:
        """Record that a trial ended, was stopped, or lost its process."""
        import ray

        trial, started_at = self._running.pop(id)
        trial.wall_seconds = time.monotonic() - started_at
        self._set_final_state(trial, error)
        ray.get(self.barrier.stop.remote(id))
        self._write()  # before its weights are deleted
        if trial.state == RUNNING:
            return  # interrupted: the next job resumes it
        delete_trial_weights(self.leaderboard, self.plan.tune.keep)
        if self.leaderboard.best() is trial:
            write_best_trial(self.leaderboard, trial)
        self._write()
        self.display.show_end(trial)

    def _set_final_state(self, trial: TrialRecord, error: BaseException | None) -> None:
        if error is not None:
            trial.update({"state": FAILED, "why": failure_reason(error)})
        elif trial.state == RUNNING and not self.stop_reason:
            reason = f"stopped by {self.plan.tune.scheduler} after epoch {trial.epochs}"
            trial.update({"state": STOPPED, "why": reason})
        elif trial.state == OUT_OF_TIME and self.leaderboard.folder(trial).read_metrics() is not None:
            trial.update({"state": FINISHED, "why": finished_reason(trial.epochs)})  # just in time

    def _write(self) -> None:
        self.leaderboard.seconds, self._written_at = self.seconds, time.monotonic()
        self.leaderboard.write()

    def finish(self, post: MessageHandler) -> None:
        """Evaluate the best trial if it was stopped early, and write its copy, the page and the record."""
        leaderboard = self.leaderboard
        for trial in leaderboard.trials:
            if trial.state == RUNNING:  # interrupted, and no time was left to resume it
                trial.update({"state": OUT_OF_TIME, "why": out_of_time_reason(trial.epochs)})
        self._write()  # the final states, before the evaluation, which takes a while
        delete_trial_weights(leaderboard, self.plan.tune.keep)
        best = leaderboard.best()
        if best is not None:
            self._evaluate_if_stopped(best, post)
            write_best_trial(leaderboard, best)
        write_sweep_page(self.plan, leaderboard)
        leaderboard.finished = True
        self._write()

    def _evaluate_if_stopped(self, trial: TrialRecord, post: MessageHandler) -> None:
        if self.leaderboard.folder(trial).read_metrics() is not None:  # a run that ends writes them
            return
        if failure := evaluate_stopped_trial(self._prepare(trial), post):
            self.display.reporter.print_line(f"trial {trial.id} could not be evaluated on the test boxes: {failure}")


def _report_winner(plan: SweepPlan, leaderboard: Leaderboard, reporter: Reporter) -> None:
    """Show the winner, and what to type to use it. Raise WorkFailed if no trial finished."""
    states, best = [trial.state for trial in leaderboard.trials], leaderboard.best()
    if not {FINISHED, STOPPED} & set(states):
        reasons = [trial.why for trial in leaderboard.trials if trial.state == FAILED]
        if reasons:
            raise WorkFailed(f"none of the {len(states)} trials finished; the first failed with: {reasons[0]}")
        partial = f"; the best one so far is in {plan.path}/{BEST_FOLDER}" if best is not None else ""
        raise WorkFailed(
            f"no trial finished before the sweep's time was used up; {len(states)} had started{partial}. Give more "
            "--hours"
        )
    assert best is not None
    reporter.print_line(
        f"the best of {len(states)} trials is {best.id}, {metric_name(leaderboard.metric)} {best.score:.3f} at epoch "
        f"{best.best_epoch} of {best.epochs}: {describe_trial(best)}"
    )
    if plan.storage.folder is not None:
        reporter.print_line(
            f"to train it again: python jobs/train.py --config {shlex.quote(f'{plan.path}/{BEST_CONFIG}')}"
        )
    reporter.print_line(f"to use its weights: --weights {shlex.quote(f'{plan.path}/{BEST_FOLDER}')}")

"""Ray Tune around training: `sweep_as_told` finds which network and settings suit a task.

Tune runs the trials, its schedulers stop the poor ones early, and its searcher interface asks us for the next. What it
remembers of a sweep is thrown away: a sweep that goes on is a new one to Tune, which is told the histories of the
trials that have ended, and gets those first that were cut off; each goes on from its own checkpoint. So a driver may
be killed at any moment, on a disk or on S3, and all that must be right is our own record (`leaderboard.py`), which is
small and written whole. (`Tuner.restore` keeps a state of its own, which lags behind, knows nothing of what a trial
has saved, and breaks off where a trial had ended that it had not noticed.)
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
from kasthuri_ray.errors import WorkFailed
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
    BEST,
    CONFIG,
    FAILED,
    FINISHED,
    OUT_OF_TIME,
    RUNNING,
    STOPPED,
    Leaderboard,
    TrialRecord,
    delete_trial_weights,
    finished_text,
    out_of_time_text,
    recover_trials,
    write_best,
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
from kasthuri_ray.tuning.trial import CUT_OFF, TrialPlan, TrialWorkers, prepare_trial, run_trial, test_trial

WRITE_S = 5.0  # how often the record is written while trials run
SHOW_S = 0.5  # how often the table is drawn
TUNE_ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",  # the new one prints a heading where it is told to be silent
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # what they would write, the trials' folders hold
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that failed at once has no score
}
FIELDS = ("score", "best_epoch", "epochs", "seconds", "tiles_per_second", "state", "why")  # of what trials tell


def tune(task: str | None, layers: Mapping[str, Any], resume_command: Callable[[str], str] = RESUME_COMMAND) -> str:
    """Search as a command line says; gives the path of the sweep's folder.

    task: of `--task`. layers: config, assignments and flags, as `layers.resolve` takes them. Raises ValueError before
    anything is written, and WorkFailed once the work has begun, or if no trial finished.
    """
    reporter, notes = Reporter(), list[str]()
    plan = plan_sweep(task, layers, resume_command, notes.append)
    check_sweep_resumable(plan)
    print(plan.path, flush=True)  # the first line, for scripts
    for note in [*notes, *describe_search(plan), f"to go on after a stop: {plan.again}"]:
        reporter.line(note)
    require_resources(plan.demand, plan.settings.train.wait_for_resources, reporter.line)
    with exit_on_sigterm(), Lease.acquire(plan.storage, say=reporter.line) as lease:
        board = check_sweep_resumable(plan)
        plan.storage.write_bytes("settings.json", (json.dumps(plan.description, indent=2) + "\n").encode())
        recover_trials(board)
        board.finished = False
        try:
            _run_trials(plan, board, reporter, lease)
        except WorkFailed as error:
            raise WorkFailed(f"{error}\nto go on: {plan.again}") from error.__cause__
        except (KeyboardInterrupt, SystemExit):
            reporter.line(f"to go on: {plan.again}")
            raise
        _report_winner(plan, board, reporter)
    print(plan.path, flush=True)
    return plan.path


def _run_trials(plan: SweepPlan, board: Leaderboard, reporter: Reporter, lease: Lease) -> None:
    """Run the trials, then leave the best and the page. Whatever ends it early ends its trials too."""
    _silence_tune(plan.settings.train.verbose)
    sweep = SweepTrials(plan, board, reporter)
    with (
        scratch_folder() as scratch,
        guard_ray_work("the sweep", reporter, lease),
        WorkerMessages(sweep.view.note) as notes,
    ):
        gate, post = start_epoch_barrier(), notes.post
        sweep.gate = gate
        scheduler = make_scheduler(plan.tune, plan.settings.network.epochs, board)
        tuner = make_tuner(lambda id: run_trial(id, gate, post), sweep, scheduler, scratch)
        run_in_thread(tuner.fit, _periodic_check(sweep, lease), sweep.interrupt)
        if sweep.broken:
            raise WorkFailed(f"the sweep cannot go on: {sweep.broken}")
        run_in_thread(lambda: sweep.finish(post), lease.check)


def _silence_tune(verbose: bool) -> None:
    """Tell Ray Tune what we want of it; a person's own setting wins."""
    for name, value in TUNE_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if not verbose:
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # trials that fail are told by us


def _periodic_check(sweep: SweepTrials, lease: Lease) -> Callable[[], None]:
    """What is called now and then while trials run."""
    display = Throttle(SHOW_S)

    def look() -> None:
        lease.check()
        if display.due():
            sweep.view.show()

    return look


class SweepTrials:
    """The trials of a sweep, as Ray Tune asks for them (`schedule.Trials`) and as the board has them.

    It is called from Tune's thread alone, but for `interrupt`. gate: where trials wait, once it is open. broken: why no
    trial can be trained for now, if so.
    """

    def __init__(self, plan: SweepPlan, board: Leaderboard, reporter: Reporter) -> None:
        self.plan, self.board = plan, board
        self.gate: Any = None
        self.broken = ""
        self._interrupted = threading.Event()
        self.view = SweepReporter(reporter, board, plan.samples, self.seconds_left)
        self._cut_off = [trial for trial in board.trials if trial.state == RUNNING]
        self._live: dict[str, tuple[TrialRecord, float]] = {}  # and when it began
        self._before, self._began, self._written = board.seconds, time.monotonic(), -math.inf

    @property
    def seconds(self) -> float:
        """Of work, all sittings together."""
        return self._before + time.monotonic() - self._began

    def seconds_left(self) -> float | None:
        """Of the sweep's time; None if there is no end to it."""
        hours = self.plan.tune.hours
        return None if hours is None else 3600 * hours - self.seconds

    def interrupt(self) -> None:
        """Have Tune stop at once; called from another thread."""
        self._interrupted.set()

    def check(self) -> None:
        if self._interrupted.is_set():
            raise SweepInterrupted

    def next(self) -> str | None:
        """The id of the next trial to begin; None if none may begin yet, END if there is none left."""
        left = self.seconds_left()
        if self.broken or (left is not None and left <= 0):
            return NO_TRIALS_LEFT
        if len(self._live) >= self.plan.concurrent:
            return None
        while (trial := self._next_trial()) is not None:
            if self._begin(trial):
                return trial.id
        return NO_TRIALS_LEFT

    def _next_trial(self) -> TrialRecord | None:
        """One that was cut off, or a new one."""
        if self._cut_off:
            return self._cut_off.pop(0)
        board, tune, number = self.board, self.plan.tune, len(self.board.trials)
        if self.plan.samples is not None and number >= self.plan.samples:
            return None
        values = propose_trial(tune.search, self.plan.space, tune.seed, number, board.trials, board.higher)
        if values is None:
            board.exhausted = True
            return None
        board.trials.append(TrialRecord(number, values.get(NETWORK_KEY, next(iter(self.plan.bases))), values))
        return board.trials[-1]

    def _begin(self, trial: TrialRecord) -> bool:
        """Bring what the trial is told to the gate; False if its values do not go together, which is recorded."""
        import ray

        self._live[trial.id] = trial, time.monotonic()
        self._write()
        self.view.begin(trial)
        try:
            plan = self._prepare(trial)
        except (ValueError, FileNotFoundError) as error:
            self.end(trial.id, error)
            return False
        trial.parameters = plan.parameters
        ray.get(self.gate.bring.remote(trial.id, [ray.put(plan)]))
        return True

    def _prepare(self, trial: TrialRecord) -> TrialPlan:
        plan, left = self.plan, self.seconds_left()
        values = {key: value for key, value in trial.values.items() if key != NETWORK_KEY}
        settings = override_settings(plan.bases[trial.network], values, f"trial {trial.id}")
        settings = choose_batch_size(settings, plan.workers[1])
        train = settings.train.model_copy(update={"storage": f"{plan.path}/trials", "name": trial.id})
        settings = settings.model_copy(update={"train": train})
        crew = TrialWorkers(plan.workers, plan.gpu, plan.sharing)
        deadline = None if left is None else time.time() + left
        return prepare_trial(trial.id, settings, self.board.folder(trial).storage.path, crew, deadline)

    def take(self, id: str, result: Mapping[str, Any]) -> None:
        """What a trial has told after an epoch, or at its end."""
        trial, _ = self._live[id]
        if result.get("state") == CUT_OFF:
            self.broken = result["why"]
            return
        found = {name: result[name] for name in FIELDS if name in result}
        trial.update({name: value for name, value in found.items() if not (name == "score" and math.isnan(value))})
        if time.monotonic() - self._written > WRITE_S:
            self._write()

    def end(self, id: str, error: BaseException | None = None) -> None:
        """A trial has ended, or was stopped, or its process died."""
        import ray

        trial, began = self._live.pop(id)
        trial.wall_seconds = time.monotonic() - began
        if error is not None:
            trial.update({"state": FAILED, "why": failure_reason(error)})
        elif trial.state == RUNNING and not self.broken:
            words = f"{self.plan.tune.scheduler} stopped it after epoch {trial.epochs}"
            trial.update({"state": STOPPED, "why": words})
        elif trial.state == OUT_OF_TIME and self.board.folder(trial).read_metrics() is not None:
            trial.update({"state": FINISHED, "why": finished_text(trial.epochs)})  # just in time
        ray.get(self.gate.stop.remote(id))
        self._write()  # that it has ended, before its weights are gone
        if trial.state == RUNNING:
            return  # cut off: it goes on next time
        delete_trial_weights(self.board, self.plan.tune.keep)
        if self.board.best() is trial:
            write_best(self.board, trial)
        self._write()
        self.view.end(trial)

    def _write(self) -> None:
        self.board.seconds, self._written = self.seconds, time.monotonic()
        self.board.write()

    def finish(self, post: MessageHandler) -> None:
        """Judge the best trial if it was stopped before its end, and leave it, the page and the record."""
        board = self.board
        for trial in board.trials:
            if trial.state == RUNNING:  # cut off, and no time was left to go on with it
                trial.update({"state": OUT_OF_TIME, "why": out_of_time_text(trial.epochs)})
        self._write()  # who is out of time, before the best of them is judged
        delete_trial_weights(board, self.plan.tune.keep)
        best = board.best()
        if best is not None:
            if board.folder(best).read_metrics() is None and (failed := test_trial(self._prepare(best), post)):
                self.view.reporter.line(f"trial {best.id} could not be judged on the test boxes: {failed}")
            write_best(board, best)
        write_sweep_page(self.plan, board)
        board.finished = True
        self._write()


def _report_winner(plan: SweepPlan, board: Leaderboard, reporter: Reporter) -> None:
    """The winner in a line, and what to do with it. Raises WorkFailed if no trial finished."""
    states, best = [trial.state for trial in board.trials], board.best()
    if not {FINISHED, STOPPED} & set(states):
        failed = [trial.why for trial in board.trials if trial.state == FAILED]
        if failed:
            raise WorkFailed(f"none of the {len(states)} trials finished; the first said: {failed[0]}")
        some = f"; what the best came to is in {plan.path}/{BEST}" if best is not None else ""
        raise WorkFailed(f"no trial finished in the time there was; {len(states)} had begun{some}. Give more --hours")
    assert best is not None
    reporter.line(
        f"the best of {len(states)} trials is {best.id}, {metric_name(board.metric)} {best.score:.3f} at epoch "
        f"{best.best_epoch} of {best.epochs}: {describe_trial(best)}"
    )
    if plan.storage.folder is not None:
        reporter.line(f"to train it again: python jobs/train.py --config {shlex.quote(f'{plan.path}/{CONFIG}')}")
    reporter.line(f"to use its weights: --weights {shlex.quote(f'{plan.path}/{BEST}')}")

"""The trials of a sweep: which one starts next, what becomes of its result, and how the sweep ends."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping
from typing import Any

from kasthuri_ray.config.loading import override_settings
from kasthuri_ray.progress import Reporter
from kasthuri_ray.ray_cluster.ray_errors import failure_reason
from kasthuri_ray.tuning.leaderboard import Leaderboard, delete_trial_weights, write_best_trial
from kasthuri_ray.tuning.ray_tune import NO_TRIALS_LEFT, SweepInterrupted
from kasthuri_ray.tuning.sampler import propose_trial
from kasthuri_ray.tuning.search_space import NETWORK_KEY
from kasthuri_ray.tuning.sweep_plan import SweepPlan
from kasthuri_ray.tuning.sweep_report import SweepReporter, write_sweep_page
from kasthuri_ray.tuning.trial import INTERRUPTED, TrialPlan, evaluate_stopped_trial, prepare_trial
from kasthuri_ray.tuning.trial_messages import TrialMessageHandler
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
RESULT_FIELDS = ("score", "best_epoch", "epochs", "seconds", "tiles_per_second", "state", "why")


class SweepTrials:
    """The trials of a sweep, in Ray Tune (as its `TrialSource`) and on the leaderboard.

    All methods but `interrupt` are called from Tune's thread. `stop_reason` says why no trial can be trained for now,
    such as a full disk; else it is "".

    Parameters
    ----------
    plan : SweepPlan
        The sweep.
    leaderboard : Leaderboard
        Its record.
    reporter : Reporter
        Shows the trials.
    barrier : ray.actor.ActorHandle
        See `start_epoch_barrier`.
    """

    def __init__(self, plan: SweepPlan, leaderboard: Leaderboard, reporter: Reporter, barrier: Any) -> None:
        self.plan, self.leaderboard, self.barrier = plan, leaderboard, barrier
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
        train = settings.train.model_copy(update={"storage": f"{plan.path}/trials", "name": trial.id})
        settings = settings.model_copy(update={"train": train})
        return prepare_trial(settings, plan.workers, None if left is None else time.time() + left)

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

    def retry_trial(self, id: str) -> None:
        """Show that a trial lost its process, and starts again from its last epoch."""
        self.display.reporter.print_line(f"trial {id}: its process died; it starts again from the last epoch")

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

    def finish(self, post: TrialMessageHandler) -> None:
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

    def _evaluate_if_stopped(self, trial: TrialRecord, post: TrialMessageHandler) -> None:
        if self.leaderboard.folder(trial).read_metrics() is not None:  # a run that ends writes them
            return
        if failure := evaluate_stopped_trial(self._prepare(trial), post):
            self.display.reporter.print_line(f"trial {trial.id} could not be evaluated on the test boxes: {failure}")

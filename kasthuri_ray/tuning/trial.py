"""One trial of a sweep: a training run that waits for Tune's decision after each epoch.

`prepare_trial` checks a trial in the driver. Ray Tune calls `run_trial` in a process that it reuses for one trial after
another: it trains in a thread, and reports to Tune the history that the trial stores at the epoch barrier. A trial has
workers of its own, from Ray Train; but a trial of one worker, in a Ray of this machine alone, trains in Tune's process:
to start Ray Train's processes takes as long as several epochs of a small trial. If that process dies, Tune runs the
trial again in another one, and it resumes from its last epoch. A trial that cannot be trained is no error to Tune: its
result says why. If the reason would affect every other trial too, such as a full disk, the trial's state is
INTERRUPTED: it resumes once the reason is fixed.
"""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kasthuri_ray.config.settings import Settings
from kasthuri_ray.ray_cluster.connection import is_own_ray, set_ray_environment
from kasthuri_ray.ray_cluster.driver import scratch_folder
from kasthuri_ray.ray_cluster.ray_errors import failure_reason, user_error
from kasthuri_ray.storage.folder import open_storage
from kasthuri_ray.training.preflight import prepare_training, run_path
from kasthuri_ray.training.ray_trainer import make_trainer
from kasthuri_ray.training.run_folder import RunFolder, run_description
from kasthuri_ray.training.training_job import EVALUATE, TrainingJob, WorkerContext
from kasthuri_ray.training.training_messages import TextMessage
from kasthuri_ray.training.worker_failures import is_environment_failure, is_retryable, retry_text
from kasthuri_ray.training.worker_plan import WorkerPlan, plan_workers
from kasthuri_ray.tuning.epoch_barrier import EpochBarrierClient, History
from kasthuri_ray.tuning.trial_messages import TrialMessageHandler, TrialMessagePoster
from kasthuri_ray.tuning.trial_record import (
    FAILED,
    FINISHED,
    OUT_OF_TIME,
    finished_reason,
    out_of_time_reason,
    summarize_history,
)

MAX_FAILURES = 2  # restarts of a trial's workers, before the trial has failed
EPOCH_TIMEOUT_S = 1.0  # wait for an epoch, before checking that the trial still trains
LAST_TIMEOUT_S = 0.01  # the same, once it trains no more
POLL_INTERVAL_S = 0.1
INTERRUPTED = "interrupted"  # state in a result; the record keeps such a trial as running


@dataclass(frozen=True)
class TrialPlan:
    """A trial that is ready to run.

    Parameters
    ----------
    id : str
        See `TrialRecord.id`.
    job : TrainingJob
        What its workers receive.
    workers : WorkerPlan
        The workers to start.
    num_parameters : int
        Number of parameters of the network.
    deadline : float, optional
        End of the sweep's time, by `time.time` on the driver's node.
    """

    id: str
    job: TrainingJob
    workers: WorkerPlan
    num_parameters: int
    deadline: float | None

    @property
    def num_epochs(self) -> int:
        return self.job.settings.network.epochs


def prepare_trial(settings: Settings, workers: WorkerPlan, deadline: float | None) -> TrialPlan:
    """Check a trial as jobs/train.py checks a run, and write its settings to its folder.

    `settings.train` has the id of the trial as the name. Raise an InputError for settings that contradict each other.
    """
    settings, _ = plan_workers(settings, workers.use_gpu)
    prepared, id = prepare_training(settings, is_new=False), str(settings.train.name)
    job = prepared.make_job(prepared.settings, run_path(settings, id))
    description = run_description(job.settings, job.history.learnt_from.to_plain())
    RunFolder(open_storage(job.path)).write_settings(description)
    return TrialPlan(id, job, workers, prepared.num_parameters, deadline)


def trains_in_process(workers: WorkerPlan) -> bool:
    """Return whether trials train in Tune's process: it has the environment of a worker, and no GPU is to be shared."""
    return workers.most == 1 and not workers.use_gpu and is_own_ray()


def run_trial(id: str, barrier: Any, post: TrialMessageHandler, in_process: bool = False) -> None:
    """Train a trial as far as Tune lets it, and report its result to Tune.

    The epoch barrier `barrier` holds the trial's plan. `post` receives messages for the user. With `in_process` this
    process trains.
    """
    import ray

    set_ray_environment()
    plan: TrialPlan = ray.get(ray.get(barrier.plan.remote(id))[0])
    training = _TrainingThread(plan, post, EpochBarrierClient(barrier, id, plan.num_epochs), in_process)
    reported: History = []
    is_late = False
    while True:
        alive = training.alive
        timeout_s = EPOCH_TIMEOUT_S if alive else LAST_TIMEOUT_S
        history = ray.get(barrier.wait_for_history.remote(id, len(reported), timeout_s))
        if new := history[len(reported) : plan.num_epochs - 1]:  # the last epoch is part of the final report
            reported += new  # several epochs if the trial was resumed: the scheduler has let it pass them before
            _report_to_tune(plan, reported)  # returns once the scheduler has decided, or never if it stops the trial
        if not alive:
            break
        is_late = plan.deadline is not None and time.time() > plan.deadline
        ray.get(barrier.stop.remote(id) if is_late else barrier.approve.remote(id, len(reported)))
    _report_to_tune(plan, history, **_final_state(training, len(history), is_late))


def _final_state(training: _TrainingThread, num_epochs: int, is_late: bool) -> dict[str, Any]:
    """Return state and reason of a trial that Tune has not stopped."""
    if training.failure:
        return {"state": INTERRUPTED if training.affects_all_trials else FAILED, "why": training.failure}
    if is_late:
        return {"state": OUT_OF_TIME, "why": out_of_time_reason(num_epochs)}
    return {"state": FINISHED, "why": finished_reason(num_epochs)}


def _report_to_tune(plan: TrialPlan, history: History, **more: Any) -> None:
    """Report to Tune: `epoch` and `score` for its scheduler, the rest for the leaderboard."""
    from ray import tune

    summary = summarize_history(history, plan.job.settings.network.metric)
    score = summary.get("score", math.nan)
    tune.report({**summary, "epoch": len(history), "score": score, **more})


def evaluate_stopped_trial(plan: TrialPlan, post: TrialMessageHandler) -> str:
    """Evaluate a stopped trial on the test boxes, as a run does at its end; return why that failed, or ""."""
    training = _TrainingThread(plan, post, _evaluate_now)
    while training.alive:
        time.sleep(POLL_INTERVAL_S)
    return training.failure


def _evaluate_now(history: History) -> str:
    return EVALUATE


class _TrainingThread:
    """A thread that trains a trial.

    `failure` is the reason if it failed, else ""; `affects_all_trials` says whether any other trial would fail too.
    """

    def __init__(
        self,
        plan: TrialPlan,
        post: TrialMessageHandler,
        report: Callable[[History], str | None],
        in_process: bool = False,
    ) -> None:
        self.plan, self.report, self.in_process = plan, report, in_process
        self.show = TrialMessagePoster(post, plan.id)
        self.failure, self.affects_all_trials = "", False
        self._thread = threading.Thread(target=self._train, name=f"trial {plan.id}", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def _train(self) -> None:
        plan = self.plan
        try:
            if self.in_process:
                self._train_here()
                return
            with scratch_folder() as scratch:
                make_trainer(plan.job, plan.workers, scratch, self.show, self.report, MAX_FAILURES).fit()
        except BaseException as error:  # of any kind: the sweep continues without this trial
            self.failure = failure_reason(error)
            self.affects_all_trials = is_environment_failure(user_error(error))

    def _train_here(self) -> None:
        """Train in this process; after an error that may pass, again from the last epoch, as Ray Train does."""
        import torch

        from kasthuri_ray.training.worker import train_worker

        job, workers = self.plan.job, self.plan.workers
        context = WorkerContext(0, 1, workers.per_node, torch.device("cpu"), self.report, self.show)
        for failures_left in reversed(range(MAX_FAILURES + 1)):
            if "torch._dynamo" in sys.modules:
                torch.compiler.reset()  # networks of earlier trials count against the limit of recompilations
            try:
                train_worker(job, context)
                return
            except Exception as error:
                if not (failures_left and is_retryable(error)):
                    raise
                self.show(TextMessage(retry_text("0", error)))

"""One trial of a sweep: a training run with its own workers that waits for Tune's decision after each epoch.

`prepare_trial` checks a trial in the driver. Ray Tune calls `run_trial` in a process that it reuses for one trial after
another: it trains in a thread, and reports to Tune the history that the trial's workers store at the epoch barrier. A
trial that cannot be trained is no error to Tune: its result says why. If the reason would affect every other trial too,
such as a full disk, the trial's state is INTERRUPTED: it resumes once the reason is fixed.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kasthuri_ray.config.settings import Settings
from kasthuri_ray.ray_cluster.connection import set_ray_environment
from kasthuri_ray.ray_cluster.driver import scratch_folder
from kasthuri_ray.ray_cluster.ray_errors import failure_reason, user_error
from kasthuri_ray.storage.folder import open_storage
from kasthuri_ray.tiles.splits import open_task_tiles
from kasthuri_ray.training.preflight import build_checked_network, read_initial_weights
from kasthuri_ray.training.ray_trainer import MessageHandler, is_environment_failure, make_trainer
from kasthuri_ray.training.run_folder import RunFolder, run_description
from kasthuri_ray.training.training_job import EVALUATE, TrainingJob
from kasthuri_ray.tuning.epoch_barrier import EpochBarrierClient, History
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
class TrialWorkers:
    """The workers of a trial.

    Parameters
    ----------
    num_workers : tuple of int
        Minimum and maximum number of workers.
    use_gpu : bool
        Whether each worker has a GPU.
    workers_per_node : int
        Workers that share a node, those of other trials included.
    """

    num_workers: tuple[int, int]
    use_gpu: bool
    workers_per_node: int


@dataclass(frozen=True)
class TrialPlan:
    """A trial that is ready to run.

    Parameters
    ----------
    id : str
        See `TrialRecord.id`.
    job : TrainingJob
        What its workers receive.
    workers : TrialWorkers
        The workers to start.
    num_parameters : int
        Number of parameters of the network.
    deadline : float, optional
        End of the sweep's time, by `time.time` on the driver's node.
    """

    id: str
    job: TrainingJob
    workers: TrialWorkers
    num_parameters: int
    deadline: float | None

    @property
    def num_epochs(self) -> int:
        return self.job.settings.network.epochs


def prepare_trial(id: str, settings: Settings, path: str, workers: TrialWorkers, deadline: float | None) -> TrialPlan:
    """Check a trial as jobs/train.py checks a run, and write its settings to its folder `path`.

    Raise an InputError for settings that contradict each other.
    """
    network = build_checked_network(settings)
    weights = read_initial_weights(settings)
    tiles = open_task_tiles(settings, lambda line: None)
    train_tiles = tiles.train.in_whole_batches(settings.network.batch)
    RunFolder(open_storage(path)).write_settings(run_description(settings))
    job = TrainingJob(settings, path, train_tiles, tiles.val, tiles.test, weights, next_command="")
    return TrialPlan(id, job, workers, sum(parameter.numel() for parameter in network.parameters()), deadline)


def run_trial(id: str, barrier: Any, post: MessageHandler) -> None:
    """Train a trial as far as Tune lets it, and report its result to Tune.

    The epoch barrier `barrier` holds the trial's plan. `post` receives messages for the user.
    """
    import ray

    set_ray_environment()
    plan: TrialPlan = ray.get(ray.get(barrier.plan.remote(id))[0])
    training = _TrainingThread(plan, post, EpochBarrierClient(barrier, id, plan.num_epochs))
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


def evaluate_stopped_trial(plan: TrialPlan, post: MessageHandler) -> str:
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

    def __init__(self, plan: TrialPlan, post: MessageHandler, report: Callable[[History], str | None]) -> None:
        self.plan, self.report = plan, report
        self.show = _TrialMessages(post, plan.id)
        self.failure, self.affects_all_trials = "", False
        self._thread = threading.Thread(target=self._train, name=f"trial {plan.id}", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def _train(self) -> None:
        workers = self.plan.workers
        try:
            with scratch_folder() as scratch:
                make_trainer(
                    self.plan.job,
                    workers.num_workers,
                    workers.use_gpu,
                    scratch,
                    self.show,
                    self.report,
                    workers.workers_per_node,
                    MAX_FAILURES,
                ).fit()
        except BaseException as error:  # of any kind: the sweep continues without this trial
            self.failure = failure_reason(error)
            self.affects_all_trials = is_environment_failure(user_error(error))


@dataclass(frozen=True)
class _TrialMessages:
    """Callable that adds the trial's id to each of its messages, and passes them to `post`."""

    post: MessageHandler
    trial: str

    def __call__(self, message: dict[str, Any]) -> None:
        self.post({**message, "trial": self.trial})

"""One trial of a sweep: a run like any other, trained by workers of its own, that asks after every epoch.

`prepare_trial` checks it, where the sweep's driver is. `run_trial` is what Ray Tune calls, in a process that it uses
for one trial after the other: it trains in a thread, and passes on to Tune what the trial's workers leave at the gate.
A trial that cannot be trained is no error to Tune: it tells why, as its result. One that met a full disk or the like,
which others would meet too, is CUT_OFF: it is to go on, once that is mended.
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
from kasthuri_ray.training.training_job import JUDGE, TrainingJob
from kasthuri_ray.tuning.epoch_barrier import EpochBarrierClient, History
from kasthuri_ray.tuning.leaderboard import (
    FAILED,
    FINISHED,
    OUT_OF_TIME,
    finished_text,
    out_of_time_text,
    summarize_history,
)

MAX_FAILURES = 2  # restarts of a trial's workers before it has failed
WAIT_S = 1.0  # for an epoch, before it is looked whether the trial still trains


CUT_OFF = "cut off"


@dataclass(frozen=True)
class TrialWorkers:
    """Who trains a trial: workers, the fewest and the most, each on a GPU if `gpu`.

    sharing: how many workers, those of other trials included, share a machine.
    """

    workers: tuple[int, int]
    gpu: bool
    sharing: int


@dataclass(frozen=True)
class TrialPlan:
    """What a trial is told. deadline: when the sweep's time is up, by the clock of the driver's node, or None."""

    id: str
    job: TrainingJob
    crew: TrialWorkers
    parameters: int
    deadline: float | None

    @property
    def epochs(self) -> int:
        return self.job.settings.network.epochs


def prepare_trial(id: str, settings: Settings, path: str, crew: TrialWorkers, deadline: float | None) -> TrialPlan:
    """A trial that has been checked as a run of jobs/train.py is, and whose folder, at `path`, has its settings.

    Raises ValueError for settings that do not go together.
    """
    network = build_checked_network(settings)
    weights = read_initial_weights(settings)
    tiles = open_task_tiles(settings, lambda line: None)
    drawn = tiles.train.in_whole_batches(settings.network.batch)
    RunFolder(open_storage(path)).write_settings(run_description(settings))
    job = TrainingJob(settings, path, drawn, tiles.val, tiles.test, weights, next_command="")
    return TrialPlan(id, job, crew, sum(parameter.numel() for parameter in network.parameters()), deadline)


@dataclass(frozen=True)
class _TaggedNotes:
    """Adds to each note of a trial whose it is."""

    post: MessageHandler
    trial: str

    def __call__(self, note: dict[str, Any]) -> None:
        self.post({**note, "trial": self.trial})


class _TrainingThread:
    """A trial that trains in a thread. failed: why, if it has; outside: of what any other would have failed of too."""

    def __init__(self, plan: TrialPlan, post: MessageHandler, report: Callable[[History], str | None]) -> None:
        self.plan, self.show, self.report = plan, _TaggedNotes(post, plan.id), report
        self.failed, self.outside = "", False
        self._thread = threading.Thread(target=self._train, name=f"trial {plan.id}", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def _train(self) -> None:
        job, crew = self.plan.job, self.plan.crew
        try:
            with scratch_folder() as scratch:
                make_trainer(
                    job, crew.workers, crew.gpu, scratch, self.show, self.report, crew.sharing, MAX_FAILURES
                ).fit()
        except BaseException as error:  # whatever it is: the sweep goes on without this trial
            self.failed, self.outside = failure_reason(error), is_environment_failure(user_error(error))


def run_trial(id: str, gate: Any, post: MessageHandler) -> None:
    """Train a trial as far as Tune lets it, and tell Tune what came of it.

    gate: of `gate.open_gate`, which has the trial's plan. post: takes notes to show.
    """
    import ray

    set_ray_environment()
    plan: TrialPlan = ray.get(ray.get(gate.plan.remote(id))[0])
    training = _TrainingThread(plan, post, EpochBarrierClient(gate, id, plan.epochs))
    seen: History = []
    late = False
    while True:
        alive = training.alive
        history = ray.get(gate.history.remote(id, len(seen), WAIT_S if alive else 0.01))
        if new := history[len(seen) : plan.epochs - 1]:  # the last epoch is told with the end
            seen += new  # several of a trial that goes on: it has passed the scheduler as far as that
            _report_to_tune(plan, seen)  # Tune comes back once the scheduler has seen it, or not at all
        if not alive:
            break
        late = plan.deadline is not None and time.time() > plan.deadline
        ray.get(gate.stop.remote(id) if late else gate.approve.remote(id, len(seen)))
    _report_to_tune(plan, history, **_report_end(training, len(history), late))


def _report_end(training: _TrainingThread, epochs: int, late: bool) -> dict[str, Any]:
    """The last words of a trial that Tune has not stopped."""
    if training.failed:
        return {"state": CUT_OFF if training.outside else FAILED, "why": training.failed}
    return (
        {"state": OUT_OF_TIME, "why": out_of_time_text(epochs)}
        if late
        else {"state": FINISHED, "why": finished_text(epochs)}
    )


def _report_to_tune(plan: TrialPlan, history: History, **more: Any) -> None:
    """Report to Tune: `epoch` and `score` for its scheduler, all else for our record."""
    from ray import tune

    found = summarize_history(history, plan.job.settings.network.metric)
    score = found.get("score", math.nan)
    tune.report({**found, "epoch": len(history), "score": score, **more})


def test_trial(plan: TrialPlan, post: MessageHandler) -> str:
    """Judge a trial that was stopped before its end, as its run would have been; gives why not, or "" if it was."""
    training = _TrainingThread(plan, post, judge_now)
    while training.alive:
        time.sleep(0.1)
    return training.failed


def judge_now(history: History) -> str:
    return JUDGE

"""The parts of Ray Tune that a sweep is run by: who proposes trials, who stops them, who is told, and the tuner.

Each takes the sweep as `Trials`: what decides and remembers.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from kasthuri_ray.config.settings import TuneSettings
from kasthuri_ray.tuning.leaderboard import FINISHED, STOPPED, Leaderboard, summarize_history

ASHA_REDUCTION = 3  # ASHA: of the trials that come to a rung, one in three goes on, to three times as many epochs
MEDIAN_MIN_TRIALS = 3  # trials, before the median of them says anything
NO_TRIALS_LEFT = "end"
NODE_RESOURCE_SHARE = 0.001  # of the node's own resource: trials' processes run where the driver does, and take no CPU


class TrialSource(Protocol):
    """What Tune asks and tells."""

    def next(self) -> str | None:
        """The id of the next trial to begin; None if none may begin yet, END if there is none left."""

    def take(self, id: str, result: Mapping[str, Any]) -> None:
        """What a trial has told after an epoch, or at its end."""

    def end(self, id: str, error: BaseException | None = None) -> None:
        """A trial has ended, or was stopped, or its process died."""

    def check(self) -> None:
        """Raises Interrupted if Tune is to stop at once; called some times a second."""


class SweepInterrupted(BaseException):
    """Ends Tune's loop where it is. No Exception: those make it wait for the trials' processes first."""


def grace_epochs(tune: TuneSettings, epochs: int) -> int:
    """The epochs that every trial has."""
    return min(epochs, tune.grace or max(1, round(epochs / ASHA_REDUCTION**2)))


def make_scheduler(tune: TuneSettings, epochs: int, board: Leaderboard) -> Any:
    """The scheduler, which has already been told of the trials that ended in earlier sittings.

    It goes by the best score so far: that is what a trial is judged by.
    """
    from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule

    common: dict[str, Any] = {"time_attr": "epoch", "metric": "score", "mode": "max" if board.higher else "min"}
    grace = grace_epochs(tune, epochs)
    scheduler: Any = FIFOScheduler()
    if tune.scheduler == "asha":
        scheduler = AsyncHyperBandScheduler(
            **common, max_t=epochs, grace_period=grace, reduction_factor=ASHA_REDUCTION, stop_last_trials=False
        )
    elif tune.scheduler == "median":
        # It pauses a trial to let others catch up, unless slices of time are endless.
        common["min_time_slice"] = math.inf
        scheduler = MedianStoppingRule(**common, grace_period=grace, min_samples_required=MEDIAN_MIN_TRIALS)
    for trial in board.trials:
        if trial.state in (FINISHED, STOPPED):
            history = board.folder(trial).read_history()
            scores = [summarize_history(history[:n], board.metric)["score"] for n in range(1, len(history) + 1)]
            _replay_scores(scheduler, _EarlierTrial(trial.id), scores)
    return scheduler


@dataclass(frozen=True)
class _EarlierTrial:
    """Stands for a trial of an earlier sitting."""

    trial_id: str


def _replay_scores(scheduler: Any, trial: _EarlierTrial, scores: list[float]) -> None:
    results = [{"epoch": epoch, "score": score} for epoch, score in enumerate(scores, 1)]
    if not results:
        return
    scheduler.on_trial_add(None, trial)
    for result in results:
        scheduler.on_trial_result(None, trial, result)
        getattr(scheduler, "_stopped_trials", set()).discard(trial)  # it went on, when others were not as far yet
    scheduler.on_trial_complete(None, trial, results[-1])


def make_searcher(sweep: TrialSource) -> Any:
    """Tune's searcher, which has the sweep decide."""
    from ray.tune.search import Searcher

    class Proposals(Searcher):
        def __init__(self) -> None:
            super().__init__()

        def suggest(self, trial_id: str) -> Any:
            found = sweep.next()
            return Searcher.FINISHED if found == NO_TRIALS_LEFT else found and {"id": found}

        def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
            pass  # the callback hears of it, and of more

        def save(self, checkpoint_path: str) -> None:
            pass  # our record holds it

        def restore(self, checkpoint_path: str) -> None:
            raise NotImplementedError

        def __reduce__(self) -> Any:
            return _nothing, ()

    return Proposals()


def make_callback(sweep: TrialSource) -> Any:
    """What Tune calls in its own thread, with every result and at every end."""
    from ray.tune import Callback

    class Hears(Callback):
        def on_step_begin(self, iteration: int, trials: Any, **info: Any) -> None:
            sweep.check()

        def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict, **info: Any) -> None:
            sweep.take(_name_of(trial), result)

        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            sweep.end(_name_of(trial))

        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            error = trial.get_pickled_error() or trial.get_error() or ChildProcessError("its process died")
            sweep.end(_name_of(trial), error)

        def __reduce__(self) -> Any:
            return _nothing, ()

    return Hears()


def _nothing() -> None:
    """What Tune's own notes of our parts come to: nobody reads them."""


def make_tuner(run: Callable[[str], None], sweep: TrialSource, scheduler: Any, scratch: str) -> Any:
    """The tuner. run: trains the trial of an id, in a process of Tune's. scratch: a folder for Tune's own notes."""
    import ray
    from ray import tune

    def trial(config: dict[str, Any]) -> None:
        run(config["id"])

    here = ray.get_runtime_context().get_node_id()
    (node,) = (node for node in ray.nodes() if node["NodeID"] == here)
    place = next(name for name in node["Resources"] if name.startswith("node:") and name != "node:__internal_head__")
    resources = tune.PlacementGroupFactory([{place: NODE_RESOURCE_SHARE}])
    return tune.Tuner(
        tune.with_resources(trial, resources),
        tune_config=tune.TuneConfig(
            search_alg=make_searcher(sweep),
            scheduler=scheduler,
            num_samples=sys.maxsize,  # the searcher says when there are enough
            reuse_actors=True,
            trial_name_creator=_name_of,
            trial_dirname_creator=_name_of,
        ),
        run_config=tune.RunConfig(name="tune", storage_path=scratch, callbacks=[make_callback(sweep)], verbose=0),
    )


def _name_of(trial: Any) -> str:
    return trial.config["id"]

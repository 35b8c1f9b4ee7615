"""The parts of Ray Tune that run a sweep: scheduler, searcher, callback and tuner.

Each of them takes the sweep as `TrialSource`, which makes the decisions and keeps the record.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from kasthuri_ray.config.settings import TuneSettings
from kasthuri_ray.tuning.leaderboard import Leaderboard
from kasthuri_ray.tuning.trial_record import FINISHED, STOPPED, summarize_history

ASHA_REDUCTION = 3  # one in three trials at a rung continues, for three times as many epochs
MEDIAN_MIN_TRIALS = 3  # fewer trials have no meaningful median
NO_TRIALS_LEFT = "end"
HEAD_RESOURCE = "node:__internal_head__"  # the other resource with this prefix is the node's own
NODE_RESOURCE_SHARE = 0.001  # of the node's own resource: the trials' processes run beside the driver


class TrialSource(Protocol):
    """What Tune calls to get trials and to report their results."""

    def next_trial(self) -> str | None:
        """Return the id of the next trial; None if none may start yet, `NO_TRIALS_LEFT` if there is none."""

    def record_result(self, id: str, result: Mapping[str, Any]) -> None:
        """Record the result that a trial reports after an epoch or at its end."""

    def end_trial(self, id: str, error: BaseException | None = None) -> None:
        """Record that a trial ended, was stopped, or lost its process."""

    def retry_trial(self, id: str) -> None:
        """Note that a trial lost its process, and starts again from its last epoch."""

    def raise_if_interrupted(self) -> None:
        """Raise SweepInterrupted if Tune must stop at once; Tune's loop calls this several times a second."""


class SweepInterrupted(BaseException):
    """End of Tune's loop. Not an Exception: for those Tune first waits for the trials' processes."""


def grace_epochs(tune: TuneSettings, epochs: int) -> int:
    """Return the number of epochs that the scheduler grants to every trial."""
    return min(epochs, tune.grace or max(1, round(epochs / ASHA_REDUCTION**2)))


def make_scheduler(tune: TuneSettings, epochs: int, leaderboard: Leaderboard) -> Any:
    """Return the scheduler, after replaying the trials that ended in earlier jobs of this sweep.

    It compares the best scores so far, by which trials are ranked.
    """
    from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule

    mode = "max" if leaderboard.higher_is_better else "min"
    common: dict[str, Any] = {"time_attr": "epoch", "metric": "score", "mode": mode}
    grace = grace_epochs(tune, epochs)
    scheduler: Any = FIFOScheduler()
    if tune.scheduler == "asha":
        scheduler = AsyncHyperBandScheduler(
            **common, max_t=epochs, grace_period=grace, reduction_factor=ASHA_REDUCTION, stop_last_trials=False
        )
    elif tune.scheduler == "median":
        # With finite time slices it would pause a trial until others catch up.
        common["min_time_slice"] = math.inf
        scheduler = MedianStoppingRule(**common, grace_period=grace, min_samples_required=MEDIAN_MIN_TRIALS)
    for trial in leaderboard.trials:
        if trial.state in (FINISHED, STOPPED):
            history = leaderboard.folder(trial).read_history()
            scores = [summarize_history(history[:n], leaderboard.metric)["score"] for n in range(1, len(history) + 1)]
            _replay_scores(scheduler, _EarlierTrial(trial.id), scores)
    return scheduler


@dataclass(frozen=True)
class _EarlierTrial:
    """Stand-in for a trial of an earlier job."""

    trial_id: str


def _replay_scores(scheduler: Any, trial: _EarlierTrial, scores: list[float]) -> None:
    results = [{"epoch": epoch, "score": score} for epoch, score in enumerate(scores, 1)]
    if not results:
        return
    scheduler.on_trial_add(None, trial)
    for result in results:
        scheduler.on_trial_result(None, trial, result)
        # It did continue at the time, because the other trials had fewer epochs then.
        getattr(scheduler, "_stopped_trials", set()).discard(trial)
    scheduler.on_trial_complete(None, trial, results[-1])


def make_tuner(
    run: Callable[[str], None],
    source: TrialSource,
    scheduler: Any,
    scratch: str,
    cpus: float = 0.0,
    max_failures: int = 0,
) -> Any:
    """Return the tuner.

    `run` trains the trial of an id, in a process of Tune's, which holds so many `cpus`. If that process dies, `run` is
    called again in another one, `max_failures` times. `scratch` is a folder for Tune's own files.
    """
    import ray
    from ray import tune

    def trial(config: dict[str, Any]) -> None:
        run(config["id"])

    node_id = ray.get_runtime_context().get_node_id()
    (node,) = (node for node in ray.nodes() if node["NodeID"] == node_id)
    resource = next(name for name in node["Resources"] if name.startswith("node:") and name != HEAD_RESOURCE)
    bundle = {resource: NODE_RESOURCE_SHARE} | ({"CPU": cpus} if cpus else {})
    resources = tune.PlacementGroupFactory([bundle])
    return tune.Tuner(
        tune.with_resources(trial, resources),
        tune_config=tune.TuneConfig(
            search_alg=make_searcher(source),
            scheduler=scheduler,
            num_samples=sys.maxsize,  # the searcher ends the sweep
            reuse_actors=True,
            trial_name_creator=_trial_id,
            trial_dirname_creator=_trial_id,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=scratch,
            failure_config=tune.FailureConfig(max_failures=max_failures),
            callbacks=[make_callback(source)],
            verbose=0,
        ),
    )


def make_searcher(source: TrialSource) -> Any:
    """Return a searcher for Tune that asks the sweep for each trial."""
    from ray.tune.search import Searcher

    class SweepSearcher(Searcher):
        def __init__(self) -> None:
            super().__init__()

        def suggest(self, trial_id: str) -> Any:
            id = source.next_trial()
            return Searcher.FINISHED if id == NO_TRIALS_LEFT else id and {"id": id}

        def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
            pass  # the callback receives this, and more

        def save(self, checkpoint_path: str) -> None:
            pass  # the leaderboard is the record

        def restore(self, checkpoint_path: str) -> None:
            raise NotImplementedError

        def __reduce__(self) -> Any:
            return _unpickle_as_none, ()

    return SweepSearcher()


def make_callback(source: TrialSource) -> Any:
    """Return a callback that passes each result and each end of a trial to the sweep, in Tune's own thread."""
    from ray.tune import Callback

    class SweepCallback(Callback):
        def on_step_begin(self, iteration: int, trials: Any, **info: Any) -> None:
            source.raise_if_interrupted()

        def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict, **info: Any) -> None:
            source.record_result(_trial_id(trial), result)

        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            source.end_trial(_trial_id(trial))

        def on_trial_recover(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            source.retry_trial(_trial_id(trial))

        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            error = trial.get_pickled_error() or trial.get_error() or ChildProcessError("its process died")
            source.end_trial(_trial_id(trial), error)

        def __reduce__(self) -> Any:
            return _unpickle_as_none, ()

    return SweepCallback()


def _unpickle_as_none() -> None:
    """Stand in for the searcher and the callback in Tune's own snapshots, which nothing reads."""


def _trial_id(trial: Any) -> str:
    return trial.config["id"]

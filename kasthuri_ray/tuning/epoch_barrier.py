"""A barrier at which the trials of a sweep wait after each epoch until Tune's scheduler has seen the result.

Ray's own bridge from Train to Tune (`TuneReportCallback`) reports an epoch when the next one is already running. A
trial that is stopped would have trained on for nothing, and how far would depend on timing. Here the first worker of a
trial stores its history at the barrier and waits some milliseconds for approval. The process of the trial reports the
history to Tune and passes Tune's decision back to the barrier.

The module imports nothing heavy, so that the barrier's process stays small.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

History = list[dict[str, Any]]


@dataclass
class _TrialState:
    """State of one trial at the barrier.

    Parameters
    ----------
    plan : list of ray.ObjectRef, optional
        One reference to the trial's `TrialPlan`.
    history : list of dict
        Rows of the epochs so far.
    num_approved : int
        Number of epochs after which the trial may continue.
    stopped : bool
        If true, the trial must stop.
    changed : asyncio.Condition
        Notified after each change.
    """

    plan: Any = None
    history: History = field(default_factory=list)
    num_approved: int = 0
    stopped: bool = False
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)


class _EpochBarrier:
    """Ray actor that holds the state of all trials. Each call may be repeated, as a restarted worker does."""

    def __init__(self) -> None:
        self._trials: dict[str, _TrialState] = {}

    def _state(self, trial: str) -> _TrialState:
        return self._trials.setdefault(trial, _TrialState())

    async def store_plan(self, trial: str, plan: Any) -> None:
        """Store a list of one reference to the trial's plan.

        Whatever goes through Tune is written to a disk, and a plan may hold secrets.
        """
        self._state(trial).plan = plan

    async def plan(self, trial: str) -> Any:
        return self._state(trial).plan

    async def store_history(self, trial: str, history: History) -> None:
        state = self._state(trial)
        async with state.changed:
            state.history = history
            state.changed.notify_all()

    async def wait_for_approval(self, trial: str, history: History) -> bool:
        """Store the history, wait for Tune's decision, and return whether the trial may continue."""
        await self.store_history(trial, history)
        state = self._state(trial)
        async with state.changed:
            await state.changed.wait_for(lambda: state.stopped or state.num_approved >= len(history))
        return not state.stopped

    async def wait_for_history(self, trial: str, more_than: int, timeout_s: float) -> History:
        """Return the history once it has more epochs than `more_than`, or unchanged after the timeout."""
        state = self._state(trial)
        try:
            async with asyncio.timeout(timeout_s), state.changed:
                await state.changed.wait_for(lambda: len(state.history) > more_than)
        except TimeoutError:
            pass
        return state.history

    async def approve(self, trial: str, num_epochs: int) -> None:
        """Let the trial continue after this number of epochs."""
        state = self._state(trial)
        async with state.changed:
            state.num_approved = max(state.num_approved, num_epochs)
            state.changed.notify_all()

    async def stop(self, trial: str) -> None:
        """Make the trial stop at its current epoch."""
        state = self._state(trial)
        async with state.changed:
            state.stopped, state.plan = True, None
            state.changed.notify_all()


def start_epoch_barrier() -> Any:
    """Start the barrier's actor on this node and return its handle; the actor lives as long as this process."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    this_node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(_EpochBarrier).options(num_cpus=0, scheduling_strategy=this_node).remote()


@dataclass(frozen=True)
class EpochBarrierClient:
    """Callable that the workers of a trial report to after each epoch (`WorkerContext.report`).

    Parameters
    ----------
    barrier : ray.actor.ActorHandle
        See `start_epoch_barrier`.
    trial : str
        Id of the trial.
    num_epochs : int
        Epochs of a whole trial; after the last one the workers do not wait.
    """

    barrier: Any
    trial: str
    num_epochs: int

    def __call__(self, history: History) -> str | None:
        import ray

        from kasthuri_ray.training.process_group import gather_over_ranks, process_rank
        from kasthuri_ray.training.training_job import STOP

        may_continue: bool | None = None
        if process_rank() == 0:
            is_last = len(history) >= self.num_epochs
            method = self.barrier.store_history if is_last else self.barrier.wait_for_approval
            may_continue = ray.get(method.remote(self.trial, history))
        return STOP if gather_over_ranks(may_continue)[0] is False else None

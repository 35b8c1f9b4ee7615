"""Where the trials of a sweep wait after each epoch until the scheduler has seen it.

Ray's own way from Train to Tune (`TuneReportCallback`) tells of an epoch when the next one has long begun: a trial that
is stopped would have trained on for nothing, and how far depends on the clock. Here a trial's first worker leaves its
history and waits for the word, some milliseconds; the trial's process passes the history on to Tune and the word back.

The gate's own process imports nothing heavy.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

History = list[dict[str, Any]]


@dataclass
class _TrialState:
    """Of one trial: its plan, its history, after how many epochs it may go on, and whether it is to stop."""

    plan: Any = None
    history: History = field(default_factory=list)
    approved: int = 0
    stopped: bool = False
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)


class _EpochBarrier:
    """The actor; all that is told to it may be told twice, as when a worker that died comes again."""

    def __init__(self) -> None:
        self.rooms: dict[str, _TrialState] = {}

    def _room(self, trial: str) -> _TrialState:
        return self.rooms.setdefault(trial, _TrialState())

    async def bring(self, trial: str, plan: Any) -> None:
        """Leaves the trial's plan here, a list of one reference to it.

        What goes through Tune is written to a disk, and a plan may hold secrets.
        """
        self._room(trial).plan = plan

    async def plan(self, trial: str) -> Any:
        return self._room(trial).plan

    async def leave(self, trial: str, history: History) -> None:
        room = self._room(trial)
        async with room.changed:
            room.history = history
            room.changed.notify_all()

    async def ask(self, trial: str, history: History) -> bool:
        """Leaves the history, and comes back once it is known whether the trial goes on."""
        await self.leave(trial, history)
        room = self._room(trial)
        async with room.changed:
            await room.changed.wait_for(lambda: room.stopped or room.approved >= len(history))
        return not room.stopped

    async def history(self, trial: str, more_than: int, seconds: float) -> History:
        """The history, once it has more than so many epochs, or as it is after so many seconds."""
        room = self._room(trial)
        try:
            async with asyncio.timeout(seconds), room.changed:
                await room.changed.wait_for(lambda: len(room.history) > more_than)
        except TimeoutError:
            pass
        return room.history

    async def approve(self, trial: str, epochs: int) -> None:
        """The trial may go on after so many epochs."""
        room = self._room(trial)
        async with room.changed:
            room.approved = max(room.approved, epochs)
            room.changed.notify_all()

    async def stop(self, trial: str) -> None:
        """The trial stops where it is."""
        room = self._room(trial)
        async with room.changed:
            room.stopped, room.plan = True, None
            room.changed.notify_all()


def start_epoch_barrier() -> Any:
    """The gate's actor, on this node: it lives as long as this process."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(_EpochBarrier).options(num_cpus=0, scheduling_strategy=here).remote()


@dataclass(frozen=True)
class EpochBarrierClient:
    """What a trial's workers report to: `Ranks.report`. epochs: of a whole trial; after the last nothing is asked."""

    gate: Any
    trial: str
    epochs: int

    def __call__(self, history: History) -> str | None:
        import ray

        from kasthuri_ray.training.learner import gather_over_ranks, process_rank
        from kasthuri_ray.training.training_job import STOP

        goes_on: bool | None = None
        if process_rank() == 0:
            method = self.gate.ask if len(history) < self.epochs else self.gate.leave
            goes_on = ray.get(method.remote(self.trial, history))
        return STOP if gather_over_ranks(goes_on)[0] is False else None

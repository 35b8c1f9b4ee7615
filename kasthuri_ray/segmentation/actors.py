"""The actors of a pool as Ray runs them: they are started and ended, get blocks, and return results as events."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from kasthuri_ray.errors import NodeUnsuitable, is_disk_full
from kasthuri_ray.segmentation.actor_plan import ActorPlan
from kasthuri_ray.segmentation.actor_state import ActorState
from kasthuri_ray.segmentation.block_failures import Block

RESULT_TIMEOUT_S = 60.0  # to fetch results that are ready
PLACEMENT_TIMEOUT_S = 10.0  # to fetch the placement of an actor that has answered already

MakeActor = Callable[[dict[str, Any]], Any]


class StartCall(Enum):
    """A call of an actor that is not of a block: where it was placed, and whether it is ready."""

    PLACEMENT = "placement"
    READY = "ready"


class FailureKind(Enum):
    """What an error of an actor says: its node is unsuitable, a disk is full, the block failed, or the actor died."""

    NODE = "node"
    DISK_FULL = "disk full"
    BLOCK = "block"
    ACTOR = "actor"


@dataclass(eq=False)
class RunningActor(ActorState):
    """An actor that was started.

    Parameters
    ----------
    handle : object
        Ray's handle.
    calls : dict
        Calls that may still return, by the references of their results: blocks, and those of its start.
    """

    handle: Any = None
    calls: dict[Any, Block | StartCall] = field(default_factory=dict)


@dataclass(frozen=True)
class ActorEvent:
    """What a call of an actor returned, or its error.

    Parameters
    ----------
    actor : RunningActor
        The actor.
    call : Block or StartCall
        The block, or the call of its start.
    result : object
        What the call returned.
    error : Exception or None
        What it raised, as Ray wraps it; or Ray's error about the actor.
    """

    actor: RunningActor
    call: Block | StartCall
    result: Any = None
    error: Exception | None = None

    @property
    def cause(self) -> BaseException | None:
        """The error that the actor's code raised; None if it raised none."""
        import ray

        return getattr(self.error, "cause", None) if isinstance(self.error, ray.exceptions.RayTaskError) else None

    @property
    def failure(self) -> FailureKind:
        """What the error says."""
        import ray

        if isinstance(self.cause, NodeUnsuitable):
            return FailureKind.NODE
        if is_disk_full(self.cause):
            return FailureKind.DISK_FULL
        is_of_block = isinstance(self.error, ray.exceptions.RayTaskError) and not isinstance(self.call, StartCall)
        return FailureKind.BLOCK if is_of_block else FailureKind.ACTOR


class RunningActors:
    """The actors of a pool.

    Parameters
    ----------
    make_actor : callable
        Returns Ray's handle of a new actor with the given options.
    plan : ActorPlan
        What each actor holds.
    """

    def __init__(self, make_actor: MakeActor, plan: ActorPlan) -> None:
        self.plan = plan
        self.by_number: dict[int, RunningActor] = {}
        self._make_actor = make_actor
        self._actor_of: dict[Any, RunningActor] = {}  # by the reference of each call that is waited for
        self._num_created = 0

    def __len__(self) -> int:
        return len(self.by_number)

    def __iter__(self) -> Iterator[RunningActor]:
        return iter(list(self.by_number.values()))  # those that are ended meanwhile are still yielded

    @property
    def num_ready(self) -> int:
        """Number of actors that are ready."""
        return sum(actor.is_ready for actor in self)

    @property
    def num_placed(self) -> int:
        """Number of actors that are on a node."""
        return sum(actor.placed_at is not None for actor in self)

    def start(self, excluded_nodes: Iterable[str]) -> None:
        """Start an actor on any node but the excluded ones, without waiting for it."""
        handle = self._make_actor(_actor_options(self.plan, excluded_nodes))
        actor = RunningActor(self._num_created, time.monotonic(), f"actor {self._num_created}", handle=handle)
        self._num_created += 1
        self.by_number[actor.number] = actor
        self._add_call(actor, handle.__ray_call__.remote(_describe_process), StartCall.PLACEMENT)
        self._add_call(actor, handle.ready.remote(), StartCall.READY)

    def end(self, actor: RunningActor) -> None:
        """End an actor's process at once, and forget it and its calls."""
        import ray

        with suppress(Exception):
            ray.kill(actor.handle)
        self.by_number.pop(actor.number, None)
        for ref in actor.calls:
            self._actor_of.pop(ref, None)
        actor.calls.clear()
        actor.num_blocks = 0

    def submit(self, number: int, phase: str, block: Block) -> None:
        """Hand a block to an actor."""
        actor = self.by_number[number]
        if not actor.num_blocks:
            actor.last_result_at = time.monotonic()
        actor.num_blocks += 1
        self._add_call(actor, actor.handle.work.remote(phase, block), block)

    def wait(self, timeout_s: float) -> list[ActorEvent]:
        """Return what comes back in time: results before failures, which may be of the same actor."""
        import ray

        if not self._actor_of:
            time.sleep(timeout_s)
            return []
        refs = list(self._actor_of)
        ready, _ = ray.wait(refs, num_returns=1, timeout=timeout_s)
        if ready and len(refs) > 1:
            ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
        return sorted(self._read(ready), key=lambda event: event.error is not None)

    def read_finished(self, actor: RunningActor, timeout_s: float) -> list[ActorEvent]:
        """Return the blocks that an actor had done before it died."""
        import ray

        refs = [ref for ref, call in actor.calls.items() if not isinstance(call, StartCall)]
        ready, _ = ray.wait(refs, num_returns=len(refs), timeout=timeout_s) if refs else ([], [])
        return [event for event in self._read(ready) if event.error is None]

    def fetch_placement(self, actor: RunningActor) -> None:
        """Fetch the placement of an actor that has answered another call, if it is not known yet."""
        import ray

        for ref in [ref for ref, call in actor.calls.items() if call is StartCall.PLACEMENT]:
            with suppress(Exception):
                _set_placement(actor, ray.get(ref, timeout=PLACEMENT_TIMEOUT_S))
            del self._actor_of[ref], actor.calls[ref]

    def _add_call(self, actor: RunningActor, ref: Any, call: Block | StartCall) -> None:
        actor.calls[ref] = call
        self._actor_of[ref] = actor

    def _read(self, refs: list[Any]) -> list[ActorEvent]:
        """Read results that are ready, note what they say about their actors, and return the others as events."""
        events = []
        for ref, result, error in _collect_results(refs):
            actor = self._actor_of.pop(ref)
            call = actor.calls.pop(ref)
            if call is StartCall.PLACEMENT and error is None:
                _set_placement(actor, result)
                continue
            if call is StartCall.READY:
                actor.is_ready = error is None
            elif call is not StartCall.PLACEMENT:
                actor.num_blocks -= 1
                actor.last_result_at = time.monotonic()
            events.append(ActorEvent(actor, call, result, error))
        return events


def _actor_options(plan: ActorPlan, excluded_nodes: Iterable[str]) -> dict[str, Any]:
    options: dict[str, Any] = {
        "num_cpus": plan.num_cpus,
        "num_gpus": plan.num_gpus,
        "max_restarts": 0,
        "max_task_retries": 0,
        "max_concurrency": plan.in_flight + 1,
        "scheduling_strategy": "SPREAD",
    }
    if nodes := ",".join(excluded_nodes):
        options["label_selector"] = {"ray.io/node-id": f"!in({nodes})"}
    return options


def _describe_process(actor: Any) -> dict[str, Any]:
    """Return node, host and process id of an actor; runs inside the actor."""
    import ray

    return {"node": ray.get_runtime_context().get_node_id(), "host": socket.gethostname(), "pid": os.getpid()}


def _set_placement(actor: RunningActor, process: dict[str, Any]) -> None:
    actor.node, actor.name = process["node"], f"{process['host']}:{process['pid']}"
    actor.placed_at = time.monotonic()


def _collect_results(refs: list[Any]) -> Iterator[tuple[Any, Any, Exception | None]]:
    """Yield each reference with its result and its error, of references that are ready."""
    import ray

    try:
        results = ray.get(refs, timeout=RESULT_TIMEOUT_S)
        yield from [(ref, result, None) for ref, result in zip(refs, results, strict=True)]
        return
    except Exception as error:
        if len(refs) == 1:
            yield refs[0], None, error
            return
    for ref in refs:
        yield from _collect_results([ref])

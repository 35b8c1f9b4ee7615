"""One actor of a pool: how it is started and ended, and how its results are read."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from kasthuri_ray.segmentation.actor_plan import ActorPlan
from kasthuri_ray.segmentation.block_failures import Block

RESULT_TIMEOUT_S = 60.0  # to fetch results that are ready

MakeActor = Callable[[dict[str, Any]], Any]


@dataclass(eq=False)
class ActorHandle:
    """One actor.

    Parameters
    ----------
    number : int
        Number in its pool.
    handle : object
        Ray's handle.
    created_at : float
        When it was started (`time.monotonic`).
    placement : object
        Reference of the call that returns its node and process once it is on a node.
    ready : object
        Reference of its call of `ready`.
    placed_at : float or None
        When its placement was known.
    is_ready : bool
        Whether `ready` has returned.
    node : str
        Id of its node; empty until its placement is known.
    name : str
        What people read: host and process id, once its placement is known.
    last_result_at : float
        When it last finished a block, or got its first one.
    blocks : dict
        Blocks that it holds, by the references of their results.
    """

    number: int
    handle: Any
    created_at: float
    placement: Any
    ready: Any
    placed_at: float | None = None
    is_ready: bool = False
    node: str = ""
    name: str = ""
    last_result_at: float = 0.0
    blocks: dict[Any, Block] = field(default_factory=dict)

    @property
    def refs(self) -> tuple[Any, ...]:
        """References of all its calls that may still return."""
        return (self.placement, self.ready, *self.blocks)

    def set_placement(self, process: dict[str, Any]) -> None:
        """Set node and name from what the placement call returned."""
        self.node, self.name = process["node"], f"{process['host']}:{process['pid']}"
        self.placed_at = time.monotonic()


def start_actor(make_actor: MakeActor, number: int, plan: ActorPlan, excluded_nodes: Iterable[str]) -> ActorHandle:
    """Start an actor on any node but the excluded ones, without waiting for it."""
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
    handle = make_actor(options)
    placement, ready = handle.__ray_call__.remote(_describe_process), handle.ready.remote()
    return ActorHandle(number, handle, time.monotonic(), placement, ready, name=f"actor {number}")


def _describe_process(actor: Any) -> dict[str, Any]:
    """Return node, host and process id of an actor; runs inside the actor."""
    import ray

    return {"node": ray.get_runtime_context().get_node_id(), "host": socket.gethostname(), "pid": os.getpid()}


def kill_actor(actor: ActorHandle) -> None:
    """End an actor's process at once."""
    import ray

    with suppress(Exception):
        ray.kill(actor.handle)


def collect_results(refs: list[Any]) -> Iterator[tuple[Any, Any, Exception | None]]:
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
        yield from collect_results([ref])

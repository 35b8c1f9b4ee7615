"""One actor of a pool: how it is started, what is known of it, and how what Ray says about it reads."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from kasthuri_ray.segmentation.block_scheduler import Block

MAX_START_PAUSE_S = 60.0  # before an actor is started again that dies before it is ready
MAX_FAILED_STARTS = 5  # in a row that may fail while no actor was ever ready
REPORT_AFTER_S, REPORT_AGAIN_S = 10.0, 60.0  # that something is waited for


@dataclass(eq=False)
class ActorHandle:
    """One actor. where: its call that answers once it has a place. node, host, pid: known then."""

    number: int
    handle: Any
    created: float
    where: Any
    ready: Any
    placed: float | None = None
    is_ready: bool = False
    node: str = ""
    name: str = ""
    last_sign: float = 0.0
    blocks: dict[Any, Block] = field(default_factory=dict)  # by the reference of the result

    @property
    def refs(self) -> tuple[Any, ...]:
        """Everything of it that may still come back."""
        return (self.where, self.ready, *self.blocks)

    def has_place(self, about: dict[str, Any]) -> None:
        self.node, self.name, self.placed = about["node"], f"{about['host']}:{about['pid']}", time.monotonic()


def start_actor(
    make_actor: Callable[[dict[str, Any]], Any], number: int, crew: ActorPlan, without: Iterable[str]
) -> ActorHandle:
    """An actor on its way. without: ids of nodes where it may not go."""
    options: dict[str, Any] = {
        "num_cpus": crew.num_cpus,
        "num_gpus": crew.num_gpus,
        "max_restarts": 0,
        "max_task_retries": 0,
        "max_concurrency": crew.in_flight + 1,
        "scheduling_strategy": "SPREAD",
    }
    if nodes := ",".join(without):
        options["label_selector"] = {"ray.io/node-id": f"!in({nodes})"}
    handle = make_actor(options)
    where, ready = handle.__ray_call__.remote(_where), handle.ready.remote()
    return ActorHandle(number, handle, time.monotonic(), where, ready, name=f"actor {number}")


def kill_actor(member: ActorHandle) -> None:
    import ray

    with suppress(Exception):
        ray.kill(member.handle)


def _where(actor: Any = None) -> dict[str, Any]:
    """Where this runs; called in an actor, and as a task to see whether a node lives."""
    import ray

    return {"node": ray.get_runtime_context().get_node_id(), "host": socket.gethostname(), "pid": os.getpid()}


def collect_results(refs: list[Any]) -> Iterator[tuple[Any, Any, Exception | None]]:
    """Of each reference: it, its result, its error."""
    import ray

    try:
        yield from [(ref, result, None) for ref, result in zip(refs, ray.get(refs, timeout=60), strict=True)]
        return
    except Exception as error:
        if len(refs) == 1:
            yield refs[0], None, error
            return
    for ref in refs:
        yield from collect_results([ref])


@dataclass(frozen=True)
class ActorPlan:
    """Who works: from `fewest` actors, which are waited for, to `most`, which are started where there is room.

    num_cpus, num_gpus: what each holds. in_flight: how many blocks each has in hand.
    ask: whether the autoscaler is asked for room for `most`.
    """

    fewest: int
    most: int
    num_cpus: float
    num_gpus: float = 0.0
    in_flight: int = 3
    ask: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.fewest <= self.most or self.in_flight < 1:
            raise ValueError(
                f"a crew of {self.fewest} to {self.most} actors with {self.in_flight} blocks each; expected "
                "1 <= fewest <= most, and a block each"
            )

    @property
    def needs(self) -> dict[str, float]:
        """What one actor holds, in Ray's names."""
        needs = {"CPU": self.num_cpus, "GPU": self.num_gpus}
        return {name: amount for name, amount in needs.items() if amount}


@dataclass(frozen=True)
class PoolTimeouts:
    """Seconds. verdict: after a death, until its node is asked whether it lives (a killed raylet is seen in 3-4 s).

    fate: for the node's answer; one that Ray still counts as alive then lives (a cut network is seen in about 64 s).
    ready: from an actor's start on a node until it is ready. cluster: without an actor that has a place.
    stuck: of an actor without a finished block. idle: of an actor without a block before it is let go.
    """

    verdict: float = 8.0
    fate: float = 90.0
    ready: float = 1200.0
    cluster: float = 600.0
    stuck: float = 6 * 3600.0
    idle: float = 60.0


@dataclass
class ActorScaling:
    """Keeps count of the starts that failed and of how long there has been nobody."""

    crew: ActorPlan
    patience: PoolTimeouts
    ever_ready: bool = False
    failed_in_a_row: int = 0
    reason: str = ""  # of the last failed start
    not_before: float = 0.0
    _last_failure: float = float("-inf")
    _nobody_since: float | None = None
    _unready_since: float | None = None
    _say_next: float = 0.0

    def num_to_start(self, now: float, have: int, unplaced: int, wanted: int, room: int) -> int:
        """How many actors to start. have: ready or on their way. unplaced: of these, those without a node yet.

        wanted: that the blocks can use. room: for how many more the cluster is free.
        """
        if now < self.not_before:
            return 0
        first = min(self.crew.fewest, wanted) - have
        more = min(self.crew.most, wanted) - have
        return max(0, first, min(more, room) if not unplaced else 0)

    def came_ready(self) -> None:
        self.ever_ready, self.failed_in_a_row, self.not_before = True, 0, 0.0

    def failed(self, now: float, created: float, reason: str) -> None:
        """An actor died before it was ready; those that were started together count as one."""
        self.reason = reason
        if created <= self._last_failure:
            return
        self._last_failure = now
        self.failed_in_a_row += 1
        self.not_before = now + min(MAX_START_PAUSE_S, 2.0 ** (self.failed_in_a_row - 1))

    def why_stop(self, now: float, placed: int, ready: int, left_out: Sequence[str], nobody_can: bool) -> str:
        """Why no actor is worth waiting for; empty if one is. left_out: reasons, of machines that cannot do it.

        placed: actors on a node. ready: of these. nobody_can: whether every machine that is large enough is left out.
        """
        self._note(now, placed, ready)
        if not self.ever_ready and self.failed_in_a_row >= MAX_FAILED_STARTS:
            return f"no actor came up, {MAX_FAILED_STARTS} times in a row: {self.reason}"
        if nobody_can and not self.crew.ask:
            return f"no machine of the cluster can do this: {left_out[0]}"
        if self.waited(now) >= self.patience.cluster:
            return f"waited {self.patience.cluster:g} s, and no actor has started"
        without = 0.0 if self._unready_since is None else now - self._unready_since
        if self.failed_in_a_row >= MAX_FAILED_STARTS and without >= self.patience.cluster:
            return f"waited {self.patience.cluster:g} s for an actor that comes up; the last did not: {self.reason}"
        return ""

    def _note(self, now: float, placed: int, ready: int) -> None:
        if placed:
            self._nobody_since = None
        elif self._nobody_since is None:
            self._nobody_since, self._say_next = now, now + REPORT_AFTER_S
        if ready:
            self._unready_since = None
        elif self._unready_since is None:
            self._unready_since = now

    def waited(self, now: float) -> float:
        """Seconds without an actor that has a place."""
        return 0.0 if self._nobody_since is None else now - self._nobody_since

    def says_now(self, now: float) -> bool:
        """Whether it is time for a line that nobody has a place."""
        due = self._nobody_since is not None and now >= self._say_next
        if due:
            self._say_next = now + REPORT_AGAIN_S
        return due

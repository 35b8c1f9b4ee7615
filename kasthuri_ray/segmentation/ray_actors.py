"""One actor of a pool: how it is started, what is known of it, and how what Ray says about it reads."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from kasthuri_ray.segmentation.staffing import Crew
from kasthuri_ray.segmentation.trouble import Block

LONGEST_LINE = 250


@dataclass(eq=False)
class Member:
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


def start(make_actor: Callable[[dict[str, Any]], Any], number: int, crew: Crew, without: Iterable[str]) -> Member:
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
    return Member(number, handle, time.monotonic(), where, ready, name=f"actor {number}")


def kill(member: Member) -> None:
    import ray

    with suppress(Exception):
        ray.kill(member.handle)


def _where(actor: Any = None) -> dict[str, Any]:
    """Where this runs; called in an actor, and as a task to see whether a node lives."""
    import ray

    return {"node": ray.get_runtime_context().get_node_id(), "host": socket.gethostname(), "pid": os.getpid()}


def results_of(refs: list[Any]) -> Iterator[tuple[Any, Any, Exception | None]]:
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
        yield from results_of([ref])


def plain(error: BaseException) -> str:
    """An error's text without colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", str(error))


# What Ray says of an actor that is gone, and what a person is told.
_GONE = {
    r"out of memory|OOM killer|memory usage threshold": None,  # Ray says it well
    r"node has died|node died|raylet died": "its node is gone",
    r"is unavailable|Connection|Socket closed": "it does not answer any more",
    r"End of file|SYSTEM_ERROR|worker process has died": "its process ended suddenly: it was killed, or it crashed",
}


def one_line(error: BaseException) -> str:
    """What an error says, on one line; of Ray's death notices what they come to."""
    lines = [line.strip() for line in plain(error).splitlines() if line.strip()] or ["no words"]
    if not type(error).__name__.startswith(("ActorDied", "ActorUnavailable")):
        return f"{type(error).__name__}: {lines[0]}"[:LONGEST_LINE]
    if "creation task" in lines[0]:  # a traceback follows
        return lines[-1][:LONGEST_LINE]
    words = [line for line in lines[1:] if not re.match(r"(class_name|actor_id|pid|name|namespace|ip): ", line)]
    told = re.split(r" (?:There are some|Some common|Please check)", (words or lines)[0])[0]
    found = next((known for pattern, known in _GONE.items() if re.search(pattern, told)), None)
    return (found or told)[:LONGEST_LINE]

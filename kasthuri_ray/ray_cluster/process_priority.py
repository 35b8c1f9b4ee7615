"""Process priority: Ray's helper processes yield their CPUs to those that train and read.

A dozen helpers wake a hundred times a second to find that there is nothing to do (Ray 2.60). Each time a computing
thread loses its core, and all other threads wait for it. As idle tasks (Linux: SCHED_IDLE) the helpers run on what the
threads leave over: on 2 cores training is 5% faster.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

# Processes that keep their priority, by the start or the end of argv[0], which Ray sets. ray::IDLE reads tiles between
# two tasks. If other programs starved raylet and gcs_server, Ray would take the node for dead.
WORKING = ("ray::RayTrainWorker", "ray::MapBatches", "ray::IDLE")
VITAL = ("/raylet", "/gcs_server")
STARTING = ("/default_worker.py", "/setup_worker.py")  # a process of Ray without a name yet: it may become an actor


def lower_helper_priority(pid: int | None = None, actors: Iterable[type] = ()) -> int:
    """Make the helper processes below a process idle tasks. Does nothing where the system is not Linux.

    Parameters
    ----------
    pid : int or None
        Id of the process whose descendants are changed; None is this process.
    actors : iterable of type
        Classes of further actors that work, so that their processes keep their priority.

    Returns
    -------
    int
        Number of helper processes.
    """
    if not hasattr(os, "SCHED_IDLE"):
        return 0
    num_helpers, working = 0, (*WORKING, *(f"ray::{actor.__name__}" for actor in actors))
    for child in _descendants(pid or os.getpid()):
        with suppress(OSError):
            command = Path(f"/proc/{child}/cmdline").read_bytes().decode(errors="replace").split("\0")
            program = command[0]
            if program.startswith(working) or program.endswith(VITAL) or any(w.endswith(STARTING) for w in command):
                continue
            for thread in os.listdir(f"/proc/{child}/task"):
                os.sched_setscheduler(int(thread), os.SCHED_IDLE, os.sched_param(0))
            num_helpers += 1
    return num_helpers


def _descendants(pid: int) -> Iterator[int]:
    """Yield the ids of the processes that `pid` started, and of those that they started."""
    for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in map(int, tasks.read_text().split()):
                yield child
                yield from _descendants(child)

"""Who gives way where training keeps every core busy: the processes of Ray that neither train nor read.

Each of a dozen wakes a hundred times a second to find that there is nothing to do (Ray 2.60), and each time one of the
threads that compute loses its core, for which all others wait. Run as idle tasks (Linux: SCHED_IDLE) they take what
the threads leave over: on 2 cores training is 5% faster.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

# By the start or the end of argv[0]; ray::IDLE is a reader between two tasks. Were raylet and gcs_server starved by
# other programs, the node would be taken for dead.
WORKING = ("ray::RayTrainWorker", "ray::MapBatches", "ray::BlockWorker", "ray::IDLE")
VITAL = ("/raylet", "/gcs_server")
STARTING = ("/default_worker.py", "/setup_worker.py")  # Ray's program, until it has a name: it may become an actor


def lower_helper_priority(pid: int | None = None) -> int:
    """Make what `pid` (None: this process) started and that only helps give way; gives how many processes did."""
    if not hasattr(os, "SCHED_IDLE"):
        return 0
    helpers = 0
    for child in _below(pid or os.getpid()):
        with suppress(OSError):
            words = Path(f"/proc/{child}/cmdline").read_bytes().decode(errors="replace").split("\0")
            if words[0].startswith(WORKING) or words[0].endswith(VITAL) or any(w.endswith(STARTING) for w in words):
                continue
            for thread in os.listdir(f"/proc/{child}/task"):
                os.sched_setscheduler(int(thread), os.SCHED_IDLE, os.sched_param(0))
            helpers += 1
    return helpers


def _below(pid: int) -> Iterator[int]:
    """The ids of all that `pid` started, and of what those started."""
    for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in map(int, tasks.read_text().split()):
                yield child
                yield from _below(child)

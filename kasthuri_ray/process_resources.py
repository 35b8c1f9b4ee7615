"""What this process may use of its machine: CPUs, threads, memory, and the allocator.

Only `set_threads` imports torch, so that Ray starts without it.
"""

from __future__ import annotations

import ctypes
import math
import os
from contextlib import suppress
from pathlib import Path

MAX_ACTOR_THREADS = 4  # more threads scale worse than more actors; with fewer, all actors together need more memory

CGROUP = Path("/sys/fs/cgroup")
# From malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8


def configure_allocator() -> bool:
    """Have glibc keep freed memory, so that large activations do not cause page faults at every step.

    Call it before the first tensor. On other systems (musl, macOS) it does nothing.

    Returns
    -------
    bool
        Whether glibc accepted all settings.

    Notes
    -----
    The resident set stays at its peak. Threads that exist already have heaps of their own, in which nothing above 64 MB
    is kept; only MALLOC_ARENA_MAX=1 in the environment that the process starts with prevents that.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    settings = {M_ARENA_MAX: 1, M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 2**28}
    accepted = [mallopt(name, value) for name, value in settings.items()]
    return all(accepted)


def set_threads(num_processes: int) -> int:
    """Set torch's number of threads to this process's share of the machine's CPUs, or to KASTHURI_THREADS.

    Parameters
    ----------
    num_processes : int
        Number of processes that share the machine.

    Returns
    -------
    int
        The number of threads.
    """
    import torch

    threads = int(os.environ.get("KASTHURI_THREADS") or max(1, usable_cpus() // num_processes))
    torch.set_num_threads(threads)
    return threads


def usable_cpus() -> int:
    """Return how many CPUs this process may keep busy.

    Returns
    -------
    int
        The CPUs of its affinity, or fewer if its container has a limit; at least 1.
    """
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.floor(min(cpus, _container_cpus())))


def _container_cpus() -> float:
    """Return the limit of CPU time that cgroups, version 2 or 1, set; infinite if there is none."""
    with suppress(OSError, ValueError):
        quota, period = (CGROUP / "cpu.max").read_text().split()
        return math.inf if quota == "max" else int(quota) / int(period)
    with suppress(OSError, ValueError):
        quota, period = ((CGROUP / f"cpu/cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return int(quota) / int(period) if int(quota) > 0 else math.inf
    return math.inf


def total_memory_bytes() -> int:
    """Return the memory of this machine, or of its container.

    Returns
    -------
    int
        Bytes, rounded down to whole GiB, so that machines of one kind agree.
    """
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):
            sizes.append(int((CGROUP / name).read_text()))
    return min(sizes) >> 30 << 30


def choose_actor_threads(cpus: int) -> int:
    """Return the number of threads of one actor.

    Parameters
    ----------
    cpus : int
        CPUs of the machine.

    Returns
    -------
    int
        At most 4, and the most that leaves no more than a fifth of the CPUs unused; or KASTHURI_THREADS if it is set.
    """
    if os.environ.get("KASTHURI_THREADS"):
        return max(1, int(os.environ["KASTHURI_THREADS"]))
    return next(n for n in range(min(MAX_ACTOR_THREADS, cpus), 0, -1) if cpus % n <= cpus / 5)

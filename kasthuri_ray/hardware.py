"""What this process computes on: device, threads, number format, compiler, memory. Needs torch alone.

Decisions follow by rule from the machine and the settings, never from a stopwatch, so that a run that is continued
computes the same.
"""

from __future__ import annotations

import ctypes
import math
import os
import platform
import shutil
import sysconfig
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

# What compiling costs is earned back over so many voxels times parameters: 100 steps of 8 x 256 x 256 of UNet_2D,
# which save 0.5 s each, against 20-35 s.
COMPILE_PAYS_TRAINING = 100 * 8 * 256 * 256 * 2_000_000
CGROUP = Path("/sys/fs/cgroup")
# From malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8


# Voxels times parameters over which compiling is earned back: it saves 0.06 us a voxel of UNet_2D on two cores, and
# takes up to a minute where a job has tiles of several shapes. A GPU saves less a voxel.
COMPILE_PAYS_INFERENCE = {"cpu": 1_000_000_000 * 2_000_000, "cuda": 20_000_000_000 * 2_000_000}


MAX_ACTOR_THREADS = 4  # of one actor: more scale worse than more actors, fewer take more memory


def configure_allocator() -> bool:
    """Have glibc keep freed memory, before the first tensor: large activations are not faulted in at every step.

    Gives whether it took; elsewhere (musl, macOS) it does nothing. The resident set stays at its peak. Threads that
    were there before have heaps of their own, in which nothing above 64 MB is kept; only MALLOC_ARENA_MAX=1 in the
    environment that the process starts with prevents that.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    settings = {M_ARENA_MAX: 1, M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 2**28}
    took = [mallopt(name, value) for name, value in settings.items()]
    return all(took)


def set_threads(processes_here: int) -> int:
    """Give torch this process's share of the CPUs of the machine, or KASTHURI_THREADS; gives the number of threads."""
    threads = int(os.environ.get("KASTHURI_THREADS") or max(1, usable_cpus() // processes_here))
    torch.set_num_threads(threads)
    return threads


def usable_cpus() -> int:
    """How many CPUs this process may keep busy: those of its affinity, or fewer where its container has a limit."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.floor(min(cpus, _container_cpus())))


def _container_cpus() -> float:
    """The limit of CPU time that cgroups, version 2 or 1, set; infinite where there is none."""
    with suppress(OSError, ValueError):
        quota, period = (CGROUP / "cpu.max").read_text().split()
        return math.inf if quota == "max" else int(quota) / int(period)
    with suppress(OSError, ValueError):
        quota, period = ((CGROUP / f"cpu/cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return int(quota) / int(period) if int(quota) > 0 else math.inf
    return math.inf


def total_memory_bytes() -> int:
    """Bytes of memory of this machine, or of its container; in whole GiB, so that machines of one kind agree."""
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):
            sizes.append(int((CGROUP / name).read_text()))
    return min(sizes) >> 30 << 30


def supports_bf16(device: torch.device) -> bool:
    """Whether the hardware multiplies bf16 itself; emulated, it is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    try:
        words = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return False
    return bool(words & {"avx512_bf16", "amx_bf16", "bf16"})


def choose_precision(setting: str, device: torch.device) -> str:
    """`float32` or `bf16` for the setting `auto`, `float32` or `bf16`."""
    if setting != "auto":
        return setting
    return "bf16" if supports_bf16(device) else "float32"


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """The context in which the network runs."""
    if precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


def find_compiler() -> str | None:
    """The C++ compiler that torch.compile uses; None where it or Python's headers, which it needs, are not there."""
    headers = Path(sysconfig.get_path("include"), "Python.h")
    return shutil.which(os.environ.get("CXX", "g++")) if headers.exists() else None


def should_compile_training(setting: str, device: torch.device, voxels: int, num_parameters: int) -> tuple[bool, str]:
    """Whether to compile, and a line about it ("" where there is nothing to say).

    voxels: how many will go through the network.
    """
    if setting == "off" or (setting == "auto" and voxels * num_parameters < COMPILE_PAYS_TRAINING):
        return False, ""
    if find_compiler() is None:
        return False, "no C++ compiler with Python's headers here: the network runs uncompiled, at about half the speed"
    return True, ""


def memory_format(dim: int, device: torch.device) -> torch.memory_format:
    """The memory format that convolutions of `dim` dimensions are fastest in, of those that compute right.

    On a CPU, bf16 convolutions in channels_last_3d take in what lay in memory before (torch 2.13.0, oneDNN): where that
    is no number, neither is the answer.
    """
    if dim == 2:
        return torch.channels_last
    return torch.channels_last_3d if device.type == "cuda" else torch.contiguous_format


@dataclass(frozen=True)
class Machine:
    """The kind of machine that actors run on.

    device: cpu or cuda. name: of the processor's kind or the card. memory_bytes: of the card, or of the whole machine.
    cpus: that this process may use. bf16: whether it multiplies bf16 itself. compiler: whether torch.compile works.
    """

    device: str
    name: str
    memory_bytes: int
    cpus: int
    bf16: bool
    compiler: bool

    @classmethod
    def here(cls, device: str = "auto") -> Machine:
        """This machine. device: auto, cpu or cuda; ValueError for cuda where there is no card."""
        if device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device is cuda, and torch finds no CUDA card here; use cpu")
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        shared: dict[str, Any] = {
            "device": device,
            "cpus": usable_cpus(),
            "bf16": supports_bf16(torch.device(device)),
            "compiler": find_compiler() is not None,
        }
        if device == "cuda":
            card = torch.cuda.get_device_properties(torch.cuda.current_device())
            return cls(name=card.name, memory_bytes=card.total_memory, **shared)
        return cls(name=platform.machine(), memory_bytes=total_memory_bytes(), **shared)


def should_compile_inference(setting: str, machine: Machine, work: int) -> bool:
    """Whether the network is compiled. work: voxels to be computed times parameters. Where it cannot be, it is not."""
    wanted = setting == "on" or (setting == "auto" and work >= COMPILE_PAYS_INFERENCE[machine.device])
    return wanted and machine.compiler


def choose_actor_threads(cpus: int) -> int:
    """Threads of one actor: at most 4, so many that hardly a CPU is left over; KASTHURI_THREADS wins."""
    if os.environ.get("KASTHURI_THREADS"):
        return max(1, int(os.environ["KASTHURI_THREADS"]))
    return next(n for n in range(min(MAX_ACTOR_THREADS, cpus), 0, -1) if cpus % n <= cpus / 5)


def count_parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())

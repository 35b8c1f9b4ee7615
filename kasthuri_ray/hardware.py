"""Hardware of this process: CPUs, threads, memory, number format, memory format, compiler. Needs torch alone.

Choices follow by rule from the machine and the settings, never from a measured time, so that a resumed run computes the
same.
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

from kasthuri_ray.errors import InputError

# Voxels times parameters from which compiling saves more time than it takes. In training: 100 steps of 8 x 256 x 256
# voxels of UNet_2D, which save 0.5 s each, against 20-35 s.
COMPILE_PAYS_TRAINING = 100 * 8 * 256 * 256 * 2_000_000
# In inference it saves 0.06 us a voxel of UNet_2D on two cores, and takes up to a minute if a job has tiles of several
# shapes. A GPU saves less a voxel.
COMPILE_PAYS_INFERENCE = {"cpu": 1_000_000_000 * 2_000_000, "cuda": 20_000_000_000 * 2_000_000}

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


def supports_bf16(device: torch.device) -> bool:
    """Return whether the hardware multiplies bf16; emulated, it is slower than float32.

    Parameters
    ----------
    device : torch.device
        A CPU or a CUDA device.

    Returns
    -------
    bool
        For a GPU, whether its compute capability is 8 or more; for a CPU, by the flags in /proc/cpuinfo.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    try:
        words = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return False
    return bool(words & {"avx512_bf16", "amx_bf16", "bf16"})


def choose_precision(setting: str, device: torch.device) -> str:
    """Return the number format to compute in.

    Parameters
    ----------
    setting : str
        `auto`, `float32` or `bf16`.
    device : torch.device
        Where the network runs; matters for `auto`.

    Returns
    -------
    str
        `float32` or `bf16`.
    """
    if setting != "auto":
        return setting
    return "bf16" if supports_bf16(device) else "float32"


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """Return the context to run the network in.

    Parameters
    ----------
    precision : str
        `float32` or `bf16`.
    device : torch.device
        Where the network runs.

    Returns
    -------
    context manager
        torch's autocast for bf16; one that does nothing for float32.
    """
    if precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


def find_compiler() -> str | None:
    """Return the C++ compiler that torch.compile uses.

    Returns
    -------
    str or None
        Its path; None if there is no compiler, or not Python's headers, which it needs.
    """
    headers = Path(sysconfig.get_path("include"), "Python.h")
    return shutil.which(os.environ.get("CXX", "g++")) if headers.exists() else None


def should_compile_training(setting: str, voxels: int, num_parameters: int) -> tuple[bool, str]:
    """Return whether to compile the network of a training.

    Parameters
    ----------
    setting : str
        `auto`, `on` or `off`.
    voxels : int
        Number of voxels that the training puts through the network.
    num_parameters : int
        Size of the network.

    Returns
    -------
    should_compile : bool
        Whether to compile.
    message : str
        Why it is not compiled although it should be; empty otherwise.
    """
    if setting == "off" or (setting == "auto" and voxels * num_parameters < COMPILE_PAYS_TRAINING):
        return False, ""
    if find_compiler() is None:
        reason = "this machine has no C++ compiler with Python's headers"
        return False, f"{reason}: the network runs uncompiled, at about half the speed"
    return True, ""


def should_compile_inference(setting: str, machine: Machine, voxels_times_parameters: int) -> bool:
    """Return whether to compile the network of a segmentation.

    Parameters
    ----------
    setting : str
        `auto`, `on` or `off`.
    machine : Machine
        Where the network runs.
    voxels_times_parameters : int
        Number of voxels to compute, times the size of the network.

    Returns
    -------
    bool
        Whether to compile; always False on a machine without a compiler.
    """
    pays = setting == "auto" and voxels_times_parameters >= COMPILE_PAYS_INFERENCE[machine.device]
    return (setting == "on" or pays) and machine.compiler


def memory_format(dim: int, device: torch.device) -> torch.memory_format:
    """Return the fastest memory format for convolutions, of those that compute correctly.

    Parameters
    ----------
    dim : int
        2 or 3, the dimensions of the convolutions.
    device : torch.device
        Where the network runs.

    Returns
    -------
    torch.memory_format
        Channels last, but on a CPU in 3D the contiguous format.

    Notes
    -----
    On a CPU, bf16 convolutions in channels_last_3d read uninitialized memory (torch 2.13.0, oneDNN): if it holds nan,
    so does the result.
    """
    if dim == 2:
        return torch.channels_last
    return torch.channels_last_3d if device.type == "cuda" else torch.contiguous_format


@dataclass(frozen=True)
class Machine:
    """The kind of machine that actors run on.

    Parameters
    ----------
    device : str
        `cpu` or `cuda`.
    name : str
        Kind of the processor, or of the GPU.
    memory_bytes : int
        Memory of the GPU, or of the whole machine.
    cpus : int
        CPUs that this process may use.
    bf16 : bool
        Whether the hardware multiplies bf16.
    compiler : bool
        Whether torch.compile works.
    """

    device: str
    name: str
    memory_bytes: int
    cpus: int
    bf16: bool
    compiler: bool

    @classmethod
    def detect(cls, device: str = "auto") -> Machine:
        """Describe this machine.

        Parameters
        ----------
        device : str
            `auto`, `cpu` or `cuda`.

        Raises
        ------
        InputError
            If `device` is `cuda` and torch finds no GPU.
        """
        if device == "cuda" and not torch.cuda.is_available():
            raise InputError("device is cuda, and torch finds no CUDA GPU on this machine; use cpu")
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        shared: dict[str, Any] = {
            "device": device,
            "cpus": usable_cpus(),
            "bf16": supports_bf16(torch.device(device)),
            "compiler": find_compiler() is not None,
        }
        if device == "cuda":
            gpu = torch.cuda.get_device_properties(torch.cuda.current_device())
            return cls(name=gpu.name, memory_bytes=gpu.total_memory, **shared)
        return cls(name=platform.machine(), memory_bytes=total_memory_bytes(), **shared)


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


def count_parameters(network: nn.Module) -> int:
    """Count the parameters of a network.

    Parameters
    ----------
    network : torch.nn.Module
        The network.

    Returns
    -------
    int
        Number of values in all its parameters.
    """
    return sum(parameter.numel() for parameter in network.parameters())

"""Kinds of processor, and how each trains and segments fastest: number format, memory format, compilation.

`RULES` has a row for each kind. Choices follow by rule from the machine and the settings, never from a measured time,
and are kept with a run, so that a resumed run computes the same. Needs torch alone.
"""

from __future__ import annotations

import os
import platform
import shutil
import sysconfig
from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kasthuri_ray.errors import InputError
from kasthuri_ray.process_resources import total_memory_bytes, usable_cpus

# Voxels times parameters from which compiling saves more time than it takes. In training: 100 steps of 8 x 256 x 256
# voxels of UNet_2D, which save 0.5 s each with AMX, against 20-35 s.
COMPILE_PAYS_TRAINING = 100 * 8 * 256 * 256 * 2_000_000
# In inference it saves 0.06 us a voxel of UNet_2D on two cores, and takes up to a minute if a job has tiles of several
# shapes. A GPU saves less a voxel.
COMPILE_PAYS_INFERENCE = {"cpu": 1_000_000_000 * 2_000_000, "cuda": 20_000_000_000 * 2_000_000}

NUMBER_FORMATS = {"float32": torch.float32, "bf16": torch.bfloat16, "float16": torch.float16}


CPU_TILES, GPU_TILES = (5_000_000, 16_000_000), (16_000_000, 32_000_000)  # margins are a larger part in 3D


@dataclass(frozen=True, kw_only=True)
class ComputeRule:
    """How networks are trained and run on a kind of processor, unless settings say otherwise.

    Parameters
    ----------
    precision : str
        Number format of convolutions: `float32`, `bf16`, or `float16`, which is trained with a gradient scaler.
    evidence : str
        The measurement that the row rests on: UNet_2D, 32 filters, two cores, tiles of 256 x 256.
    trains_channels_last : bool
        Whether training in 2D has the memory format channels last, or contiguous.
    compiles_training, compiles_inference : bool
        Whether torch.compile is worth its time in long jobs.
    tile_voxels : tuple of int
        Most voxels that a network gets at once, in 2D and in 3D. Larger tiles would compute hardly fewer voxels twice.
    batches_tiles : bool
        Whether several tiles of 2D networks go through the network together.
    """

    precision: str
    evidence: str
    trains_channels_last: bool = True
    compiles_training: bool = True
    compiles_inference: bool = True
    tile_voxels: tuple[int, int] = CPU_TILES
    batches_tiles: bool = False


RULES = {
    "avx2": ComputeRule(
        precision="float32",
        trains_channels_last=False,
        compiles_training=False,
        evidence="EPYC Zen 3, training tiles/s: contiguous 1.71, channels last 1.10, compiled 1.05 and 0.88; inference "
        "Mvoxels/s: eager 0.40, compiled 0.45",
    ),
    "avx512": ComputeRule(
        precision="float32",
        evidence="Xeon (Emerald Rapids) whose AMX is hidden, training tiles/s: channels last 3.5, contiguous 2.7, "
        "compiled 3.9, in bf16 2.5; inference Mvoxels/s: eager 0.72, compiled 0.94, in bf16 0.57 and 0.60; EPYC Zen 5 "
        "in float32, training: channels last 3.1, contiguous 2.7; inference: eager 0.67, compiled 0.72",
    ),
    "bf16": ComputeRule(
        precision="bf16",
        compiles_training=False,
        evidence="EPYC Zen 5, training tiles/s: channels last 5.75, contiguous 4.44, compiled 5.64; inference "
        "Mvoxels/s: eager 1.36, compiled 1.45",
    ),
    "amx": ComputeRule(
        precision="bf16",
        evidence="Xeon with AMX, seconds for 8 tiles of training: eager 1.6, compiled 1.0; inference Mvoxels/s: eager "
        "2.5, compiled 2.8",
    ),
    "arm": ComputeRule(precision="float32", compiles_training=False, evidence="not measured"),
    "cuda6": ComputeRule(precision="float32", tile_voxels=GPU_TILES, batches_tiles=True, evidence="not measured"),
    "cuda7": ComputeRule(precision="float16", tile_voxels=GPU_TILES, batches_tiles=True, evidence="not measured"),
    "cuda8": ComputeRule(precision="bf16", tile_voxels=GPU_TILES, batches_tiles=True, evidence="not measured"),
}
CPU_KINDS = ("avx2", "avx512", "bf16", "amx", "arm")


def processor_kind(device: torch.device) -> str:
    """Return the kind of a processor: a key of `RULES`.

    Parameters
    ----------
    device : torch.device
        The CPU, or a GPU.

    Returns
    -------
    str
        For a CPU the value of KASTHURI_CPU, if it is set, else what the system says of it.

    Raises
    ------
    InputError
        If KASTHURI_CPU is none of `CPU_KINDS`.
    """
    if device.type == "cuda":
        return f"cuda{min(8, max(6, torch.cuda.get_device_capability(device)[0]))}"
    if kind := os.environ.get("KASTHURI_CPU"):
        if kind not in CPU_KINDS:
            raise InputError(f"KASTHURI_CPU is {kind!r}; it can be {', '.join(CPU_KINDS)}")
        return kind
    return classify_cpu(platform.machine(), _cpu_words())


def classify_cpu(architecture: str, words: Collection[str]) -> str:
    """Return the kind of a CPU.

    Parameters
    ----------
    architecture : str
        As `platform.machine` returns it.
    words : collection of str
        Vendor and instruction sets, by their names in /proc/cpuinfo.

    Returns
    -------
    str
        One of `CPU_KINDS`; the least, `avx2`, for what is not known.

    Notes
    -----
    On AMD's Zen 5, bf16 trains 1.9 times as fast as float32. Intel's AVX-512 computes matrix products in bf16 at 0.57
    of the rate of float32 (measured on Emerald Rapids). So an Intel processor without AMX, or in a virtual machine that
    hides it, is of the kind `avx512`.
    """
    if architecture.lower() in ("arm64", "aarch64"):
        return "arm"
    kinds = {"amx_bf16": "amx", "avx512_bf16": "bf16", "avx512f": "avx512"}
    kind = next((kind for word, kind in kinds.items() if word in words), "avx2")
    return "avx512" if kind == "bf16" and "GenuineIntel" in words else kind


def _cpu_words() -> set[str]:
    try:
        return set(Path("/proc/cpuinfo").read_text().split())
    except OSError:  # not Linux
        return {"avx512f"} if torch.backends.cpu.get_cpu_capability() == "AVX512" else set()


def choose_precision(setting: str, machine: Machine) -> str:
    """Return the number format to compute in.

    Parameters
    ----------
    setting : str
        `auto`, or a number format.
    machine : Machine
        Where the network runs.

    Returns
    -------
    str
        A key of `NUMBER_FORMATS`.

    Raises
    ------
    InputError
        If it is float16, and the network runs on a CPU.
    """
    if setting == "float16" and machine.device == "cpu":
        raise InputError("precision float16 is for GPUs alone; on a CPU use auto, float32 or bf16")
    return machine.rule.precision if setting == "auto" else setting


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """Return the context to run the network in.

    Parameters
    ----------
    precision : str
        A key of `NUMBER_FORMATS`.
    device : torch.device
        Where the network runs.

    Returns
    -------
    context manager
        torch's autocast; one that does nothing for float32.
    """
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=NUMBER_FORMATS[precision])


def find_compiler() -> str | None:
    """Return the C++ compiler that torch.compile uses.

    Returns
    -------
    str or None
        Its path; None if there is no compiler, or not Python's headers, which it needs.
    """
    headers = Path(sysconfig.get_path("include"), "Python.h")
    return shutil.which(os.environ.get("CXX", "g++")) if headers.exists() else None


def should_compile_training(setting: str, machine: Machine, voxels_times_parameters: int) -> tuple[bool, str]:
    """Return whether to compile the network of a training.

    Parameters
    ----------
    setting : str
        `auto`, `on` or `off`.
    machine : Machine
        Where the network is trained.
    voxels_times_parameters : int
        Number of voxels that the training puts through the network, times its size.

    Returns
    -------
    should_compile : bool
        Whether to compile.
    message : str
        Why it is not compiled although it should be; empty otherwise.
    """
    pays = machine.rule.compiles_training and voxels_times_parameters >= COMPILE_PAYS_TRAINING
    if setting == "off" or (setting == "auto" and not pays):
        return False, ""
    if not machine.compiler:
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
    pays = machine.rule.compiles_inference and voxels_times_parameters >= COMPILE_PAYS_INFERENCE[machine.device]
    return (setting == "on" or (setting == "auto" and pays)) and machine.compiler


def memory_format(dim: int, device: torch.device, channels_last: bool = True) -> torch.memory_format:
    """Return the memory format for convolutions, one that computes correctly.

    Parameters
    ----------
    dim : int
        2 or 3, the dimensions of the convolutions.
    device : torch.device
        Where the network runs.
    channels_last : bool
        Whether channels last is wanted. In inference it is the fastest format in 2D on all processors.

    Returns
    -------
    torch.memory_format
        Channels last, but on a CPU in 3D the contiguous format.

    Notes
    -----
    On a CPU, bf16 convolutions in channels_last_3d read uninitialized memory (torch 2.13.0, oneDNN): if it holds nan,
    so does the result.
    """
    if not channels_last:
        return torch.contiguous_format
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
        Architecture of the CPU, or name of the GPU.
    memory_bytes : int
        Memory of the GPU, or of the whole machine.
    cpus : int
        CPUs that this process may use.
    kind : str
        Kind of the processor, a key of `RULES`.
    compiler : bool
        Whether torch.compile works.
    has_slow_bf16 : bool
        Whether the CPU multiplies bf16, but slower than float32: runs that were begun in it can resume.
    """

    device: str
    name: str
    memory_bytes: int
    cpus: int
    kind: str
    compiler: bool
    has_slow_bf16: bool = False

    @property
    def rule(self) -> ComputeRule:
        """How networks run on this kind of processor."""
        return RULES[self.kind]

    def multiplies(self, precision: str) -> bool:
        """Return whether the hardware has a number format; emulated, it is much slower than float32."""
        if precision == "bf16" and self.has_slow_bf16:
            return True
        return precision in ("float32", self.rule.precision) or (precision == "float16" and self.device == "cuda")

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
            "kind": processor_kind(torch.device(device)),
            "compiler": find_compiler() is not None,
        }
        if device == "cuda":
            gpu = torch.cuda.get_device_properties(torch.cuda.current_device())
            return cls(name=gpu.name, memory_bytes=gpu.total_memory, **shared)
        has_slow_bf16 = not os.environ.get("KASTHURI_CPU") and {"GenuineIntel", "avx512_bf16"} <= _cpu_words()
        return cls(name=platform.machine(), memory_bytes=total_memory_bytes(), has_slow_bf16=has_slow_bf16, **shared)


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

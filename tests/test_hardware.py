"""Decisions that follow by rule from the machine and the settings."""

import multiprocessing
import platform
import subprocess
import sys

import pytest
import torch

from kasthuri_ray import hardware

CPU = torch.device("cpu")
LARGE, SMALL = 8 * 256 * 256 * 1000, 8 * 256 * 256 * 10
UNET_2D = 1_971_554


@pytest.fixture
def cpuinfo(monkeypatch):
    """Makes the machine one with these CPU flags (None: one that says nothing)."""

    def pretend(flags: str | None) -> None:
        def read(path):
            if flags is None:
                raise FileNotFoundError(path)
            return f"processor : 0\nflags\t\t: fpu {flags} sse\n"

        monkeypatch.setattr(hardware.Path, "read_text", read)

    return pretend


@pytest.mark.parametrize(
    ("flags", "precision"),
    [
        ("avx512_bf16", "bf16"),
        ("amx_bf16 amx_tile", "bf16"),
        ("asimd bf16", "bf16"),
        ("avx512f avx2", "float32"),
        (None, "float32"),
    ],
)
def test_bf16_is_for_hardware_that_has_it(cpuinfo, flags, precision):
    cpuinfo(flags)
    assert hardware.choose_precision("auto", CPU) == precision
    assert hardware.choose_precision("float32", CPU) == "float32"
    assert hardware.choose_precision("bf16", CPU) == "bf16"


def test_autocast_is_what_was_chosen():
    layer, x = torch.nn.Linear(4, 4), torch.ones(1, 4)
    for precision, dtype in (("bf16", torch.bfloat16), ("float32", torch.float32)):
        with hardware.autocast(precision, CPU):
            assert layer(x).dtype == dtype


def test_compiling_is_for_long_runs_and_where_there_is_a_compiler(monkeypatch):
    monkeypatch.setattr(hardware, "find_compiler", lambda: "/usr/bin/g++")
    assert hardware.should_compile_training("auto", CPU, LARGE, UNET_2D) == (True, "")
    assert hardware.should_compile_training("auto", CPU, SMALL, UNET_2D) == (False, "")
    assert hardware.should_compile_training("on", CPU, SMALL, UNET_2D) == (True, "")
    assert hardware.should_compile_training("off", CPU, LARGE, UNET_2D) == (False, "")
    monkeypatch.setattr(hardware, "find_compiler", lambda: None)
    for setting in ("auto", "on"):
        compiled, line = hardware.should_compile_training(setting, CPU, LARGE, UNET_2D)
        assert not compiled
        assert line.startswith("no C++ compiler with Python's headers here: the network runs uncompiled")
    assert hardware.should_compile_training("auto", CPU, SMALL, UNET_2D) == (False, "")


def test_threads_are_shared_among_the_processes_of_a_machine(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.delenv("KASTHURI_THREADS", raising=False)
    monkeypatch.setattr(hardware.os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    try:
        assert hardware.set_threads(1) == torch.get_num_threads() == 6
        assert hardware.set_threads(4) == 1
        assert hardware.set_threads(100) == 1
        monkeypatch.setenv("KASTHURI_THREADS", "2")
        assert hardware.set_threads(1) == torch.get_num_threads() == 2
        monkeypatch.delenv("KASTHURI_THREADS")
        monkeypatch.delattr(hardware.os, "sched_getaffinity")
        monkeypatch.setattr(hardware.os, "cpu_count", lambda: 5)
        assert hardware.set_threads(2) == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({"cpu.max": "250000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "max 100000\n"}, 6),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 6),
        ({"cpu.max": "garbage"}, 6),
        ({}, 6),
    ],
)
def test_a_container_may_have_fewer_cpus_than_its_machine(tmp_path, monkeypatch, files, cpus):
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(hardware.os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    monkeypatch.setattr(hardware, "CGROUP", tmp_path)
    assert hardware.usable_cpus() == cpus


def test_memory_is_kept_where_glibc_is_and_nothing_fails_elsewhere(monkeypatch):
    # In a process of its own: it holds for as long as the process lives.
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(hardware.configure_allocator) is (platform.libc_ver()[0] == "glibc")

    def missing(name):
        raise OSError(name)

    monkeypatch.setattr(hardware.ctypes, "CDLL", missing)
    assert hardware.configure_allocator() is False


FAULTS = """
import resource, sys, threading
import numpy as np
from kasthuri_ray import hardware

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def run():
    np.ones(100_000_000, np.uint8)
    before = faults()
    for _ in range(5):
        np.ones(100_000_000, np.uint8)
    found.append(faults() - before)

found = []
hardware.configure_allocator()
thread = threading.Thread(target=run)
thread.start()
thread.join()
print(*found)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="memory is kept by glibc alone")
def test_memory_is_kept_in_a_thread_too():
    given = subprocess.run([sys.executable, "-c", FAULTS], check=True, timeout=60, capture_output=True, text=True)
    assert int(given.stdout) < 100  # thousands, where memory is not kept


def test_convolutions_keep_channels_last_where_that_computes_right():
    cpu, card = torch.device("cpu"), torch.device("cuda")
    assert torch.empty(2, 3, 4, 4).to(memory_format=hardware.memory_format(2, cpu)).stride() == (48, 1, 12, 3)
    assert torch.empty(2, 3, 4, 4, 4).to(memory_format=hardware.memory_format(3, card)).stride()[1] == 1
    assert torch.empty(2, 3, 4, 4, 4).to(memory_format=hardware.memory_format(3, cpu)).is_contiguous()


LITTERED = """
import torch
from kasthuri_ray import hardware
from kasthuri_ray.models.unet import UNet

def litter():  # what is freed, and handed out again as it was
    [torch.full((size,), float("nan")) for size in (10_000, 100_000, 1_000_000, 3_000_000) for _ in range(6)]

hardware.configure_allocator()
cpu = torch.device("cpu")
for dim, size in ((2, (64, 64)), (3, (4, 32, 32))):
    for seed in range(5):
        torch.manual_seed(seed)
        layout = hardware.memory_format(dim, cpu)
        network = UNet(n_blocks=2, start_filters=4, dim=dim).to(memory_format=layout)
        image = torch.rand(4, 1, *size).to(memory_format=layout)
        litter()
        with hardware.autocast("bf16", cpu):
            answer = network(image)
        litter()
        answer.float().square().mean().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters()), (dim, seed)
"""


@pytest.mark.skipif(not hardware.supports_bf16(torch.device("cpu")), reason="this processor has no bf16 instructions")
def test_what_lay_in_memory_before_does_not_enter_a_network():
    subprocess.run([sys.executable, "-c", LITTERED], check=True, timeout=120)

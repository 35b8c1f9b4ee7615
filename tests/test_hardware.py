"""Hardware: precision, compiling, threads, CPUs, allocator and memory format follow from machine and settings."""

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
    """Return a function that sets the flags in /proc/cpuinfo; None removes the file."""

    def set_flags(flags: str | None) -> None:
        def read(path):
            if flags is None:
                raise FileNotFoundError(path)
            return f"processor : 0\nflags\t\t: fpu {flags} sse\n"

        monkeypatch.setattr(hardware.Path, "read_text", read)

    return set_flags


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
def test_auto_precision_is_bf16_on_processors_that_multiply_it(cpuinfo, flags, precision):
    cpuinfo(flags)
    assert hardware.choose_precision("auto", CPU) == precision
    assert hardware.choose_precision("float32", CPU) == "float32"
    assert hardware.choose_precision("bf16", CPU) == "bf16"


def test_autocast_computes_in_the_chosen_precision():
    layer, x = torch.nn.Linear(4, 4), torch.ones(1, 4)
    for precision, dtype in (("bf16", torch.bfloat16), ("float32", torch.float32)):
        with hardware.autocast(precision, CPU):
            assert layer(x).dtype == dtype


def test_long_trainings_are_compiled_if_there_is_a_compiler(monkeypatch):
    monkeypatch.setattr(hardware, "find_compiler", lambda: "/usr/bin/g++")
    assert hardware.should_compile_training("auto", LARGE, UNET_2D) == (True, "")
    assert hardware.should_compile_training("auto", SMALL, UNET_2D) == (False, "")
    assert hardware.should_compile_training("on", SMALL, UNET_2D) == (True, "")
    assert hardware.should_compile_training("off", LARGE, UNET_2D) == (False, "")
    monkeypatch.setattr(hardware, "find_compiler", lambda: None)
    for setting in ("auto", "on"):
        compiled, message = hardware.should_compile_training(setting, LARGE, UNET_2D)
        assert not compiled
        assert message.startswith("this machine has no C++ compiler with Python's headers: the network runs uncompiled")
    assert hardware.should_compile_training("auto", SMALL, UNET_2D) == (False, "")


def test_the_cpus_of_a_machine_are_divided_among_its_processes(monkeypatch):
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
def test_the_cpu_limit_of_a_container_is_respected(tmp_path, monkeypatch, files, cpus):
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(hardware.os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    monkeypatch.setattr(hardware, "CGROUP", tmp_path)
    assert hardware.usable_cpus() == cpus


def test_the_allocator_is_configured_with_glibc_and_left_alone_on_other_systems(monkeypatch):
    # In another process, since the setting cannot be undone.
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(hardware.configure_allocator) is (platform.libc_ver()[0] == "glibc")

    def missing(name):
        raise OSError(name)

    monkeypatch.setattr(hardware.ctypes, "CDLL", missing)
    assert hardware.configure_allocator() is False


PAGE_FAULTS = """
import resource, sys, threading
import numpy as np
from kasthuri_ray import hardware

def page_faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def run():
    np.ones(100_000_000, np.uint8)
    before = page_faults()
    for _ in range(5):
        np.ones(100_000_000, np.uint8)
    counts.append(page_faults() - before)

counts = []
hardware.configure_allocator()
thread = threading.Thread(target=run)
thread.start()
thread.join()
print(*counts)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps freed memory")
def test_freed_memory_is_kept_in_threads_too():
    process = subprocess.run(
        [sys.executable, "-c", PAGE_FAULTS], check=True, timeout=60, capture_output=True, text=True
    )
    assert int(process.stdout) < 100  # thousands if freed memory is returned to the system


def test_convolutions_are_channels_last_except_in_3d_on_a_cpu():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert torch.empty(2, 3, 4, 4).to(memory_format=hardware.memory_format(2, cpu)).stride() == (48, 1, 12, 3)
    assert torch.empty(2, 3, 4, 4, 4).to(memory_format=hardware.memory_format(3, gpu)).stride()[1] == 1
    assert torch.empty(2, 3, 4, 4, 4).to(memory_format=hardware.memory_format(3, cpu)).is_contiguous()


NAN_IN_FREED_MEMORY = """
import torch
from kasthuri_ray import hardware
from kasthuri_ray.models.unet import UNet

def leave_nan():  # in memory that is freed, and allocated again as it is
    [torch.full((size,), float("nan")) for size in (10_000, 100_000, 1_000_000, 3_000_000) for _ in range(6)]

hardware.configure_allocator()
cpu = torch.device("cpu")
for dim, size in ((2, (64, 64)), (3, (4, 32, 32))):
    for seed in range(5):
        torch.manual_seed(seed)
        layout = hardware.memory_format(dim, cpu)
        network = UNet(n_blocks=2, start_filters=4, dim=dim).to(memory_format=layout)
        image = torch.rand(4, 1, *size).to(memory_format=layout)
        leave_nan()
        with hardware.autocast("bf16", cpu):
            output = network(image)
        leave_nan()
        output.float().square().mean().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters()), (dim, seed)
"""


@pytest.mark.skipif(not hardware.supports_bf16(torch.device("cpu")), reason="this processor has no bf16 instructions")
def test_a_network_does_not_read_uninitialized_memory():
    subprocess.run([sys.executable, "-c", NAN_IN_FREED_MEMORY], check=True, timeout=120)


def test_the_machine_is_detected_and_a_missing_gpu_is_an_error(monkeypatch):
    machine = hardware.Machine.detect("cpu")
    assert machine.device == "cpu"
    assert machine.cpus >= 1
    assert machine.memory_bytes >= 1 << 30
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert hardware.Machine.detect().device == "cpu"
    with pytest.raises(ValueError, match="torch finds no CUDA GPU on this machine; use cpu"):
        hardware.Machine.detect("cuda")

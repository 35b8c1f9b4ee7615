"""CPUs, threads and memory of a process, and the allocator."""

import multiprocessing
import platform
import subprocess
import sys

import pytest
import torch

from kasthuri_ray import process_resources


def test_the_cpus_of_a_machine_are_divided_among_its_processes(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.delenv("KASTHURI_THREADS", raising=False)
    monkeypatch.setattr(process_resources.os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    try:
        assert process_resources.set_threads(1) == torch.get_num_threads() == 6
        assert process_resources.set_threads(4) == 1
        assert process_resources.set_threads(100) == 1
        monkeypatch.setenv("KASTHURI_THREADS", "2")
        assert process_resources.set_threads(1) == torch.get_num_threads() == 2
        monkeypatch.delenv("KASTHURI_THREADS")
        monkeypatch.delattr(process_resources.os, "sched_getaffinity")
        monkeypatch.setattr(process_resources.os, "cpu_count", lambda: 5)
        assert process_resources.set_threads(2) == 2
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
    monkeypatch.setattr(process_resources.os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    monkeypatch.setattr(process_resources, "CGROUP", tmp_path)
    assert process_resources.usable_cpus() == cpus


def test_the_allocator_is_configured_with_glibc_and_left_alone_on_other_systems(monkeypatch):
    # In another process, since the setting cannot be undone.
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(process_resources.configure_allocator) is (platform.libc_ver()[0] == "glibc")

    def missing(name):
        raise OSError(name)

    monkeypatch.setattr(process_resources.ctypes, "CDLL", missing)
    assert process_resources.configure_allocator() is False


PAGE_FAULTS = """
import resource, sys, threading
import numpy as np
from kasthuri_ray import process_resources

def page_faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def run():
    np.ones(100_000_000, np.uint8)
    before = page_faults()
    for _ in range(5):
        np.ones(100_000_000, np.uint8)
    counts.append(page_faults() - before)

counts = []
process_resources.configure_allocator()
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

"""Parts of a benchmark are measured, and ended with all their processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kasthuri_ray.benchmarks import harness
from kasthuri_ray.benchmarks.harness import (
    DRIVER,
    RAY,
    READER,
    TRAINER,
    PartFailed,
    PartRunner,
    ProcessMonitor,
    end_processes,
    late_cores,
    process_role,
)
from kasthuri_ray.progress import Reporter

SLEEP = "import time; time.sleep(60)"
# A process that holds 64 MB and starts a child that holds 32 MB. Both run until they are ended.
HOLD_MEMORY = f"""
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "held = bytearray(b'x') * 2**25; print('held', flush=True); {SLEEP}"])
held = bytearray(b"x") * 2**26
print(child.pid, flush=True)
time.sleep(60)
"""

linux = pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="memory is measured on Linux alone")


def is_running(pid: int) -> bool:
    """Return whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@linux
def test_memory_of_a_process_and_of_its_child_is_measured_apart_and_both_are_ended() -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLD_MEMORY], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    # Either process may print first, and one may print in the middle of the other's line.
    output = process.stdout.readline() + process.stdout.readline()
    child = int("".join(filter(str.isdigit, output)))
    monitor = ProcessMonitor(process.pid, computes_itself=True)
    monitor.sample()
    usage = monitor.usage
    assert usage.trainer_peak is not None
    assert 2**26 < usage.trainer_peak < 2**26 + 40e6
    assert usage.others_peak is not None
    assert 2**25 < usage.others_peak < 2**25 + 40e6
    assert usage.processes == 2
    assert usage.total_peak is not None
    assert usage.total_peak <= usage.trainer_peak + usage.others_peak
    assert set(monitor.start_times) == {process.pid, child}
    end_processes(process, monitor.start_times, timeout_s=2)
    assert not is_running(process.pid)
    assert not is_running(child)


@linux
def test_a_later_process_with_the_same_id_is_not_ended() -> None:
    other = subprocess.Popen([sys.executable, "-c", SLEEP])
    ended = subprocess.Popen([sys.executable, "-c", "pass"])
    ended.wait()
    try:
        end_processes(ended, {other.pid: "12"})  # another process has the id by now
        assert is_running(other.pid)
    finally:
        other.kill()
        other.wait()


def test_the_command_line_of_a_process_shows_its_role() -> None:
    assert process_role("python -m kasthuri_ray.benchmarks.training_processes pipeline", True, False) == DRIVER
    assert process_role("python -m kasthuri_ray.benchmarks.training_processes bare", True, True) == TRAINER
    assert process_role("ray::RayTrainWorker.execute", False, False) == TRAINER
    assert process_role("ray::MapBatches(_TileReader)", False, False) == READER
    assert process_role("ray::_StatsActor", False, False) == RAY


def test_busy_cores_leave_out_the_start() -> None:
    samples = [
        (0.0, {RAY: 0.0}),
        (10.0, {RAY: 20.0}),
        (20.0, {RAY: 21.0, TRAINER: 5.0}),
        (30.0, {RAY: 23.0, TRAINER: 20.0}),
    ]
    assert late_cores(samples) == {RAY: pytest.approx(0.2), TRAINER: pytest.approx(1.5)}
    assert late_cores(samples[:1]) == {}


def test_the_error_of_a_failed_part_shows_its_output() -> None:
    with pytest.raises(PartFailed, match=r"the part nothing exited with code 1:[\s\S]*KeyError: 'nothing'"):
        PartRunner(Reporter()).run("nothing", {})


def test_a_part_that_takes_too_long_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slow_part.py").write_text(f"open('started', 'w').write(str(__import__('os').getpid()))\n{SLEEP}")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PartFailed, match="the part sleep took longer than 3 s"):
        PartRunner(Reporter()).run("sleep", {}, module="slow_part", timeout_s=3)
    assert not is_running(int((tmp_path / "started").read_text()))


def test_a_part_does_not_inherit_settings_of_allocator_and_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("KASTHURI_CACHE", "/somewhere")
    environment = harness._environment()
    assert not {"MALLOC_TRIM_THRESHOLD_", "OMP_NUM_THREADS"} & environment.keys()
    assert environment["KASTHURI_CACHE"] == "/somewhere"
    assert environment["PATH"] == os.environ["PATH"]

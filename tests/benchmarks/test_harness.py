"""Parts of a benchmark: watched in /proc, and ended with all that they started."""

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
    ProcessWatch,
    end_process,
    role_of,
    run_part,
)

SLEEP = "import time; time.sleep(60)"
# A process that holds 64 MB, of which a child of its own holds 32 more, until it is ended.
HOLDS = f"""
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "held = bytearray(b'x') * 2**25; print('held', flush=True); {SLEEP}"])
held = bytearray(b"x") * 2**26
print(child.pid, flush=True)
time.sleep(60)
"""

linux = pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="memory is measured on Linux alone")


def living(pid: int) -> bool:
    """Whether a process runs; one that has ended and that nobody has asked about yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@linux
def test_memory_of_a_process_and_of_what_it_started_is_told_apart_and_both_are_ended() -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLDS], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    # Either may be the first to speak, and one may speak in the middle of the other's line.
    said = process.stdout.readline() + process.stdout.readline()
    child = int("".join(filter(str.isdigit, said)))
    watch = ProcessWatch(process.pid, trains_itself=True)
    watch.look()
    usage = watch.usage
    assert usage.trainer_peak is not None
    assert 2**26 < usage.trainer_peak < 2**26 + 40e6
    assert usage.others_peak is not None
    assert 2**25 < usage.others_peak < 2**25 + 40e6
    assert usage.processes == 2
    assert usage.total_peak is not None
    assert usage.total_peak <= usage.trainer_peak + usage.others_peak
    assert set(watch.seen) == {process.pid, child}
    end_process(process, watch.seen, patience_s=2)
    assert not living(process.pid)
    assert not living(child)


@linux
def test_only_the_process_that_was_seen_is_ended_not_a_later_one_of_its_id() -> None:
    other = subprocess.Popen([sys.executable, "-c", SLEEP])
    ended = subprocess.Popen([sys.executable, "-c", "pass"])
    ended.wait()
    try:
        end_process(ended, {other.pid: "12"})  # the id is another's by now
        assert living(other.pid)
    finally:
        other.kill()
        other.wait()


def test_what_a_process_is_for_shows_in_its_name() -> None:
    assert role_of("python -m kasthuri_ray.benchmarks.training_processes pipeline", True, False) == DRIVER
    assert role_of("python -m kasthuri_ray.benchmarks.training_processes bare", True, True) == TRAINER
    assert role_of("ray::RayTrainWorker.execute", False, False) == TRAINER
    assert role_of("ray::MapBatches(_TileReader)", False, False) == READER
    assert role_of("ray::_StatsActor", False, False) == RAY


def test_a_part_that_fails_says_what_it_printed() -> None:
    with pytest.raises(PartFailed, match=r"the part nothing ended with 1:[\s\S]*KeyError: 'nothing'"):
        run_part("nothing", {})


def test_allocator_and_threads_of_the_caller_do_not_reach_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("KASTHURI_CACHE", "/somewhere")
    found = harness._environment()
    assert not {"MALLOC_TRIM_THRESHOLD_", "OMP_NUM_THREADS"} & found.keys()
    assert found["KASTHURI_CACHE"] == "/somewhere"
    assert found["PATH"] == os.environ["PATH"]

"""Leases: real processes that live, die, stop and race, on a disk and on S3; one at a time holds the run."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from kasthuri_ray.errors import LeaseHeld, LeaseLost
from kasthuri_ray.storage import lease as lease_module
from kasthuri_ray.storage.folder import Storage, open_storage
from kasthuri_ray.storage.lease import Lease

HEARTBEAT_S, STALE_AFTER_S = 0.2, 1.5
LOCK = "lock.json"
HOLDER = f"""
import sys, time
from kasthuri_ray.errors import LeaseHeld
from kasthuri_ray.storage.lease import Lease
from kasthuri_ray.storage.folder import open_storage
try:
    with Lease.acquire(open_storage(sys.argv[1]), heartbeat_s={HEARTBEAT_S}, stale_after_s={STALE_AFTER_S}) as lease:
        print("held", flush=True)
        while not lease.lost.is_set():
            time.sleep(0.02)
    print("lost", flush=True)
except LeaseHeld as error:
    print("refused", error, flush=True)
"""


@pytest.fixture(params=["disk", "s3"])
def storage(request, tmp_path) -> Storage:
    if request.param == "disk":
        return open_storage(str(tmp_path))
    request.getfixturevalue("s3")
    return open_storage("s3://some-bucket/runs")


@pytest.fixture
def start_holder() -> Iterator:
    """Yield a function that starts a process which acquires the lease; the process is killed after the test."""
    processes = []

    def start(storage: Storage) -> subprocess.Popen:
        process = subprocess.Popen([sys.executable, "-c", HOLDER, storage.path], stdout=subprocess.PIPE, text=True)
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def killed_holder(storage, start_holder) -> subprocess.Popen:
    """Return a process that held the lease and was killed, as if on another machine."""
    holder = start_holder(storage)
    assert next_line(holder) == "held"
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    storage.write_bytes(LOCK, json.dumps({**record(storage), "machine": "elsewhere"}).encode())
    return holder


def next_line(process: subprocess.Popen) -> str:
    """Return the next line that a process prints, except that it waits."""
    assert process.stdout is not None
    line = process.stdout.readline()
    return next_line(process) if line.startswith("waiting") else line.strip()


def is_alive(process: subprocess.Popen) -> bool:
    return process.poll() is None


def acquire(storage: Storage, report=lambda line: None) -> Lease:
    return Lease.acquire(storage, heartbeat_s=HEARTBEAT_S, stale_after_s=STALE_AFTER_S, report=report)


def record(storage: Storage) -> dict:
    return json.loads(storage.read_bytes(LOCK))


def test_a_lease_is_acquired_renewed_and_released(storage):
    with acquire(storage) as lease:
        first = record(storage)
        assert first["pid"] == os.getpid()
        time.sleep(3 * HEARTBEAT_S)
        assert record(storage)["beat"] > first["beat"]
        lease.check()
    assert not storage.exists(LOCK)
    lease.release()
    with acquire(storage):
        assert record(storage)["token"] != first["token"]


def test_the_lease_of_a_live_run_is_refused_with_its_process(storage, start_holder):
    holder = start_holder(storage)
    assert next_line(holder) == "held"
    lines = []
    with pytest.raises(LeaseHeld) as error:
        acquire(storage, report=lines.append)
    name = storage.name
    assert lines == [f"waiting to see whether the run that holds {name!r} is still alive ..."]
    assert f"the run {name!r} is held by another live run: process {holder.pid} on " in str(error.value)
    assert f"since {record(storage)['since']} ({storage.path}/{LOCK}); wait for it" in str(error.value)
    assert isinstance(error.value, ValueError)
    assert record(storage)["pid"] == holder.pid


def test_a_run_killed_on_this_machine_is_replaced_at_once(storage, start_holder):
    holder = start_holder(storage)
    assert next_line(holder) == "held"
    holder.send_signal(signal.SIGKILL)
    time.sleep(0.1)  # it stays a zombie, since nothing waited for it
    lines: list[str] = []
    start = time.monotonic()
    with acquire(storage, report=lines.append):
        assert time.monotonic() - start < STALE_AFTER_S
        assert lines == []
        assert record(storage)["pid"] == os.getpid()


def test_a_run_killed_on_another_machine_is_replaced_once_its_lease_is_stale(storage, killed_holder):
    start = time.monotonic()
    lines: list[str] = []
    with acquire(storage, report=lines.append):
        assert STALE_AFTER_S <= time.monotonic() - start < STALE_AFTER_S + 5
        assert len(lines) == 1
        assert record(storage)["pid"] == os.getpid()


def test_a_reused_process_id_does_not_count_as_a_live_run(tmp_path, start_holder):
    storage = open_storage(str(tmp_path))
    holder = start_holder(storage)
    assert next_line(holder) == "held"
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    storage.write_bytes(LOCK, json.dumps({**record(storage), "pid": os.getppid()}).encode())
    start = time.monotonic()
    with acquire(storage):
        assert time.monotonic() - start < STALE_AFTER_S


def test_a_run_that_was_suspended_is_replaced_and_learns_it(storage, start_holder):
    holder = start_holder(storage)
    assert next_line(holder) == "held"
    holder.send_signal(signal.SIGSTOP)
    with acquire(storage) as lease:
        holder.send_signal(signal.SIGCONT)
        assert next_line(holder) == "lost"
        holder.wait(timeout=10)
        assert record(storage)["token"] == lease.record["token"]  # the process that lost did not delete it
        lease.check()


def test_one_of_several_waiting_processes_gets_the_lease(storage, killed_holder, start_holder):
    waiting = [start_holder(storage) for _ in range(3)]
    outcomes = [next_line(process).split()[0] for process in waiting]
    time.sleep(3 * HEARTBEAT_S)  # a process that was replaced right after its claim has ended by now
    winners = [
        process for process, outcome in zip(waiting, outcomes, strict=True) if outcome == "held" and is_alive(process)
    ]
    assert len(winners) == 1, outcomes
    assert record(storage)["pid"] == winners[0].pid


def test_one_of_several_processes_that_start_together_gets_the_lease(storage):
    outcomes: list[object] = []

    def try_to_acquire() -> None:
        try:
            outcomes.append(acquire(storage))
        except LeaseHeld as error:
            outcomes.append(error)

    threads = [threading.Thread(target=try_to_acquire) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    time.sleep(3 * HEARTBEAT_S)
    leases = [outcome for outcome in outcomes if isinstance(outcome, Lease)]
    held = [lease for lease in leases if not lease.lost.is_set()]
    assert len(outcomes) == 4
    assert len(held) == 1
    held[0].check()
    for lease in leases:
        lease.release()


def test_a_run_that_slept_reads_the_lock_file_before_it_resumes(tmp_path, monkeypatch):
    storage = open_storage(str(tmp_path))
    lease = Lease.acquire(storage, heartbeat_s=60, stale_after_s=STALE_AFTER_S)
    storage.write_bytes(LOCK, json.dumps({**lease.record, "token": "another"}).encode())
    lease.check()
    later = lease_module._clock() + STALE_AFTER_S
    monkeypatch.setattr(lease_module, "_clock", lambda: later)
    with pytest.raises(
        LeaseLost, match=r"gave no sign of life for 2 s, and another process took over its lease \(.*lock.json"
    ):
        lease.check()
    lease.release()
    assert record(storage)["token"] == "another"


def test_a_lease_is_lost_if_someone_deletes_its_lock_file(tmp_path):
    storage = open_storage(str(tmp_path))
    with acquire(storage) as lease:
        storage.delete(LOCK)
        assert lease.lost.wait(10)
    assert not storage.exists(LOCK)


def test_a_lease_survives_a_storage_that_fails_for_a_while(tmp_path, monkeypatch):
    storage = open_storage(str(tmp_path))
    with acquire(storage) as lease:
        with monkeypatch.context() as patch:

            def fail(self, name, data):
                raise ConnectionError("down")

            patch.setattr(Storage, "write_bytes", fail)
            time.sleep(3 * HEARTBEAT_S)
        before = record(storage)["beat"]
        time.sleep(3 * HEARTBEAT_S)
        assert record(storage)["beat"] > before
        lease.check()


def test_a_lock_file_that_is_not_json_becomes_stale(tmp_path):
    storage = open_storage(str(tmp_path))
    storage.write_bytes(LOCK, b"not json")
    with Lease.acquire(storage, heartbeat_s=0.1, stale_after_s=0.5, report=lambda line: None):
        assert record(storage)["pid"] == os.getpid()

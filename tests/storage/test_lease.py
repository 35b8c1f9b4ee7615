"""One live process holds a run's name: real processes that live, die, stop and race, on a disk and on S3."""

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

HEARTBEAT, PATIENCE = 0.2, 1.5
LOCK = "lock.json"
HOLDER = f"""
import sys, time
from kasthuri_ray.errors import LeaseHeld
from kasthuri_ray.storage.lease import Lease
from kasthuri_ray.storage.folder import open_storage
try:
    with Lease.acquire(open_storage(sys.argv[1]), heartbeat_s={HEARTBEAT}, patience_s={PATIENCE}) as lease:
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
def start() -> Iterator:
    """Starts a process that wants the lease, and ends it after the test."""
    processes = []

    def start_one(storage: Storage) -> subprocess.Popen:
        process = subprocess.Popen([sys.executable, "-c", HOLDER, storage.path], stdout=subprocess.PIPE, text=True)
        processes.append(process)
        return process

    yield start_one
    for process in processes:
        process.kill()
        process.communicate()


def says(process: subprocess.Popen) -> str:
    """The next line of a process that is not about waiting."""
    assert process.stdout is not None
    line = process.stdout.readline()
    return says(process) if line.startswith("waiting") else line.strip()


def alive(process: subprocess.Popen) -> bool:
    return process.poll() is None


def acquire(storage: Storage, **more) -> Lease:
    return Lease.acquire(storage, heartbeat_s=HEARTBEAT, patience_s=PATIENCE, **{"say": lambda line: None, **more})


def record(storage: Storage) -> dict:
    return json.loads(storage.read_bytes(LOCK))


def move_to_another_machine(storage: Storage) -> None:
    """Makes the lock one whose process nobody here can look up."""
    storage.write_bytes(LOCK, json.dumps({**record(storage), "machine": "elsewhere"}).encode())


def test_a_lease_is_held_renewed_and_given_back(storage):
    with acquire(storage) as lease:
        first = record(storage)
        assert first["pid"] == os.getpid()
        time.sleep(3 * HEARTBEAT)
        assert record(storage)["beat"] > first["beat"]
        lease.check()
    assert not storage.exists(LOCK)
    lease.release()
    with acquire(storage):
        assert record(storage)["token"] != first["token"]


def test_a_live_run_is_not_disturbed_and_named(storage, start):
    holder = start(storage)
    assert says(holder) == "held"
    lines = []
    with pytest.raises(LeaseHeld) as error:
        acquire(storage, say=lines.append)
    name = storage.name
    assert lines == [f"waiting to see whether the run that holds {name!r} is still alive ..."]
    assert f"the run {name!r} is held by another live run: process {holder.pid} on " in str(error.value)
    assert f"since {record(storage)['since']} ({storage.path}/{LOCK}); wait for it" in str(error.value)
    assert isinstance(error.value, ValueError)
    assert record(storage)["pid"] == holder.pid


def test_a_run_killed_on_this_machine_holds_nothing(storage, start):
    holder = start(storage)
    assert says(holder) == "held"
    holder.send_signal(signal.SIGKILL)
    time.sleep(0.1)  # it stays a zombie, since nobody waited for it
    lines: list[str] = []
    began = time.monotonic()
    with acquire(storage, say=lines.append):
        assert time.monotonic() - began < PATIENCE
        assert lines == []
        assert record(storage)["pid"] == os.getpid()


def test_a_run_killed_elsewhere_is_waited_for_and_replaced(storage, start):
    holder = start(storage)
    assert says(holder) == "held"
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    move_to_another_machine(storage)
    began = time.monotonic()
    lines: list[str] = []
    with acquire(storage, say=lines.append):
        assert PATIENCE <= time.monotonic() - began < PATIENCE + 5
        assert len(lines) == 1
        assert record(storage)["pid"] == os.getpid()


def test_a_number_that_serves_another_process_now_is_no_life(tmp_path, start):
    storage = open_storage(str(tmp_path))
    holder = start(storage)
    assert says(holder) == "held"
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    storage.write_bytes(LOCK, json.dumps({**record(storage), "pid": os.getppid()}).encode())
    began = time.monotonic()
    with acquire(storage):
        assert time.monotonic() - began < PATIENCE


def test_a_stopped_run_is_replaced_and_finds_out(storage, start):
    holder = start(storage)
    assert says(holder) == "held"
    holder.send_signal(signal.SIGSTOP)
    with acquire(storage) as lease:
        holder.send_signal(signal.SIGCONT)
        assert says(holder) == "lost"
        holder.wait(timeout=10)
        assert record(storage)["token"] == lease.record["token"]  # the one that lost did not delete it
        lease.check()


def test_of_several_who_wait_one_gets_it(storage, start):
    holder = start(storage)
    assert says(holder) == "held"
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    move_to_another_machine(storage)
    waiting = [start(storage) for _ in range(3)]
    outcomes = [says(process).split()[0] for process in waiting]
    time.sleep(3 * HEARTBEAT)  # one that claimed too late to be seen has told the other by now
    winners = [
        process for process, outcome in zip(waiting, outcomes, strict=True) if outcome == "held" and alive(process)
    ]
    assert len(winners) == 1, outcomes
    assert record(storage)["pid"] == winners[0].pid


def test_of_several_who_start_at_once_one_gets_it(storage):
    outcomes: list[object] = []

    def want() -> None:
        try:
            outcomes.append(acquire(storage))
        except LeaseHeld as error:
            outcomes.append(error)

    threads = [threading.Thread(target=want) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    time.sleep(3 * HEARTBEAT)
    leases = [outcome for outcome in outcomes if isinstance(outcome, Lease)]
    held = [lease for lease in leases if not lease.lost.is_set()]
    assert len(outcomes) == 4
    assert len(held) == 1
    held[0].check()
    for lease in leases:
        lease.release()


def test_a_run_that_slept_asks_before_it_goes_on(tmp_path, monkeypatch):
    storage = open_storage(str(tmp_path))
    lease = Lease.acquire(storage, heartbeat_s=60, patience_s=PATIENCE)
    storage.write_bytes(LOCK, json.dumps({**lease.record, "token": "another"}).encode())
    lease.check()
    later = lease_module._clock() + PATIENCE
    monkeypatch.setattr(lease_module, "_clock", lambda: later)
    with pytest.raises(
        LeaseLost, match=r"was not heard of for 2 s and another process took its name over \(.*lock.json"
    ):
        lease.check()
    lease.release()
    assert record(storage)["token"] == "another"


def test_a_lock_that_a_person_deleted_is_lost(tmp_path):
    storage = open_storage(str(tmp_path))
    with acquire(storage) as lease:
        storage.delete(LOCK)
        assert lease.lost.wait(10)
    assert not storage.exists(LOCK)


def test_a_storage_that_fails_for_a_while_loses_nothing(tmp_path, monkeypatch):
    storage = open_storage(str(tmp_path))
    with acquire(storage) as lease:
        with monkeypatch.context() as patch:

            def fail(self, name, data):
                raise ConnectionError("down")

            patch.setattr(Storage, "write_bytes", fail)
            time.sleep(3 * HEARTBEAT)
        before = record(storage)["beat"]
        time.sleep(3 * HEARTBEAT)
        assert record(storage)["beat"] > before
        lease.check()


def test_a_lock_that_nobody_can_read_goes_stale(tmp_path):
    storage = open_storage(str(tmp_path))
    storage.write_bytes(LOCK, b"not json")
    with Lease.acquire(storage, heartbeat_s=0.1, patience_s=0.5, say=lambda line: None):
        assert record(storage)["pid"] == os.getpid()

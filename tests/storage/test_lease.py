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

from kasthuri_ray.errors import InputDenied, LeaseHeld, LeaseLost, missing_is_bad_input
from kasthuri_ray.storage import lease as lease_module
from kasthuri_ray.storage.folder import open_storage
from kasthuri_ray.storage.lease import Lease
from kasthuri_ray.storage.local_storage import LocalStorage
from kasthuri_ray.storage.storage import Storage

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
CONTENDER = """
import sys
from concurrent.futures import ThreadPoolExecutor
from kasthuri_ray.errors import LeaseHeld
from kasthuri_ray.storage.folder import open_storage
from kasthuri_ray.storage.lease import Lease
path, heartbeat_s, stale_after_s = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])
def acquire(name):
    run = open_storage(path).child(name)
    try:
        return Lease.acquire(run, heartbeat_s=heartbeat_s, stale_after_s=stale_after_s, report=lambda line: None)
    except LeaseHeld:
        return None
def keep(lease):
    if lease is not None:
        lease.check()
        lease.release()
with ThreadPoolExecutor(10) as threads:
    print("ready", flush=True)
    for line in sys.stdin:
        leases = list(threads.map(acquire, line.split()))
        print(*("refused" if lease is None else "held" for lease in leases), flush=True)
        sys.stdin.readline()
        list(threads.map(keep, leases))
"""


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
    return next_line(process) if line.startswith(("waiting", "s3://")) else line.strip()


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

            def fail(self, name, data, version):
                raise ConnectionError("down")

            patch.setattr(LocalStorage, "write_if", fail)
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


@pytest.fixture
def start_contenders() -> Iterator:
    """Yield a function that starts two processes. They ask for the leases of the runs that a line names, together,
    print what they got, and keep it until the next line.
    """
    processes = []

    def start(storage: Storage, heartbeat_s: float, stale_after_s: float) -> list[subprocess.Popen]:
        command = [sys.executable, "-c", CONTENDER, storage.path, str(heartbeat_s), str(stale_after_s)]
        for _ in range(2):
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            processes.append(subprocess.Popen(command, text=True, bufsize=1, **pipes))
        assert [next_line(process) for process in processes] == ["ready"] * 2
        return processes

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def ask_together(contenders: list[subprocess.Popen], storage: Storage, names: list[str]) -> None:
    """Let two processes ask for the leases of several runs, and assert that one of them gets each lease."""
    send_line(contenders, " ".join(names))
    outcomes = [next_line(process).split() for process in contenders]
    for name, pair in zip(names, zip(*outcomes, strict=True), strict=True):
        assert sorted(pair) == ["held", "refused"], name
        assert record(storage.child(name))["pid"] == contenders[pair.index("held")].pid
    send_line(contenders, "release")


def send_line(processes: list[subprocess.Popen], line: str) -> None:
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(f"{line}\n")


def test_one_of_two_processes_that_ask_at_the_same_moment_gets_the_lease_20_times(storage, start_contenders):
    contenders = start_contenders(storage, 0.05, 5)
    for number in range(20):
        ask_together(contenders, storage, [f"run_{number}"])


def test_one_of_two_processes_replaces_a_killed_one_20_times(storage, start_contenders, start_holder):
    holder = start_holder(storage)
    assert next_line(holder) == "held"
    holder.kill()
    holder.wait()
    contenders = start_contenders(storage, 0.05, 5)
    for number in range(20):
        storage.child(f"run_{number}").write_bytes(LOCK, storage.read_bytes(LOCK))
        ask_together(contenders, storage, [f"run_{number}"])


def test_one_of_two_processes_replaces_one_killed_on_another_machine_10_times(storage, start_contenders, killed_holder):
    contenders = start_contenders(storage, 0.5, 2)
    names = [f"run_{number}" for number in range(10)]
    for name in names:
        storage.child(name).write_bytes(LOCK, storage.read_bytes(LOCK))
    ask_together(contenders, storage, names)


def test_a_bucket_that_denies_a_write_is_bad_input_in_time(strict_s3):
    strict_s3.refuse = lambda request: (403, "AccessDenied") if request.method == "PUT" else None
    start = time.monotonic()
    message = rf"s3://some-bucket/runs/{LOCK}: access is refused; check the credentials"
    with pytest.raises(InputDenied, match=message), missing_is_bad_input():
        acquire(open_storage("s3://some-bucket/runs"))
    assert time.monotonic() - start < 5


def test_a_bucket_that_does_not_exist_is_an_error_in_time(strict_s3):
    with pytest.raises(FileNotFoundError, match=rf"s3://no-such-bucket/runs/{LOCK}: there is no such bucket"):
        acquire(open_storage("s3://no-such-bucket/runs"))


def test_a_write_of_which_the_answer_was_lost_counts(strict_s3):
    storage, first = open_storage("s3://some-bucket/runs"), []

    def lose_first_answer(request):
        if request.method == "PUT" and not first:
            first.append(request)
            storage.write_bytes(LOCK, json.dumps(lease.record).encode())
            return 500, "InternalError"

    with acquire(storage) as lease:
        strict_s3.refuse = lose_first_answer
        time.sleep(10 * HEARTBEAT_S)
        lease.check()
        assert first
        beat = record(storage)["beat"]
        time.sleep(3 * HEARTBEAT_S)
        assert record(storage)["beat"] > beat


@pytest.fixture
def unconditional_s3(strict_s3) -> Storage:
    """Return a storage on a server that rejects conditional writes."""
    strict_s3.refuse_conditional_writes()
    return open_storage("s3://some-bucket/runs")


def test_without_conditional_writes_a_lease_is_claimed_by_waiting_and_a_line_says_so(unconditional_s3, start_holder):
    lines: list[str] = []
    with acquire(unconditional_s3, report=lines.append) as lease:
        (line,) = lines
        assert f"runs/{LOCK}: S3 has no conditional writes (NotImplemented: no)" in line
        time.sleep(3 * HEARTBEAT_S)
        assert record(unconditional_s3)["beat"] > 0
        assert next_line(start_holder(unconditional_s3)).startswith("refused")
        for _ in range(10):  # a heartbeat that has read the record and writes it now overwrites the other's
            unconditional_s3.write_bytes(LOCK, json.dumps({**lease.record, "token": "another"}).encode())
            if lease.lost.wait(5 * HEARTBEAT_S):
                break
        assert lease.lost.is_set()
    assert record(unconditional_s3)["token"] == "another"


def test_without_conditional_writes_one_of_several_waiting_processes_gets_the_lease(unconditional_s3, start_holder):
    unconditional_s3.write_bytes(LOCK, b"of a run that was killed")
    test_one_of_several_waiting_processes_gets_the_lease(unconditional_s3, None, start_holder)


def test_a_lock_file_of_an_earlier_version_is_understood(storage, start_holder):
    holder = start_holder(storage)
    assert next_line(holder) == "held"
    written = record(storage)
    assert set(written) == {"token", "beat", "host", "pid", "machine", "started", "since"}
    assert len(storage.read_bytes(LOCK)) == 512
    holder.kill()
    holder.wait()
    storage.write_bytes(LOCK, json.dumps(written).encode())
    with acquire(storage, report=pytest.fail):
        assert record(storage)["pid"] == os.getpid()

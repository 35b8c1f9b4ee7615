"""Leases: one process at a time holds a run, on a disk or on S3, without comparing the clocks of machines.

The holder keeps a lock file in the run's folder and increments a number in it, the heartbeat. A process that wants the
run watches that file by its own clock. If the number changes, the run is alive and the lease is refused. If it does not
change for `stale_after_s`, the run is dead and its lease is taken over. A dead process of the same machine is
recognized at once. To claim a lease, a process replaces the lock file if it is still the one that it watched: of
several that claim at once, one succeeds. A holder that was replaced learns it from `lost` and `check()`.

Without conditional writes (some S3 servers, disks without locks) a process writes the file, waits for a moment and
reads it back instead: the last to write holds the lease.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from kasthuri_ray.errors import LeaseHeld, LeaseLost
from kasthuri_ray.storage.storage import ConditionsUnsupported, Storage

# Earlier versions read S3 in two requests, size and content. If all records have one size, they read none in part.
RECORD_BYTES = 512

LockFile = tuple[bytes, bytes]  # content and version of a lock file


class Lease:
    """The right to write in a run's folder: `with Lease.acquire(storage) as lease: ...`.

    `lost` is set once another process holds the lease. Call `check()` before writing what must not be written twice.

    Parameters
    ----------
    storage : Storage
        The run's folder.
    name : str
        Name of the lock file.
    heartbeat_s : float
        Seconds between two heartbeats.
    stale_after_s : float
        Seconds without a heartbeat after which a holder counts as dead.
    """

    def __init__(self, storage: Storage, name: str, heartbeat_s: float, stale_after_s: float) -> None:
        self.storage, self.name = storage, name
        self.heartbeat_s, self.stale_after_s = heartbeat_s, stale_after_s
        self.record = {"token": uuid.uuid4().hex, "beat": 0, **_describe_this_process(), "since": _utc_now()}
        self.lost = threading.Event()
        self._version: bytes | None = None  # of the lock file, if this process wrote it
        self._is_conditional = True  # whether the storage has conditional writes
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._renewed_at = _clock()
        self._thread = threading.Thread(target=self._keep_renewing, name=f"lease of {storage.name}", daemon=True)

    @classmethod
    def acquire(
        cls,
        storage: Storage,
        name: str = "lock.json",
        *,
        heartbeat_s: float = 3.0,
        stale_after_s: float = 20.0,
        report: Callable[[str], Any] = print,
        alternative: str = "another --name",
    ) -> Lease:
        """Acquire the lease of a run; wait about `stale_after_s` at most for a run that may be dead.

        Parameters
        ----------
        storage, name, heartbeat_s, stale_after_s
            See the class.
        report : callable
            Receives a line if there is something to wait for.
        alternative : str
            What to type instead if the lease is held; ends the message.

        Returns
        -------
        Lease
            The lease, which a thread renews until it is released.

        Raises
        ------
        LeaseHeld
            If another run is alive; the message names its process and start.
        """
        lease = cls(storage, name, heartbeat_s, stale_after_s)
        while True:
            found = lease._read()
            if found is not None and not _is_dead(found[0]):
                found = lease._wait_until_stale(found, report, alternative)
            if lease._claim(found, report):
                lease._thread.start()
                return lease

    def check(self) -> None:
        """Raise LeaseLost if another process holds the lease.

        If the last heartbeat is old, read the lock file first: a process that slept (a stopped job, a closed laptop)
        may have been replaced.
        """
        if not self.lost.is_set() and _clock() - self._renewed_at > self.stale_after_s / 2:
            self._renew()
        if self.lost.is_set():
            raise LeaseLost(
                f"the run {self.storage.name!r} gave no sign of life for {self.stale_after_s:.0f} s, and another "
                f"process took over its lease ({self.storage.path}/{self.name}); this process stops, so that they do "
                "not both write"
            )

    def release(self) -> None:
        """Delete the lock file, unless another process holds the lease by now."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()
        with self._lock, contextlib.suppress(OSError):  # if the storage is gone, the lease becomes stale by itself
            if not self.lost.is_set() and self._is_own():
                self.storage.delete(self.name)

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _read(self) -> LockFile | None:
        try:
            return self.storage.read_version(self.name)
        except FileNotFoundError:
            return None

    def _encode(self) -> bytes:
        return json.dumps(self.record).encode().ljust(RECORD_BYTES)

    def _is_own(self) -> bool:
        """Return whether this process wrote the lock file, and note its version."""
        found = self._read()
        if found is None or _decode(found[0]).get("token") != self.record["token"]:
            return False
        self._version = found[1]
        return True

    def _wait_until_stale(self, found: LockFile, report: Callable[[str], Any], alternative: str) -> LockFile | None:
        """Return the lock file once it has not changed for `stale_after_s`, or None once it is deleted.

        Raise LeaseHeld if it changes.
        """
        report(f"waiting to see whether the run that holds {self.storage.name!r} is still alive ...")
        deadline = _clock() + self.stale_after_s
        while _clock() < deadline:
            time.sleep(min(self.heartbeat_s / 2, max(0.0, deadline - _clock())))
            current = self._read()
            if current is None or _is_dead(current[0]):
                return current
            if current != found:
                raise LeaseHeld(_held_message(self.storage, self.name, current[0], alternative))
        return found

    def _claim(self, found: LockFile | None, report: Callable[[str], Any]) -> bool:
        """Return whether this process holds the lease now; False if the lock file changed since `found` was read."""
        if self._is_conditional:
            try:
                return self._write_if(None if found is None else found[1])
            except ConditionsUnsupported as error:
                report(f"{error}; a run that starts at the same moment is recognized by waiting for it")
                self._is_conditional = False
        if self._read() != found:
            return False
        self.storage.write_bytes(self.name, self._encode())
        time.sleep(self.heartbeat_s / 2)  # others that claim at the same time have written by now
        return self._is_own()

    def _write_if(self, version: bytes | None) -> bool:
        """Replace a version of the lock file, and return whether it is this process's now."""
        written = self.storage.write_if(self.name, self._encode(), version)
        if written is None:
            return self._is_own()  # S3 may have written it although its answer was lost
        self._version = written
        return True

    def _keep_renewing(self) -> None:
        while not self._stop.wait(self.heartbeat_s) and not self.lost.is_set():
            self._renew()

    def _renew(self) -> None:
        """Write one heartbeat. A storage that does not answer is tried again: the lease may still be held then."""
        with self._lock, contextlib.suppress(OSError):
            if self._stop.is_set():
                return
            self.record["beat"] += 1
            if self._renew_lock_file():
                self._renewed_at = _clock()
            else:
                self.lost.set()

    def _renew_lock_file(self) -> bool:
        """Write one heartbeat, and return whether this process still holds the lease."""
        with contextlib.suppress(ConditionsUnsupported):
            if self._is_conditional:
                return self._write_if(self._version)
        self._is_conditional = False
        if not self._is_own():
            return False
        self.storage.write_bytes(self.name, self._encode())
        return True


def _utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _clock() -> float:
    """Return seconds of a clock that, where the system has one, also runs while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def _describe_this_process() -> dict[str, Any]:
    pid = os.getpid()
    return {"host": socket.gethostname(), "pid": pid, "machine": _machine_id(), "started": _start_time(pid)}


def _machine_id() -> str | None:
    """Return what processes that can see each other share: the boot of the machine and the process id namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _start_time(pid: int) -> str | None:
    """Return when a process of this machine started, in ticks after the boot; "ended" for a zombie, None if hidden."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return "ended" if fields[0] in "ZX" else fields[19]  # fields 3 and 22 of proc(5)


def _decode(content: bytes) -> dict[str, Any]:
    try:
        record = json.loads(content)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def _is_dead(content: bytes) -> bool:
    """Return whether the holder was a process of this machine that has ended, even if its pid was reused."""
    record = _decode(content)
    if record.get("machine") is None or record["machine"] != _machine_id() or record.get("started") is None:
        return False
    try:
        os.kill(record["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # alive, of another user
    return _start_time(record["pid"]) not in (None, record["started"])


def _held_message(storage: Storage, name: str, content: bytes, alternative: str) -> str:
    record = _decode(content)
    holder = f"process {record.get('pid', '?')} on {record.get('host', '?')}, since {record.get('since', '?')}"
    return (
        f"the run {storage.name!r} is held by another live run: {holder} ({storage.path}/{name}); wait for it, stop "
        f"it, or give this one {alternative}"
    )

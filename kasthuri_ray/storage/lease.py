"""Who holds a run's name: one process at a time, on a disk or on S3, without comparing the clocks of machines.

The holder keeps a small file in the run's folder and counts up a number in it (its heartbeat). Who wants the name
watches that file by its own clock: a number that moves is a live run, and the name is refused; one that stands still
for `patience_s` is a run that is gone, and the name is taken over. A process of this machine that is known to be dead
is not waited for. A claim is written, left alone for a moment and read back, so that of several who claim at once the
last to write holds the name. A holder that finds itself replaced says so by `lost` and `check()`.
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
from kasthuri_ray.storage.folder import Storage

# S3 is read in two requests, size and content: records of one size are never read in part.
RECORD_BYTES = 512


class Lease:
    """The right to write in a run's folder: `with Lease.acquire(storage) as lease: ...`.

    lost: set once another process holds the name; `check()` raises then. Look before writing what must not be torn.
    """

    def __init__(self, storage: Storage, name: str, heartbeat_s: float, patience_s: float) -> None:
        self.storage, self.name = storage, name
        self.heartbeat_s, self.patience_s = heartbeat_s, patience_s
        self.record = {"token": uuid.uuid4().hex, "beat": 0, **_this_process(), "since": _now()}
        self.lost = threading.Event()
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._last_beat = _clock()
        self._thread = threading.Thread(target=self._beat_on, name=f"lease of {storage.name}", daemon=True)

    @classmethod
    def acquire(
        cls,
        storage: Storage,
        name: str = "lock.json",
        *,
        heartbeat_s: float = 3.0,
        patience_s: float = 20.0,
        say: Callable[[str], Any] = print,
        instead: str = "another --name",
    ) -> Lease:
        """The lease of the run whose folder is `storage`; waits at most about `patience_s` for a run that is gone.

        name: of the file that says who holds the run. say: gets a line when there is something to wait for.
        instead: what to give if the name is held. Raises LeaseHeld, with who holds it and since when, where another
        run is alive.
        """
        lease = cls(storage, name, heartbeat_s, patience_s)
        while True:
            seen = lease._read()
            if seen is not None and not _is_dead(seen):
                seen = lease._watch(seen, say, instead)
            if lease._claim(seen):
                lease._thread.start()
                return lease

    def check(self) -> None:
        """Raises LeaseLost if another process holds the name; looks anew where the heartbeat has not for long.

        A process that slept (a stopped job, a closed laptop) asks the storage before it goes on.
        """
        if not self.lost.is_set() and _clock() - self._last_beat > self.patience_s / 2:
            self._beat()
        if self.lost.is_set():
            raise LeaseLost(
                f"the run {self.storage.name!r} was not heard of for {self.patience_s:.0f} s and another process took "
                f"its name over ({self.storage.path}/{self.name}); this one stops, so that they do not write at once"
            )

    def release(self) -> None:
        """Gives the name back; a lock that is another's by now stays."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()
        with self._lock, contextlib.suppress(OSError):  # a storage that is gone lets the lock go stale by itself
            if not self.lost.is_set() and self._holds(self._read()):
                self.storage.delete(self.name)

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _read(self) -> bytes | None:
        try:
            return self.storage.read_bytes(self.name)
        except FileNotFoundError:
            return None

    def _holds(self, seen: bytes | None) -> bool:
        return seen is not None and _parsed(seen).get("token") == self.record["token"]

    def _bytes(self) -> bytes:
        return json.dumps(self.record).encode().ljust(RECORD_BYTES)

    def _watch(self, seen: bytes, say: Callable[[str], Any], instead: str) -> bytes | None:
        """What is there once it has stood still for `patience_s`, or None once it is gone; LeaseHeld if it moves."""
        say(f"waiting to see whether the run that holds {self.storage.name!r} is still alive ...")
        end = _clock() + self.patience_s
        while _clock() < end:
            time.sleep(min(self.heartbeat_s / 2, max(0.0, end - _clock())))
            now = self._read()
            if now is None or _is_dead(now):
                return now
            if now != seen:
                raise LeaseHeld(_held_words(self.storage, self.name, now, instead))
        return seen

    def _claim(self, seen: bytes | None) -> bool:
        """Whether this process holds the name now; False if someone else moved since `seen` was read."""
        if seen is None and self.storage.folder is not None:
            return self.storage.write_new(self.name, self._bytes())
        if self._read() != seen:
            return False
        self.storage.write_bytes(self.name, self._bytes())
        time.sleep(self.heartbeat_s / 2)  # who claims at the same time has written by now
        return self._holds(self._read())

    def _beat_on(self) -> None:
        while not self._stop.wait(self.heartbeat_s) and not self.lost.is_set():
            self._beat()

    def _beat(self) -> None:
        """One heartbeat. A storage that does not answer is tried again: it may come back with the name still ours."""
        with self._lock, contextlib.suppress(OSError):
            if self._stop.is_set():
                return
            if not self._holds(self._read()):
                self.lost.set()
                return
            self.record["beat"] += 1
            self.storage.write_bytes(self.name, self._bytes())
            self._last_beat = _clock()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _clock() -> float:
    """Seconds that pass while the machine sleeps, too, where the system counts them."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def _this_process() -> dict[str, Any]:
    pid = os.getpid()
    return {"host": socket.gethostname(), "pid": pid, "machine": _machine(), "started": _started(pid)}


def _machine() -> str | None:
    """What processes that can see each other share: this boot of the machine and its space of process ids."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _started(pid: int) -> str | None:
    """When a process of this machine began, in ticks after the boot; "ended" for a zombie, None if it is hidden."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return "ended" if fields[0] in "ZX" else fields[19]  # fields 3 and 22 of proc(5)


def _parsed(seen: bytes) -> dict[str, Any]:
    try:
        record = json.loads(seen)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def _is_dead(seen: bytes) -> bool:
    """Whether the holder was a process of this machine that is no more, also if its number serves another now."""
    record = _parsed(seen)
    if record.get("machine") is None or record["machine"] != _machine() or record.get("started") is None:
        return False
    try:
        os.kill(record["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # another person's, alive
    return _started(record["pid"]) not in (None, record["started"])


def _held_words(storage: Storage, name: str, seen: bytes, instead: str) -> str:
    record = _parsed(seen)
    who = f"process {record.get('pid', '?')} on {record.get('host', '?')}, since {record.get('since', '?')}"
    return (
        f"the run {storage.name!r} is held by another live run: {who} ({storage.path}/{name}); wait for it, stop it, "
        f"or give this one {instead}"
    )

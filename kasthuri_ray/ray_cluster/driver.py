"""Ray Train around what a worker does: the trainer that starts the workers, and the wait for its end."""

from __future__ import annotations

import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from kasthuri_ray.errors import LeaseLost, WorkFailed
from kasthuri_ray.progress import Reporter
from kasthuri_ray.ray_cluster.ray_errors import root_cause
from kasthuri_ray.storage.lease import Lease

STOP_S = 10.0  # that work has to end when it is told to


@contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Inside, SIGTERM (`kill`, `ray job stop`) unwinds the stack like Ctrl-C, and the exit code is 143.

    Where it comes inside of `ray.get` or `ray.wait`, Ray makes a SystemExit of code 1 of it; the code is put right.
    """
    received = 0

    def end(number: int, frame: Any) -> None:
        nonlocal received
        received = 128 + number
        raise SystemExit(received)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except SystemExit as error:
        raise SystemExit(received or error.code) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def scratch_folder() -> tempfile.TemporaryDirectory[str]:
    """A folder of this machine for what Ray notes for itself; a context that gives its path."""
    return tempfile.TemporaryDirectory(prefix="kasthuri_ray_", ignore_cleanup_errors=True)


@contextmanager
def guard_ray_work(what: str, reporter: Reporter, lease: Lease) -> Iterator[None]:
    """Inside, what fails is a WorkFailed, and what ends this process early ends its work on Ray too."""
    import ray

    try:
        yield
        lease.check()
    except LeaseLost as error:
        ray.shutdown()
        raise WorkFailed(str(error)) from error
    except WorkFailed:
        raise
    except Exception as error:
        raise WorkFailed(f"{what} failed: {root_cause(error)}") from error
    except BaseException:  # Ctrl-C, or the end of this process
        ray.shutdown()
        raise
    finally:
        reporter.end()


def run_in_thread(work: Callable[[], Any], check: Callable[[], None], stop: Callable[[], None] | None = None) -> None:
    """Do the work in a thread, so that Ctrl-C is ours at any moment; `check` is called now and then and may raise.

    stop: makes the work end soon. It is called where the wait ends before the work, which has STOP_S then: what asks
    Ray for anything after Ray was ended hangs for a minute.
    """
    failed: list[BaseException] = []

    def do() -> None:
        try:
            work()
        except BaseException as error:  # raised where it is waited for
            failed.append(error)

    thread = threading.Thread(target=do, name="ray train", daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(timeout=0.2)
            check()
    except BaseException:
        if stop is not None:
            stop()
            thread.join(timeout=STOP_S)
        raise
    if failed:
        raise failed[0]

"""The driver process of Ray work: SIGTERM, a scratch folder, errors, and waiting in a way that Ctrl-C can interrupt."""

from __future__ import annotations

import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from kasthuri_ray.errors import LeaseLost, UnforeseenFailure, WorkFailed
from kasthuri_ray.progress import Reporter
from kasthuri_ray.ray_cluster.ray_errors import is_foreseen, root_cause
from kasthuri_ray.storage.lease import Lease

CHECK_PERIOD_S = 0.2
STOP_TIMEOUT_S = 10.0  # for work to end after it was asked to stop


@contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Have SIGTERM (`kill`, `ray job stop`) unwind the stack like Ctrl-C, and end the process with exit code 143.

    Yields
    ------
    None

    Notes
    -----
    If the signal arrives inside `ray.get` or `ray.wait`, Ray raises a SystemExit of code 1; the code is corrected here.
    Outside the main thread, which alone receives signals, this does nothing.
    """
    exit_code = 0

    def handle(number: int, frame: Any) -> None:
        nonlocal exit_code
        exit_code = 128 + number
        raise SystemExit(exit_code)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    except SystemExit as error:
        raise SystemExit(exit_code or error.code) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def scratch_folder() -> tempfile.TemporaryDirectory[str]:
    """Create a folder of this machine for files that Ray writes for itself.

    Returns
    -------
    tempfile.TemporaryDirectory
        A context that returns the path, and removes the folder at its end.
    """
    return tempfile.TemporaryDirectory(prefix="kasthuri_ray_", ignore_cleanup_errors=True)


@contextmanager
def guard_ray_work(what: str, reporter: Reporter, lease: Lease) -> Iterator[None]:
    """Turn errors of the work inside into WorkFailed, and shut Ray down if the process is stopped or loses its lease.

    Parameters
    ----------
    what : str
        Begins the message "WHAT failed: ...".
    reporter : Reporter
        Its live line is ended.
    lease : Lease
        Of the run that is written; checked once more at the end.

    Yields
    ------
    None

    Raises
    ------
    WorkFailed
        If the work raises an exception, or another process took over the lease.
    """
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
        failure = WorkFailed if is_foreseen(error) else UnforeseenFailure
        raise failure(f"{what} failed: {root_cause(error)}") from error
    except BaseException:  # Ctrl-C, or SIGTERM
        ray.shutdown()
        raise
    finally:
        reporter.end()


@contextmanager
def name_resume_command(command: str, reporter: Reporter) -> Iterator[None]:
    """Name the command that resumes the work inside if it fails or is stopped.

    Parameters
    ----------
    command : str
        What a person types.
    reporter : Reporter
        Shows the command if the work is stopped.

    Yields
    ------
    None

    Raises
    ------
    WorkFailed
        If the work raises it; its message is followed by the command.
    """
    try:
        yield
    except WorkFailed as error:
        raise type(error)(f"{error}\nto resume: {command}") from error.__cause__
    except (KeyboardInterrupt, SystemExit):
        reporter.print_line(f"to resume: {command}")
        raise


def run_in_thread(work: Callable[[], Any], check: Callable[[], None], stop: Callable[[], None] | None = None) -> None:
    """Run work in a thread and wait for it, so that Ctrl-C is handled at any moment.

    Parameters
    ----------
    work : callable
        What to run. What it raises is raised here.
    check : callable
        Called five times a second; what it raises ends the wait.
    stop : callable or None
        Asks the work to end soon. Called if the wait ends early; the work then has 10 s, since calls to Ray after its
        shutdown hang for a minute.
    """
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # raised again by the waiting thread
            errors.append(error)

    thread = threading.Thread(target=run, name="ray train", daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(timeout=CHECK_PERIOD_S)
            check()
    except BaseException:
        if stop is not None:
            stop()
            thread.join(timeout=STOP_TIMEOUT_S)
        raise
    if errors:
        raise errors[0]

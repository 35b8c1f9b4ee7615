"""Every exception that people see, and how to recognize a full disk."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
TRACEBACK_PREFIX = "kasthuri_ray_error_"  # of the files in the temporary folder that hold the traceback of a bug


class InputError(ValueError):
    """Bad input, which a person can correct: a flag, a setting, a file, a volume, or a place to write to."""


class InputNotFound(InputError, FileNotFoundError):
    """A file, folder, bucket or volume that was named does not exist."""


class InputDenied(InputError, PermissionError):
    """A file, folder, bucket or volume that was named may not be read or written."""


class AlreadyFinished(InputError):
    """A run or a sweep of this name and these settings is finished: no work is left.

    Parameters
    ----------
    message : str
        The message, which says how to continue it.
    path : str
        Path or URL of its folder.
    """

    def __init__(self, message: str, path: str) -> None:
        super().__init__(message)
        self.path = path


@contextmanager
def missing_is_bad_input() -> Iterator[None]:
    """Turn the system's errors about missing and forbidden files into bad input: nothing was begun yet.

    Yields
    ------
    None

    Raises
    ------
    InputNotFound, InputDenied
        For a FileNotFoundError, or a PermissionError, IsADirectoryError or NotADirectoryError, with its message.
    """
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputNotFound(str(error)) from error
    except (PermissionError, IsADirectoryError, NotADirectoryError) as error:
        raise InputDenied(str(error)) from error


@contextmanager
def named_input(name: str, value: str) -> Iterator[None]:
    """Begin the message of an InputError with the name of what a person gave.

    Parameters
    ----------
    name : str
        A flag or a setting, such as `--image`; "" leaves the message as it is.
    value : str
        What was given, such as a path.

    Yields
    ------
    None

    Raises
    ------
    InputError
        Of the same class; it names the value once.
    """
    try:
        yield
    except InputError as error:
        if not name or str(error).startswith(name):
            raise
        raise type(error)(_named_message(name, value, str(error))) from error


def _named_message(name: str, value: str, message: str) -> str:
    is_flag = name.startswith("--") and " " not in name  # not a --set, nor a key of a file
    if value and is_flag and message.startswith(value):
        return f"{name} {message}"
    return f"{name}: {message}" if value in message else f"{name} {value}: {message}"


class WorkFailed(Exception):
    """Work that had started could not be finished; the message says why, and how to resume."""


class UnforeseenFailure(WorkFailed):
    """Work that had started failed with an error that nothing foresees, its `__cause__`; its traceback is of use."""


class LeaseHeld(InputError):
    """Another live run holds the lease."""


class LeaseLost(RuntimeError):
    """This run counted as dead, and another one holds its lease now; it must not write any more."""


class GpuMemoryTooSmall(RuntimeError):
    """The GPU does not have the memory for a batch of tiles."""


class CompilationFailed(RuntimeError):
    """The network cannot be compiled on this machine."""


class NodeUnsuitable(Exception):
    """This machine or GPU cannot do the work, another one may; the message says why."""


class ActorPoolStopped(Exception):
    """No actor can continue the work; the message says why.

    Parameters
    ----------
    reason : str
        The message.
    traceback : str
        The traceback of the first block that failed; empty if there is none.
    """

    def __init__(self, reason: str, traceback: str = "") -> None:
        super().__init__(reason)
        self.traceback = traceback


class VolumeError(OSError):
    """A source of voxels fails: it is down, too slow, or its answers stay broken."""


def is_disk_full(error: BaseException | None) -> bool:
    """Return whether an error says that a disk or a quota is full.

    Parameters
    ----------
    error : BaseException or None
        Any error.

    Returns
    -------
    bool
        True for an OSError with one of two error numbers.
    """
    return isinstance(error, OSError) and error.errno in DISK_FULL


def disk_full_error(what: str, kept: str, number: int = errno.ENOSPC) -> OSError:
    """Return the error for a full disk, with a message for people.

    Parameters
    ----------
    what : str
        What could not be written.
    kept : str
        What of the earlier work is kept.
    number : int
        The `errno` of the error.

    Returns
    -------
    OSError
        To be raised.
    """
    return OSError(number, f"the disk is full: {what} could not be written; {kept}. Free some space")

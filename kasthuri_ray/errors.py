"""Every exception that people see, and how to tell a full disk."""

from __future__ import annotations

import errno

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class WorkFailed(Exception):
    """The work had begun and could not be ended; the message says why, and how to go on."""


class LeaseHeld(ValueError):
    """Another live run holds the name."""


class LeaseLost(RuntimeError):
    """This run was taken for dead and another one holds its name now; it must not write any more."""


class GpuMemoryTooSmall(RuntimeError):
    """The card has not the memory for a batch of tiles."""


class CompilationFailed(RuntimeError):
    """The network is to be compiled, and that does not work here."""


class NodeUnsuitable(Exception):
    """This machine or card cannot do what is asked for; another one may. The message says why."""


class ActorPoolStopped(Exception):
    """There is no use in going on; the message says why, `traceback` holds that of the first block that failed."""

    def __init__(self, reason: str, traceback: str = "") -> None:
        super().__init__(reason)
        self.traceback = traceback


class VolumeError(OSError):
    """A source of voxels that should answer does not: it is down, too slow, or its answers stay broken."""


def is_disk_full(error: BaseException | None) -> bool:
    """Return whether an error says that a disk or a quota is full.

    Parameters
    ----------
    error : BaseException or None

    Returns
    -------
    bool
    """
    return isinstance(error, OSError) and error.errno in DISK_FULL


def disk_full_error(what: str, kept: str, number: int = errno.ENOSPC) -> OSError:
    """Return the error for a full disk, as people read it.

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
    """
    return OSError(number, f"the disk is full: {what} could not be written; {kept}. Free some space")

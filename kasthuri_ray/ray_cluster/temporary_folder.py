"""The folder for the sockets and logs of a local Ray: a short path that this user may write.

Ray's own choice, `ray` in the folder for temporary files, fails if the path of a socket below it is longer than the
system allows, or if the folder belongs to another person.
"""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

from kasthuri_ray.errors import InputError
from kasthuri_ray.storage.local_paths import can_create_in, nearest_existing

SOCKET = "session_2026-01-31_23-59-59_999999_4194304/sockets/plasma_store"  # Ray's longest (ray/_private/node.py)
SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")
REMOVAL_TIMEOUT_S = 5.0  # for processes of Ray that end and still write logs


def default_ray_folder() -> str:
    """Return the absolute path of the folder that Ray would choose."""
    on_linux = os.environ.get("TMPDIR") if sys.platform == "linux" else None
    return os.path.abspath(os.path.join(os.environ.get("RAY_TMPDIR") or on_linux or "/tmp", "ray"))


def find_fault(folder: str) -> str:
    """Return why Ray cannot keep its files in a folder.

    Parameters
    ----------
    folder : str
        Absolute path; the folder need not exist.

    Returns
    -------
    str
        The reason, as the end of a sentence; empty if there is none.
    """
    excess = len(os.fsencode(f"{folder}/{SOCKET}")) - _max_socket_bytes()
    if excess > 0:
        return f"the path {folder} is {excess} bytes too long for the sockets in it"
    existing = nearest_existing(folder)
    if not can_create_in(existing):
        return f"{existing} cannot be written"
    is_ours = existing != Path(folder) or existing.stat().st_uid == os.geteuid()
    return "" if is_ours else f"{folder} belongs to another user"


@cache
def private_ray_folder() -> str:
    """Create a short folder that only this user can enter, once in a process, and remove it when the process ends.

    Returns
    -------
    str
        Path of a folder in it, for Ray, which lets everybody write to its own.

    Raises
    ------
    InputError
        If no short folder can be written.
    """
    for parent in SHORT_FOLDERS:
        if not can_create_in(parent) or find_fault(f"{parent}/kr_12345678/ray"):
            continue
        folder = tempfile.mkdtemp(prefix="kr_", dir=parent)
        atexit.register(_remove, folder, os.getpid())
        return f"{folder}/ray"
    raise InputError(
        f"Ray needs a folder for temporary files whose path is short, and {', '.join(SHORT_FOLDERS)} cannot be "
        "written; set RAY_TMPDIR to a folder of your own with a path of at most 35 letters"
    )


def _max_socket_bytes() -> int:
    """Return how long the path of a socket may be; the system needs one byte more, for its end."""
    return 103 if sys.platform == "darwin" else 107


def _remove(folder: str, pid: int) -> None:
    """Remove the folder, after Ray has ended; not in a copy of the process that created it."""
    if os.getpid() != pid:
        return
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()
    end = time.monotonic() + REMOVAL_TIMEOUT_S
    while os.path.exists(folder) and time.monotonic() < end:
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.1)

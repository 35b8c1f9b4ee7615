"""Compilation of networks, with kernels that are kept in the user's cache folder: a second run builds none again."""

from __future__ import annotations

import hashlib
import os
import platform
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kasthuri_ray.storage.local_paths import can_create_in, nearest_existing, user_cache_folder
from kasthuri_ray.storage.uris import expand_home

KERNEL_FOLDER_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"  # torch's; a value that the user has set wins


def compile_network(network: nn.Module) -> Callable[..., Any]:
    """Return a network that is compiled at its first call for each shape.

    Parameters
    ----------
    network : torch.nn.Module
        The network.

    Returns
    -------
    callable
        The compiled network. Its kernels are kept in `kernel_folder`, also when this process is a worker.
    """
    folder = kernel_folder()
    if folder is not None and not _has_user_chosen(os.environ.get(KERNEL_FOLDER_VARIABLE)):
        os.environ[KERNEL_FOLDER_VARIABLE] = folder
    return torch.compile(network, dynamic=False)


def _has_user_chosen(folder: str | None) -> bool:
    """Return whether a person has set the folder; when torch's compiler is loaded it sets one of temporary files."""
    is_torchs = folder is not None and os.path.basename(folder).startswith("torchinductor_")
    return folder is not None and not (is_torchs and os.path.dirname(folder) == tempfile.gettempdir())


def kernel_folder() -> str | None:
    """Return the folder of the kernels for this machine's processor.

    Returns
    -------
    str or None
        A folder below the user's cache. Its name tells processors apart, because kernels use all instructions that a
        processor has, and several machines may share a home folder. None if there is no cache, or it cannot be written:
        torch then keeps them among the temporary files.
    """
    cache = user_cache_folder()
    if cache.lower() == "none":
        return None
    instructions = hashlib.sha256(_instruction_sets().encode()).hexdigest()[:12]
    folder = os.path.join(os.path.abspath(expand_home(cache)), "kernels", f"{platform.machine()}-{instructions}")
    return folder if can_create_in(nearest_existing(folder)) else None


def _instruction_sets() -> str:
    """Return the line of /proc/cpuinfo that names the instructions of this processor; nothing on other systems."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return line.partition(":")[2]
    return ""

"""Which package this process runs: what must be the same on every node of a cluster."""

from __future__ import annotations

import hashlib
import platform
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import kasthuri_ray

# Those whose other release may compute or write other bytes.
LIBRARIES = ("ray", "torch", "numpy", "tensorstore", "zarr")


@lru_cache(maxsize=1)
def fingerprint() -> dict[str, str]:
    """By name what is installed here: of this package its version and a hash of its sources, else releases.

    A release's local part, the `+cpu` of torch, is left out: nodes with and without GPUs have other builds of one.
    """
    found = {"kasthuri_ray": f"{_release('kasthuri_ray')} {sources_hash()}", "python": platform.python_version()}
    return found | {name: _release(name) for name in LIBRARIES}


def _release(name: str) -> str:
    try:
        return version(name).partition("+")[0]
    except PackageNotFoundError:  # run from a checkout, or from the working directory of a Ray job
        return "not installed"


def sources_hash() -> str:
    """Eight hexadecimal digits that differ where a module or a JSON file of the package differs."""
    folder, digest = Path(kasthuri_ray.__file__).parent, hashlib.sha256()
    for path in sorted(path for kind in ("*.py", "*.json", "*.css") for path in folder.rglob(kind)):
        digest.update(f"{path.relative_to(folder).as_posix()}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:8]

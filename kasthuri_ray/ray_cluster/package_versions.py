"""Versions of the package and its libraries, compared across the nodes of a cluster."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from kasthuri_ray.errors import InputError
from kasthuri_ray.ray_cluster.nodes import ClusterNode, ask_nodes

PACKAGE = Path(__file__).parents[1]
SOURCES = ("*.py", "*.json", "*.css", "*.jinja")  # files of the package that enter its hash
COMMANDS = PACKAGE / "jobs"  # only in an installed package, and only on the machine where a command is typed
LIBRARIES = ("ray", "torch", "numpy", "tensorstore", "zarr")  # another release may compute or write other bytes
NOT_INSTALLED = "not installed"


def check_same_package(nodes: Sequence[ClusterNode]) -> None:
    """Raise an InputError that names the nodes with another package than this process.

    A node that does not answer is ignored: it is shutting down, or the work will find it out.
    """
    expected = package_fingerprint()
    answers = [answer for answer in ask_nodes(nodes, node_fingerprint()) if answer.error is None]
    differences = package_differences(expected, {answer.node.name: answer.value for answer in answers})
    if differences:
        raise InputError(
            "nodes of this cluster run other packages than this job, and would compute other results:\n  "
            + "\n  ".join(differences)
            + "\nInstall the same on every node (one image for all), or submit the job with --working-dir and the "
            "package in it"
        )


def package_differences(expected: Mapping[str, str], by_node: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Return a line for each node whose fingerprint differs: what it has, and what is expected.

    Parameters
    ----------
    expected : mapping
        The fingerprint of this process.
    by_node : mapping
        The fingerprint of each node, by its name.
    """
    lines = []
    for node, installed in by_node.items():
        different = [name for name in expected if installed.get(name, NOT_INSTALLED) != expected[name]]
        if different:
            pairs = (f"{name} {installed.get(name, NOT_INSTALLED)} instead of {expected[name]}" for name in different)
            lines.append(f"{node} has {', '.join(pairs)}")
    return lines


def node_fingerprint() -> Callable[[], dict[str, str]]:
    """Return a function for `ask_nodes` that returns a node's fingerprint, even if the package is not installed."""

    # A nested function is pickled by value, so a node without the package can run it. For the same reason it imports
    # what it calls.
    def fingerprint() -> dict[str, str]:
        try:
            from kasthuri_ray.ray_cluster.package_versions import package_fingerprint
        except ImportError:
            return {"kasthuri_ray": "not installed"}
        return package_fingerprint()

    return fingerprint


@lru_cache(maxsize=1)
def package_fingerprint() -> dict[str, str]:
    """Return the versions of this package, of Python and of libraries that can change results.

    The version of this package is followed by a hash of its sources. The local part of a version (`+cpu` of torch) is
    left out: nodes with and without GPUs have different builds of one release.
    """
    own = f"{_release('kasthuri_ray')} {sources_hash()}"
    versions = {"kasthuri_ray": own, "python": platform.python_version()}
    return versions | {name: _release(name) for name in LIBRARIES}


def _release(name: str) -> str:
    try:
        return version(name).partition("+")[0]
    except PackageNotFoundError:  # a checkout, or the working directory of a Ray job
        return NOT_INSTALLED


def sources_hash() -> str:
    """Return eight hexadecimal digits that change with any source file of the package."""
    digest = hashlib.sha256()
    paths = (path for pattern in SOURCES for path in PACKAGE.rglob(pattern) if COMMANDS not in path.parents)
    for path in sorted(paths):
        digest.update(f"{path.relative_to(PACKAGE).as_posix()}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:8]

"""Nodes of the cluster: run a function on each of them, and compare the packages that they have installed."""

from __future__ import annotations

import hashlib
import platform
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ANSWER_TIMEOUT_S = 60.0  # for a node to start a process and run the function

PACKAGE = Path(__file__).parents[1]
SOURCES = ("*.py", "*.json", "*.css")  # files of the package that enter its hash
LIBRARIES = ("ray", "torch", "numpy", "tensorstore", "zarr")  # another release may compute or write other bytes
NOT_INSTALLED = "not installed"


@dataclass(frozen=True)
class ClusterNode:
    """A living node.

    Parameters
    ----------
    id : str
        Ray's id of the node.
    name : str
        What messages call it: its host name.
    address : str
        Its IP address.
    resources : mapping
        Amount of each resource, by Ray's names (CPU, GPU, object_store_memory).
    """

    id: str
    name: str
    address: str
    resources: Mapping[str, float]


@dataclass(frozen=True)
class NodeAnswer:
    """What a function returned on a node, or why it did not.

    Parameters
    ----------
    node : ClusterNode
        The node.
    value : object
        What the function returned; None if there was an error.
    error : Exception or None
        What the function raised, or a TimeoutError.
    """

    node: ClusterNode
    value: Any = None
    error: Exception | None = None


def living_nodes() -> list[ClusterNode]:
    """Return the nodes that Ray lists as alive, sorted by address.

    Their names are host names, followed by the address if two nodes share one.
    """
    import ray

    rows = sorted((row for row in ray.nodes() if row["Alive"]), key=lambda row: str(row["NodeManagerAddress"]))
    num_nodes = Counter(row["NodeManagerHostname"] for row in rows)
    return [
        ClusterNode(
            row["NodeID"],
            host if num_nodes[host] == 1 else f"{host} ({row['NodeManagerAddress']})",
            row["NodeManagerAddress"],
            row["Resources"],
        )
        for row in rows
        for host in [row["NodeManagerHostname"]]
    ]


def ask_nodes(
    nodes: Sequence[ClusterNode], function: Callable[..., Any], *args: Any, timeout_s: float = ANSWER_TIMEOUT_S
) -> list[NodeAnswer]:
    """Run a function on each node at the same time, without occupying a CPU in Ray.

    Parameters
    ----------
    nodes : sequence of ClusterNode
        Where to run it.
    function : callable
        Can be pickled, as its result.
    *args
        Its arguments.
    timeout_s : float
        Seconds after which a node that has not answered gets a TimeoutError.

    Returns
    -------
    list of NodeAnswer
        In the order of the nodes.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def call() -> Any:
        return function(*args)

    task: Any = ray.remote(num_cpus=0, max_retries=0)(call)
    references = [
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)).remote() for node in nodes
    ]
    done: list[Any] = []
    if references:
        done, _ = ray.wait(references, num_returns=len(references), timeout=timeout_s, fetch_local=False)
    answers = []
    for node, reference in zip(nodes, references, strict=True):
        try:
            if reference not in done:
                ray.cancel(reference, force=True)
                raise TimeoutError(f"no answer in {timeout_s:g} s")
            answers.append(NodeAnswer(node, ray.get(reference, timeout=10)))
        except Exception as error:
            answers.append(NodeAnswer(node, error=error))
    return answers


def check_same_package(nodes: Sequence[ClusterNode]) -> None:
    """Raise a ValueError that names the nodes with another package than this process.

    A node that does not answer is ignored: it is shutting down, or the work will find it out.
    """
    expected = package_fingerprint()
    answers = [answer for answer in ask_nodes(nodes, node_fingerprint()) if answer.error is None]
    differences = package_differences(expected, {answer.node.name: answer.value for answer in answers})
    if differences:
        raise ValueError(
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
            from kasthuri_ray.ray_cluster.nodes import package_fingerprint
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
    for path in sorted(path for pattern in SOURCES for path in PACKAGE.rglob(pattern)):
        digest.update(f"{path.relative_to(PACKAGE).as_posix()}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:8]

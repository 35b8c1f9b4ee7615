"""Every node of the cluster, asked at once: what it sees, and whether it runs the package that we run."""

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

ANSWER_DEADLINE_S = 60.0  # in which a node starts a process and answers


# Those whose other release may compute or write other bytes.
PACKAGE = Path(__file__).parents[1]
SOURCES = ("*.py", "*.json", "*.css")  # what makes two installations of the package different
LIBRARIES = ("ray", "torch", "numpy", "tensorstore", "zarr")


@dataclass(frozen=True)
class ClusterNode:
    """A living node. name: what a person calls it. resources: in Ray's names, such as CPU and GPU."""

    id: str
    name: str
    address: str
    resources: Mapping[str, float]


@dataclass(frozen=True)
class NodeAnswer:
    """What a node said; `error` instead of it where the question failed, or where the node did not answer."""

    node: ClusterNode
    value: Any = None
    error: Exception | None = None


def living_nodes() -> list[ClusterNode]:
    """The nodes that Ray takes for alive, by address. Names are host names, with the address where two share one."""
    import ray

    rows = sorted((row for row in ray.nodes() if row["Alive"]), key=lambda row: str(row["NodeManagerAddress"]))
    times = Counter(row["NodeManagerHostname"] for row in rows)
    return [
        ClusterNode(
            row["NodeID"],
            host if times[host] == 1 else f"{host} ({row['NodeManagerAddress']})",
            row["NodeManagerAddress"],
            row["Resources"],
        )
        for row in rows
        for host in [row["NodeManagerHostname"]]
    ]


def ask_nodes(
    nodes: Sequence[ClusterNode],
    question: Callable[..., Any],
    *given: Any,
    seconds: float = ANSWER_DEADLINE_S,
    runtime_env: dict[str, Any] | None = None,
) -> list[NodeAnswer]:
    """What `question(*given)` gives on each node, in their order; takes no CPU that others wait for.

    Those that are silent after so many seconds answer with a TimeoutError.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def put() -> Any:
        return question(*given)

    task: Any = ray.remote(num_cpus=0, max_retries=0)(put)
    asked = [
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)).remote() for node in nodes
    ]
    come = ray.wait(asked, num_returns=len(asked), timeout=seconds, fetch_local=False)[0] if asked else []
    answers = []
    for node, reference in zip(nodes, asked, strict=True):
        try:
            if reference not in come:
                ray.cancel(reference, force=True)
                raise TimeoutError(f"no answer in {seconds:g} s")
            answers.append(NodeAnswer(node, ray.get(reference, timeout=10)))
        except Exception as error:
            answers.append(NodeAnswer(node, error=error))
    return answers


def node_fingerprint() -> Callable[[], dict[str, str]]:
    """A question for `ask`: the fingerprint of a node's package, also where there is none."""

    # In here, so that it travels by value: a node without the package could not read it otherwise.
    def describe() -> dict[str, str]:
        try:
            pass
        except ImportError:
            return {"kasthuri_ray": "not installed"}
        return package_fingerprint()

    return describe


def check_same_package(nodes: Sequence[ClusterNode]) -> None:
    """Raise a ValueError, with the nodes named, if any runs another package than this process.

    A node that does not answer is on its way out, or will be found by the work.
    """
    ours = package_fingerprint()
    answers = [each for each in ask_nodes(nodes, node_fingerprint()) if each.error is None]
    differ = package_differences(ours, {each.node.name: each.value for each in answers})
    if differ:
        raise ValueError(
            "nodes of this cluster run other packages than this job, and would compute other results:\n  "
            + "\n  ".join(differ)
            + "\nInstall the same on every node (one image for all), or submit the job with --working-dir and the "
            "package in it"
        )


def package_differences(ours: Mapping[str, str], theirs: Mapping[str, Mapping[str, str]]) -> list[str]:
    """A line for each node, by name, whose fingerprint is not `ours`: what it has, and what this job has."""
    lines = []
    for name, found in theirs.items():
        wrong = [key for key in ours if found.get(key, "not installed") != ours[key]]
        if wrong:
            words = ", ".join(f"{key} {found.get(key, 'not installed')} instead of {ours[key]}" for key in wrong)
            lines.append(f"{name} has {words}")
    return lines


@lru_cache(maxsize=1)
def package_fingerprint() -> dict[str, str]:
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
    digest = hashlib.sha256()
    for path in sorted(path for kind in SOURCES for path in PACKAGE.rglob(kind)):
        digest.update(f"{path.relative_to(PACKAGE).as_posix()}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:8]

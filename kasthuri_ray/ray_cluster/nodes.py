"""Nodes of the cluster: which are alive, and a function run on each of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ANSWER_TIMEOUT_S = 60.0  # for a node to start a process and run the function


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

"""Resources of a Ray cluster: what it has, what is free, whether a job fits, and requests to the autoscaler.

A job calls `require_resources` before any work. A pool of actors watches the cluster with `ClusterView` while it works.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from kasthuri_ray.errors import InputError

NODES_MAX_AGE_S = 1.0  # of a cached list of nodes
BUSY_WAIT_S = 60.0  # for resources that others hold: a run that was killed releases them within seconds
UNLIMITED_ACTORS = 1_000_000  # of actors that need no resource


@dataclass(frozen=True)
class ClusterResources:
    """What Ray counts in a cluster.

    Parameters
    ----------
    cpus, gpus : float
        Logical CPUs and GPUs.
    nodes : int
        Living nodes.
    """

    cpus: float
    gpus: float
    nodes: int


@dataclass(frozen=True)
class ResourceDemand:
    """What a job needs at once: a number of equal processes, and CPUs to load data.

    Parameters
    ----------
    num_processes : int
        Number of processes.
    cpus_each, gpus_each : float
        Logical CPUs and GPUs of each process.
    loading_cpus : float
        Logical CPUs beside the processes, to load data.
    noun : str
        What messages call the processes.
    flag : str
        Sets the number of processes on the command line.
    gpu_flag : str
        Asks for GPUs on the command line.
    """

    num_processes: int
    cpus_each: float
    gpus_each: float = 0.0
    loading_cpus: float = 0.0
    noun: str = "workers"
    flag: str = "--num-workers"
    gpu_flag: str = "--device cuda"

    @property
    def cpus(self) -> float:
        """Logical CPUs of all processes and of loading data."""
        return self.num_processes * self.cpus_each + self.loading_cpus

    @property
    def gpus(self) -> float:
        """GPUs of all processes."""
        return self.num_processes * self.gpus_each

    def describe_shortage(self, cluster: ClusterResources, state: str = "") -> str:
        """Return what the cluster lacks, with both numbers; empty if it has enough.

        Parameters
        ----------
        cluster : ClusterResources
            What the cluster has.
        state : str
            Follows the number that the cluster has: "free" if `cluster` holds what is free.
        """
        shortages, processes = [], format_resource(self.num_processes, self.noun.removesuffix("s"))
        single = self.num_processes == 1
        if self.gpus > cluster.gpus:
            need = "needs" if single else "need"
            text = f"{processes} {need} {format_resource(self.gpus, 'GPU')}, the cluster has {cluster.gpus:g} {state}"
            shortages.append(text.strip())
        if self.cpus > cluster.cpus:
            loading = f" and {'its' if single else 'their'} data loading" if self.loading_cpus else ""
            need = "needs" if single and not loading else "need"
            cpus = format_resource(self.cpus, "CPU")
            text = f"{processes}{loading} {need} {cpus}, the cluster has {cluster.cpus:g} {state}"
            shortages.append(text.strip())
        return "; ".join(shortages)

    def check(self, cluster: ClusterResources, wait_s: float | None) -> str:
        """Return what the cluster lacks; raise an InputError if that is anything and nobody waits for more."""
        shortage = self.describe_shortage(cluster)
        if shortage and not wait_s:
            raise InputError(f"{shortage}. {self.suggest_fix(cluster)}")
        return shortage

    def suggest_fix(self, cluster: ClusterResources, waited: bool = False) -> str:
        """Return what to type if the cluster is too small.

        Parameters
        ----------
        cluster : ClusterResources
            What the cluster has.
        waited : bool
            Whether the job has waited for more resources without success.
        """
        grow = "wait longer" if waited else "add --wait-for-resources SECONDS to wait for the autoscaler"
        if self.gpus and not cluster.gpus:
            return (
                f"The cluster has {format_resource(cluster.cpus, 'CPU')} and no GPU. Leave {self.gpu_flag} out to "
                f"compute on CPUs, attach to a cluster with GPUs (RAY_ADDRESS=HOST:PORT), or {grow}"
            )
        if self.num_processes > 1:
            return f"Give fewer with {self.flag}, or {grow}"
        return f"Attach to a larger cluster (RAY_ADDRESS=HOST:PORT), or {grow}"


def format_resource(number: float, noun: str) -> str:
    """Return a number with its noun: 1 GPU, 2.5 CPUs."""
    return f"{number:g} {noun}{'s' * (number != 1)}"


def cluster_resources() -> ClusterResources:
    """Return what the cluster has now that this process is attached to."""
    import ray

    total = ray.cluster_resources()
    alive = sum(node["Alive"] for node in ray.nodes())
    return ClusterResources(total.get("CPU", 0.0), total.get("GPU", 0.0), alive)


def free_resources() -> ClusterResources:
    """Return what no process holds; `nodes` are all living nodes."""
    import ray

    free = ray.available_resources()
    return ClusterResources(free.get("CPU", 0.0), free.get("GPU", 0.0), cluster_resources().nodes)


def require_resources(demand: ResourceDemand, wait_s: float | None, report: Callable[[str], None]) -> None:
    """Return once the cluster has what a job needs, and has it free.

    Parameters
    ----------
    demand : ResourceDemand
        What the job needs.
    wait_s : float or None
        Seconds in which the cluster may grow. During them the autoscaler is asked for the demand.
    report : callable
        Receives lines about what is missing.

    Raises
    ------
    InputError
        If the cluster is too small and `wait_s` is None or 0; if it is still too small after `wait_s`; or if others
        hold its resources for as long (for 60 s without `wait_s`). The message shows both numbers.
    """
    is_too_small = bool(demand.check(cluster_resources(), wait_s))
    timeout_s = wait_s or BUSY_WAIT_S
    if is_too_small:
        _request_from_autoscaler(demand)
    try:
        shortage = _wait_for_resources(demand, timeout_s, report)
    finally:
        if is_too_small:
            _request_from_autoscaler(None)
    if shortage:
        fix = demand.suggest_fix(cluster_resources(), waited=True)
        raise InputError(f"{shortage} (waited {timeout_s:g} s). {fix}")


def _request_from_autoscaler(demand: ResourceDemand | None) -> None:
    """Request resources. None withdraws the request, which would outlive this process and keep paid nodes idle."""
    from ray.autoscaler.sdk import request_resources

    if demand is None:
        request_resources(num_cpus=0, bundles=[])
        return
    bundle = {"CPU": demand.cpus_each} | ({"GPU": demand.gpus_each} if demand.gpus_each else {})
    request_resources(num_cpus=math.ceil(demand.cpus), bundles=[bundle] * demand.num_processes)


def _wait_for_resources(demand: ResourceDemand, timeout_s: float, report: Callable[[str], None]) -> str:
    """Return what is missing after at most `timeout_s`; empty once nothing is."""
    deadline, reported = time.monotonic() + timeout_s, ""
    while True:
        shortage = demand.describe_shortage(cluster_resources()) or demand.describe_shortage(free_resources(), "free")
        left_s = deadline - time.monotonic()
        if not shortage or left_s <= 0:
            return shortage
        if shortage != reported:
            report(f"waiting up to {left_s:.0f} s for resources: {shortage}")
            reported = shortage
        time.sleep(min(1.0, left_s))


class ClusterView:
    """The cluster as a pool of equal actors sees it: which nodes live, what is free, and how to request more.

    Parameters
    ----------
    needs : dict
        Amount of each resource that one actor holds, by Ray's names (CPU, GPU).
    """

    def __init__(self, needs: dict[str, float]) -> None:
        self.needs = needs
        self._nodes: list[dict[str, Any]] = []
        self._nodes_read_at = float("-inf")
        self._probes: dict[str, tuple[float, Any]] = {}  # by node: when its probe started, and the probe's reference

    def nodes(self) -> list[dict[str, Any]]:
        """Return the rows of `ray.nodes()`, at most a second old."""
        import ray

        now = time.monotonic()
        if now - self._nodes_read_at >= NODES_MAX_AGE_S:
            self._nodes, self._nodes_read_at = ray.nodes(), now
        return self._nodes

    def is_node_alive(self, node: str, probe_at: float, deadline: float) -> bool | None:
        """Return whether a node is alive, or None while that is unknown.

        From `probe_at` on a small remote function probes the node. A node that Ray does not list as dead, and that has
        not answered by `deadline`, counts as alive.

        Parameters
        ----------
        node : str
            Id of the node; empty if the actor's node is not known.
        probe_at, deadline : float
            Times of `time.monotonic`.
        """
        now = time.monotonic()
        if node and not any(row["NodeID"] == node and row["Alive"] for row in self.nodes()):
            return False
        if now < probe_at:
            return None
        if now >= deadline or not node:
            return True
        started_at, reference = self._probes.get(node, (float("-inf"), None))
        if started_at < probe_at:
            self._probes[node] = (now, _start_probe(node))
            return None
        return True if _has_answered(reference) else None

    def count_startable_actors(self) -> int:
        """Return for how many more actors resources are free."""
        import ray

        return count_fitting_actors(self.needs, ray.available_resources())

    def all_nodes_excluded(self, excluded: Container[str]) -> bool:
        """Return whether the ids of all living nodes that are large enough for an actor are in `excluded`."""
        large_enough = nodes_large_enough(self.needs, self.nodes())
        return bool(large_enough) and all(node in excluded for node in large_enough)

    def describe_shortage(self) -> str:
        """Return what an actor needs and what the cluster has, with both numbers."""
        import ray

        alive = sum(row["Alive"] for row in self.nodes())
        return missing_resources_text(self.needs, ray.cluster_resources(), ray.available_resources(), alive)

    def request_actors(self, num_actors: int) -> None:
        """Request resources for so many actors from the autoscaler; 0 withdraws the request."""
        from ray.autoscaler.sdk import request_resources

        with suppress(Exception):  # a cluster without an autoscaler
            request_resources(bundles=[self.needs] * num_actors)


def _start_probe(node: str) -> Any:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    on_node = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(num_cpus=0, max_retries=0)(_probe).options(scheduling_strategy=on_node).remote()


def _probe() -> bool:
    return True


def _has_answered(reference: Any) -> bool:
    import ray

    try:
        ray.get(reference, timeout=0)
    except Exception:  # no answer yet, or the node cannot be reached and Ray will soon list it as dead
        return False
    return True


def count_fitting_actors(needs: Mapping[str, float], free: Mapping[str, float]) -> int:
    """Count the actors that fit into free resources, as if the cluster were one machine.

    Parameters
    ----------
    needs : mapping
        Amount of each resource that one actor holds, by Ray's names.
    free : mapping
        Amount of each resource that is free.

    Returns
    -------
    int
        Number of actors; 1,000,000 if they need nothing.
    """
    return min((int(free.get(name, 0.0) / amount + 1e-6) for name, amount in needs.items()), default=UNLIMITED_ACTORS)


def nodes_large_enough(needs: Mapping[str, float], nodes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the ids of living nodes (rows of `ray.nodes()`) on which an actor fits if no other process is there."""
    return [node["NodeID"] for node in nodes if node["Alive"] and count_fitting_actors(needs, node["Resources"])]


def missing_resources_text(
    needs: Mapping[str, float], total: Mapping[str, float], free: Mapping[str, float], nodes: int
) -> str:
    """Return what an actor needs and what the cluster has, as a sentence."""
    needed = " and ".join(f"{amount:g} {name}" for name, amount in needs.items()) or "nothing"
    has = " and ".join(f"{total.get(name, 0):g} {name} ({free.get(name, 0):g} free)" for name in needs)
    return f"an actor needs {needed}; the cluster has {has or 'room'} on {nodes} node{'s' * (nodes != 1)}"

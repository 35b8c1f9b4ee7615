"""What a pool sees of its cluster: which nodes live, what is free, and how to ask for more."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

NODE_TIMEOUT_S = 1.0  # how old what is known of the nodes may be


FREED_AFTER_S = 60.0  # how long what others hold is waited for: a run that was killed lets go within seconds


class ClusterView:
    """needs: what one actor holds, in Ray's names."""

    def __init__(self, needs: dict[str, float]) -> None:
        self.needs = needs
        self._nodes: list[dict[str, Any]] = []
        self._looked = float("-inf")
        self._probes: dict[str, tuple[float, Any]] = {}  # of a node: when it was asked, and the answer's reference

    def nodes(self) -> list[dict[str, Any]]:
        """Rows of `ray.nodes()`."""
        import ray

        now = time.monotonic()
        if now - self._looked >= NODE_TIMEOUT_S:
            self._nodes, self._looked = ray.nodes(), now
        return self._nodes

    def lives(self, node: str, ask_at: float, limit: float) -> bool | None:
        """Whether a node lives; None while that is not known.

        From `ask_at` on it is asked by a small task. One that does not answer until `limit`, and is not counted as
        dead, lives. (Both of time.monotonic.)
        """
        now = time.monotonic()
        if node and not any(row["NodeID"] == node and row["Alive"] for row in self.nodes()):
            return False
        if now < ask_at:
            return None
        if now >= limit or not node:
            return True
        asked, answer = self._probes.get(node, (float("-inf"), None))
        if asked < ask_at:
            self._probes[node] = (now, _ask(node))
            return None
        return True if _answered(answer) else None

    def num_that_fit(self) -> int:
        """For how many more actors the cluster is free."""
        import ray

        return count_fitting_actors(self.needs, ray.available_resources())

    def all_left_out(self, left_out: Container[str]) -> bool:
        """Whether every living node that could hold an actor is left out."""
        able = nodes_large_enough(self.needs, self.nodes())
        return bool(able) and all(node in left_out for node in able)

    def lack(self) -> str:
        """What an actor needs beside what there is, in words with both numbers."""
        import ray

        alive = sum(row["Alive"] for row in self.nodes())
        return missing_resources_text(self.needs, ray.cluster_resources(), ray.available_resources(), alive)

    def ask_for(self, actors: int) -> None:
        """Ask the autoscaler for room for so many; 0 takes the wish back."""
        from ray.autoscaler.sdk import request_resources

        with suppress(Exception):  # where there is none
            request_resources(bundles=[self.needs] * actors)


def _ask(node: str) -> Any:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(num_cpus=0, max_retries=0)(_here).options(scheduling_strategy=there).remote()


def _here() -> bool:
    return True


def _answered(answer: Any) -> bool:
    import ray

    try:
        ray.get(answer, timeout=0)
    except Exception:  # not yet; or it cannot be reached, and is then counted as dead before long
        return False
    return True


@dataclass(frozen=True)
class ClusterResources:
    """What Ray has: logical CPUs, GPUs and living nodes."""

    cpus: float
    gpus: float
    nodes: int


def _format_resource(number: float, noun: str) -> str:
    return f"{number:g} {noun}{'s' * (number != 1)}"


def cluster_resources() -> ClusterResources:
    """What the cluster that we are attached to holds now."""
    import ray

    found = ray.cluster_resources()
    alive = sum(node["Alive"] for node in ray.nodes())
    return ClusterResources(found.get("CPU", 0.0), found.get("GPU", 0.0), alive)


def free_resources() -> ClusterResources:
    """What of it nobody holds."""
    import ray

    found = ray.available_resources()
    return ClusterResources(found.get("CPU", 0.0), found.get("GPU", 0.0), cluster_resources().nodes)


@dataclass(frozen=True)
class ResourceDemand:
    """What a job needs at once: so many processes of so many logical CPUs and GPUs each, and CPUs beside them.

    noun: what they are called; `flag` says how many of them there are, and `cards` that they want GPUs.
    """

    number: int
    cpus_each: float
    gpus_each: float = 0.0
    reading_cpus: float = 0.0
    noun: str = "workers"
    flag: str = "--num-workers"
    cards: str = "--device cuda"

    @property
    def cpus(self) -> float:
        return self.number * self.cpus_each + self.reading_cpus

    @property
    def gpus(self) -> float:
        return self.number * self.gpus_each

    def unmet(self, cluster: ClusterResources, free: str = "") -> str:
        """What the cluster lacks, in words with both numbers; empty if it has enough. free: "free" if it is busy."""
        lacks, who = [], _format_resource(self.number, self.noun.removesuffix("s"))
        if self.gpus > cluster.gpus:
            need = "needs" if self.number == 1 else "need"
            lacks.append(
                f"{who} {need} {_format_resource(self.gpus, 'GPU')}, the cluster has {cluster.gpus:g} {free}".strip()
            )
        if self.cpus > cluster.cpus:
            reading = f" and {'its' if self.number == 1 else 'their'} reading" if self.reading_cpus else ""
            need = "needs" if self.number == 1 and not reading else "need"
            lacks.append(
                f"{who}{reading} {need} {_format_resource(self.cpus, 'CPU')}, the cluster has {cluster.cpus:g} {free}".strip()
            )
        return "; ".join(lacks)

    def advice(self, cluster: ClusterResources, waited: bool = False) -> str:
        """What to type where the cluster is too small; `waited` if that has been waited for in vain."""
        grow = "wait longer" if waited else "let --wait-for-resources SECONDS wait for the cluster to grow"
        if self.gpus and not cluster.gpus:
            return (
                f"What there is: {_format_resource(cluster.cpus, 'CPU')}, and no card. Leave {self.cards} out to compute on "
                f"CPUs, attach to a cluster with GPUs (RAY_ADDRESS=HOST:PORT), or {grow}"
            )
        fewer = f"Give fewer with {self.flag}" if self.number > 1 else "Attach to a larger one (RAY_ADDRESS=HOST:PORT)"
        return f"{fewer}, or {grow}"


def require_resources(demand: ResourceDemand, wait_seconds: float | None, say: Callable[[str], None]) -> None:
    """Come back once the cluster holds what is needed, and holds it free.

    Raises ValueError with both numbers if it is too small, at once, or after `wait_seconds` in which the autoscaler is
    asked for it and what is missing is said; and if others keep it busy for as long.
    """
    found = cluster_resources()
    unmet = demand.unmet(found)
    if unmet and not wait_seconds:
        raise ValueError(f"{unmet}. {demand.advice(found)}")
    limit, asked = wait_seconds or FREED_AFTER_S, bool(unmet)
    if asked:
        _ask_autoscaler(demand)
    try:
        unmet = _wait_for_resources(demand, limit, say)
    finally:
        if asked:
            _ask_autoscaler(None)
    if unmet:
        raise ValueError(f"{unmet} (waited {limit:g} s). {demand.advice(cluster_resources(), waited=True)}")


def _ask_autoscaler(demand: ResourceDemand | None) -> None:
    """Ask for so much; None takes the wish back, which would outlive this process and keep idle nodes at a price."""
    from ray.autoscaler.sdk import request_resources

    if demand is None:
        request_resources(num_cpus=0, bundles=[])
        return
    bundle = {"CPU": demand.cpus_each} | ({"GPU": demand.gpus_each} if demand.gpus_each else {})
    request_resources(num_cpus=math.ceil(demand.cpus), bundles=[bundle] * demand.number)


def _wait_for_resources(demand: ResourceDemand, seconds: float, say: Callable[[str], None]) -> str:
    """What is lacking after at most so many seconds; empty once nothing is."""
    deadline, said = time.monotonic() + seconds, ""
    while True:
        unmet = demand.unmet(cluster_resources()) or demand.unmet(free_resources(), "free")
        left = deadline - time.monotonic()
        if not unmet or left <= 0:
            return unmet
        if unmet != said:
            say(f"waiting up to {left:.0f} s for resources: {unmet}")
            said = unmet
        time.sleep(min(1.0, left))


def count_fitting_actors(needs: Mapping[str, float], free: Mapping[str, float]) -> int:
    """For how many actors there is room, counting the cluster as one machine."""
    return min((int(free.get(name, 0.0) / amount + 1e-6) for name, amount in needs.items()), default=1_000_000)


def nodes_large_enough(needs: Mapping[str, float], nodes: Sequence[Mapping[str, Any]]) -> list[str]:
    """The ids of living nodes (rows of `ray.nodes()`) that could hold an actor if nobody else used them."""
    return [node["NodeID"] for node in nodes if node["Alive"] and count_fitting_actors(needs, node["Resources"])]


def missing_resources_text(
    needs: Mapping[str, float], total: Mapping[str, float], free: Mapping[str, float], nodes: int
) -> str:
    """What an actor needs beside what the cluster has."""
    needed = " and ".join(f"{amount:g} {name}" for name, amount in needs.items()) or "nothing"
    has = " and ".join(f"{total.get(name, 0):g} {name} ({free.get(name, 0):g} free)" for name in needs)
    return f"an actor needs {needed}; the cluster has {has or 'room'} on {nodes} node{'s' * (nodes != 1)}"

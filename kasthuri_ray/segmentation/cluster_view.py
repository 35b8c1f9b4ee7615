"""What a pool sees of its cluster: which nodes live, what is free, and how to ask for more."""

from __future__ import annotations

import time
from collections.abc import Container
from contextlib import suppress
from typing import Any

from kasthuri_ray.segmentation.staffing import lack_in_words, large_enough, num_that_fit

LOOK_S = 1.0  # how old what is known of the nodes may be


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
        if now - self._looked >= LOOK_S:
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

        return num_that_fit(self.needs, ray.available_resources())

    def all_left_out(self, left_out: Container[str]) -> bool:
        """Whether every living node that could hold an actor is left out."""
        able = large_enough(self.needs, self.nodes())
        return bool(able) and all(node in left_out for node in able)

    def lack(self) -> str:
        """What an actor needs beside what there is, in words with both numbers."""
        import ray

        alive = sum(row["Alive"] for row in self.nodes())
        return lack_in_words(self.needs, ray.cluster_resources(), ray.available_resources(), alive)

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

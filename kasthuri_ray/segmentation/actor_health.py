"""Which actors are ended because something is wrong, and which nodes are excluded. Pure: no Ray, no clock."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from kasthuri_ray.segmentation.actor_plan import PoolTimeouts
from kasthuri_ray.segmentation.actor_state import ActorT
from kasthuri_ray.segmentation.block_failures import FailurePlace


def find_stuck_actors(
    actors: Iterable[ActorT], timeouts: PoolTimeouts, now: float
) -> list[tuple[ActorT, TimeoutError]]:
    """Return the actors that finished no block, or did not become ready, for too long; each with its error."""
    stuck = []
    for actor in actors:
        if actor.num_blocks and now - actor.last_result_at > timeouts.stuck_s:
            stuck.append((actor, TimeoutError(f"no block was done for {timeouts.stuck_s:g} s")))
        elif not actor.is_ready and actor.placed_at is not None and now - actor.placed_at > timeouts.ready_s:
            stuck.append((actor, TimeoutError(f"it was not ready after {timeouts.ready_s:g} s")))
    return stuck


def works_elsewhere(node: str, actors: Iterable[ActorT]) -> bool:
    """Return whether an actor on another node is ready, so that the work continues without this node."""
    return any(actor.is_ready and actor.node != node for actor in actors)


def find_failing_actors(place: FailurePlace, actors: Collection[ActorT]) -> list[ActorT]:
    """Return the actors to end where blocks failed that were done elsewhere: one actor, or all of a node.

    Those of a node are kept if the work could not go on without it.
    """
    if isinstance(place, str) and not works_elsewhere(place, actors):
        return []
    return [actor for actor in actors if actor.is_ready and place in (actor.number, actor.node)]


class ExcludedNodes:
    """Nodes on which no actor is started."""

    def __init__(self) -> None:
        self.reasons: dict[str, str] = {}  # by node, in the order of exclusion
        self._working: set[str] = set()  # nodes where blocks were done since a node was excluded

    def add(self, node: str, reason: str) -> bool:
        """Exclude a node; return whether it was not excluded before for this reason."""
        is_new = self.reasons.get(node) != reason
        self.reasons[node] = reason
        self._working.discard(node)
        return is_new

    def note_done(self, node: str) -> None:
        """Note that a block was done on a node."""
        if self.reasons:
            self._working.add(node)

    def readmit_working(self) -> bool:
        """Readmit the nodes that have done blocks since; return whether there are any."""
        working = self._working & self.reasons.keys()
        for node in working:
            del self.reasons[node]
        if working:
            self._working.clear()
        return bool(working)

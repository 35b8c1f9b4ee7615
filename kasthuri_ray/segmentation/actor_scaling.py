"""How many actors a pool has: how many are started or ended, and when it stops waiting. Needs no Ray and no clock."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from kasthuri_ray.segmentation.actor_plan import ActorPlan, PoolTimeouts
from kasthuri_ray.segmentation.actor_state import ActorState, ActorT

MAX_START_PAUSE_S = 60.0  # before an actor is started in place of one that died before it was ready
MAX_FAILED_STARTS = 5  # in a row, while no actor was ever ready
REPORT_AFTER_S, REPORT_PERIOD_S = 10.0, 60.0  # when people read that no actor is on a node, and how often
SHORTAGE_REPORT_AFTER_S = 10.0  # of an actor without a node, while others have one


def find_surplus_actors(actors: Collection[ActorT], num_usable: int, idle_s: float, now: float) -> list[ActorT]:
    """Return the actors that the remaining blocks cannot use: at once if not on a node, else after a while.

    num_usable: actors that the blocks can use.
    """

    def can_end(actor: ActorState) -> bool:
        is_idle = actor.is_ready and not actor.num_blocks and now - actor.last_result_at > idle_s
        return is_idle or actor.placed_at is None

    num_surplus = max(0, len(actors) - num_usable)
    return [actor for actor in actors if can_end(actor)][:num_surplus]


@dataclass
class ActorScaling:
    """Decisions about the number of actors, from failed starts and from the time without actors.

    Parameters
    ----------
    plan : ActorPlan
        Size of the pool.
    timeouts : PoolTimeouts
        How long it waits.
    was_ready : bool
        Whether any actor has ever been ready.
    num_failed_in_a_row : int
        Starts that failed since an actor was ready; those that were started together count as one.
    last_error : str
        Why the last start failed.
    next_start_at : float
        Time before which no actor is started.
    """

    plan: ActorPlan
    timeouts: PoolTimeouts
    was_ready: bool = False
    num_failed_in_a_row: int = 0
    last_error: str = ""
    next_start_at: float = 0.0
    _last_failure_at: float = float("-inf")
    _none_placed_since: float | None = None
    _none_ready_since: float | None = None
    _next_report_at: float = 0.0
    _has_reported_shortage: bool = False

    def num_to_start(self, now: float, num_actors: int, num_unplaced: int, num_usable: int, num_fitting: int) -> int:
        """Return how many actors to start.

        num_actors: ready or starting; num_unplaced: of these, not on a node yet. num_usable: actors that the blocks can
        use. num_fitting: more actors that the cluster has room for.
        """
        if now < self.next_start_at:
            return 0
        missing = min(self.plan.min_actors, num_usable) - num_actors
        wanted = min(self.plan.max_actors, num_usable) - num_actors
        return max(0, missing, min(wanted, num_fitting) if not num_unplaced else 0)

    def note_ready(self) -> None:
        """Note that an actor is ready."""
        self.was_ready, self.num_failed_in_a_row, self.next_start_at = True, 0, 0.0

    def note_failed_start(self, now: float, created_at: float, reason: str) -> None:
        """Note that an actor died before it was ready; those that were started together count as one."""
        self.last_error = reason
        if created_at <= self._last_failure_at:
            return
        self._last_failure_at = now
        self.num_failed_in_a_row += 1
        self.next_start_at = now + min(MAX_START_PAUSE_S, 2.0 ** (self.num_failed_in_a_row - 1))

    def stop_reason(
        self, now: float, num_placed: int, num_ready: int, exclusions: Sequence[str], no_node_left: bool
    ) -> str:
        """Return why the pool should stop waiting for actors; empty if it should not.

        num_placed, num_ready: actors on a node, and ready. exclusions: why nodes are excluded. no_node_left: whether
        every node that is large enough is excluded.
        """
        self._note_counts(now, num_placed, num_ready)
        limit = self.timeouts.placement_s
        if not self.was_ready and self.num_failed_in_a_row >= MAX_FAILED_STARTS:
            return f"no actor became ready in {MAX_FAILED_STARTS} starts in a row: {self.last_error}"
        if no_node_left and not self.plan.autoscale:
            return f"no node of the cluster can run this job: {exclusions[0]}"
        if self._seconds_unplaced(now) >= limit:
            return f"waited {limit:g} s, and no actor has started"
        seconds_unready = 0.0 if self._none_ready_since is None else now - self._none_ready_since
        if self.num_failed_in_a_row >= MAX_FAILED_STARTS and seconds_unready >= limit:
            return f"waited {limit:g} s for an actor to become ready; the last one did not: {self.last_error}"
        return ""

    def _note_counts(self, now: float, num_placed: int, num_ready: int) -> None:
        if num_placed:
            self._none_placed_since = None
        elif self._none_placed_since is None:
            self._none_placed_since, self._next_report_at = now, now + REPORT_AFTER_S
        if num_ready:
            self._none_ready_since = None
        elif self._none_ready_since is None:
            self._none_ready_since = now

    def _seconds_unplaced(self, now: float) -> float:
        return 0.0 if self._none_placed_since is None else now - self._none_placed_since

    def shortage_line(self, now: float, actors: Collection[ActorState]) -> str:
        """Return what people should read now about actors without a node; empty if there is nothing to say."""
        if self._none_placed_since is not None and now >= self._next_report_at:
            self._next_report_at = now + REPORT_PERIOD_S
            left = max(0.0, self.timeouts.placement_s - self._seconds_unplaced(now))
            return f"no actor has started yet; waiting up to {left:.0f} s more"
        num_placed = sum(actor.placed_at is not None for actor in actors)
        waits_long = any(
            actor.placed_at is None and now - actor.created_at > SHORTAGE_REPORT_AFTER_S for actor in actors
        )
        if num_placed and waits_long and not self._has_reported_shortage:
            self._has_reported_shortage = True
            return f"{num_placed} of {len(actors)} actors have started so far"
        return ""

"""Actors of a pool: which are started or ended, which nodes are excluded, and whose death counts against blocks.

The event loop in `actor_pool` reports what the actors return; what follows for the actors is decided here. How many
are started is decided in `actor_scaling`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from kasthuri_ray.errors import ActorPoolStopped
from kasthuri_ray.ray_cluster.ray_errors import error_line, strip_ansi
from kasthuri_ray.ray_cluster.resources import ClusterView
from kasthuri_ray.segmentation.actor_plan import ActorPlan, PoolTimeouts
from kasthuri_ray.segmentation.actor_scaling import ActorScaling
from kasthuri_ray.segmentation.actors import ActorHandle, MakeActor, kill_actor, start_actor
from kasthuri_ray.segmentation.block_failures import ActorDeath, Place, SetAsideBlock
from kasthuri_ray.segmentation.block_scheduler import BlockScheduler

PLACEMENT_TIMEOUT_S = 10.0  # to fetch the placement of an actor that has answered already
SHORTAGE_REPORT_AFTER_S = 10.0  # of an actor without a node, while others have one
FAILING_REASON = "blocks fail there that are done elsewhere"


@dataclass
class _PendingDeath:
    """A death whose node is not known yet to be alive or gone."""

    death: ActorDeath
    since: float


class ActorSupervisor:
    """Starts and ends the actors of a pool, and excludes nodes that cannot run them.

    Parameters
    ----------
    make_actor : callable
        Returns Ray's handle of a new actor with the given options.
    plan : ActorPlan
        Size of the pool.
    timeouts : PoolTimeouts
        How long it waits.
    report : callable
        Takes a line of text for people.
    """

    def __init__(
        self, make_actor: MakeActor, plan: ActorPlan, timeouts: PoolTimeouts, report: Callable[[str], Any]
    ) -> None:
        self.plan, self.timeouts, self.report = plan, timeouts, report
        self.actors: dict[int, ActorHandle] = {}
        self.actor_of: dict[Any, ActorHandle] = {}  # actor of each reference that is waited for
        self.scheduler = BlockScheduler((), plan.in_flight)
        self._make_actor = make_actor
        self._scaling = ActorScaling(plan, timeouts)
        self._cluster = ClusterView(plan.resources)
        self._excluded: dict[str, str] = {}  # nodes, each with its reason
        self._working: set[str] = set()  # nodes where blocks were done since a node was excluded
        self._pending_deaths: list[_PendingDeath] = []
        self._num_created = 0
        self._has_reported_shortage = False

    @property
    def num_ready(self) -> int:
        """Number of actors that are ready."""
        return sum(actor.is_ready for actor in self.actors.values())

    @property
    def num_placed(self) -> int:
        """Number of actors that are on a node."""
        return sum(actor.placed_at is not None for actor in self.actors.values())

    def start_phase(self, scheduler: BlockScheduler) -> None:
        """Hand the actors that are ready to the scheduler of a new phase."""
        self.scheduler = scheduler
        self._pending_deaths.clear()
        for actor in self.actors.values():
            if actor.is_ready:
                self._add_to_scheduler(actor)
        if self.plan.autoscale:
            self._cluster.request_actors(self.plan.max_actors)

    def close(self) -> None:
        """End all actors and withdraw the request to the autoscaler."""
        for actor in list(self.actors.values()):
            self._end(actor)
        if self.plan.autoscale:
            self._cluster.request_actors(0)

    # what an actor returned

    def note_ready(self) -> None:
        """Note that an actor is ready."""
        self._scaling.note_ready()

    def admit(self, actor: ActorHandle) -> None:
        """Hand an actor that has become ready to the scheduler."""
        if not actor.node:  # its placement was not read yet
            self._fetch_placement(actor)
        self._add_to_scheduler(actor)

    def note_done(self, actor: ActorHandle) -> None:
        """Note that an actor finished a block."""
        if self._excluded:
            self._working.add(actor.node)

    def exclude_node(self, actor: ActorHandle, reason: str) -> None:
        """End an actor whose machine cannot run the job, and exclude its node; its blocks are queued again."""
        if not actor.node:
            self._fetch_placement(actor)
        if self._excluded.get(actor.node) != reason:
            self.report(f"the node of {actor.name} is excluded: {reason}")
        self._let_go(actor)
        self._excluded[actor.node] = reason
        self._working.discard(actor.node)

    def remove_dead(self, actor: ActorHandle, error: BaseException) -> None:
        """Remove an actor that died; its blocks are queued again."""
        reason = error_line(error)
        if not actor.is_ready:
            self._end(actor)
            self._scaling.note_failed_start(time.monotonic(), actor.created_at, reason)
            self.report(f"{actor.name} died before it was ready: {reason}")
            return
        death = self.scheduler.note_death(actor.number, reason, strip_ansi(error))
        self._end(actor)
        if death:
            self._pending_deaths.append(_PendingDeath(death, time.monotonic()))
        num = len(death.blocks) if death else 0
        retried = f"; {num} block{'s are' if num != 1 else ' is'} retried" if num else ""
        self.report(f"{actor.name} died: {reason}{retried}")

    # what is checked from time to time

    def resolve_deaths(self, now: float) -> list[SetAsideBlock]:
        """Count the deaths whose nodes are known by now to be alive or gone; return the blocks that are set aside."""
        set_aside = []
        for pending in list(self._pending_deaths):
            ask_at, limit = pending.since + self.timeouts.death_check_s, pending.since + self.timeouts.node_answer_s
            is_alive = self._cluster.is_node_alive(pending.death.node, ask_at, limit)
            if is_alive is not None:
                self._pending_deaths.remove(pending)
                set_aside += self.scheduler.resolve_death(pending.death, is_alive)
        return set_aside

    def end_failing_actors(self) -> None:
        """End actors, and exclude nodes, where blocks failed that were done elsewhere."""
        for place in self.scheduler.failing_places():
            self._end_failing(place)
            self.scheduler.clear_place(place)

    def _end_failing(self, place: Place) -> None:
        failing = [each for each in self.actors.values() if each.is_ready and place in (each.number, each.node)]
        has_others = any(each.is_ready and each.node != place for each in self.actors.values())
        if isinstance(place, str) and has_others:
            self.report(f"node {place[:8]} is excluded: {FAILING_REASON}")
            self._excluded[place] = FAILING_REASON
        if isinstance(place, int) or has_others:
            for actor in failing:
                self.report(f"{actor.name} is ended: {FAILING_REASON}")
                self._let_go(actor)

    def stuck_actors(self, now: float) -> list[tuple[ActorHandle, TimeoutError]]:
        """Return the actors that finished no block, or did not become ready, for too long; each with its error."""
        stuck = []
        for actor in self.actors.values():
            if actor.blocks and now - actor.last_result_at > self.timeouts.stuck_s:
                stuck.append((actor, TimeoutError(f"no block was done for {self.timeouts.stuck_s:g} s")))
            elif not actor.is_ready and actor.placed_at is not None and now - actor.placed_at > self.timeouts.ready_s:
                stuck.append((actor, TimeoutError(f"it was not ready after {self.timeouts.ready_s:g} s")))
        return stuck

    def scale(self, now: float) -> None:
        """Start as many actors as there is room and work for, and end those without work.

        Raises ActorPoolStopped if no actor is worth waiting for.
        """
        num_usable = self.scheduler.num_usable_actors(self.plan.max_actors)
        self._end_idle(now, num_usable)
        no_node_left = self._all_nodes_excluded() and not self.plan.autoscale
        if not no_node_left:
            self._start_missing(now, num_usable)
        self.scheduler.num_starting = len(self.actors) - self.num_ready
        reason = self._scaling.stop_reason(
            now, self.num_placed, self.num_ready, list(self._excluded.values()), no_node_left and not self.actors
        )
        if reason:
            raise ActorPoolStopped(f"{reason} ({self._cluster.describe_shortage()})")
        self._report_shortage(now)

    def _start_missing(self, now: float, num_usable: int) -> None:
        num_actors, num_unplaced = len(self.actors), len(self.actors) - self.num_placed
        has_all = num_actors >= min(num_usable, self.plan.max_actors)
        num_fitting = 0 if has_all or num_unplaced else self._cluster.count_startable_actors()
        for _ in range(self._scaling.num_to_start(now, num_actors, num_unplaced, num_usable, num_fitting)):
            self._start()

    def _all_nodes_excluded(self) -> bool:
        """Return whether all nodes that are large enough are excluded.

        If no actor is on a node then, nodes that have done blocks since are admitted again.
        """
        if not self._excluded or not self._cluster.all_nodes_excluded(self._excluded):
            return False
        working = self._working & self._excluded.keys()
        if not working or self.num_placed:
            return True
        for node in working:
            del self._excluded[node]
        self._working.clear()
        for actor in list(self.actors.values()):  # they may not be placed on these nodes
            self._end(actor)
        return False

    def _end_idle(self, now: float, num_usable: int) -> None:
        """End the actors that the remaining blocks cannot use: at once if not on a node, else after a while."""
        num_surplus = len(self.actors) - num_usable
        for actor in list(self.actors.values()) if num_surplus > 0 else ():
            is_idle = actor.is_ready and not actor.blocks and now - actor.last_result_at > self.timeouts.idle_s
            if num_surplus > 0 and (is_idle or actor.placed_at is None):
                self._let_go(actor)
                num_surplus -= 1

    def _report_shortage(self, now: float) -> None:
        if self._scaling.is_report_due(now):
            left = max(0.0, self.timeouts.placement_s - self._scaling.seconds_unplaced(now))
            self.report(
                f"no actor has started yet; waiting up to {left:.0f} s more: {self._cluster.describe_shortage()}"
            )
        waits_long = any(
            actor.placed_at is None and now - actor.created_at > SHORTAGE_REPORT_AFTER_S
            for actor in self.actors.values()
        )
        if self.num_placed and waits_long and not self._has_reported_shortage:
            self._has_reported_shortage = True
            shortage = self._cluster.describe_shortage()
            self.report(f"{self.num_placed} of {len(self.actors)} actors have started so far: {shortage}")

    # one actor

    def _start(self) -> None:
        actor = start_actor(self._make_actor, self._num_created, self.plan, self._excluded)
        self._num_created += 1
        self.actors[actor.number] = actor
        self.actor_of.update(dict.fromkeys(actor.refs, actor))

    def _end(self, actor: ActorHandle) -> None:
        """Kill an actor and forget it; the scheduler must know by then that it is gone."""
        kill_actor(actor)
        self.actors.pop(actor.number, None)
        for ref in actor.refs:
            self.actor_of.pop(ref, None)
        actor.blocks.clear()

    def _let_go(self, actor: ActorHandle) -> None:
        """End an actor that did not fail; its blocks are queued again."""
        if actor.is_ready:
            self.scheduler.remove_actor(actor.number)
        self._end(actor)

    def _fetch_placement(self, actor: ActorHandle) -> None:
        import ray

        with suppress(Exception):
            actor.set_placement(ray.get(actor.placement, timeout=PLACEMENT_TIMEOUT_S))
        self.actor_of.pop(actor.placement, None)

    def _add_to_scheduler(self, actor: ActorHandle) -> None:
        actor.last_result_at = time.monotonic()
        self.scheduler.add_actor(actor.number, actor.node)

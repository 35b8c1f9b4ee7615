"""Which actors of a pool live: it starts and ends them, as `actor_scaling` and `actor_health` decide.

Blocks of an actor that is ended are queued again. What actors return is handled in `actor_pool`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from kasthuri_ray.errors import ActorPoolStopped
from kasthuri_ray.ray_cluster.ray_errors import error_line, strip_ansi
from kasthuri_ray.ray_cluster.resources import ClusterView
from kasthuri_ray.segmentation.actor_health import ExcludedNodes, find_failing_actors, works_elsewhere
from kasthuri_ray.segmentation.actor_plan import PoolTimeouts
from kasthuri_ray.segmentation.actor_scaling import ActorScaling, find_surplus_actors
from kasthuri_ray.segmentation.actors import RunningActor, RunningActors
from kasthuri_ray.segmentation.block_failures import ActorDeath
from kasthuri_ray.segmentation.block_scheduler import BlockScheduler

FAILING_REASON = "blocks fail there that are done elsewhere"


class ActorSupervisor:
    """Starts and ends the actors of a pool, and excludes nodes that cannot run them.

    Parameters
    ----------
    actors : RunningActors
        The actors.
    cluster : ClusterView
        Which nodes live, and what is free.
    timeouts : PoolTimeouts
        How long to wait.
    report : callable
        Takes a line of text for people.
    """

    def __init__(
        self, actors: RunningActors, cluster: ClusterView, timeouts: PoolTimeouts, report: Callable[[str], Any]
    ) -> None:
        self._actors, self._cluster, self._timeouts, self._report = actors, cluster, timeouts, report
        self._plan = actors.plan
        self._scaling = ActorScaling(self._plan, timeouts)
        self._excluded = ExcludedNodes()
        self._scheduler = BlockScheduler((), self._plan.in_flight)

    def start_phase(self, scheduler: BlockScheduler) -> None:
        """Hand the actors that are ready to the scheduler of a new phase."""
        self._scheduler = scheduler
        for actor in self._actors:
            if actor.is_ready:
                self._add_to_scheduler(actor)
        if self._plan.autoscale:
            self._cluster.request_actors(self._plan.max_actors)

    def close(self) -> None:
        """End all actors and withdraw the request to the autoscaler."""
        for actor in self._actors:
            self._actors.end(actor)
        if self._plan.autoscale:
            self._cluster.request_actors(0)

    # what happened to an actor

    def admit(self, actor: RunningActor) -> None:
        """Hand an actor that has become ready to the scheduler."""
        self._scaling.note_ready()
        self._actors.fetch_placement(actor)
        self._add_to_scheduler(actor)

    def note_done(self, actor: RunningActor) -> None:
        """Note that an actor finished a block."""
        self._excluded.note_done(actor.node)

    def exclude_node(self, actor: RunningActor, reason: str) -> None:
        """End an actor whose machine cannot run the job, and exclude its node."""
        self._actors.fetch_placement(actor)
        if self._excluded.add(actor.node, reason):
            self._report(f"the node of {actor.name} is excluded: {reason}")
        self._let_go(actor)

    def remove_dead(self, actor: RunningActor, error: BaseException) -> ActorDeath | None:
        """Remove an actor that died; return its death if it held blocks."""
        reason, death = error_line(error), None
        if actor.is_ready:
            death = self._scheduler.note_death(actor.number, reason, strip_ansi(error))
            num = len(death.blocks) if death else 0
            retried = f"; {num} block{'s are' if num != 1 else ' is'} retried" if num else ""
            self._report(f"{actor.name} died: {reason}{retried}")
        else:
            self._scaling.note_failed_start(time.monotonic(), actor.created_at, reason)
            self._report(f"{actor.name} died before it was ready: {reason}")
        self._actors.end(actor)
        return death

    # what is checked from time to time

    def review(self, now: float) -> None:
        """End actors where blocks fail or that have no work, and start as many as there is room and work for.

        Raises ActorPoolStopped if no actor is worth waiting for.
        """
        self._end_failing()
        num_usable = self._scheduler.num_usable_actors(self._plan.max_actors)
        for actor in find_surplus_actors(list(self._actors), num_usable, self._timeouts.idle_s, now):
            self._let_go(actor)
        has_node = self._plan.autoscale or not self._are_all_nodes_excluded()
        if has_node:
            self._start_missing(now, num_usable)
        counts, reasons = (self._actors.num_placed, self._actors.num_ready), list(self._excluded.reasons.values())
        reason = self._scaling.stop_reason(now, *counts, reasons, not has_node and not len(self._actors))
        if reason:
            raise ActorPoolStopped(f"{reason} ({self._cluster.describe_shortage()})")
        if line := self._scaling.shortage_line(now, list(self._actors)):
            self._report(f"{line}: {self._cluster.describe_shortage()}")

    def _end_failing(self) -> None:
        for place in self._scheduler.failures.failing_places():
            failing = find_failing_actors(place, list(self._actors))
            if isinstance(place, str) and works_elsewhere(place, self._actors):
                self._report(f"node {place[:8]} is excluded: {FAILING_REASON}")
                self._excluded.add(place, FAILING_REASON)
            for actor in failing:
                self._report(f"{actor.name} is ended: {FAILING_REASON}")
                self._let_go(actor)
            self._scheduler.failures.clear_place(place)

    def _are_all_nodes_excluded(self) -> bool:
        """Return whether all nodes that are large enough are excluded.

        If no actor is on a node then, nodes that have done blocks since are admitted again.
        """
        if not self._excluded.reasons or not self._cluster.all_nodes_excluded(self._excluded.reasons):
            return False
        if self._actors.num_placed or not self._excluded.readmit_working():
            return True
        for actor in self._actors:  # they may not be placed on these nodes
            self._actors.end(actor)
        return False

    def _start_missing(self, now: float, num_usable: int) -> None:
        num_actors, num_unplaced = len(self._actors), len(self._actors) - self._actors.num_placed
        has_all = num_actors >= min(num_usable, self._plan.max_actors)
        num_fitting = 0 if has_all or num_unplaced else self._cluster.count_startable_actors()
        for _ in range(self._scaling.num_to_start(now, num_actors, num_unplaced, num_usable, num_fitting)):
            self._actors.start(self._excluded.reasons)

    def _let_go(self, actor: RunningActor) -> None:
        """End an actor that did not fail; its blocks are queued again."""
        if actor.is_ready:
            self._scheduler.remove_actor(actor.number)
        self._actors.end(actor)

    def _add_to_scheduler(self, actor: RunningActor) -> None:
        actor.last_result_at = time.monotonic()
        self._scheduler.add_actor(actor.number, actor.node)

"""Pool of Ray actors that run the blocks of one phase after the other: the event loop.

    with ActorPool(make_actor, ActorPlan(min_actors=2, max_actors=8, num_cpus=1.0), report) as pool:
        outcome = pool.run("s0", blocks, on_done=..., on_set_aside=...)

An actor's class has `ready() -> dict`, called once before it gets blocks, and `work(phase, block) -> dict`, which
returns few bytes; both raise `NodeUnsuitable` if the machine cannot run the job. `block_scheduler` decides which actor
gets which block, `actor_supervisor` which actors are started and ended; the pool hands them what the actors return.
Every wait has a timeout, and a block that is done is forgotten.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from kasthuri_ray.errors import ActorPoolStopped
from kasthuri_ray.progress import Throttle
from kasthuri_ray.ray_cluster.driver import exit_on_sigterm
from kasthuri_ray.ray_cluster.ray_errors import error_line, strip_ansi
from kasthuri_ray.ray_cluster.resources import ClusterView
from kasthuri_ray.segmentation.actor_health import find_stuck_actors
from kasthuri_ray.segmentation.actor_plan import ActorPlan, PoolTimeouts
from kasthuri_ray.segmentation.actor_supervisor import ActorSupervisor
from kasthuri_ray.segmentation.actors import (
    ActorEvent,
    FailureKind,
    MakeActor,
    RunningActor,
    RunningActors,
    StartCall,
)
from kasthuri_ray.segmentation.block_failures import ActorDeath, Block, SetAsideBlock
from kasthuri_ray.segmentation.block_scheduler import BlockScheduler

POLL_PERIOD_S = 0.1  # how long the loop waits for results
SUPERVISION_PERIOD_S = 0.5  # between two reviews of the actors
TICK_PERIOD_S = 1.0
DRAIN_TIMEOUT_S = 2.0  # for the results of blocks that an actor finished before it died


@dataclass(frozen=True)
class PhaseProgress:
    """Progress of a phase.

    Parameters
    ----------
    phase : str
        Name of the phase.
    done, set_aside, in_flight : int
        Blocks that are done, set aside, or held by actors.
    actors, starting : int
        Actors that are ready, or starting.
    """

    phase: str
    done: int
    set_aside: int
    in_flight: int
    actors: int
    starting: int


@dataclass(frozen=True)
class PhaseOutcome:
    """Result of a phase.

    Parameters
    ----------
    num_done : int
        Blocks that were done.
    set_aside : list of SetAsideBlock
        Blocks that were set aside.
    """

    num_done: int
    set_aside: list[SetAsideBlock]


@dataclass(frozen=True)
class _PhaseRun:
    """A phase that runs: its blocks, what is called for each, and deaths whose nodes may be alive or gone."""

    name: str
    scheduler: BlockScheduler
    on_done: Callable[[Block, Any], Any] = lambda block, result: None
    on_set_aside: Callable[[SetAsideBlock], Any] = lambda set_aside: None
    pending_deaths: list[tuple[ActorDeath, float]] = field(default_factory=list)  # each with its time


class ActorPool:
    """Pool of actors. Use it in a `with` statement: its actors end with it, also on Ctrl-C and SIGTERM.

    Parameters
    ----------
    make_actor : callable
        Returns Ray's handle of a new actor: `lambda options: Class.options(**options).remote(...)`. Its `__init__`
        should be short; what may fail belongs to `ready`.
    plan : ActorPlan
        How many actors, and what each holds.
    report : callable
        Takes a line of text for people.
    timeouts : PoolTimeouts or None
        How long the pool waits; None for the defaults.
    on_ready : callable
        Takes what each actor's `ready` returned.
    """

    def __init__(
        self,
        make_actor: MakeActor,
        plan: ActorPlan,
        report: Callable[[str], Any],
        *,
        timeouts: PoolTimeouts | None = None,
        on_ready: Callable[[dict[str, Any]], Any] = lambda machine: None,
    ) -> None:
        self._report, self._timeouts, self._on_ready = report, timeouts or PoolTimeouts(), on_ready
        self._actors, self._cluster = RunningActors(make_actor, plan), ClusterView(plan.resources)
        self._supervisor = ActorSupervisor(self._actors, self._cluster, self._timeouts, report)
        self._phase = _PhaseRun("", BlockScheduler((), plan.in_flight))
        self._stack = ExitStack()

    def __enter__(self) -> ActorPool:
        self._stack.enter_context(exit_on_sigterm())
        self._stack.callback(self._supervisor.close)
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    @property
    def progress(self) -> PhaseProgress:
        """Progress of the current phase."""
        num_ready, scheduler = self._actors.num_ready, self._phase.scheduler
        return PhaseProgress(
            phase=self._phase.name,
            done=scheduler.tally.num_done,
            set_aside=len(scheduler.tally.set_aside),
            in_flight=scheduler.held.num_blocks,
            actors=num_ready,
            starting=len(self._actors) - num_ready,
        )

    def run(
        self,
        phase: str,
        blocks: Iterable[Block],
        *,
        known_bad: Container[Block] = (),
        on_done: Callable[[Block, Any], Any] = lambda block, result: None,
        on_set_aside: Callable[[SetAsideBlock], Any] = lambda set_aside: None,
        tick: Callable[[PhaseProgress], Any] = lambda progress: None,
    ) -> PhaseOutcome:
        """Run a phase until every block is done or set aside.

        Parameters
        ----------
        phase : str
            First argument of the actors' `work`.
        blocks : iterable of Block
            Hashable, small, all different, named by their `str()`; drawn when they are needed.
        known_bad : container of Block
            Blocks that an earlier run set aside. They run alone, and do not count as signs of a bug.
        on_done, on_set_aside : callable
            Take each block, in the order in which they end. What they raise ends the run.
        tick : callable
            Takes the progress, about once a second. What it raises ends the run.

        Returns
        -------
        PhaseOutcome
            How many blocks are done, and which were set aside.

        Raises
        ------
        ActorPoolStopped
            If it is no use to continue: no actor can be started, a disk is full, or all blocks fail.
        """
        scheduler = BlockScheduler(blocks, self._actors.plan.in_flight, known_bad)
        self._phase = _PhaseRun(phase, scheduler, on_done, on_set_aside)
        self._supervisor.start_phase(scheduler)
        review, show = Throttle(SUPERVISION_PERIOD_S), Throttle(TICK_PERIOD_S)
        while not scheduler.is_finished:
            if review.due():
                self._review(time.monotonic())
            if show.due():
                tick(self.progress)
            for number, block in scheduler.assign(time.monotonic(), self.progress.starting):
                self._actors.submit(number, phase, block)
            for event in self._actors.wait(POLL_PERIOD_S):
                self._handle(event)
            if error := scheduler.check_for_bug():
                raise error
        tick(self.progress)
        return PhaseOutcome(scheduler.tally.num_done, scheduler.tally.set_aside)

    def _review(self, now: float) -> None:
        """Count the deaths whose nodes are known by now to be alive or gone, and review the actors."""
        for item in list(self._phase.pending_deaths):
            death, since = item
            ask_at, limit = since + self._timeouts.death_check_s, since + self._timeouts.node_answer_s
            is_alive = self._cluster.is_node_alive(death.node, ask_at, limit)
            if is_alive is not None:
                self._phase.pending_deaths.remove(item)
                self._set_aside(self._phase.scheduler.resolve_death(death, is_alive))
        for actor, error in find_stuck_actors(self._actors, self._timeouts, now):
            self._handle_death(actor, error)
        self._supervisor.review(now)

    # what an actor returned

    def _handle(self, event: ActorEvent) -> None:
        if event.actor.number not in self._actors.by_number:
            return  # it was ended for another event
        if event.error is not None:
            self._handle_failure(event, event.error)
        elif event.call is StartCall.READY:
            self._on_ready(event.result)
            self._supervisor.admit(event.actor)
        else:
            self._handle_done(event)

    def _handle_done(self, event: ActorEvent) -> None:
        self._phase.scheduler.note_done(event.actor.number, event.call)
        self._supervisor.note_done(event.actor)
        self._phase.on_done(event.call, event.result)

    def _handle_failure(self, event: ActorEvent, error: Exception) -> None:
        """Handle the failure of a block, of an actor, or of the whole job."""
        cause, actor, block = event.cause, event.actor, event.call
        match event.failure:
            case FailureKind.NODE:
                self._supervisor.exclude_node(actor, str(cause))
            case FailureKind.DISK_FULL:
                reason = getattr(cause, "strerror", None) or cause
                raise ActorPoolStopped(f"no space is left: {reason}", strip_ansi(error))
            case FailureKind.BLOCK:
                reason, now = error_line(cause or error), time.monotonic()
                self._report(f"block {block} failed on {actor.name}: {reason}")
                self._set_aside(self._phase.scheduler.note_error(actor.number, block, reason, strip_ansi(error), now))
            case FailureKind.ACTOR:
                self._handle_death(actor, cause or error)

    def _handle_death(self, actor: RunningActor, error: BaseException) -> None:
        for event in self._actors.read_finished(actor, DRAIN_TIMEOUT_S) if actor.is_ready else ():
            self._handle_done(event)
        death = self._supervisor.remove_dead(actor, error)
        if death is not None:
            self._phase.pending_deaths.append((death, time.monotonic()))

    def _set_aside(self, blocks: Iterable[SetAsideBlock]) -> None:
        for each in blocks:
            self._report(f"block {each.block} is set aside: {each.reason}")
            self._phase.on_set_aside(each)

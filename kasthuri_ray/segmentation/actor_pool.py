"""Pool of Ray actors that run the blocks of one phase after the other: the event loop.

    with ActorPool(make_actor, ActorPlan(min_actors=2, max_actors=8, num_cpus=1.0), report=print) as pool:
        outcome = pool.run("s0", blocks, on_done=..., on_set_aside=...)

An actor's class has `ready() -> dict`, called once before it gets blocks, and `work(phase, block) -> dict`, which
returns few bytes; both raise `NodeUnsuitable` if the machine cannot run the job. `block_scheduler` decides which actor
gets which block, `actor_supervisor` which actors are started and ended. Every wait has a timeout, and a block that is
done is forgotten.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass
from typing import Any

from kasthuri_ray.errors import ActorPoolStopped, NodeUnsuitable, is_disk_full
from kasthuri_ray.ray_cluster.driver import exit_on_sigterm
from kasthuri_ray.ray_cluster.ray_errors import error_line, strip_ansi
from kasthuri_ray.segmentation.actor_plan import ActorPlan, PoolTimeouts
from kasthuri_ray.segmentation.actor_supervisor import ActorSupervisor
from kasthuri_ray.segmentation.actors import ActorHandle, MakeActor, collect_results
from kasthuri_ray.segmentation.block_failures import Block, SetAsideBlock
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
        report: Callable[[str], Any] = print,
        *,
        timeouts: PoolTimeouts | None = None,
        on_ready: Callable[[dict[str, Any]], Any] = lambda machine: None,
    ) -> None:
        self.plan, self.report = plan, report
        self._on_ready = on_ready
        self._supervisor = ActorSupervisor(make_actor, plan, timeouts or PoolTimeouts(), report)
        self._scheduler = self._supervisor.scheduler
        self._phase = ""

    def __enter__(self) -> ActorPool:
        self._sigterm = exit_on_sigterm()
        self._sigterm.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        try:
            self.close()
        finally:
            self._sigterm.__exit__(*error)

    def close(self) -> None:
        """End all actors and withdraw the request to the autoscaler."""
        self._supervisor.close()

    @property
    def progress(self) -> PhaseProgress:
        """Progress of the current phase."""
        num_ready, scheduler = self._supervisor.num_ready, self._scheduler
        return PhaseProgress(
            phase=self._phase,
            done=scheduler.num_done,
            set_aside=len(scheduler.set_aside),
            in_flight=scheduler.num_in_flight,
            actors=num_ready,
            starting=len(self._supervisor.actors) - num_ready,
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
        self._phase, self._on_done, self._on_set_aside = phase, on_done, on_set_aside
        self._scheduler = BlockScheduler(blocks, self.plan.in_flight, known_bad)
        self._supervisor.start_phase(self._scheduler)
        next_tick = next_review = 0.0
        while not self._scheduler.is_finished:
            now = time.monotonic()
            if now >= next_review:
                next_review = now + SUPERVISION_PERIOD_S
                self._review_actors(now)
            if now >= next_tick:
                next_tick = now + TICK_PERIOD_S
                tick(self.progress)
            for number, block in self._scheduler.assign(now):
                self._submit(self._supervisor.actors[number], block, now)
            self._wait_for_results(POLL_PERIOD_S)
            if self._scheduler.set_aside and (error := self._scheduler.check_for_bug()):
                raise error
        tick(self.progress)
        return PhaseOutcome(self._scheduler.num_done, self._scheduler.set_aside)

    def _review_actors(self, now: float) -> None:
        self._set_aside(self._supervisor.resolve_deaths(now))
        self._supervisor.end_failing_actors()
        for actor, error in self._supervisor.stuck_actors(now):
            self._handle_death(actor, error)
        self._supervisor.scale(now)

    def _submit(self, actor: ActorHandle, block: Block, now: float) -> None:
        if not actor.blocks:
            actor.last_result_at = now
        ref = actor.handle.work.remote(self._phase, block)
        actor.blocks[ref] = block
        self._supervisor.actor_of[ref] = actor

    def _wait_for_results(self, timeout_s: float) -> None:
        """Handle what comes back in time: results before failures, which may be of the same actor."""
        import ray

        if not self._supervisor.actor_of:
            time.sleep(timeout_s)
            return
        refs = list(self._supervisor.actor_of)
        ready, _ = ray.wait(refs, num_returns=1, timeout=timeout_s)
        if ready and len(refs) > 1:
            ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
        for ref, error in self._handle_results(ready):
            self._handle_failure(ref, error)

    def _handle_results(self, refs: list[Any]) -> list[tuple[Any, Exception]]:
        """Handle the references that are ready and did not fail; return the others with their errors."""
        failures = []
        for ref, result, error in collect_results(refs):
            if error is not None:
                failures.append((ref, error))
            else:
                self._handle_result(ref, result)
        return failures

    def _handle_result(self, ref: Any, result: Any) -> None:
        actor = self._supervisor.actor_of.pop(ref, None)
        if actor is None:
            return  # a placement that was fetched before
        if ref in actor.blocks:
            block = actor.blocks.pop(ref)
            actor.last_result_at = time.monotonic()
            self._scheduler.note_done(actor.number, block)
            self._supervisor.note_done(actor)
            self._on_done(block, result)
        elif ref == actor.placement:
            actor.set_placement(result)
        else:
            actor.is_ready = True
            self._supervisor.note_ready()
            self._on_ready(result)
            self._supervisor.admit(actor)

    def _handle_failure(self, ref: Any, error: Exception) -> None:
        """Handle the failure of a block, of an actor, or of the whole job."""
        import ray

        actor = self._supervisor.actor_of.get(ref)
        if actor is None:
            return  # of an actor that was removed
        cause = getattr(error, "cause", None) if isinstance(error, ray.exceptions.RayTaskError) else None
        if isinstance(cause, NodeUnsuitable):
            self._supervisor.exclude_node(actor, str(cause))
        elif is_disk_full(cause):
            raise ActorPoolStopped(f"no space is left: {getattr(cause, 'strerror', None) or cause}", strip_ansi(error))
        elif isinstance(error, ray.exceptions.RayTaskError) and ref in actor.blocks:
            self._handle_error(ref, actor, error, cause)
        else:
            self._handle_death(actor, cause if cause is not None else error)

    def _handle_error(self, ref: Any, actor: ActorHandle, error: Exception, cause: BaseException | None) -> None:
        del self._supervisor.actor_of[ref]
        block = actor.blocks.pop(ref)
        actor.last_result_at = now = time.monotonic()
        reason = error_line(cause or error)
        self.report(f"block {block} failed on {actor.name}: {reason}")
        self._set_aside(self._scheduler.note_error(actor.number, block, reason, strip_ansi(error), now))

    def _handle_death(self, actor: ActorHandle, error: BaseException) -> None:
        import ray

        if actor.is_ready and actor.blocks:  # some may be done
            refs = list(actor.blocks)
            ready, _ = ray.wait(refs, num_returns=len(refs), timeout=DRAIN_TIMEOUT_S)
            self._handle_results(ready)
        self._supervisor.remove_dead(actor, error)

    def _set_aside(self, blocks: Iterable[SetAsideBlock]) -> None:
        for each in blocks:
            self.report(f"block {each.block} is set aside: {each.reason}")
            self._on_set_aside(each)

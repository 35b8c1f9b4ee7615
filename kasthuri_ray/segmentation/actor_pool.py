"""Ray actors that do the blocks of one phase after the other, and are replaced when they die.

    with Pool(make_actor, Crew(fewest=2, most=8, num_cpus=1.0), say=print) as pool:
        outcome = pool.run("s0", blocks, on_done=..., on_aside=...)

An actor's class has `ready() -> dict`, called once before it is given blocks, and `work(phase, block) -> dict` of few
bytes; both raise `Unfit` where the machine cannot do it. Who does what and who is blamed is decided in `verdicts`, how
many actors there are in `staffing`; here is what speaks to Ray. Every wait has an end, and nothing is kept of a block
that is done.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from kasthuri_ray.errors import ActorPoolStopped, NodeUnsuitable, is_disk_full
from kasthuri_ray.ray_cluster.driver import exit_on_sigterm
from kasthuri_ray.ray_cluster.ray_errors import error_line, strip_ansi
from kasthuri_ray.ray_cluster.resources import ClusterView
from kasthuri_ray.segmentation.actors import (
    ActorHandle,
    ActorPlan,
    ActorScaling,
    PoolTimeouts,
    collect_results,
    kill_actor,
    start_actor,
)
from kasthuri_ray.segmentation.block_scheduler import ActorDeath, Block, BlockScheduler, SetAsideBlock

POLL_PERIOD_S = 0.1  # how long the loop waits for news
SCALING_PERIOD_S = 0.5  # between looks at who is there and who is needed
TICK_PERIOD_S = 1.0
DRAIN_TIMEOUT_S = 2.0  # that a dead actor's finished blocks have to be heard of

MakeActor = Callable[[dict[str, Any]], Any]


@dataclass(frozen=True)
class PhaseProgress:
    """Where a phase stands. actors: that are ready. starting: that are on their way or have no place yet."""

    phase: str
    done: int
    set_aside: int
    in_flight: int
    actors: int
    starting: int


@dataclass(frozen=True)
class PhaseOutcome:
    """What a phase came to. done: a count."""

    done: int
    set_aside: list[SetAsideBlock]


@dataclass
class _PendingVerdict:
    """A death whose node has not answered yet."""

    death: ActorDeath
    since: float


class ActorPool:
    """A crew of actors. Use it in a `with`: the actors end with it, also on Ctrl-C and SIGTERM.

    make_actor: gives a new actor's handle: `lambda options: Class.options(**options).remote(...)`. Its `__init__`
        should be short; what may fail belongs to `ready`.
    unfit: exceptions that mean the same as Unfit.
    on_ready: is told what each actor's `ready` gave.
    """

    def __init__(
        self,
        make_actor: MakeActor,
        crew: ActorPlan,
        say: Callable[[str], Any] = print,
        *,
        patience: PoolTimeouts | None = None,
        unfit: tuple[type[BaseException], ...] = (),
        on_ready: Callable[[dict[str, Any]], Any] = lambda about: None,
    ) -> None:
        self.crew, self.say, self.patience = crew, say, patience or PoolTimeouts()
        self._make_actor, self._on_ready = make_actor, on_ready
        self._unfit: tuple[type[BaseException], ...] = (NodeUnsuitable, *unfit)
        self._staffing = ActorScaling(crew, self.patience)
        self._view = ClusterView(crew.needs)
        self._members: dict[int, ActorHandle] = {}
        self._refs: dict[Any, ActorHandle] = {}  # everything that is waited for
        self._left_out: dict[str, str] = {}  # nodes, and why
        self._proved: set[str] = set()  # nodes where blocks were done since then
        self._verdicts: list[_PendingVerdict] = []
        self._next_number = 0
        self._work = BlockScheduler((), crew.in_flight)
        self._phase = ""
        self._lacking_said = False

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
        """End all actors and take the wish for more machines back."""
        for member in list(self._members.values()):
            self._end(member)
        if self.crew.ask:
            self._view.ask_for(0)

    @property
    def progress(self) -> PhaseProgress:
        ready = sum(member.is_ready for member in self._members.values())
        work = self._work
        return PhaseProgress(
            self._phase, work.done, len(work.asides), work.num_in_flight, ready, len(self._members) - ready
        )

    def run(
        self,
        phase: str,
        blocks: Iterable[Block],
        *,
        known_bad: Container[Block] = (),
        on_done: Callable[[Block, Any], Any] = lambda block, result: None,
        on_aside: Callable[[SetAsideBlock], Any] = lambda aside: None,
        tick: Callable[[PhaseProgress], Any] = lambda progress: None,
    ) -> PhaseOutcome:
        """Have every block done or set aside.

        blocks: hashable, small, all different, named by their str(); drawn as they are needed.
        known_bad: blocks that an earlier run set aside; they run alone, and say nothing about a bug.
        on_done, on_aside: told of each block, in the order in which they end. tick: about once a second.
        What these raise ends the run. Raises PoolStopped where there is no use in going on.
        """
        self._phase, self._work = phase, BlockScheduler(blocks, self.crew.in_flight, known_bad)
        self._on_done, self._on_aside = on_done, on_aside
        self._verdicts.clear()
        for member in self._members.values():
            if member.is_ready:
                self._welcome(member)
        if self.crew.ask:
            self._view.ask_for(self.crew.most)
        next_tick = next_look = 0.0
        while not self._work.over:
            now = time.monotonic()
            if now >= next_look:
                next_look = now + SCALING_PERIOD_S
                self._look_after(now)
            if now >= next_tick:
                next_tick = now + TICK_PERIOD_S
                tick(self.progress)
            for number, block in self._work.assign(now):
                self._hand_out(self._members[number], block, now)
            self._hear(POLL_PERIOD_S)
            if self._work.asides and (stop := self._work.why_stop()):
                raise stop
        tick(self.progress)
        return PhaseOutcome(self._work.done, self._work.asides)

    # blocks

    def _hand_out(self, member: ActorHandle, block: Block, now: float) -> None:
        if not member.blocks:
            member.last_sign = now
        ref = member.handle.work.remote(self._phase, block)
        member.blocks[ref] = block
        self._refs[ref] = member

    def _hear(self, seconds: float) -> None:
        """Take in what came back within so many seconds; results before failures, which may be of the same actor."""
        import ray

        if not self._refs:
            time.sleep(seconds)
            return
        refs = list(self._refs)
        found, _ = ray.wait(refs, num_returns=1, timeout=seconds)
        if found and len(refs) > 1:
            found, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
        for ref, error in self._take_in(found):
            self._failed(ref, error)

    def _take_in(self, refs: list[Any]) -> list[tuple[Any, Exception]]:
        """Take in the results among what is there; gives the failures."""
        failed = []
        for ref, result, error in collect_results(refs):
            if error is not None:
                failed.append((ref, error))
            else:
                self._succeeded(ref, result)
        return failed

    def _succeeded(self, ref: Any, result: Any) -> None:
        member = self._refs.pop(ref, None)
        if member is None:
            return  # it was asked for before
        if ref in member.blocks:
            block = member.blocks.pop(ref)
            member.last_sign = time.monotonic()
            self._work.finished(member.number, block)
            if self._left_out:
                self._proved.add(member.node)
            self._on_done(block, result)
        elif ref == member.where:
            member.has_place(result)
        else:
            member.is_ready = True
            self._staffing.came_ready()
            self._on_ready(result)
            if not member.node:  # its other answer is on its way
                self._place(member)
            self._welcome(member)

    def _place(self, member: ActorHandle) -> None:
        import ray

        with suppress(Exception):
            member.has_place(ray.get(member.where, timeout=10))
        self._refs.pop(member.where, None)

    def _welcome(self, member: ActorHandle) -> None:
        member.last_sign = time.monotonic()
        self._work.joined(member.number, member.node)

    def _failed(self, ref: Any, error: Exception) -> None:
        """Take in a failure: of a block, of an actor, or of the job."""
        import ray

        member = self._refs.get(ref)
        if member is None:
            return  # of an actor that is gone already
        cause = getattr(error, "cause", None) if isinstance(error, ray.exceptions.RayTaskError) else None
        if isinstance(cause, self._unfit):
            self._leave_out(member, str(cause))
        elif is_disk_full(cause):
            raise ActorPoolStopped(f"no room is left: {getattr(cause, 'strerror', None) or cause}", strip_ansi(error))
        elif isinstance(error, ray.exceptions.RayTaskError) and ref in member.blocks:
            self._raised(ref, member, error, cause)
        else:
            self._died(member, cause if cause is not None else error)

    def _raised(self, ref: Any, member: ActorHandle, error: Exception, cause: BaseException | None) -> None:
        del self._refs[ref]
        block = member.blocks.pop(ref)
        member.last_sign = time.monotonic()
        reason = error_line(cause or error)
        self.say(f"block {block} failed on {member.name}: {reason}")
        self._set_aside(self._work.raised(member.number, block, reason, strip_ansi(error), time.monotonic()))

    def _set_aside(self, asides: list[SetAsideBlock]) -> None:
        for aside in asides:
            self.say(f"block {aside.block} is set aside: {aside.reason}")
            self._on_aside(aside)

    # actors

    def _start(self) -> None:
        member = start_actor(self._make_actor, self._next_number, self.crew, self._left_out)
        self._next_number += 1
        self._members[member.number] = member
        self._refs.update(dict.fromkeys(member.refs, member))

    def _end(self, member: ActorHandle) -> None:
        """Kill an actor and forget it; its blocks are the caller's to give back."""
        kill_actor(member)
        self._members.pop(member.number, None)
        for ref in member.refs:
            self._refs.pop(ref, None)
        member.blocks.clear()

    def _let_go(self, member: ActorHandle) -> None:
        if member.is_ready:
            self._work.left(member.number)
        self._end(member)

    def _leave_out(self, member: ActorHandle, reason: str) -> None:
        """An actor's machine cannot do it: its blocks are given back, and its node gets no other actor."""
        if not member.node:
            self._place(member)
        if self._left_out.get(member.node) != reason:
            self.say(f"{member.name} is left out: {reason}")
        self._let_go(member)
        self._left_out[member.node] = reason
        self._proved.discard(member.node)

    def _all_left_out(self) -> bool:
        """Whether all machines that are large enough are left out; those with good actors have another try then."""
        if not self._left_out or not self._view.all_left_out(self._left_out):
            return False
        proved = self._proved & self._left_out.keys()
        if not proved or any(member.placed is not None for member in self._members.values()):
            return True
        for node in proved:
            del self._left_out[node]
        self._proved.clear()
        for member in list(self._members.values()):  # they may not go there
            self._end(member)
        return False

    def _died(self, member: ActorHandle, error: BaseException) -> None:
        import ray

        reason = error_line(error)
        if not member.is_ready:
            self._end(member)
            self._staffing.failed(time.monotonic(), member.created, reason)
            self.say(f"{member.name} died before it was ready: {reason}")
            return
        if member.blocks:  # some may have been done before
            refs = list(member.blocks)
            found, _ = ray.wait(refs, num_returns=len(refs), timeout=DRAIN_TIMEOUT_S)
            self._take_in(found)
        death = self._work.died(member.number, reason, strip_ansi(error))
        self._end(member)
        if death:
            self._verdicts.append(_PendingVerdict(death, time.monotonic()))
        num = len(death.blocks) if death else 0
        again = f"; {num} block{'s are' if num != 1 else ' is'} done again" if num else ""
        self.say(f"{member.name} died: {reason}{again}")

    # what is looked at now and then

    def _look_after(self, now: float) -> None:
        self._judge(now)
        self._mind_the_sick()
        self._end_the_stuck(now)
        self._staff(now)

    def _judge(self, now: float) -> None:
        """Decide the deaths of which the node's fate is known by now."""
        for verdict in list(self._verdicts):
            asked_at, limit = verdict.since + self.patience.verdict, verdict.since + self.patience.fate
            lives = self._view.lives(verdict.death.node, asked_at, limit)
            if lives is not None:
                self._verdicts.remove(verdict)
                self._set_aside(self._work.fate(verdict.death, lives))

    def _mind_the_sick(self) -> None:
        for place in self._work.sick():
            members = [m for m in self._members.values() if m.is_ready and place in (m.number, m.node)]
            elsewhere = any(m.is_ready and m.node != place for m in self._members.values())
            reason = "blocks fail there that are done elsewhere"
            if isinstance(place, str) and elsewhere:
                self.say(f"node {place[:8]} is left out: {reason}")
                self._left_out[place] = reason
            if isinstance(place, int) or elsewhere:
                for member in members:
                    self.say(f"{member.name} is ended: {reason}")
                    self._let_go(member)
            self._work.recovered(place)

    def _end_the_stuck(self, now: float) -> None:
        patience = self.patience
        for member in list(self._members.values()):
            if member.blocks and now - member.last_sign > patience.stuck:
                self._died(member, TimeoutError(f"no block was done for {patience.stuck:g} s"))
            elif not member.is_ready and member.placed is not None and now - member.placed > patience.ready:
                self._died(member, TimeoutError(f"it was not ready after {patience.ready:g} s"))

    def _staff(self, now: float) -> None:
        wanted = self._work.num_wanted(self.crew.most)
        self._let_idle_go(now, wanted)
        shut = self._all_left_out() and not self.crew.ask
        members = self._members.values()
        unplaced = sum(member.placed is None for member in members)
        room = self._view.num_that_fit() if len(members) < min(wanted, self.crew.most) and not unplaced else 0
        more = self._staffing.num_to_start(now, len(members), unplaced, wanted, room)
        for _ in range(0 if shut else more):
            self._start()
        nobody_can = shut and not members
        ready = sum(member.is_ready for member in members)
        self._work.coming = len(members) - ready
        placed = sum(member.placed is not None for member in members)
        reasons = list(self._left_out.values())
        if reason := self._staffing.why_stop(now, placed, ready, reasons, nobody_can):
            raise ActorPoolStopped(f"{reason} ({self._view.lack()})")
        self._say_what_lacks(now, placed, len(members) - placed)

    def _let_idle_go(self, now: float, wanted: int) -> None:
        """End those that the blocks that are left cannot use: at once without a place, after a while with one."""
        surplus = len(self._members) - wanted
        for member in list(self._members.values()) if surplus > 0 else ():
            idle = member.is_ready and not member.blocks and now - member.last_sign > self.patience.idle
            if surplus > 0 and (idle or member.placed is None):
                self._let_go(member)
                surplus -= 1

    def _say_what_lacks(self, now: float, placed: int, unplaced: int) -> None:
        if self._staffing.says_now(now):
            left = max(0.0, self.patience.cluster - self._staffing.waited(now))
            self.say(f"no actor has started yet; waiting up to {left:.0f} s more: {self._view.lack()}")
        waits_long = any(m.placed is None and now - m.created > 10 for m in self._members.values())
        if placed and waits_long and not self._lacking_said:
            self._lacking_said = True
            self.say(f"room was found for {placed} of {placed + unplaced} actors so far: {self._view.lack()}")

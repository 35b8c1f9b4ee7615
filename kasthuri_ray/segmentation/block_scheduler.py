"""Which actor gets which block, when a failed block is retried, and when it is set aside. Pure: no Ray, no clock.

A block that raises an error is retried on another actor. A block whose actor died is retried alone on an actor, so that
the next death has one cause only; the death counts against the block once its node is known to be alive. After three
failures of a kind a block is set aside.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Container, Iterable
from itertools import islice

from kasthuri_ray.errors import ActorPoolStopped
from kasthuri_ray.segmentation.block_failures import (
    MAX_FAILURES_PER_BLOCK,
    ActorDeath,
    Block,
    BlockFailures,
    Place,
    SetAsideBlock,
)

RETRY_PAUSES_S = (0.5, 3.0)  # before a block that raised is retried: what failed for a moment works again

# The cause is not in the blocks if so many were set aside and none was done, out of at least so many tried,
MAX_SET_ASIDE_IF_NONE_DONE, MIN_TRIED = 3, 8
# or if so many were set aside, and more than twice as many as were done, or so many in a row.
MANY_SET_ASIDE, MAX_SET_ASIDE_IN_A_ROW = 10, 50

MAX_FAILURES_PER_PLACE = 3  # blocks that failed on an actor or node and were done elsewhere
MAX_PEEKED = 64  # waiting blocks that are searched for one that an actor may run


class BlockScheduler:
    """Scheduler of the blocks of one phase.

    Blocks are drawn from their iterable when they are needed; only those that failed are remembered. Set `num_starting`
    to the number of actors that are starting: the last blocks are left for them.

    Parameters
    ----------
    blocks : iterable of Block
        The blocks.
    max_in_flight : int
        Most blocks that an actor holds at once.
    known_bad : container of Block
        Blocks that an earlier run set aside. They run alone, and do not count as signs of a bug.
    """

    def __init__(self, blocks: Iterable[Block], max_in_flight: int, known_bad: Container[Block] = ()) -> None:
        self.max_in_flight, self.num_starting = max_in_flight, 0
        self.num_done = self.num_in_flight = 0
        self.set_aside: list[SetAsideBlock] = []
        self._source, self._known_bad = iter(blocks), known_bad
        self._peeked: deque[Block] = deque()  # taken from the source and not assigned yet
        self._retries: deque[Block] = deque()
        self._suspects: dict[Block, None] = {}
        self._failures: dict[Block, BlockFailures] = {}
        self._held: dict[int, dict[Block, None]] = {}  # blocks of each actor, in the order of assignment
        self._node_of: dict[int, str] = {}
        self._num_actors_on: Counter[str] = Counter()
        self._available: dict[int, None] = {}  # actors that can hold one more block
        self._running_alone: set[int] = set()  # actors with a suspect
        self._draining: set[int] = set()  # actors that get no more blocks until they are empty, for a suspect
        self._num_drawn = self._num_new_set_aside = self._num_set_aside_in_a_row = 0
        self._num_done_elsewhere: Counter[Place] = Counter()  # blocks that failed at a place and were done elsewhere

    # events

    def add_actor(self, actor: int, node: str) -> None:
        """Add an actor that is ready for blocks."""
        self._held[actor], self._node_of[actor], self._available[actor] = {}, node, None
        self._num_actors_on[node] += 1

    def remove_actor(self, actor: int) -> None:
        """Remove an actor that was ended on purpose; its blocks are queued again and no failure is counted."""
        for block in self._forget_actor(actor):
            self._queue(block)

    def note_done(self, actor: int, block: Block) -> None:
        """Note that an actor finished a block."""
        self._release(actor, block)
        self.num_done, self._num_set_aside_in_a_row = self.num_done + 1, 0
        places = (actor, self._node_of[actor])
        for place in places:
            self._num_done_elsewhere.pop(place, None)
        failures = self._failures.pop(block, None)
        if failures is not None:
            self._num_done_elsewhere.update(failures.places.difference(places))

    def note_error(self, actor: int, block: Block, reason: str, traceback: str, now: float) -> list[SetAsideBlock]:
        """Note that a block raised an error; return it if it is set aside."""
        self._release(actor, block)
        failures = self._failures.setdefault(block, BlockFailures())
        failures.num_errors, failures.num_own = failures.num_errors + 1, failures.num_own + 1
        failures.traceback = traceback
        failures.error_actors.add(actor)
        failures.places.add(actor)
        if failures.num_errors >= MAX_FAILURES_PER_BLOCK:
            return [self._set_aside(block, f"raised {MAX_FAILURES_PER_BLOCK} times: {reason}")]
        failures.retry_at = now + RETRY_PAUSES_S[failures.num_errors - 1]
        self._queue(block)
        return []

    def note_death(self, actor: int, reason: str, details: str = "") -> ActorDeath | None:
        """Note that an actor died, and queue its blocks again.

        Returns the death for `resolve_death`, or None if the actor held no block.
        """
        node = self._node_of[actor]
        blocks = tuple(self._forget_actor(actor))
        for block in blocks:
            failures = self._failures.setdefault(block, BlockFailures())
            failures.num_pending_deaths += 1
            failures.death_nodes.add(node)
            if len(blocks) == 1:
                failures.num_own += 1
                failures.places.add(node)
            self._queue(block)
        return ActorDeath(blocks, node, reason, details or reason) if blocks else None

    def resolve_death(self, death: ActorDeath, node_is_alive: bool) -> list[SetAsideBlock]:
        """Count a death against its blocks, or forget it if its node is gone; return the blocks that are set aside."""
        set_aside = []
        for block in death.blocks:
            failures = self._failures.get(block)
            if failures is None:
                continue  # it is done, or was set aside for another reason
            was_on_hold = failures.is_on_hold
            failures.num_pending_deaths -= 1
            failures.num_deaths += node_is_alive
            if failures.num_deaths >= MAX_FAILURES_PER_BLOCK:
                reason = f"{MAX_FAILURES_PER_BLOCK} actors died on it while their nodes stayed alive: {death.reason}"
                set_aside.append(self._set_aside(block, reason, death.details))
            elif was_on_hold and not failures.is_on_hold:
                self._queue(block)
            elif block in self._suspects and not failures.is_suspect:
                del self._suspects[block]
                self._queue(block)
            if failures.is_cleared:
                self._failures.pop(block, None)
        return set_aside

    # decisions

    def assign(self, now: float) -> list[tuple[int, Block]]:
        """Return the blocks that are assigned now, each with its actor; actors that hold fewest come first."""
        assigned: list[tuple[int, Block]] = []
        if not self._available or not self._num_waiting(1):
            return assigned
        for load in range(self.max_in_flight):
            for actor in [actor for actor in self._available if len(self._held[actor]) == load]:
                block = self._choose(actor, now)
                if block is not None:
                    self._hold(actor, block)
                    assigned.append((actor, block))
        return assigned

    def num_usable_actors(self, limit: int) -> int:
        """Return how many actors, up to `limit`, have work: those that hold blocks, and one for each waiting block."""
        busy = sum(1 for held in self._held.values() if held)
        return min(limit, busy + self._num_waiting(max(0, limit - busy)))

    def failing_places(self) -> list[Place]:
        """Return the nodes and actors at which blocks failed that were done elsewhere, and none was done since."""
        return [place for place, number in self._num_done_elsewhere.items() if number >= MAX_FAILURES_PER_PLACE]

    def clear_place(self, place: Place) -> None:
        """Forget the failures at a node or actor."""
        self._num_done_elsewhere.pop(place, None)

    @property
    def is_finished(self) -> bool:
        """Whether every block is done or set aside."""
        return not (self.num_in_flight or self._retries or self._failures or self._peek(1))

    def check_for_bug(self) -> ActorPoolStopped | None:
        """Return an error if so many blocks failed, and no other may succeed, that the cause is not in the blocks."""
        if not self._looks_like_a_bug() or self._any_may_succeed():
            return None
        first = next(each for each in self.set_aside if each.block not in self._known_bad)
        done = f"{self.num_done or 'none'} {'was' if self.num_done < 2 else 'were'} done"
        return ActorPoolStopped(
            f"{self._num_new_set_aside} blocks were set aside and {done}, so the cause is probably not in the blocks. "
            f"The first, {first.block}: {first.reason}",
            first.traceback,
        )

    # choice of a block

    def _looks_like_a_bug(self) -> bool:
        new = self._num_new_set_aside
        if new >= MAX_SET_ASIDE_IF_NONE_DONE and not self.num_done:
            return self._num_drawn >= MIN_TRIED or not self._peek(1)
        is_majority = new >= MANY_SET_ASIDE and new > 2 * self.num_done
        return is_majority or self._num_set_aside_in_a_row >= MAX_SET_ASIDE_IN_A_ROW

    def _any_may_succeed(self) -> bool:
        """Return whether a block is held or waits that did not fail by itself yet."""
        held = (block for blocks in self._held.values() for block in blocks)
        if any(block not in self._failures for blocks in (held, self._retries) for block in blocks):
            return True
        return any(not (failures.num_own or failures.known_bad) for failures in self._failures.values())

    def _peek(self, num: int) -> int:
        """Return how many blocks, up to `num`, were never assigned."""
        while len(self._peeked) < num:
            drawn = list(islice(self._source, num - len(self._peeked)))
            if not drawn:
                break
            self._peeked.extend(drawn)
        return min(num, len(self._peeked))

    def _num_waiting(self, limit: int) -> int:
        waiting = len(self._retries) + len(self._suspects)
        return min(limit, waiting + self._peek(max(0, limit - waiting)))

    def _choose(self, actor: int, now: float) -> Block | None:
        """Return the next block of an actor that can hold one more, or None."""
        if actor in self._running_alone:
            return None
        is_idle = not self._held[actor]
        max_alone = max(1, len(self._held) // 2)
        if is_idle:
            self._draining.discard(actor)
            if len(self._running_alone) < max_alone and (block := self._take_suspect(actor, now)) is not None:
                return block
        elif self._must_drain(actor, now, max_alone):
            return None
        block = self._take_retry(actor, now)
        block = self._draw(actor) if block is None else block
        return self._take_suspect(actor, now) if block is None and is_idle else block

    def _must_drain(self, actor: int, now: float, max_alone: int) -> bool:
        """Return whether an actor gets no more blocks until it is empty and can run a suspect."""
        if not self._suspects:
            self._draining.clear()
        num_draining = len(self._draining)
        is_needed = num_draining < len(self._suspects) and num_draining + len(self._running_alone) < max_alone
        if is_needed and any(self._may_run(actor, block, now) for block in islice(self._suspects, MAX_PEEKED)):
            self._draining.add(actor)
        return actor in self._draining

    def _take_suspect(self, actor: int, now: float) -> Block | None:
        for block in islice(self._suspects, MAX_PEEKED):
            if self._may_run(actor, block, now):
                del self._suspects[block]
                self._running_alone.add(actor)
                return block
        return None

    def _take_retry(self, actor: int, now: float) -> Block | None:
        for position, block in enumerate(islice(self._retries, MAX_PEEKED)):
            if self._may_run(actor, block, now):
                del self._retries[position]
                return block
        return None

    def _draw(self, actor: int) -> Block | None:
        """Return a block that was never assigned, or None if too many have failed, or the last are left for others."""
        max_failing = max(MIN_TRIED, self.max_in_flight * len(self._held))
        if len(self._failures) >= max_failing or self._looks_like_a_bug():
            return None
        num_actors = len(self._held) + self.num_starting
        if len(self._held[actor]) >= 2 and self._peek(num_actors) < num_actors:
            return None
        while self._peek(1):
            block = self._peeked.popleft()
            self._num_drawn += 1
            if block not in self._known_bad:
                return block
            self._failures[block] = BlockFailures(known_bad=True)
            self._queue(block)
            if not self._held[actor] or len(self._suspects) >= MIN_TRIED:
                break
        return None

    def _may_run(self, actor: int, block: Block, now: float) -> bool:
        """Return whether an actor may run a block: it did not fail there, or it failed everywhere."""
        failures = self._failures.get(block)
        if failures is None:
            return True
        if now < failures.retry_at:
            return False
        if actor not in failures.error_actors and self._node_of[actor] not in failures.death_nodes:
            return True
        num_failed = sum(self._num_actors_on[node] for node in failures.death_nodes)
        num_failed += sum(
            1
            for each in failures.error_actors
            if each in self._node_of and self._node_of[each] not in failures.death_nodes
        )
        return num_failed >= len(self._held)

    # queues

    def _queue(self, block: Block) -> None:
        failures = self._failures.get(block)
        if failures is None or not failures.is_suspect:
            self._retries.append(block)
        elif not failures.is_on_hold:
            self._suspects[block] = None

    def _hold(self, actor: int, block: Block) -> None:
        held = self._held[actor]
        held[block] = None
        self.num_in_flight += 1
        if len(held) >= self.max_in_flight:
            self._available.pop(actor, None)

    def _release(self, actor: int, block: Block) -> None:
        del self._held[actor][block]
        self.num_in_flight -= 1
        self._available[actor] = None
        self._running_alone.discard(actor)

    def _forget_actor(self, actor: int) -> dict[Block, None]:
        blocks = self._held.pop(actor)
        self.num_in_flight -= len(blocks)
        node = self._node_of.pop(actor)
        self._num_actors_on[node] -= 1
        if not self._num_actors_on[node]:
            del self._num_actors_on[node]
        self._available.pop(actor, None)
        for actors in (self._running_alone, self._draining):
            actors.discard(actor)
        self._num_done_elsewhere.pop(actor, None)
        return blocks

    def _set_aside(self, block: Block, reason: str, details: str = "") -> SetAsideBlock:
        failures = self._failures.pop(block)
        self._suspects.pop(block, None)
        set_aside = SetAsideBlock(block, reason, failures.traceback or details)
        self.set_aside.append(set_aside)
        if block not in self._known_bad:
            self._num_new_set_aside += 1
            self._num_set_aside_in_a_row += 1
        return set_aside

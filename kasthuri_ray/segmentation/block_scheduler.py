"""Which actor gets which block, when a failed block is retried, and when it is set aside. Pure: no Ray, no clock.

A block that raises an error is retried on another actor. A block whose actor died is retried alone on an actor, so that
the next death has one cause only. `block_failures` counts, and sets a block aside after three failures of a kind;
`block_choice` decides which block an actor gets next.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from itertools import chain

from kasthuri_ray.errors import ActorPoolStopped
from kasthuri_ray.segmentation.block_choice import BlockChooser
from kasthuri_ray.segmentation.block_failures import ActorDeath, Block, FailedBlocks, SetAsideBlock
from kasthuri_ray.segmentation.block_queue import BlockQueue
from kasthuri_ray.segmentation.held_blocks import HeldBlocks
from kasthuri_ray.segmentation.phase_tally import PhaseTally


class BlockScheduler:
    """Scheduler of the blocks of one phase.

    Blocks are drawn from their iterable when they are needed; only those that failed are remembered.

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
        self.held, self.failures, self.tally = HeldBlocks(max_in_flight), FailedBlocks(), PhaseTally()
        self._queue, self._known_bad = BlockQueue(blocks), known_bad
        self._chooser = BlockChooser(self._queue, self.held, self.failures, self.tally, known_bad)

    # events

    def add_actor(self, actor: int, node: str) -> None:
        """Add an actor that is ready for blocks."""
        self.held.add_actor(actor, node)

    def remove_actor(self, actor: int) -> None:
        """Remove an actor that was ended on purpose; its blocks are queued again and no failure is counted."""
        self.failures.clear_place(actor)
        for block in self.held.remove_actor(actor):
            self._requeue(block)

    def note_done(self, actor: int, block: Block) -> None:
        """Note that an actor finished a block."""
        self.held.release(actor, block)
        self.tally.note_done()
        self.failures.note_done(block, (actor, self.held.node_of[actor]))

    def note_error(self, actor: int, block: Block, reason: str, traceback: str, now: float) -> list[SetAsideBlock]:
        """Note that a block raised an error; return it if it is set aside."""
        self.held.release(actor, block)
        set_aside = self.failures.note_error(block, actor, reason, traceback, now)
        if set_aside is not None:
            return [self._set_aside(set_aside)]
        self._requeue(block)
        return []

    def note_death(self, actor: int, reason: str, details: str = "") -> ActorDeath | None:
        """Note that an actor died, and queue its blocks again.

        Returns the death for `resolve_death`, or None if the actor held no block.
        """
        node = self.held.node_of[actor]
        self.failures.clear_place(actor)
        death = ActorDeath(tuple(self.held.remove_actor(actor)), node, reason, details or reason)
        self.failures.note_death(death)
        for block in death.blocks:
            self._requeue(block)
        return death if death.blocks else None

    def resolve_death(self, death: ActorDeath, node_is_alive: bool) -> list[SetAsideBlock]:
        """Count a death against its blocks, or forget it if its node is gone; return the blocks that are set aside."""
        set_aside = []
        for block in death.blocks:
            failures = self.failures.get(block)
            if failures is None:
                continue  # it is done, or was set aside for another reason
            was_on_hold = failures.is_on_hold
            result = self.failures.resolve_death(block, death, node_is_alive)
            if result is not None:
                set_aside.append(self._set_aside(result))
            elif (was_on_hold and not failures.is_on_hold) or (
                block in self._queue.suspects and not failures.is_suspect
            ):
                self._requeue(block)
        return set_aside

    # decisions

    def assign(self, now: float, num_starting: int = 0) -> list[tuple[int, Block]]:
        """Return the blocks that are assigned now, each with its actor; actors that hold fewest come first.

        num_starting: actors that are starting; the last blocks are left for them.
        """
        assigned: list[tuple[int, Block]] = []
        for load in range(self.held.max_in_flight):
            for actor in self.held.available(load):
                block = self._chooser.choose(actor, now, num_starting)
                if block is not None:
                    failures = self.failures.get(block)
                    self.held.hold(actor, block, alone=failures is not None and failures.is_suspect)
                    assigned.append((actor, block))
        return assigned

    def num_usable_actors(self, limit: int) -> int:
        """Return how many actors, up to `limit`, have work: those that hold blocks, and one for each waiting block."""
        busy = sum(1 for held in self.held.by_actor.values() if held)
        return min(limit, busy + self._queue.count(max(0, limit - busy)))

    @property
    def is_finished(self) -> bool:
        """Whether every block is done or set aside."""
        return not (self.held.num_blocks or self._queue.retries or len(self.failures) or self._queue.peek(1))

    def check_for_bug(self) -> ActorPoolStopped | None:
        """Return an error if so many blocks failed, and no other may succeed, that the cause is not in the blocks."""
        if not self.tally.set_aside or not self._chooser.looks_like_a_bug():
            return None
        known = chain(*self.held.by_actor.values(), self._queue.retries)
        may_succeed = any(self.failures.get(block) is None for block in known) or self.failures.any_may_succeed()
        return None if may_succeed else self.tally.bug_error()

    def _requeue(self, block: Block) -> None:
        self._queue.put(block, self.failures.get(block))

    def _set_aside(self, block: SetAsideBlock) -> SetAsideBlock:
        self._queue.suspects.pop(block.block, None)
        self.tally.note_set_aside(block, known_bad=block.block in self._known_bad)
        return block

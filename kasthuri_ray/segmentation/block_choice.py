"""Choice of the next block of an actor. Pure: no Ray, no clock."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

from kasthuri_ray.segmentation.block_failures import Block, FailedBlocks
from kasthuri_ray.segmentation.block_queue import BlockQueue
from kasthuri_ray.segmentation.held_blocks import HeldBlocks
from kasthuri_ray.segmentation.phase_tally import MIN_TRIED, PhaseTally


@dataclass(frozen=True)
class BlockChooser:
    """Chooses the next block of an actor from what waits, what actors hold, and what failed.

    Parameters
    ----------
    queue : BlockQueue
        Blocks that wait.
    held : HeldBlocks
        Blocks that actors hold.
    failures : FailedBlocks
        Failures of the blocks.
    tally : PhaseTally
        Counts of the blocks.
    known_bad : container of Block
        Blocks that an earlier run set aside.
    """

    queue: BlockQueue
    held: HeldBlocks
    failures: FailedBlocks
    tally: PhaseTally
    known_bad: Container[Block]

    def choose(self, actor: int, now: float, num_starting: int) -> Block | None:
        """Return the next block of an actor that can hold one more, or None.

        num_starting: actors that are starting; the last blocks are left for them.
        """
        held = self.held
        if actor in held.running_alone:
            return None
        is_idle = not held.by_actor[actor]
        max_alone = max(1, len(held.by_actor) // 2)

        def may_run(block: Block) -> bool:
            return self._may_run(actor, block, now)

        if is_idle:
            held.draining.discard(actor)
            if len(held.running_alone) < max_alone and (block := self.queue.take_suspect(may_run)) is not None:
                return block
        elif self._must_drain(actor, max_alone, now):
            return None
        block = self.queue.take_retry(may_run)
        block = self._draw(actor, num_starting) if block is None else block
        return self.queue.take_suspect(may_run) if block is None and is_idle else block

    def looks_like_a_bug(self) -> bool:
        """Return whether so many blocks were set aside that the cause is probably not in them."""
        return self.tally.looks_like_a_bug(self.queue.num_drawn, all_tried=not self.queue.peek(1))

    def _must_drain(self, actor: int, max_alone: int, now: float) -> bool:
        """Return whether an actor gets no more blocks until it is empty and can run a suspect."""
        draining, suspects = self.held.draining, self.queue.suspects
        if not suspects:
            draining.clear()
        is_needed = len(draining) < len(suspects) and len(draining) + len(self.held.running_alone) < max_alone
        if is_needed and self.queue.has_suspect(lambda block: self._may_run(actor, block, now)):
            draining.add(actor)
        return actor in draining

    def _draw(self, actor: int, num_starting: int) -> Block | None:
        """Return a block that was never assigned, or None if too many have failed, or the last are left for others."""
        held, queue = self.held.by_actor, self.queue
        max_failing = max(MIN_TRIED, self.held.max_in_flight * len(held))
        if len(self.failures) >= max_failing or self.looks_like_a_bug():
            return None
        num_actors = len(held) + num_starting
        if len(held[actor]) >= 2 and queue.peek(num_actors) < num_actors:
            return None
        while queue.peek(1):
            block = queue.draw()
            if block not in self.known_bad:
                return block
            self.failures.note_known_bad(block)
            queue.put(block, self.failures.get(block))
            if not held[actor] or len(queue.suspects) >= MIN_TRIED:
                break
        return None

    def _may_run(self, actor: int, block: Block, now: float) -> bool:
        """Return whether an actor may run a block: it did not fail there, or it failed everywhere."""
        failures = self.failures.get(block)
        if failures is None:
            return True
        if now < failures.retry_at:
            return False
        if actor not in failures.error_actors and self.held.node_of[actor] not in failures.death_nodes:
            return True
        return self.held.count_actors(failures.error_actors, failures.death_nodes) >= len(self.held.by_actor)

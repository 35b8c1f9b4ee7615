"""Blocks of a phase that wait for an actor: new ones, and those that are tried again. Pure.

Blocks that were never assigned are drawn from their iterable when they are needed, so that a phase of millions takes no
memory. A suspect, which may kill its actor, waits apart from the others: it runs alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from itertools import islice

from kasthuri_ray.segmentation.block_failures import Block, BlockFailures

MAX_PEEKED = 64  # waiting blocks that are searched for one that an actor may run

MayRun = Callable[[Block], bool]


class BlockQueue:
    """Waiting blocks of a phase.

    Parameters
    ----------
    blocks : iterable of Block
        All blocks of the phase.
    """

    def __init__(self, blocks: Iterable[Block]) -> None:
        self.num_drawn = 0
        self.retries: deque[Block] = deque()
        self.suspects: dict[Block, None] = {}
        self._source = iter(blocks)
        self._peeked: deque[Block] = deque()  # taken from the source and not drawn yet

    def peek(self, num: int) -> int:
        """Return how many blocks, up to `num`, were never drawn."""
        if len(self._peeked) < num:
            self._peeked.extend(islice(self._source, num - len(self._peeked)))
        return min(num, len(self._peeked))

    def count(self, limit: int) -> int:
        """Return how many blocks wait, up to `limit`."""
        num = len(self.retries) + len(self.suspects)
        return min(limit, num + self.peek(max(0, limit - num)))

    def draw(self) -> Block:
        """Return the next block that was never drawn; `peek` says whether there is one."""
        self.num_drawn += 1
        return self._peeked.popleft()

    def put(self, block: Block, failures: BlockFailures | None) -> None:
        """Queue a block that is to be tried again, according to its failures; one on hold is not queued."""
        self.suspects.pop(block, None)
        if failures is None or not failures.is_suspect:
            self.retries.append(block)
        elif not failures.is_on_hold:
            self.suspects[block] = None

    def has_suspect(self, may_run: MayRun) -> bool:
        """Return whether a suspect waits that may run."""
        return any(may_run(block) for block in islice(self.suspects, MAX_PEEKED))

    def take_suspect(self, may_run: MayRun) -> Block | None:
        """Return the first suspect that may run, or None."""
        block = next((block for block in islice(self.suspects, MAX_PEEKED) if may_run(block)), None)
        if block is not None:
            del self.suspects[block]
        return block

    def take_retry(self, may_run: MayRun) -> Block | None:
        """Return the first block that is tried again and may run, or None."""
        for position, block in enumerate(islice(self.retries, MAX_PEEKED)):
            if may_run(block):
                del self.retries[position]
                return block
        return None

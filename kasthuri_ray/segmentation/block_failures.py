"""Failures of blocks: what counts against a block, an actor or a node, and when a block is set aside. Pure.

A block may raise an error, or its actor may die. A death counts against a block once its node is known to be alive.
After three failures of a kind a block is set aside.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, field

Block = Hashable
FailurePlace = int | str  # number of an actor, or id of a node

MAX_FAILURES_PER_BLOCK = 3  # of each kind, before a block is set aside
MAX_FAILURES_PER_PLACE = 3  # blocks that failed on an actor or node and were done elsewhere
RETRY_PAUSES_S = (0.5, 3.0)  # before a block that raised is retried: what failed for a moment works again


@dataclass(frozen=True)
class SetAsideBlock:
    """A block that is set aside.

    Parameters
    ----------
    block : Block
        The block.
    reason : str
        One line.
    traceback : str
        Traceback of its last error, or all that is known of the last death.
    """

    block: Block
    reason: str
    traceback: str


@dataclass(frozen=True)
class ActorDeath:
    """Death of an actor that held blocks; it counts against them only if the node is alive.

    Parameters
    ----------
    blocks : tuple of Block
        Blocks that the actor held.
    node : str
        Id of its node.
    reason : str
        One line.
    details : str
        All that is known of the death.
    """

    blocks: tuple[Block, ...]
    node: str
    reason: str
    details: str


@dataclass
class BlockFailures:
    """Failures of one block.

    Parameters
    ----------
    known_bad : bool
        Whether an earlier run set it aside.
    num_deaths : int
        Deaths of actors on nodes that are alive.
    num_pending_deaths : int
        Deaths of actors on nodes that are not known yet to be alive.
    num_errors : int
        Errors that it raised.
    num_own : int
        Failures that no other block can have caused.
    retry_at : float
        Time before which it is not retried.
    traceback : str
        Traceback of its last error.
    error_actors : set of int
        Actors on which it raised.
    death_nodes : set of str
        Nodes on which its actors died.
    places : set of FailurePlace
        Actors and nodes that may be the cause instead.
    """

    known_bad: bool = False
    num_deaths: int = 0
    num_pending_deaths: int = 0
    num_errors: int = 0
    num_own: int = 0
    retry_at: float = 0.0
    traceback: str = ""
    error_actors: set[int] = field(default_factory=set)
    death_nodes: set[str] = field(default_factory=set)
    places: set[FailurePlace] = field(default_factory=set)

    @property
    def is_suspect(self) -> bool:
        """Whether the block may kill actors, and so runs alone."""
        return self.known_bad or self.num_deaths + self.num_pending_deaths > 0

    @property
    def is_on_hold(self) -> bool:
        """Whether the block does not run, since it is set aside if the nodes of all deaths turn out to be alive."""
        return self.num_deaths + self.num_pending_deaths >= MAX_FAILURES_PER_BLOCK

    @property
    def is_cleared(self) -> bool:
        """Whether nothing counts against the block any more."""
        return not (self.is_suspect or self.num_errors)


class FailedBlocks:
    """Failures of the blocks of a phase that are neither done nor set aside, and of the places where they failed."""

    def __init__(self) -> None:
        self._by_block: dict[Block, BlockFailures] = {}
        # By place: blocks that failed there and were done elsewhere.
        self._num_done_elsewhere: Counter[FailurePlace] = Counter()

    def __len__(self) -> int:
        return len(self._by_block)

    def get(self, block: Block) -> BlockFailures | None:
        """Return the failures of a block; None if it has none."""
        return self._by_block.get(block)

    def note_known_bad(self, block: Block) -> None:
        """Note that an earlier run set a block aside."""
        self._by_block[block] = BlockFailures(known_bad=True)

    def note_done(self, block: Block, places: tuple[FailurePlace, FailurePlace]) -> None:
        """Note that a block is done, on an actor and a node."""
        for place in places:
            self.clear_place(place)
        failures = self._by_block.pop(block, None)
        if failures is not None:
            self._num_done_elsewhere.update(failures.places.difference(places))

    def note_error(self, block: Block, actor: int, reason: str, traceback: str, now: float) -> SetAsideBlock | None:
        """Note that a block raised an error; return it if it is set aside."""
        failures = self._by_block.setdefault(block, BlockFailures())
        failures.num_errors, failures.num_own = failures.num_errors + 1, failures.num_own + 1
        failures.traceback = traceback
        failures.error_actors.add(actor)
        failures.places.add(actor)
        if failures.num_errors >= MAX_FAILURES_PER_BLOCK:
            return self._set_aside(block, f"raised {MAX_FAILURES_PER_BLOCK} times: {reason}", traceback)
        failures.retry_at = now + RETRY_PAUSES_S[failures.num_errors - 1]
        return None

    def note_death(self, death: ActorDeath) -> None:
        """Note that an actor died; whether this counts is decided in `resolve_death`."""
        for block in death.blocks:
            failures = self._by_block.setdefault(block, BlockFailures())
            failures.num_pending_deaths += 1
            failures.death_nodes.add(death.node)
            if len(death.blocks) == 1:
                failures.num_own += 1
                failures.places.add(death.node)

    def resolve_death(self, block: Block, death: ActorDeath, node_is_alive: bool) -> SetAsideBlock | None:
        """Count a death against a block, or forget it if its node is gone; return the block if it is set aside."""
        failures = self._by_block[block]
        failures.num_pending_deaths -= 1
        failures.num_deaths += node_is_alive
        if failures.num_deaths >= MAX_FAILURES_PER_BLOCK:
            reason = f"{MAX_FAILURES_PER_BLOCK} actors died on it while their nodes stayed alive: {death.reason}"
            return self._set_aside(block, reason, failures.traceback or death.details)
        if failures.is_cleared:
            del self._by_block[block]
        return None

    def _set_aside(self, block: Block, reason: str, traceback: str) -> SetAsideBlock:
        del self._by_block[block]
        return SetAsideBlock(block, reason, traceback)

    def any_may_succeed(self) -> bool:
        """Return whether any of these blocks did not fail by itself yet."""
        return any(not (failures.num_own or failures.known_bad) for failures in self._by_block.values())

    def failing_places(self) -> list[FailurePlace]:
        """Return the nodes and actors at which blocks failed that were done elsewhere, and none was done since."""
        return [place for place, number in self._num_done_elsewhere.items() if number >= MAX_FAILURES_PER_PLACE]

    def clear_place(self, place: FailurePlace) -> None:
        """Forget the failures at a node or actor."""
        self._num_done_elsewhere.pop(place, None)

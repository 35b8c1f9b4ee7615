"""Failures of a block: errors that it raised, and deaths of actors that held it."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

Block = Hashable
Place = int | str  # number of an actor, or id of a node

MAX_FAILURES_PER_BLOCK = 3  # of each kind, before a block is set aside


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
    places : set of Place
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
    places: set[Place] = field(default_factory=set)

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

"""What a block has behind it: actors that died with it in hand, tries that raised, and being set aside."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

FAILURES = 3  # of each kind, before a block is set aside

Block = Hashable


class Unfit(Exception):
    """This machine or card cannot do what is asked for; another one may. The message says why."""


class PoolStopped(Exception):
    """There is no use in going on; the message says why, `traceback` holds that of the first block that failed."""

    def __init__(self, reason: str, traceback: str = "") -> None:
        super().__init__(reason)
        self.traceback = traceback


@dataclass(frozen=True)
class Aside:
    """A block that is set aside. reason: one line. traceback: what was raised last, or what is known of the deaths."""

    block: Block
    reason: str
    traceback: str


@dataclass(frozen=True)
class Death:
    """An actor that died with these blocks in hand; whether they are to blame depends on its node.

    reason: one line. words: all that is known of it.
    """

    blocks: tuple[Block, ...]
    node: str
    reason: str
    words: str


@dataclass
class Trouble:
    """What a block has behind it. pending: deaths of which it is not known yet whether their nodes live."""

    known_bad: bool = False
    deaths: int = 0
    pending: int = 0
    raises: int = 0
    own: int = 0  # of these, failures that no other block can have caused
    not_before: float = 0.0
    words: str = ""
    actors: set[int] = field(default_factory=set)  # that raised
    nodes: set[str] = field(default_factory=set)  # on which actors died
    blamed: set[str | int] = field(default_factory=set)  # places that may be at fault instead

    @property
    def suspect(self) -> bool:
        return self.known_bad or self.deaths + self.pending > 0

    @property
    def held(self) -> bool:
        return self.deaths + self.pending >= FAILURES

    @property
    def blank(self) -> bool:
        return not (self.suspect or self.raises)

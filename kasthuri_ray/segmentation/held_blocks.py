"""Which actor holds which blocks, and on which node it is. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from kasthuri_ray.segmentation.block_failures import Block


class HeldBlocks:
    """Blocks that actors hold.

    Parameters
    ----------
    max_in_flight : int
        Most blocks that an actor holds at once.
    """

    def __init__(self, max_in_flight: int) -> None:
        self.max_in_flight, self.num_blocks = max_in_flight, 0
        self.by_actor: dict[int, dict[Block, None]] = {}  # in the order of assignment
        self.node_of: dict[int, str] = {}
        self.running_alone: set[int] = set()  # actors with a suspect
        self.draining: set[int] = set()  # actors that get no more blocks until they are empty, for a suspect
        self._num_actors_on: Counter[str] = Counter()
        self._available: dict[int, None] = {}  # actors that can hold one more block

    def add_actor(self, actor: int, node: str) -> None:
        """Add an actor that is ready for blocks."""
        self.by_actor[actor], self.node_of[actor], self._available[actor] = {}, node, None
        self._num_actors_on[node] += 1

    def remove_actor(self, actor: int) -> list[Block]:
        """Remove an actor; return the blocks that it held."""
        blocks = self.by_actor.pop(actor)
        self.num_blocks -= len(blocks)
        node = self.node_of.pop(actor)
        self._num_actors_on[node] -= 1
        if not self._num_actors_on[node]:
            del self._num_actors_on[node]
        self._available.pop(actor, None)
        for actors in (self.running_alone, self.draining):
            actors.discard(actor)
        return list(blocks)

    def hold(self, actor: int, block: Block, alone: bool) -> None:
        """Note that an actor holds one more block. alone: it gets no other before this one is done."""
        held = self.by_actor[actor]
        held[block] = None
        self.num_blocks += 1
        if alone:
            self.running_alone.add(actor)
        if len(held) >= self.max_in_flight:
            self._available.pop(actor, None)

    def release(self, actor: int, block: Block) -> None:
        """Note that an actor no longer holds a block."""
        del self.by_actor[actor][block]
        self.num_blocks -= 1
        self._available[actor] = None
        self.running_alone.discard(actor)

    def available(self, load: int) -> list[int]:
        """Return the actors that hold so many blocks and can hold one more."""
        return [actor for actor in self._available if len(self.by_actor[actor]) == load]

    def count_actors(self, actors: Collection[int], nodes: Collection[str]) -> int:
        """Return how many actors there are that are among `actors` or on one of `nodes`."""
        on_nodes = sum(self._num_actors_on[node] for node in nodes)
        return on_nodes + sum(actor in self.node_of and self.node_of[actor] not in nodes for actor in actors)

"""What a block has behind it: actors that died with it in hand, tries that raised, and being set aside."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Container, Hashable, Iterable
from dataclasses import dataclass, field
from itertools import islice

from kasthuri_ray.errors import ActorPoolStopped

MAX_FAILURES_PER_BLOCK = 3  # of each kind, before a block is set aside

Block = Hashable


RETRY_PAUSES_S = (0.5, 3.0)  # before a block that raised is tried again: what was down for a moment is back
# A bug is not in the blocks if so many were set aside and none was done, once so many were tried.
MAX_ASIDE_NONE_DONE, MIN_TRIED = 3, 8
MANY_SET_ASIDE, MAX_ASIDE_IN_A_ROW = 10, 50
MAX_ACTOR_FAILURES = 3  # blocks that failed at one place and were done elsewhere
MAX_PEEKED = 64  # waiting blocks that are looked through for one that an actor may take


@dataclass(frozen=True)
class SetAsideBlock:
    """A block that is set aside. reason: one line. traceback: what was raised last, or what is known of the deaths."""

    block: Block
    reason: str
    traceback: str


@dataclass(frozen=True)
class ActorDeath:
    """An actor that died with these blocks in hand; whether they are to blame depends on its node.

    reason: one line. words: all that is known of it.
    """

    blocks: tuple[Block, ...]
    node: str
    reason: str
    words: str


@dataclass
class BlockFailures:
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
        return self.deaths + self.pending >= MAX_FAILURES_PER_BLOCK

    @property
    def blank(self) -> bool:
        return not (self.suspect or self.raises)


class BlockScheduler:
    """The blocks of one phase on their way. Blocks are drawn as they are needed; only those in trouble are remembered.

    in_flight: how many blocks an actor holds at most.
    known_bad: blocks that an earlier run set aside: they run alone, and say nothing about a bug.
    coming: set it to the number of actors that are on their way; the last blocks are left for them.
    """

    def __init__(self, blocks: Iterable[Block], in_flight: int, known_bad: Container[Block] = ()) -> None:
        self.in_flight, self.coming, self.done = in_flight, 0, 0
        self.asides: list[SetAsideBlock] = []
        self.num_in_flight = 0
        self._source, self._known_bad = iter(blocks), known_bad
        self._ahead: deque[Block] = deque()
        self._again: deque[Block] = deque()
        self._suspects: dict[Block, None] = {}
        self._trouble: dict[Block, BlockFailures] = {}
        self._holds: dict[int, dict[Block, None]] = {}  # in the order in which they were given
        self._node: dict[int, str] = {}
        self._on_node: Counter[str] = Counter()
        self._roomy: dict[int, None] = {}
        self._lone: set[int] = set()
        self._draining: set[int] = set()
        self._drawn = self._new_asides = self._in_a_row = 0
        self._cleared: Counter[str | int] = Counter()

    # what happened

    def joined(self, actor: int, node: str) -> None:
        """An actor is ready for blocks."""
        self._holds[actor], self._node[actor], self._roomy[actor] = {}, node, None
        self._on_node[node] += 1

    def left(self, actor: int) -> None:
        """An actor is let go or left out; what it held is given back, and nobody is blamed."""
        for block in self._remove(actor):
            self._queue(block)

    def finished(self, actor: int, block: Block) -> None:
        """A block is done."""
        self._release(actor, block)
        self.done, self._in_a_row = self.done + 1, 0
        here = (actor, self._node[actor])
        for place in here:
            self._cleared.pop(place, None)
        trouble = self._trouble.pop(block, None)
        if trouble is not None:
            self._cleared.update(trouble.blamed.difference(here))

    def raised(self, actor: int, block: Block, reason: str, traceback: str, now: float) -> list[SetAsideBlock]:
        """A block raised; gives it back if it is set aside now."""
        self._release(actor, block)
        trouble = self._trouble.setdefault(block, BlockFailures())
        trouble.raises, trouble.own, trouble.words = trouble.raises + 1, trouble.own + 1, traceback
        trouble.actors.add(actor)
        trouble.blamed.add(actor)
        if trouble.raises >= MAX_FAILURES_PER_BLOCK:
            return [self._set_aside(block, f"raised {MAX_FAILURES_PER_BLOCK} times: {reason}")]
        trouble.not_before = now + RETRY_PAUSES_S[trouble.raises - 1]
        self._queue(block)
        return []

    def died(self, actor: int, reason: str, words: str = "") -> ActorDeath | None:
        """An actor died. What it held is done again; `fate` of what comes back says later who is to blame."""
        node = self._node[actor]
        blocks = tuple(self._remove(actor))
        for block in blocks:
            trouble = self._trouble.setdefault(block, BlockFailures())
            trouble.pending += 1
            trouble.nodes.add(node)
            if len(blocks) == 1:
                trouble.own += 1
                trouble.blamed.add(node)
            self._queue(block)
        return ActorDeath(blocks, node, reason, words or reason) if blocks else None

    def fate(self, death: ActorDeath, lives: bool) -> list[SetAsideBlock]:
        """The node of a death lives, or went, which blames nobody; gives the blocks that are set aside now."""
        asides = []
        for block in death.blocks:
            trouble = self._trouble.get(block)
            if trouble is None:
                continue  # it is done, or set aside for something else
            held = trouble.held
            trouble.pending -= 1
            trouble.deaths += lives
            if trouble.deaths >= MAX_FAILURES_PER_BLOCK:
                reason = f"{MAX_FAILURES_PER_BLOCK} actors died on it, on nodes that live: {death.reason}"
                asides.append(self._set_aside(block, reason, death.words))
            elif held and not trouble.held:
                self._queue(block)
            elif block in self._suspects and not trouble.suspect:
                del self._suspects[block]
                self._queue(block)
            if trouble.blank:
                self._trouble.pop(block, None)
        return asides

    # what to do

    def assign(self, now: float) -> list[tuple[int, Block]]:
        """Who is given which block now; whoever holds fewest comes first."""
        given: list[tuple[int, Block]] = []
        if not self._roomy or not self._num_waiting(1):
            return given
        for load in range(self.in_flight):
            for actor in [actor for actor in self._roomy if len(self._holds[actor]) == load]:
                block = self._choose(actor, now)
                if block is not None:
                    self._give(actor, block)
                    given.append((actor, block))
        return given

    def num_wanted(self, most: int) -> int:
        """How many actors, up to `most`, the blocks can use: those at work, and one for each block that waits."""
        busy = sum(1 for held in self._holds.values() if held)
        return min(most, busy + self._num_waiting(max(0, most - busy)))

    def sick(self) -> list[str | int]:
        """The nodes and actors at which blocks failed that were done elsewhere, with nothing done there since."""
        return [place for place, blocks in self._cleared.items() if blocks >= MAX_ACTOR_FAILURES]

    def recovered(self, place: str | int) -> None:
        """A place that was sick is dealt with."""
        self._cleared.pop(place, None)

    @property
    def over(self) -> bool:
        """Whether every block is done or set aside."""
        return not (self.num_in_flight or self._again or self._trouble or self._peek(1))

    def why_stop(self) -> ActorPoolStopped | None:
        """What to raise if the fault is not in the blocks: all that were tried failed, and no other is under way."""
        if not self._looks_like_a_bug() or self._one_may_do():
            return None
        first, num = next(a for a in self.asides if a.block not in self._known_bad), self._new_asides
        done = f"{self.done or 'none'} {'was' if self.done < 2 else 'were'} done"
        return ActorPoolStopped(
            f"{num} blocks were set aside and {done}, so the fault is hardly in the blocks. The first, {first.block}: "
            f"{first.reason}",
            first.traceback,
        )

    # how

    def _looks_like_a_bug(self) -> bool:
        new = self._new_asides
        if new >= MAX_ASIDE_NONE_DONE and not self.done:
            return self._drawn >= MIN_TRIED or not self._peek(1)
        return (new >= MANY_SET_ASIDE and new > 2 * self.done) or self._in_a_row >= MAX_ASIDE_IN_A_ROW

    def _one_may_do(self) -> bool:
        """Whether a block is under way that did not fail by itself yet."""
        held = (block for blocks in self._holds.values() for block in blocks)
        if any(block not in self._trouble for blocks in (held, self._again) for block in blocks):
            return True
        return any(not (trouble.own or trouble.known_bad) for trouble in self._trouble.values())

    def _peek(self, num: int) -> int:
        """How many undrawn blocks there are, up to `num`."""
        while len(self._ahead) < num:
            found = list(islice(self._source, num - len(self._ahead)))
            if not found:
                break
            self._ahead.extend(found)
        return min(num, len(self._ahead))

    def _num_waiting(self, most: int) -> int:
        waiting = len(self._again) + len(self._suspects)
        return min(most, waiting + self._peek(max(0, most - waiting)))

    def _choose(self, actor: int, now: float) -> Block | None:
        """The block that an actor with room for one takes, or None."""
        if actor in self._lone:
            return None
        idle = not self._holds[actor]
        lone_at_once = max(1, len(self._holds) // 2)
        if idle:
            self._draining.discard(actor)
            if len(self._lone) < lone_at_once and (block := self._take_suspect(actor, now)) is not None:
                return block
        elif self._drains(actor, now, lone_at_once):
            return None
        block = self._take(self._again, actor, now)
        block = self._draw(actor) if block is None else block
        return self._take_suspect(actor, now) if block is None and idle else block

    def _drains(self, actor: int, now: float, lone_at_once: int) -> bool:
        """Whether an actor takes nothing more until it is empty, and can take a suspect."""
        if not self._suspects:
            self._draining.clear()
        taken = len(self._draining)
        room = taken < len(self._suspects) and taken + len(self._lone) < lone_at_once
        if room and any(self._may(actor, block, now) for block in islice(self._suspects, MAX_PEEKED)):
            self._draining.add(actor)
        return actor in self._draining

    def _take_suspect(self, actor: int, now: float) -> Block | None:
        for block in islice(self._suspects, MAX_PEEKED):
            if self._may(actor, block, now):
                del self._suspects[block]
                self._lone.add(actor)
                return block
        return None

    def _take(self, waiting: deque[Block], actor: int, now: float) -> Block | None:
        for place, block in enumerate(islice(waiting, MAX_PEEKED)):
            if self._may(actor, block, now):
                del waiting[place]
                return block
        return None

    def _draw(self, actor: int) -> Block | None:
        """A block that nobody had yet, unless too many are in trouble or only few are left, for others to take."""
        if len(self._trouble) >= max(MIN_TRIED, self.in_flight * len(self._holds)) or self._looks_like_a_bug():
            return None
        crew = len(self._holds) + self.coming
        if len(self._holds[actor]) >= 2 and self._peek(crew) < crew:
            return None
        while self._peek(1):
            block = self._ahead.popleft()
            self._drawn += 1
            if block not in self._known_bad:
                return block
            self._trouble[block] = BlockFailures(known_bad=True)
            self._queue(block)
            if not self._holds[actor] or len(self._suspects) >= MIN_TRIED:
                break
        return None

    def _may(self, actor: int, block: Block, now: float) -> bool:
        """Whether an actor may take a block: it, and its node, did not fail it, or all others did too."""
        trouble = self._trouble.get(block)
        if trouble is None:
            return True
        if now < trouble.not_before:
            return False
        if actor not in trouble.actors and self._node[actor] not in trouble.nodes:
            return True
        failed = sum(self._on_node[node] for node in trouble.nodes)
        failed += sum(1 for one in trouble.actors if one in self._node and self._node[one] not in trouble.nodes)
        return failed >= len(self._holds)

    def _queue(self, block: Block) -> None:
        trouble = self._trouble.get(block)
        if trouble is None or not trouble.suspect:
            self._again.append(block)
        elif not trouble.held:
            self._suspects[block] = None

    def _give(self, actor: int, block: Block) -> None:
        held = self._holds[actor]
        held[block] = None
        self.num_in_flight += 1
        if len(held) >= self.in_flight:
            self._roomy.pop(actor, None)

    def _release(self, actor: int, block: Block) -> None:
        del self._holds[actor][block]
        self.num_in_flight -= 1
        self._roomy[actor] = None
        self._lone.discard(actor)

    def _remove(self, actor: int) -> dict[Block, None]:
        blocks = self._holds.pop(actor)
        self.num_in_flight -= len(blocks)
        node = self._node.pop(actor)
        self._on_node[node] -= 1
        if not self._on_node[node]:
            del self._on_node[node]
        self._roomy.pop(actor, None)
        for some in (self._lone, self._draining):
            some.discard(actor)
        self._cleared.pop(actor, None)
        return blocks

    def _set_aside(self, block: Block, reason: str, words: str = "") -> SetAsideBlock:
        trouble = self._trouble.pop(block)
        self._suspects.pop(block, None)
        aside = SetAsideBlock(block, reason, trouble.words or words)
        self.asides.append(aside)
        if block not in self._known_bad:
            self._new_asides, self._in_a_row = self._new_asides + 1, self._in_a_row + 1
        return aside

"""How many actors there should be, when the next may be started, and when to give up; decisions alone, without Ray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LONGEST_PAUSE_S = 60.0  # before an actor is started again that dies before it is ready
STARTS = 5  # in a row that may fail while no actor was ever ready
SAY_AFTER_S, SAY_AGAIN_S = 10.0, 60.0  # that something is waited for


@dataclass(frozen=True)
class Crew:
    """Who works: from `fewest` actors, which are waited for, to `most`, which are started where there is room.

    num_cpus, num_gpus: what each holds. in_flight: how many blocks each has in hand.
    ask: whether the autoscaler is asked for room for `most`.
    """

    fewest: int
    most: int
    num_cpus: float
    num_gpus: float = 0.0
    in_flight: int = 3
    ask: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.fewest <= self.most or self.in_flight < 1:
            raise ValueError(
                f"a crew of {self.fewest} to {self.most} actors with {self.in_flight} blocks each; expected "
                "1 <= fewest <= most, and a block each"
            )

    @property
    def needs(self) -> dict[str, float]:
        """What one actor holds, in Ray's names."""
        needs = {"CPU": self.num_cpus, "GPU": self.num_gpus}
        return {name: amount for name, amount in needs.items() if amount}


@dataclass(frozen=True)
class Patience:
    """Seconds. verdict: after a death, until its node is asked whether it lives (a killed raylet is seen in 3-4 s).

    fate: for the node's answer; one that Ray still counts as alive then lives (a cut network is seen in about 64 s).
    ready: from an actor's start on a node until it is ready. cluster: without an actor that has a place.
    stuck: of an actor without a finished block. idle: of an actor without a block before it is let go.
    """

    verdict: float = 8.0
    fate: float = 90.0
    ready: float = 1200.0
    cluster: float = 600.0
    stuck: float = 6 * 3600.0
    idle: float = 60.0


@dataclass
class Staffing:
    """Keeps count of the starts that failed and of how long there has been nobody."""

    crew: Crew
    patience: Patience
    ever_ready: bool = False
    failed_in_a_row: int = 0
    reason: str = ""  # of the last failed start
    not_before: float = 0.0
    _last_failure: float = float("-inf")
    _nobody_since: float | None = None
    _unready_since: float | None = None
    _say_next: float = 0.0

    def num_to_start(self, now: float, have: int, unplaced: int, wanted: int, room: int) -> int:
        """How many actors to start. have: ready or on their way. unplaced: of these, those without a node yet.

        wanted: that the blocks can use. room: for how many more the cluster is free.
        """
        if now < self.not_before:
            return 0
        first = min(self.crew.fewest, wanted) - have
        more = min(self.crew.most, wanted) - have
        return max(0, first, min(more, room) if not unplaced else 0)

    def came_ready(self) -> None:
        self.ever_ready, self.failed_in_a_row, self.not_before = True, 0, 0.0

    def failed(self, now: float, created: float, reason: str) -> None:
        """An actor died before it was ready; those that were started together count as one."""
        self.reason = reason
        if created <= self._last_failure:
            return
        self._last_failure = now
        self.failed_in_a_row += 1
        self.not_before = now + min(LONGEST_PAUSE_S, 2.0 ** (self.failed_in_a_row - 1))

    def why_stop(self, now: float, placed: int, ready: int, left_out: Sequence[str], nobody_can: bool) -> str:
        """Why no actor is worth waiting for; empty if one is. left_out: reasons, of machines that cannot do it.

        placed: actors on a node. ready: of these. nobody_can: whether every machine that is large enough is left out.
        """
        self._note(now, placed, ready)
        if not self.ever_ready and self.failed_in_a_row >= STARTS:
            return f"no actor came up, {STARTS} times in a row: {self.reason}"
        if nobody_can and not self.crew.ask:
            return f"no machine of the cluster can do this: {left_out[0]}"
        if self.waited(now) >= self.patience.cluster:
            return f"waited {self.patience.cluster:g} s, and no actor has started"
        without = 0.0 if self._unready_since is None else now - self._unready_since
        if self.failed_in_a_row >= STARTS and without >= self.patience.cluster:
            return f"waited {self.patience.cluster:g} s for an actor that comes up; the last did not: {self.reason}"
        return ""

    def _note(self, now: float, placed: int, ready: int) -> None:
        if placed:
            self._nobody_since = None
        elif self._nobody_since is None:
            self._nobody_since, self._say_next = now, now + SAY_AFTER_S
        if ready:
            self._unready_since = None
        elif self._unready_since is None:
            self._unready_since = now

    def waited(self, now: float) -> float:
        """Seconds without an actor that has a place."""
        return 0.0 if self._nobody_since is None else now - self._nobody_since

    def says_now(self, now: float) -> bool:
        """Whether it is time for a line that nobody has a place."""
        due = self._nobody_since is not None and now >= self._say_next
        if due:
            self._say_next = now + SAY_AGAIN_S
        return due


def num_that_fit(needs: Mapping[str, float], free: Mapping[str, float]) -> int:
    """For how many actors there is room, counting the cluster as one machine."""
    return min((int(free.get(name, 0.0) / amount + 1e-6) for name, amount in needs.items()), default=1_000_000)


def large_enough(needs: Mapping[str, float], nodes: Sequence[Mapping[str, Any]]) -> list[str]:
    """The ids of living nodes (rows of `ray.nodes()`) that could hold an actor if nobody else used them."""
    return [node["NodeID"] for node in nodes if node["Alive"] and num_that_fit(needs, node["Resources"])]


def lack_in_words(needs: Mapping[str, float], total: Mapping[str, float], free: Mapping[str, float], nodes: int) -> str:
    """What an actor needs beside what the cluster has."""
    needed = " and ".join(f"{amount:g} {name}" for name, amount in needs.items()) or "nothing"
    has = " and ".join(f"{total.get(name, 0):g} {name} ({free.get(name, 0):g} free)" for name in needs)
    return f"an actor needs {needed}; the cluster has {has or 'room'} on {nodes} node{'s' * (nodes != 1)}"

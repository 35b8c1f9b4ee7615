"""What is known about one actor of a pool: plain data, from which `actor_health` and `actor_scaling` decide."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar


@dataclass(eq=False)
class ActorState:
    """State of one actor. Times are of `time.monotonic`.

    Parameters
    ----------
    number : int
        Number in its pool.
    created_at : float
        When it was started.
    name : str
        What people read: host and process id, once its placement is known.
    node : str
        Id of its node; empty until its placement is known.
    placed_at : float or None
        When its placement was known.
    is_ready : bool
        Whether `ready` has returned.
    last_result_at : float
        When it last finished a block, or got its first one.
    num_blocks : int
        Number of blocks that it holds.
    """

    number: int
    created_at: float
    name: str = ""
    node: str = ""
    placed_at: float | None = None
    is_ready: bool = False
    last_result_at: float = 0.0
    num_blocks: int = 0


ActorT = TypeVar("ActorT", bound=ActorState)

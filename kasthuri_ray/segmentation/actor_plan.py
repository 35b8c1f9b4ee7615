"""How many actors a pool may have, what each holds, and how long the pool waits for them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ActorPlan:
    """Size of a pool of actors.

    Parameters
    ----------
    min_actors : int
        Actors that are started in any case, and waited for.
    max_actors : int
        Actors that are started where the cluster has room.
    num_cpus, num_gpus : float
        Logical CPUs and GPUs that each actor holds.
    in_flight : int
        Most blocks that an actor holds at once.
    autoscale : bool
        Whether to ask the autoscaler for room for `max_actors`.

    Raises
    ------
    ValueError
        If there is less than one actor or block, or the minimum is above the maximum.
    """

    min_actors: int
    max_actors: int
    num_cpus: float
    num_gpus: float = 0.0
    in_flight: int = 3
    autoscale: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.min_actors <= self.max_actors or self.in_flight < 1:
            raise ValueError(
                f"a pool of {self.min_actors} to {self.max_actors} actors with {self.in_flight} blocks each; expected "
                "1 <= minimum <= maximum, and at least 1 block each"
            )

    @property
    def resources(self) -> dict[str, float]:
        """What one actor holds, by Ray's names of resources."""
        resources = {"CPU": self.num_cpus, "GPU": self.num_gpus}
        return {name: amount for name, amount in resources.items() if amount}


@dataclass(frozen=True)
class PoolTimeouts:
    """Timeouts of a pool of actors, in seconds.

    Parameters
    ----------
    death_check_s : float
        From a death until its node is asked whether it is alive; a killed raylet is noticed in 3 to 4 s.
    node_answer_s : float
        From a death until the node's answer is no longer waited for. A node that Ray still lists as alive then is
        alive; a broken network is noticed in about 64 s.
    ready_s : float
        From an actor's start on a node until it is ready.
    placement_s : float
        Without any actor on a node.
    stuck_s : float
        Of an actor without a finished block.
    idle_s : float
        Of an actor without a block, before it is ended.
    """

    death_check_s: float = 8.0
    node_answer_s: float = 90.0
    ready_s: float = 1200.0
    placement_s: float = 600.0
    stuck_s: float = 6 * 3600.0
    idle_s: float = 60.0

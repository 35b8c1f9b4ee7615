"""Messages from workers to the driver, for people to watch. The work does not depend on them.

The process of the actor imports this module and those of the messages, so nothing heavy is imported at their tops.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Message = TypeVar("Message")


class WorkerMessages(Generic[Message]):
    """A mailbox on the driver's node: workers post messages, and a thread of the driver collects them.

    In `with WorkerMessages(on_message) as messages:` the workers are given `messages.post`.

    Parameters
    ----------
    on_message : callable
        Receives each message in the driver.
    """

    PERIOD_S = 1.0

    def __init__(self, on_message: Callable[[Message], None]) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self.on_message = on_message
        own_node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor_class: Any = ray.remote(num_cpus=0)(_MessageActor)
        self._actor = actor_class.options(scheduling_strategy=own_node).remote()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll, name="worker messages", daemon=True)

    @property
    def post(self) -> Callable[[Message], None]:
        """A function that posts a message without waiting; it can be pickled."""
        return _MessagePoster(self._actor)

    def __enter__(self) -> WorkerMessages[Message]:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        import ray

        self._stop.set()
        self._thread.join(timeout=10)
        ray.kill(self._actor)

    def _poll(self) -> None:
        while not self._stop.wait(self.PERIOD_S):
            self._collect()
        self._collect()

    def _collect(self) -> None:
        import ray

        try:
            messages = ray.get(self._actor.take.remote(), timeout=5)
        except (ray.exceptions.RayError, TimeoutError):
            return  # messages may be lost
        for message in messages:
            self.on_message(message)


class _MessageActor:
    def __init__(self) -> None:
        self.messages: list[Any] = []

    def post(self, message: Any) -> None:
        self.messages.append(message)

    def take(self) -> list[Any]:
        messages, self.messages = self.messages, []
        return messages


@dataclass(frozen=True)
class _MessagePoster:
    actor: Any

    def __call__(self, message: Any) -> None:
        self.actor.post.remote(message)

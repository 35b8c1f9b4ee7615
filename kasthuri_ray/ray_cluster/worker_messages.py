"""How workers tell the driver what they do: notes, for people to watch."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


class WorkerMessages:
    """A place on the driver's node where workers leave notes, which a thread of the driver picks up.

    `with Board(on_note) as board:`, then `board.post` goes to the workers: a picklable function that does not wait.
    """

    PERIOD_S = 1.0

    def __init__(self, on_note: Callable[[dict[str, Any]], None]) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self.on_note = on_note
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        notes: Any = ray.remote(num_cpus=0)(_MessageActor)
        self._actor = notes.options(scheduling_strategy=here).remote()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll, name="board", daemon=True)

    @property
    def post(self) -> Callable[[dict[str, Any]], None]:
        return _MessagePoster(self._actor)

    def __enter__(self) -> WorkerMessages:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        import ray

        self._stop.set()
        self._thread.join(timeout=10)
        ray.kill(self._actor)

    def _poll(self) -> None:
        while not self._stop.wait(self.PERIOD_S):
            self._take()
        self._take()

    def _take(self) -> None:
        import ray

        try:
            notes = ray.get(self._actor.take.remote(), timeout=5)
        except (ray.exceptions.RayError, TimeoutError):
            return  # the notes are for people to watch; the work does not depend on them
        for note in notes:
            self.on_note(note)


class _MessageActor:
    def __init__(self) -> None:
        self.notes: list[dict[str, Any]] = []

    def post(self, note: dict[str, Any]) -> None:
        self.notes.append(note)

    def take(self) -> list[dict[str, Any]]:
        notes, self.notes = self.notes, []
        return notes


@dataclass(frozen=True)
class _MessagePoster:
    actor: Any

    def __call__(self, note: dict[str, Any]) -> None:
        self.actor.post.remote(note)

"""Work on daemon threads: given up at a deadline, or done side by side. Neither holds up anybody's exit."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")


def call_with_timeout(seconds: float, call: Callable[[], T]) -> T:
    """What `call()` returns or raises, or TimeoutError when it has done neither after `seconds`.

    A call that is given up goes on unheard until it ends by itself.
    """
    outcome: queue.SimpleQueue[tuple[list[T], BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            outcome.put(([call()], None))
        except BaseException as error:
            outcome.put(([], error))

    threading.Thread(target=run, daemon=True, name="deadline").start()
    try:
        result, failure = outcome.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no whole answer within {seconds:g} s") from None
    if failure is not None:
        raise failure
    return result[0]


def map_threads(call: Callable[[T], object], items: Sequence[T], num_threads: int) -> None:
    """Calls `call` with every item, `num_threads` at a time; the first failure is raised, and no more are begun."""
    waiting: queue.SimpleQueue[T] = queue.SimpleQueue()
    finished: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
    for item in items:
        waiting.put(item)

    def work() -> None:
        with suppress(queue.Empty):
            while True:
                item = waiting.get_nowait()
                try:
                    call(item)
                except BaseException as error:
                    finished.put(error)
                else:
                    finished.put(None)

    for _ in range(min(num_threads, len(items))):
        threading.Thread(target=work, daemon=True, name="side-by-side").start()
    try:
        for _ in items:
            if (failure := finished.get()) is not None:
                raise failure
    finally:
        with suppress(queue.Empty):
            while True:
                waiting.get_nowait()

"""Calls on daemon threads: one with a deadline, or several in parallel. No thread keeps the process from exiting."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")


def call_with_timeout(seconds: float, call: Callable[[], T]) -> T:
    """Return what a call returns, or raise TimeoutError after a time.

    Parameters
    ----------
    seconds : float
        Time that the call may take.
    call : callable
        Takes no arguments. After the deadline it keeps running until it ends by itself; its result is lost.

    Returns
    -------
    object
        Return value of `call`.

    Raises
    ------
    TimeoutError
        If the call has neither returned nor raised in time. What the call raises in time is raised too.
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
    """Call a function with every item; raise the first failure and start no more calls.

    Parameters
    ----------
    call : callable
        Takes an item; its result is lost.
    items : sequence
        The items.
    num_threads : int
        Calls at the same time.
    """
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
        threading.Thread(target=work, daemon=True, name="parallel-call").start()
    try:
        for _ in items:
            if (failure := finished.get()) is not None:
                raise failure
    finally:
        with suppress(queue.Empty):
            while True:
                waiting.get_nowait()

"""Calls with a deadline, and calls in parallel."""

import threading
import time

import pytest

from kasthuri_ray.volumes.parallel_calls import call_with_timeout, map_threads


def test_a_call_that_ends_in_time_returns_or_raises_as_usual():
    assert call_with_timeout(5, lambda: 7) == 7
    with pytest.raises(KeyError, match="lost"):
        call_with_timeout(5, lambda: {}["lost"])


def test_a_call_that_takes_too_long_is_a_timeout_error():
    start, end = time.monotonic(), threading.Event()
    with pytest.raises(TimeoutError, match=r"no whole answer within 0.1 s"):
        call_with_timeout(0.1, end.wait)
    assert time.monotonic() - start < 2
    end.set()


def test_every_item_is_processed_once_and_several_at_a_time():
    together = threading.Barrier(4, timeout=5)  # passes only if four calls run at the same time
    done = []

    def work(item):
        together.wait()
        done.append(item)

    map_threads(work, range(20), 4)
    assert sorted(done) == list(range(20))


def test_the_first_failure_is_raised_and_no_more_calls_start():
    started = []

    def work(item):
        started.append(item)
        if item == 2:
            raise ValueError("item 2")
        time.sleep(0.02)

    with pytest.raises(ValueError, match="item 2"):
        map_threads(work, range(100), 2)
    time.sleep(0.1)
    assert len(started) < 10


def test_no_items_are_no_error():
    map_threads(print, [], 4)

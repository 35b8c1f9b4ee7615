"""Memory is kept where an actor's network runs."""

import platform
import resource
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from kasthuri_ray.segmentation import actor_resources

LARGE = 100_000_000  # bytes, as of an activation


class Faulting:
    """Counts the pages that a thread of its own faults in for large arrays, once they are warm."""

    def __init__(self, job: Any) -> None:
        self._computing = ThreadPoolExecutor(1)

    def count(self) -> int:
        from kasthuri_ray.hardware import configure_allocator

        self._computing.submit(configure_allocator).result()  # as an actor does: its threads are there already
        return self._computing.submit(self._count).result()

    @staticmethod
    def _count() -> int:
        np.ones(LARGE, np.uint8)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(5):
            np.ones(LARGE, np.uint8)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="memory is kept by glibc alone")
def test_what_an_actors_network_frees_is_not_faulted_in_again(ray_here: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actor_resources, "BlockWorker", Faulting)
    handle = actor_resources.actor_class().options(num_cpus=0.1, max_concurrency=4).remote(None)
    try:
        assert ray_here.get(handle.count.remote(), timeout=60) < 100  # thousands, where memory is not kept
    finally:
        ray_here.kill(handle)

"""Chunks in memory: read once, within a number of bytes, and few at the same time."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from kasthuri_ray.geometry import Box
from kasthuri_ray.viewer.chunk_memory import ChunkMemory, RememberedVolume


def test_voxels_equal_those_of_the_source_and_each_chunk_is_read_once(array_volume):
    voxels = np.random.default_rng(0).integers(0, 255, (5, 70, 50), np.uint8)
    source = array_volume(voxels, chunk=(2, 16, 16), offset=(3, -5, 7))
    volume = RememberedVolume.of(source, ChunkMemory(), (2, 16, 16), source.chunk_origin)
    rng = np.random.default_rng(1)
    for _ in range(50):
        start = [int(rng.integers(0, n)) for n in voxels.shape]
        stop = [int(rng.integers(a + 1, n + 1)) for a, n in zip(start, voxels.shape, strict=True)]
        box = Box(start, stop)
        np.testing.assert_array_equal(volume.read(box.shifted((3, -5, 7))), voxels[box.slices()])
    assert len(source.reads) == len(set(source.reads)) <= 3 * 5 * 4


def test_the_chunks_used_longest_ago_are_forgotten_when_the_memory_is_full():
    memory, loads = ChunkMemory(max_bytes=300), []

    def get(key):
        return memory.get(key, lambda: loads.append(key) or np.zeros(100, np.uint8))

    for key in ("a", "b", "c", "a", "d", "a", "b"):
        get(key)
    assert loads == ["a", "b", "c", "d", "b"]
    assert memory.num_bytes == 300


def test_at_most_eight_sources_are_read_at_once_and_no_chunk_twice():
    memory = ChunkMemory()
    running, most, loads = [0], [0], []
    lock = threading.Lock()

    def load(key):
        with memory.reading:
            with lock:
                running[0] += 1
                most[0] = max(most[0], running[0])
                loads.append(key)
            time.sleep(0.02)
            with lock:
                running[0] -= 1
        return np.full(10, key)

    with ThreadPoolExecutor(32) as pool:
        found = list(pool.map(lambda key: memory.get(key, lambda: load(key)), [*range(40), *range(40)]))
    assert most[0] == 8
    assert sorted(loads) == list(range(40))
    assert [chunk[0] for chunk in found] == [*range(40), *range(40)]


def test_a_chunk_that_failed_is_read_again():
    memory = ChunkMemory()

    def fail():
        raise OSError("down")

    with pytest.raises(OSError, match="down"):
        memory.get("a", fail)
    assert memory.get("a", lambda: np.ones(3))[0] == 1

"""The chunk cache: chunks are fetched once, checked when read, limited in size, and no fault costs a voxel."""

import errno
import logging
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
from dataclasses import dataclass, field, fields

import numpy as np
import pytest

from kasthuri_ray.geometry import Box
from kasthuri_ray.volumes import chunk_cache
from kasthuri_ray.volumes.chunk_cache import CachedVolume, ChunkCache, open_cache, parse_byte_size
from kasthuri_ray.volumes.opening import open_volume
from kasthuri_ray.volumes.place import Place
from kasthuri_ray.volumes.volume import Volume

SHAPE, OFFSET = (20, 45, 50), (5, 3, 7)
VOXELS = np.random.default_rng(0).integers(0, 60000, SHAPE, np.uint16)


@dataclass(kw_only=True)
class Source(Volume):
    """An array that records the boxes that are read from it."""

    voxels: np.ndarray
    reads: list[Box] = field(default_factory=list)

    def _read(self, box):
        self.reads.append(box)
        return self.voxels[box.slices(self.bounds.start)].copy()


def source(voxels=VOXELS, uri="test://a", **changes):
    values = {"chunk": (8, 16, 16), "chunk_origin": (0, 0, 0), "voxel_size_nm": None, "remote": True} | changes
    return Source(uri=uri, bounds=Box.at(OFFSET, voxels.shape), dtype=voxels.dtype, voxels=voxels, **values)


@pytest.fixture
def cache(tmp_path):
    return ChunkCache(tmp_path / "cache", 10**8)


def chunk_files(cache):
    return sorted(cache.root.rglob("*.chunk"))


def test_every_chunk_is_fetched_once_and_cutouts_equal_the_source(cache):
    behind = source()
    volume = CachedVolume.of(behind, cache)
    rng = np.random.default_rng(1)
    boxes = [volume.bounds]
    for _ in range(20):
        start = rng.integers(0, SHAPE)
        boxes.append(Box.at(np.add(start, OFFSET), rng.integers(1, np.subtract(SHAPE, start) + 1)))
    for box in boxes[1:] + boxes:
        np.testing.assert_array_equal(volume.read(box), VOXELS[box.slices(OFFSET)])
    cells = list(volume.bounds.cells((8, 16, 16)))
    assert sorted(map(str, behind.reads)) == sorted(map(str, cells)), "each chunk once, cut to the bounds"
    assert len(chunk_files(cache)) == len(cells)
    assert not list(cache.root.rglob("*.lock")) + list(cache.root.rglob("*.part"))


def test_a_cached_volume_keeps_place_and_pyramid_of_its_source(cache):
    place = Place((15.0, 2.0, 2.0), "middle", "OME translation")
    cached = CachedVolume.of(source(place=place, pyramid="em", voxel_size_nm=(30.0, 4.0, 4.0)), cache)
    assert (cached.place, cached.pyramid) == (place, "em")


def test_what_the_source_decodes_at_once_is_read_once_whatever_part_is_asked_for(cache):
    behind = source(decode_shape=(8, 64, 64))
    volume = CachedVolume.of(behind, cache)
    for box in (Box.at(OFFSET, (3, 5, 7)), Box.at(np.add(OFFSET, (4, 20, 20)), (2, 9, 9)), volume.bounds):
        np.testing.assert_array_equal(volume.read(box), VOXELS[box.slices(OFFSET)])
    slabs = list(volume.bounds.cells((8, 64, 64)))
    assert sorted(map(str, behind.reads)) == sorted(map(str, slabs)), "each slab once"
    assert len(chunk_files(cache)) == len(list(volume.bounds.cells((8, 16, 16))))


def test_a_volume_that_is_opened_again_finds_its_chunks(cache):
    CachedVolume.of(source(), cache).read(Box.at(OFFSET, SHAPE))
    behind = source()
    again = pickle.loads(pickle.dumps(CachedVolume.of(behind, cache)))
    np.testing.assert_array_equal(again.read(again.bounds), VOXELS)
    assert again.source.reads == []
    assert (again.uri, again.voxel_size_nm, again.remote) == (behind.uri, None, True)


@pytest.mark.parametrize(
    "other",
    [
        {"uri": "test://b"},
        {"source_id": "http://another.host/a"},
        {"voxels": VOXELS[:-1]},
        {"voxels": VOXELS.view(np.int16)},
        {"chunk": (8, 16, 32)},
        {"chunk_origin": (4, 0, 0)},
    ],
)
def test_a_different_volume_does_not_find_the_chunks(cache, other):
    CachedVolume.of(source(), cache).read(Box.at(OFFSET, SHAPE))
    behind = source(**other)
    volume = CachedVolume.of(behind, cache)
    np.testing.assert_array_equal(volume.read(volume.bounds), behind.voxels)
    assert len(behind.reads) == len(list(volume.bounds.cells(volume.chunk, volume.chunk_origin)))


@pytest.mark.parametrize("damage", ["flipped", "truncated", "empty", "foreign", "swapped"])
def test_a_damaged_chunk_is_deleted_and_fetched_again(cache, damage, caplog):
    behind = source()
    volume = CachedVolume.of(behind, cache)
    volume.read(volume.bounds)
    path = chunk_files(cache)[3]
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 1
    sizes = {"flipped": len(content), "truncated": len(content) - 1, "empty": 0, "foreign": 0, "swapped": 0}
    content = content[: sizes[damage]]
    if damage == "foreign":
        content = b"something else"
    if damage == "swapped":  # intact, but of another shape
        content = next(p for p in chunk_files(cache) if p.stat().st_size != path.stat().st_size).read_bytes()
    path.write_bytes(content)
    behind.reads.clear()
    for _ in range(2):
        np.testing.assert_array_equal(volume.read(volume.bounds), VOXELS)
    assert len(behind.reads) == 1
    assert f"damaged chunk in the cache is fetched again: {path}" in caplog.text


def test_files_may_be_deleted_at_any_time(cache):
    volume = CachedVolume.of(source(), cache)
    end = threading.Event()

    def delete():
        while not end.is_set():
            for path in cache.root.rglob("*"):
                if path.is_file():
                    path.unlink(missing_ok=True)

    deleting = threading.Thread(target=delete)
    deleting.start()
    try:
        for _ in range(20):
            np.testing.assert_array_equal(volume.read(volume.bounds), VOXELS)
    finally:
        end.set()
        deleting.join()


def test_the_chunks_used_longest_ago_are_deleted_first(tmp_path):
    voxels = np.random.default_rng(0).integers(0, 256, (64, 64, 64), np.uint8)  # noise: no smaller when compressed
    behind = source(voxels, chunk=(1, 64, 64), chunk_origin=OFFSET)
    cache = ChunkCache(tmp_path, 30 * 64 * 64)
    volume = CachedVolume.of(behind, cache)
    used = Box.at((5, 3, 7), (1, 64, 64))
    for z in range(5, 69):
        volume.read(Box.at((z, 3, 7), (1, 64, 64)))
        volume.read(used)
        assert sum(path.stat().st_size for path in chunk_files(cache)) <= cache.size_limit_bytes
    assert behind.reads.count(used) == 1, "a chunk in use stays"
    assert len(chunk_files(cache)) >= 25, "the space is used"
    behind.reads.clear()
    volume.read(Box.at((65, 3, 7), (4, 64, 64)))
    assert behind.reads == [], "the newest chunks are cached"
    np.testing.assert_array_equal(volume.read(volume.bounds), voxels)


def test_a_limit_smaller_than_a_chunk_disables_the_cache_only(tmp_path):
    volume = CachedVolume.of(source(), ChunkCache(tmp_path, 1))
    np.testing.assert_array_equal(volume.read(volume.bounds), VOXELS)
    assert chunk_files(volume.cache) == []


def test_files_that_are_not_the_caches_are_never_deleted(tmp_path):
    others = tmp_path / "other.chunk", tmp_path / "old.lock", tmp_path / "old.part"
    for path in others:
        path.write_bytes(b"0" * 1000)
        os.utime(path, (0, 0))
    volume = CachedVolume.of(source(), ChunkCache(tmp_path, 1))
    volume.read(volume.bounds)
    assert all(path.exists() for path in others)


def test_files_that_dead_processes_left_are_deleted(cache):
    volume = CachedVolume.of(source(), cache)
    volume.read(volume.bounds)
    left = chunk_files(cache)[0].parent / "0_0_0.chunk.abc.part"
    left.write_bytes(b"half")
    cache.evict()
    assert left.exists(), "a process may still be writing it"
    os.utime(left, (0, 0))
    cache.evict()
    assert not left.exists()


@pytest.mark.parametrize("failure", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_a_full_disk_costs_one_log_line_and_no_voxel(cache, monkeypatch, caplog, failure):
    def full(*_):
        raise OSError(failure, os.strerror(failure))

    monkeypatch.setattr(chunk_cache.os, "replace", full)
    volume = CachedVolume.of(source(), cache)
    for _ in range(2):
        np.testing.assert_array_equal(volume.read(volume.bounds), VOXELS)
    lines = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(lines) == 1
    assert os.strerror(failure) in lines[0].getMessage()
    assert str(cache.folder) in lines[0].getMessage()
    assert not list(cache.root.rglob("*.part"))


def test_a_reserve_of_the_disk_is_left_free(cache, monkeypatch, caplog):
    monkeypatch.setattr(chunk_cache, "RESERVED_DISK_BYTES", 10**18)
    volume = CachedVolume.of(source(), cache)
    np.testing.assert_array_equal(volume.read(volume.bounds), VOXELS)
    assert chunk_files(cache) == []
    assert "MB are free" in caplog.text


def test_a_folder_that_cannot_be_created_costs_one_log_line_and_no_voxel(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    volume = CachedVolume.of(source(), ChunkCache(tmp_path / "file", 10**8))
    np.testing.assert_array_equal(volume.read(volume.bounds), VOXELS)
    assert len(caplog.records) == 1


def test_an_error_of_the_source_is_raised_unchanged(cache):
    class Down(Source):
        def _read(self, box):
            raise PermissionError("no entry")

    behind = source()
    down = Down(**{item.name: getattr(behind, item.name) for item in fields(behind)})
    with pytest.raises(PermissionError, match="no entry"):
        CachedVolume.of(down, cache).read(behind.bounds)
    assert chunk_files(cache) == []


def test_threads_in_parallel_fetch_each_chunk_once(cache):
    class Slow(Source):
        def _read(self, box):
            time.sleep(0.02)
            return super()._read(box)

    behind = source()
    slow = Slow(**{item.name: getattr(behind, item.name) for item in fields(behind)})
    volume = CachedVolume.of(slow, cache)
    wrong = []

    def read():
        wrong.extend([] if np.array_equal(volume.read(volume.bounds), VOXELS) else ["differs"])

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(slow.reads) == len(list(volume.bounds.cells(volume.chunk)))


READER = """
import hashlib, pickle, sys
volume = pickle.load(sys.stdin.buffer)
print("ready", flush=True)
print(hashlib.sha256(volume.read(volume.bounds).tobytes()).hexdigest())
"""


def test_processes_in_parallel_fetch_each_chunk_once(boss_server, cache):
    voxels = np.random.default_rng(0).integers(0, 256, (32, 600, 600), np.uint8)
    uri = boss_server.add("a/b/c", voxels)
    volume = open_volume(uri, boss=boss_server.options, cache=cache)
    boss_server.delay_s = 0.3
    readers = [subprocess.Popen([sys.executable, "-c", READER], stdin=-1, stdout=-1) for _ in range(2)]
    for reader in readers:
        reader.stdin.write(pickle.dumps(volume))
        reader.stdin.close()
    answers = {reader.stdout.read() for reader in readers}
    assert [reader.wait(30) for reader in readers] == [0, 0]
    assert len(answers) == 1
    assert len(boss_server.cutouts) == 8 == len({request.path for request in boss_server.cutouts})
    np.testing.assert_array_equal(volume.read(volume.bounds), voxels)
    assert len(boss_server.cutouts) == 8


HOLDER = """
import pickle, sys, time
volume = pickle.load(sys.stdin.buffer)
with volume.cache.locked(volume._key(next(volume._cells(volume.bounds)))):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_of_a_killed_process_is_released(boss_server, cache):
    volume = open_volume(boss_server.add("a/b/c", VOXELS), boss=boss_server.options, cache=cache)
    holder = subprocess.Popen([sys.executable, "-c", HOLDER], stdin=-1, stdout=-1)
    holder.stdin.write(pickle.dumps(volume))
    holder.stdin.close()
    assert holder.stdout.readline() == b"held\n"
    done = threading.Event()
    threading.Thread(target=lambda: (volume.read(volume.bounds), done.set()), daemon=True).start()
    assert not done.wait(0.3), "another process is fetching the chunk"
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert done.wait(10)


def test_the_same_channel_on_another_host_does_not_find_the_chunks(boss_server, boss_server_class, cache):
    other = boss_server_class()
    try:
        for server, seed in ((boss_server, 0), (other, 1)):
            voxels = np.random.default_rng(seed).integers(0, 256, (4, 40, 40), np.uint8)
            volume = open_volume(server.add("a/b/c", voxels), boss=server.options, cache=cache)
            np.testing.assert_array_equal(volume.read(volume.bounds), voxels)
            assert len(server.cutouts) == 1
    finally:
        other.close()


def test_a_read_takes_less_than_three_times_the_memory_of_its_voxels(cache):
    voxels = np.random.default_rng(0).integers(0, 256, (64, 512, 1024), np.uint8)
    volume = CachedVolume.of(source(voxels, chunk=(16, 256, 256)), cache)
    tracemalloc.start()
    try:
        for _ in range(2):
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            assert volume.read(volume.bounds).nbytes == voxels.nbytes
            assert tracemalloc.get_traced_memory()[1] - before < 3 * voxels.nbytes
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("20GB", 20 * 10**9),
        ("500MB", 5 * 10**8),
        ("1.5 TB", 1_500_000_000_000),
        ("20gib", 20 * 2**30),
        ("4096", 4096),
        ("7 B", 7),
        (".5KB", 500),
    ],
)
def test_sizes_are_parsed(text, size):
    assert parse_byte_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "20 G B", "-1GB", "20XB", "1e3", "0", "0.1B", "twenty"])
def test_malformed_sizes_are_refused(text):
    with pytest.raises(ValueError, match=r"is not a positive number of bytes with a unit, such as 20GB") as caught:
        parse_byte_size(text)
    assert repr(text) in str(caught.value)


def test_the_cache_folder_is_that_of_the_flag_or_the_environment_or_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KASTHURI_CACHE", raising=False)
    assert open_cache(None, "1GB") == ChunkCache(tmp_path / ".cache" / "kasthuri_ray", 10**9)
    monkeypatch.setenv("KASTHURI_CACHE", str(tmp_path / "mine"))
    assert open_cache(None, "1GB").folder == tmp_path / "mine"
    assert open_cache("~/here", "1GB").folder == tmp_path / "here"
    assert open_cache("none", "1GB") is None
    monkeypatch.setenv("KASTHURI_CACHE", "none")
    assert open_cache(None, "1GB") is None
    with pytest.raises(ValueError, match="'big' is not a positive number"):
        open_cache("none", "big")
    assert list(tmp_path.iterdir()) == [], "nothing is written before a chunk is"


def test_without_a_home_folder_that_can_be_written_the_cache_is_among_the_temporary_files(
    tmp_path, monkeypatch, without_home
):
    monkeypatch.delenv("KASTHURI_CACHE", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    own = tmp_path / f"kasthuri_ray_cache_{os.getuid()}"
    assert open_cache(None, "1GB").folder == own
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    assert open_cache(None, "1GB").folder == own
    own.mkdir()
    assert open_cache(None, "1GB").folder == own
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert open_cache(None, "1GB") is None, "the folder belongs to another user"

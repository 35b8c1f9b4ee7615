"""A cache of chunks of volumes on the disk of a node, shared by all its processes and by later runs.

It holds chunks of remote volumes, chunks that are slow to decode, and what was painted of the phantom.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import math
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import numpy as np
from numcodecs.zstd import Zstd

from kasthuri_ray.errors import InputError
from kasthuri_ray.geometry import Box
from kasthuri_ray.storage.local_paths import user_cache_folder
from kasthuri_ray.storage.uris import expand_home
from kasthuri_ray.volumes.parallel_calls import map_threads
from kasthuri_ray.volumes.volume import Volume

log = logging.getLogger(__name__)

DECODED_BYTES = 256_000_000  # that the parallel fetches of one read may decode, if one of them does not take more
PARALLEL_FETCHES = 8  # chunks of one read that are fetched at the same time
RESERVED_DISK_BYTES = 500_000_000  # free space left to others, such as checkpoints, whatever the limit

_MAGIC = b"KRC1"
_DIGEST_BYTES = 16
_BYTES_PER_UNIT = (
    {"": 1, "B": 1}
    | {f"{letter}B": 1000**power for power, letter in enumerate("KMGTP", 1)}
    | {f"{letter}IB": 1024**power for power, letter in enumerate("KMGTP", 1)}
)
_PAUSE_AFTER_FAILURE_S = 60.0  # without writes, after the disk was full
_ABANDONED_S = 3600.0  # age at which a half-written file or a lock belongs to a dead process

_state_lock = threading.Lock()  # guards the two dictionaries below
_paused_until: dict[Path, float] = {}  # when this process writes again to a folder whose disk was full
_unchecked_bytes: dict[Path, int] = {}  # bytes that this process wrote to a folder since it last evicted chunks there


def open_cache(folder: str | None, size: str) -> ChunkCache | None:
    """Return the cache in a folder; nothing is written yet.

    Parameters
    ----------
    folder : str or None
        Folder of the cache; None stands for KASTHURI_CACHE or ~/.cache/kasthuri_ray (without a home folder that can be
        written, a folder among the temporary files), "none" for no cache.
    size : str
        Disk space that the cache may take, such as 20GB.

    Returns
    -------
    ChunkCache or None
        None for "none".

    Raises
    ------
    InputError
        If the size is malformed.
    """
    size_limit_bytes = parse_byte_size(size)
    folder = folder or user_cache_folder()
    if folder.lower() == "none":
        return None
    return ChunkCache(Path(expand_home(folder)).absolute(), size_limit_bytes)


def parse_byte_size(text: str) -> int:
    """Return the number of bytes that a size names.

    Parameters
    ----------
    text : str
        `20GB` is 20 * 1000**3 bytes, `20GiB` is 20 * 1024**3, a number without a unit is bytes.

    Returns
    -------
    int
        Number of bytes, at least 1.

    Raises
    ------
    InputError
        If the text is anything else.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([A-Za-z]*)\s*", text)
    unit = _BYTES_PER_UNIT.get(match[2].upper()) if match else None
    if match is None or unit is None or (size := int(float(match[1]) * unit)) < 1:
        raise InputError(f"size {text!r} is not a positive number of bytes with a unit, such as 20GB, 500MB or 1.5TiB")
    return size


@dataclass(frozen=True)
class ChunkCache:
    """A folder of chunks, one file each, with a limit on its size.

    The chunks used longest ago are deleted first. Any number of processes may share the folder, and any file may be
    deleted at any time. A disk that is full or read-only only logs a warning; no data is lost. All files are in a
    subfolder of their own, so that nothing else in `folder` is ever touched.

    Parameters
    ----------
    folder : Path
        Absolute path.
    size_limit_bytes : int
        Disk space that the chunks may take.
    """

    folder: Path
    size_limit_bytes: int

    @property
    def root(self) -> Path:
        """Subfolder that holds the chunks."""
        return self.folder / "chunks-1"  # another format gets another number

    def get(self, key: str, size: int) -> bytes | None:
        """Return the `size` bytes stored under `key`; None if there are none, or damaged ones, which are deleted."""
        path = self.root / key
        try:
            packed = path.read_bytes()
        except OSError:
            return None
        chunk = _unpack(packed, size)
        with suppress(OSError):
            if chunk is None:
                log.warning("a damaged chunk in the cache is fetched again: %s", path)
                path.unlink()
            else:
                os.utime(path)  # record the use: few disks keep access times
        return chunk

    def put(self, key: str, chunk: np.ndarray) -> None:
        """Store a chunk under `key`, completely or not at all."""
        if time.monotonic() < _paused_until.get(self.folder, -1.0):
            return
        path = self.root / key
        temporary = path.with_name(f"{path.name}.{os.urandom(6).hex()}.part")
        packed = _pack(chunk)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if shutil.disk_usage(path.parent).free < RESERVED_DISK_BYTES:
                raise OSError(errno.ENOSPC, f"less than {RESERVED_DISK_BYTES // 10**6} MB are free")
            with open(temporary, "xb") as file:
                file.writelines(packed)
            os.replace(temporary, path)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink()
            self._pause_writes(error)
            return
        self._count_written(sum(map(len, packed)))

    @contextmanager
    def locked(self, key: str) -> Iterator[None]:
        """Hold a lock on `key` against other threads and processes; the system releases it if the holder dies.

        Where the disk cannot be written, do nothing.
        """
        path = self.root / f"{key}.lock"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
        except OSError:
            yield
            return
        try:
            with suppress(OSError):  # on a disk without locks a chunk may be fetched twice
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            with suppress(OSError):  # one that waits for the deleted file finds the chunk, or fetches it once more
                path.unlink()
            os.close(lock)

    def evict(self) -> None:
        """Delete the chunks used longest ago if more than 15/16 of the limit are used, until 14/16 are."""
        with self._evicting():
            chunks = sorted(self._chunks())
            total = sum(size for _, size, _ in chunks)
            if total <= self.size_limit_bytes * 15 // 16:
                return
            for _, size, path in chunks:
                if total <= self.size_limit_bytes * 14 // 16:
                    break
                with suppress(OSError):
                    os.unlink(path)
                total -= size

    def _count_written(self, size: int) -> None:
        """Count bytes that were written, and evict chunks whenever they add up to 1/256 of the limit."""
        with _state_lock:
            written = _unchecked_bytes.get(self.folder, self.size_limit_bytes) + size
            due = written > self.size_limit_bytes // 256
            _unchecked_bytes[self.folder] = 0 if due else written
        if due:
            self.evict()

    def _chunks(self) -> Iterator[tuple[float, int, str]]:
        """Yield time of last use, number of bytes and path of each chunk; delete what dead processes left."""
        for parent, _, names in os.walk(self.root):
            for name in names:
                path = os.path.join(parent, name)
                try:
                    status = os.stat(path)
                except OSError:
                    continue
                if name.endswith(".chunk"):
                    yield status.st_mtime, status.st_size, path
                elif name.endswith((".part", ".lock")) and time.time() - status.st_mtime > _ABANDONED_S:
                    with suppress(OSError):
                        os.unlink(path)

    @contextmanager
    def _evicting(self) -> Iterator[None]:
        """Hold the lock on evicting, so that two processes do not both free the same space; a disk may not lock."""
        try:
            lock = os.open(self.root / "evicting", os.O_CREAT | os.O_RDWR, 0o666)
        except OSError:
            yield
            return
        try:
            with suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _pause_writes(self, error: OSError) -> None:
        with _state_lock:
            logged = self.folder in _paused_until
            _paused_until[self.folder] = time.monotonic() + _PAUSE_AFTER_FAILURE_S
        if not logged:
            log.warning(
                "the cache in %s cannot be written (%s): chunks are downloaded again; it is retried every %.0f s",
                self.folder,
                error,
                _PAUSE_AFTER_FAILURE_S,
            )


@dataclass(kw_only=True)
class CachedVolume(Volume):
    """A volume whose chunks cross the network, or are decoded, once per node while the cache holds them."""

    source: Volume
    cache: ChunkCache

    @classmethod
    def of(cls, volume: Volume, cache: ChunkCache) -> CachedVolume:
        """Return a volume that is read through a cache."""
        return cls(**{item.name: getattr(volume, item.name) for item in fields(Volume)}, source=volume, cache=cache)

    def _read(self, box: Box) -> np.ndarray:
        voxels = np.empty(box.shape, self.dtype)
        missing = []
        for cell in self._cells(box):
            if (chunk := self._cached(cell)) is None:
                missing.append(cell)
            else:
                _copy(chunk, cell, voxels, box)
        if missing:
            map_threads(lambda cell: _copy(self._fetch(cell), cell, voxels, box), missing, self._num_threads())
        return voxels

    def _num_threads(self) -> int:
        if self.decode_shape is None:
            return PARALLEL_FETCHES
        return max(1, min(PARALLEL_FETCHES, DECODED_BYTES // (math.prod(self.decode_shape) * self.dtype.itemsize)))

    def count_absent(self, box: Box, voxels: np.ndarray | None = None, within: Box | None = None) -> tuple[int, int]:
        return self.source.count_absent(box, voxels, within)

    def has_any_chunk(self, box: Box) -> bool:
        return self.source.has_any_chunk(box)

    def find_stored(self, box: Box) -> Box | None:
        return self.source.find_stored(box)

    def _cells(self, box: Box) -> Iterator[Box]:
        """Return the whole chunks that a box touches, cut to the bounds."""
        grown = box.grown_to_grid(self.chunk, self.chunk_origin)
        return map(self.bounds.intersect, grown.cells(self.chunk, self.chunk_origin))

    def _cached(self, cell: Box) -> np.ndarray | None:
        chunk = self.cache.get(self._key(cell), cell.num_voxels * self.dtype.itemsize)
        return None if chunk is None else np.frombuffer(chunk, self.dtype).reshape(cell.shape)

    def _fetch(self, cell: Box) -> np.ndarray:
        """Return a chunk from the source, unless another process has fetched it in the meantime.

        All chunks that the source decodes with it are stored too.
        """
        unit = self._decoded_with(cell)
        with self.cache.locked(self._key(unit)):
            chunk = self._cached(cell)
            if chunk is not None:
                return chunk
            voxels = np.ascontiguousarray(self.source.read(unit))
            for each in self._cells(unit):
                self.cache.put(self._key(each), np.ascontiguousarray(voxels[each.slices(unit.start)]))
            return voxels[cell.slices(unit.start)]

    def _decoded_with(self, cell: Box) -> Box:
        """Return the voxels that the source decodes to read a chunk."""
        if self.decode_shape is None:
            return cell
        return self.bounds.intersect(cell.grown_to_grid(self.decode_shape, self.chunk_origin))

    def _key(self, cell: Box) -> str:
        return f"{self._folder}/{'_'.join(map(str, cell.start))}.chunk"

    @cached_property
    def _folder(self) -> str:
        """Folder of this volume; another server, resolution, dtype, extent or grid is another volume."""
        content = (self.source.identity, str(self.bounds), self.dtype.str, self.chunk, self.chunk_origin)
        return hashlib.blake2b(repr(content).encode(), digest_size=12).hexdigest()


def _copy(chunk: np.ndarray, cell: Box, voxels: np.ndarray, box: Box) -> None:
    """Copy the voxels that `chunk`, the cutout `cell`, shares with `voxels`, the cutout `box`."""
    shared = cell.intersect(box)
    voxels[shared.slices(box.start)] = chunk[shared.slices(cell.start)]


def _pack(chunk: np.ndarray) -> list[bytes]:
    """Return the content of a file: a magic number, the hash of the rest, and the compressed voxels."""
    body = Zstd(level=1).encode(chunk.reshape(-1).view(np.uint8))
    return [_MAGIC, hashlib.blake2b(body, digest_size=_DIGEST_BYTES).digest(), body]


def _unpack(packed: bytes, size: int) -> bytes | None:
    """Return the `size` bytes of voxels in the content of a file; None if the content is damaged."""
    header = len(_MAGIC) + _DIGEST_BYTES
    digest = hashlib.blake2b(memoryview(packed)[header:], digest_size=_DIGEST_BYTES).digest()
    if packed[:header] != _MAGIC + digest:
        return None
    chunk = Zstd().decode(memoryview(packed)[header:])
    return chunk if len(chunk) == size else None

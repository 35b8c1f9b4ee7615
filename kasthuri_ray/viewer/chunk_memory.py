"""Chunks of volumes in memory: each is read once while it is kept, and few are read at the same time."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import numpy as np

from kasthuri_ray.geometry import Box, Zyx
from kasthuri_ray.volumes.volume import Volume

MAX_BYTES = 512_000_000
MAX_READS = 8  # at once, of all sources


class ChunkMemory:
    """The chunks used last, up to a number of bytes; two threads never load the same chunk.

    Parameters
    ----------
    max_bytes : int
        Memory that the chunks may take, besides those that are being loaded.
    max_reads : int
        Sources that are read at the same time.
    """

    def __init__(self, max_bytes: int = MAX_BYTES, max_reads: int = MAX_READS) -> None:
        self.max_bytes, self.num_bytes = max_bytes, 0
        self.reading = threading.BoundedSemaphore(max_reads)
        self._lock = threading.Lock()
        self._chunks: OrderedDict[Hashable, np.ndarray] = OrderedDict()
        self._loading: dict[Hashable, Future[np.ndarray]] = {}

    def get(self, key: Hashable, load: Callable[[], np.ndarray]) -> np.ndarray:
        """Return a chunk; `load` is called if it is not kept. What `load` raises, all who wait for it get."""
        with self._lock:
            if key in self._chunks:
                self._chunks.move_to_end(key)
                return self._chunks[key]
            future = self._loading.get(key)
            is_own = future is None
            if future is None:
                future = self._loading[key] = Future()
        if is_own:
            try:
                chunk = load()
            except BaseException as error:
                with self._lock:
                    del self._loading[key]
                future.set_exception(error)
                raise
            self._keep(key, chunk)
            future.set_result(chunk)
        return future.result()

    def _keep(self, key: Hashable, chunk: np.ndarray) -> None:
        with self._lock:
            del self._loading[key]
            self._chunks[key] = chunk
            self.num_bytes += chunk.nbytes
            while self.num_bytes > self.max_bytes:
                _, oldest = self._chunks.popitem(last=False)
                self.num_bytes -= oldest.nbytes


@dataclass(kw_only=True)
class RememberedVolume(Volume):
    """A volume that is read in whole chunks, which are kept in memory.

    Parameters
    ----------
    source : Volume
        Where the chunks come from.
    memory : ChunkMemory
        Keeps them.
    unit, unit_origin : tuple of int
        Shape of what is read at once, and a corner of its grid, z, y, x.
    is_computed : bool
        Whether the source is made from another remembered volume: then its reads do not count as reads.
    """

    source: Volume
    memory: ChunkMemory
    unit: Zyx
    unit_origin: Zyx
    is_computed: bool = False

    @classmethod
    def of(
        cls, source: Volume, memory: ChunkMemory, unit: Zyx, unit_origin: Zyx, is_computed: bool = False
    ) -> RememberedVolume:
        """Return a volume with the fields of its source."""
        shared: dict[str, Any] = {item.name: getattr(source, item.name) for item in fields(Volume)}
        own: dict[str, Any] = {"source": source, "memory": memory, "unit": unit, "unit_origin": unit_origin}
        return cls(**shared, **own, is_computed=is_computed)

    def _read(self, box: Box) -> np.ndarray:
        voxels = np.empty(box.shape, self.dtype)
        for cell in box.grown_to_grid(self.unit, self.unit_origin).cells(self.unit, self.unit_origin):
            whole = cell.intersect(self.bounds)
            part = whole.intersect(box)
            chunk = self.memory.get((id(self.source), whole.start), partial(self._load, whole))
            voxels[part.slices(box.start)] = chunk[part.slices(whole.start)]
        return voxels

    def _load(self, box: Box) -> np.ndarray:
        if self.is_computed:
            return self.source.read(box)
        with self.memory.reading:
            return self.source.read(box)

"""Arrays whose stored objects tensorstore cannot read as they are: they are decoded here, and read from memory.

These are objects with a second compression (`X.gz` of CloudVolume, `Content-Encoding: aws-chunked,gzip` of CloudFiles)
and N5 blocks in LZ4. The format itself, with its own encodings, is read by tensorstore from a store in memory.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorstore as ts

from kasthuri_ray.errors import VolumeError
from kasthuri_ray.geometry import Box, Zyx
from kasthuri_ray.storage.content_encoding import decode_content, is_encoding_refused
from kasthuri_ray.storage.kvstore import (
    MIN_BYTES_PER_SECOND,
    StoreLocation,
    first_error_line,
    start_reads,
)
from kasthuri_ray.volumes.axes import ABSENT
from kasthuri_ray.volumes.chunk_keys import ChunkKeys
from kasthuri_ray.volumes.n5_lz4 import lz4_to_raw
from kasthuri_ray.volumes.store_volume import METADATA, STATISTICS_TIMEOUT_S, StoreVolume, as_zyx, sample_chunks

SUFFIXES = {".gz": "gzip", ".br": "br", ".zstd": "zstd"}  # of CloudVolume, and the encoding of each


@dataclass(kw_only=True)
class DecodedStoreVolume(StoreVolume):
    """A volume whose objects are decoded before tensorstore reads them."""

    metadata: str  # the array's metadata as JSON
    suffixes: tuple[str, ...] = ()  # endings of names, tried after the plain one
    is_lz4: bool = False  # N5 blocks in LZ4
    is_plain: bool = False  # tensorstore reads all objects that have no encoding that it does not know

    def _read(self, box: Box) -> np.ndarray:
        if self.is_plain:
            try:
                return super()._read(box)
            except VolumeError as error:
                if not is_encoding_refused(error) or self._find_keys().sharding is not None:
                    raise
        return self._read_decoded(box)

    def _read_decoded(self, box: Box) -> np.ndarray:
        spec = json.loads(self.spec)
        keys = names_in(self._find_keys(), self.axes, box)
        location = StoreLocation(self.uri, spec["kvstore"])
        timeout_s = 60 + box.num_voxels * self.dtype.itemsize / MIN_BYTES_PER_SECOND
        try:
            objects = self._decode(location, keys, timeout_s)
            raw = open_in_memory(spec, json.loads(self.metadata), objects, is_lz4=self.is_lz4)
            store = as_zyx(raw, self.axes, self.uri)
            return store[box.slices()].read(order="C").result(timeout=timeout_s).view(self.dtype)
        except VolumeError:
            raise
        except Exception as error:  # a broken object raises whatever its codec raises
            cause = first_error_line(error)
            raise VolumeError(f"{self.uri}: the cutout {box} (z,y,x) could not be read: {cause}") from error

    def has_any_chunk(self, box: Box) -> bool:
        if not self._are_named:
            return super().has_any_chunk(box)
        return not all(self._are_absent([*sample_chunks(self, box), box]))

    def find_stored(self, box: Box) -> Box | None:
        return None if self._are_named else super().find_stored(box)

    def _are_absent(self, chunks: list[Box]) -> list[bool]:
        if not self._are_named:
            return super()._are_absent(chunks)
        keys = self._find_keys()
        location = StoreLocation(self.uri, keys.kvstore(json.loads(self.spec)["kvstore"]))
        return are_absent(location, [names_in(keys, self.axes, chunk) for chunk in chunks], self.suffixes)

    def _find_keys(self) -> ChunkKeys:
        return find_keys(json.loads(self.spec), json.loads(self.metadata))

    @property
    def _are_named(self) -> bool:
        """Whether absent chunks are found by their names: tensorstore does not find those of precomputed."""
        return not self.is_plain or json.loads(self.spec)["driver"] == "neuroglancer_precomputed"

    def _decode(self, location: StoreLocation, keys: list[Any], timeout_s: float) -> dict[str, bytes]:
        """Return the content of the objects that exist, decoded."""
        reads = start_reads(location, [key + ending for key in keys for ending in ("", *self.suffixes)], timeout_s)
        found = {}
        for key in keys:
            for ending in ("", *self.suffixes):
                content = reads[key + ending]()
                if content is not None:
                    content = decode_content(content, SUFFIXES[ending]) if ending else content
                    found[key] = lz4_to_raw(content) if self.is_lz4 else content
                    break
        return found


def names_in(keys: ChunkKeys, axes: Zyx, box: Box) -> list[Any]:
    """Return the names of the objects that hold voxels of a box, of an array with these stored axes z, y, x."""
    ranges = [(origin, origin + 1) for origin in keys.origin]
    for axis, start, stop in zip(axes, box.start, box.stop, strict=True):
        if axis != ABSENT:
            ranges[axis] = (start, stop)
    return list(keys.names(ranges))


def are_absent(location: StoreLocation, names: list[list[Any]], suffixes: tuple[str, ...] = ()) -> list[bool]:
    """Return for each of several groups of objects whether none of them exists, with or without a suffix."""
    wanted = [[*group, *(name + ending for name in group for ending in suffixes)] for group in names]
    reads = start_reads(location, itertools.chain(*wanted), STATISTICS_TIMEOUT_S, part=slice(0, 0))
    found = {name for name, read in reads.items() if read() is not None}
    return [found.isdisjoint(group) for group in wanted]


def find_keys(spec: dict[str, Any], metadata: dict[str, Any]) -> ChunkKeys:
    """Return the names of an array's objects."""
    named = {**metadata, **spec.get("metadata", {})}
    return ChunkKeys.of(spec["driver"], named, spec.get("scale_index", 0))


def open_in_memory(
    spec: dict[str, Any], metadata: dict[str, Any], objects: dict[str, bytes], *, is_lz4: bool = False
) -> ts.TensorStore:
    """Return an array whose metadata and objects are in memory.

    Parameters
    ----------
    spec : dict
        Tensorstore's spec of the array.
    metadata : dict
        Its metadata.
    objects : dict
        Content of the objects, by their names.
    is_lz4 : bool
        Whether the metadata say LZ4 of objects that are raw here.
    """
    context = ts.Context()
    store = ts.KvStore.open({"driver": "memory"}, context=context).result()
    if is_lz4:
        metadata = {**metadata, "compression": {"type": "raw"}}
    store[METADATA[spec["driver"]]] = json.dumps(metadata).encode()
    for key, content in objects.items():
        store[key] = content
    in_memory = {**spec, "kvstore": {"driver": "memory"}}
    return ts.open(in_memory, read=True, open=True, context=context).result()

"""Zarr arrays whose codecs tensorstore refuses (LZ4, LZMA, Delta, zstd with checksum), read with zarr-python.

zarr-python reads the objects through the key-value store of all other volumes, so that they may be on S3.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from zarr.abc.store import (
    ByteRequest,
    OffsetByteRequest,
    RangeByteRequest,
    Store,
    SuffixByteRequest,
)
from zarr.core.buffer import Buffer, BufferPrototype

from kasthuri_ray.errors import InputError, VolumeError
from kasthuri_ray.geometry import Box, Zyx, per_axis
from kasthuri_ray.storage.kvstore import WHOLE, StoreLocation, start_reads
from kasthuri_ray.volumes.axes import ABSENT, read_zyx
from kasthuri_ray.volumes.chunk_keys import ChunkKeys
from kasthuri_ray.volumes.decoded_store import are_absent, names_in
from kasthuri_ray.volumes.store_volume import sample_chunks, stored_id
from kasthuri_ray.volumes.volume import Volume, make_opening_id

READ_TIMEOUT_S = 120.0  # of one object


class ReadOnlyStore(Store):
    """The objects at a location, for zarr-python.

    Parameters
    ----------
    location : StoreLocation
        Where they are.
    replaced : dict
        Objects whose content is another one, by their names.
    """

    supports_writes = supports_deletes = supports_listing = supports_partial_writes = False

    def __init__(self, location: StoreLocation, replaced: dict[str, bytes]) -> None:
        super().__init__(read_only=True)
        self.location, self.replaced = location, replaced

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ReadOnlyStore) and self.location == other.location

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        content, part = self.replaced.get(key), _as_slice(byte_range)
        if content is not None:
            content = content[part]
        else:
            content = await asyncio.to_thread(start_reads(self.location, [key], READ_TIMEOUT_S, part)[key])
        return None if content is None else prototype.buffer.from_bytes(content)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]

    async def exists(self, key: str) -> bool:
        return await asyncio.to_thread(start_reads(self.location, [key], part=slice(0, 0))[key]) is not None

    async def set(self, key: str, value: Buffer) -> None:
        raise NotImplementedError

    async def delete(self, key: str) -> None:
        raise NotImplementedError

    async def list(self) -> AsyncIterator[str]:  # type: ignore[override]
        raise NotImplementedError
        yield

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:  # type: ignore[override]
        raise NotImplementedError
        yield

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:  # type: ignore[override]
        raise NotImplementedError
        yield


def _as_slice(byte_range: ByteRequest | None) -> slice:
    if isinstance(byte_range, RangeByteRequest):
        return slice(byte_range.start, byte_range.end)
    if isinstance(byte_range, OffsetByteRequest):
        return slice(byte_range.offset, None)
    return slice(-byte_range.suffix, None) if isinstance(byte_range, SuffixByteRequest) else WHOLE


@dataclass(kw_only=True)
class ZarrPythonVolume(Volume):
    """A volume that zarr-python reads."""

    may_lack_chunks = True

    kvstore: str  # tensorstore's spec of the key-value store as JSON
    metadata: str  # the array's metadata as JSON
    axes: Zyx  # which stored axes are z, y, x; all other axes have length 1
    opening: str  # see `make_opening_id`

    def _read(self, box: Box) -> np.ndarray:
        try:
            array = _open(self.uri, self.kvstore, self.metadata, self.opening)
            ranges = {axis: part for axis, part in zip(self.axes, box.slices(), strict=True) if axis != ABSENT}
            stored = array[tuple(ranges.get(axis, slice(0, 1)) for axis in range(array.ndim))]
            return np.ascontiguousarray(read_zyx(np.asarray(stored), self.axes), dtype=self.dtype)
        except VolumeError:
            raise
        except Exception as error:  # a broken object raises whatever its codec raises
            raise VolumeError(f"{self.uri}: the cutout {box} (z,y,x) could not be read: {error}") from error

    def has_any_chunk(self, box: Box) -> bool:
        return not all(self._are_absent([*sample_chunks(self, box), box]))

    def _are_absent(self, chunks: list[Box]) -> list[bool]:
        metadata = json.loads(self.metadata)
        keys = ChunkKeys.of("zarr" if metadata["zarr_format"] == 2 else "zarr3", metadata)
        location = StoreLocation(self.uri, json.loads(self.kvstore))
        return are_absent(location, [names_in(keys, self.axes, chunk) for chunk in chunks])


def open_with_zarr_python(metadata: dict[str, Any], axes: Zyx, uri: str, place: StoreLocation) -> Volume:
    """Open a zarr array that tensorstore refuses.

    Parameters
    ----------
    metadata : dict
        Content of `.zarray` or `zarr.json`.
    axes : tuple of int
        Which stored axes are z, y, x; ABSENT for z if the array is one section.
    uri : str
        Name of the volume.
    place : StoreLocation
        Folder of the array.

    Returns
    -------
    Volume
        The array, without a voxel size and a place.

    Raises
    ------
    InputError
        If zarr-python cannot read it either; the message is its own.
    """
    kvstore, text, opening = json.dumps(place.kvstore), json.dumps(metadata), make_opening_id()
    try:
        array = _open(uri, kvstore, text, opening)
    except Exception as error:
        raise InputError(f"{uri}: {error}") from error
    dtype = np.dtype(array.dtype)
    if dtype.kind not in "buif":
        raise InputError(f"{uri} holds {dtype}; a volume holds integers or floats")
    shape = per_axis(lambda axis: 1 if axis == ABSENT else array.shape[axis], axes)
    fill_value = 0.0 if array.fill_value is None else float(array.fill_value)
    return ZarrPythonVolume(
        uri=uri,
        bounds=Box((0, 0, 0), shape),
        dtype=dtype.newbyteorder("="),
        voxel_size_nm=None,
        chunk=per_axis(lambda axis, length: 1 if axis == ABSENT else min(array.chunks[axis], length), axes, shape),
        chunk_origin=(0, 0, 0),
        remote=place.remote,
        fill_value=0.0 if np.isnan(fill_value) else fill_value,
        source_id=stored_id({"driver": f"zarr{metadata['zarr_format']}", "kvstore": place.kvstore}),
        folder=place.address,
        kvstore=kvstore,
        metadata=text,
        axes=axes,
        opening=opening,
    )


@lru_cache(maxsize=32)
def _open(uri: str, kvstore: str, metadata: str, opening: str) -> Any:
    """Return the open array; each process opens it once."""
    import zarr

    document = json.loads(metadata)
    name = ".zarray" if document["zarr_format"] == 2 else "zarr.json"
    store = ReadOnlyStore(StoreLocation(uri, json.loads(kvstore)), {name: metadata.encode(), ".zattrs": b"{}"})
    return zarr.open_array(store, mode="r", zarr_format=document["zarr_format"])

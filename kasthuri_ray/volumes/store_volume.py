"""Arrays of stores as volumes: tensorstore reads them, or what stands in for it where it refuses."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import tensorstore as ts

from kasthuri_ray.errors import InputError, VolumeError
from kasthuri_ray.geometry import Box, Zyx, per_axis
from kasthuri_ray.storage.kvstore import (
    ANSWER_TIMEOUT_S,
    MIN_BYTES_PER_SECOND,
    StoreLocation,
    first_error_line,
    tensorstore_context,
    translate_tensorstore_errors,
)
from kasthuri_ray.volumes.absent_chunks import find_stored_chunk
from kasthuri_ray.volumes.axes import ABSENT
from kasthuri_ray.volumes.volume import Volume, make_opening_id

METADATA = {"neuroglancer_precomputed": "info", "zarr": ".zarray", "zarr3": "zarr.json", "n5": "attributes.json"}
NUM_SAMPLES = 16  # chunks that are looked for before all of a box are
STATISTICS_TIMEOUT_S = 60.0


@dataclass(kw_only=True)
class StoreVolume(Volume):
    """A volume that tensorstore reads."""

    may_lack_chunks = True

    spec: str  # tensorstore's spec as JSON
    axes: Zyx  # which stored axes are z, y, x; all other axes have length 1
    opening: str  # see `make_opening_id`
    mended: str = ""  # the array's metadata as JSON, where they are not read as they are stored

    def _read(self, box: Box) -> np.ndarray:
        timeout_s = 60 + box.num_voxels * self.dtype.itemsize / MIN_BYTES_PER_SECOND
        try:
            store = _open_zyx(self.spec, self.axes, self.opening, self.mended)
            voxels = store[box.slices()].read(order="C").result(timeout=timeout_s)
        except TimeoutError as error:
            cause = f"there was no answer within {timeout_s:.0f} s"
            raise VolumeError(f"{self.uri}: the cutout {box} (z,y,x) could not be read: {cause}") from error
        except (ValueError, OSError) as error:
            cause = first_error_line(error)
            raise VolumeError(f"{self.uri}: the cutout {box} (z,y,x) could not be read: {cause}") from error
        return voxels.view(self.dtype)

    def has_any_chunk(self, box: Box) -> bool:
        try:
            if not all(self._are_absent(sample_chunks(self, box))):
                return True
            store = _open_zyx(self.spec, self.axes, self.opening, self.mended)
            statistics = store[box.slices()].storage_statistics(query_not_stored=True)
            return not statistics.result(timeout=STATISTICS_TIMEOUT_S).not_stored
        except (ValueError, OSError):
            return True  # reading will show what is wrong

    def find_stored(self, box: Box) -> Box | None:
        stored_order = sorted(range(3), key=lambda axis: self.axes[axis])
        return find_stored_chunk(self, box, stored_order)

    def _are_absent(self, chunks: list[Box]) -> list[bool]:
        store = _open_zyx(self.spec, self.axes, self.opening, self.mended)
        futures = [store[chunk.slices()].storage_statistics(query_not_stored=True) for chunk in chunks]
        return [bool(future.result(timeout=STATISTICS_TIMEOUT_S).not_stored) for future in futures]


def sample_chunks(volume: Volume, box: Box) -> list[Box]:
    """Return some of the chunks that a box meets, spread over it; the middle one is the first."""
    points = [(0.5, 0.5, 0.5), *np.random.default_rng(0).random((NUM_SAMPLES - 1, 3)).tolist()]
    starts = [per_axis(lambda a, n, f: a + int(n * f), box.start, box.shape, point) for point in points]
    voxels = [Box.at(start, (1, 1, 1)) for start in starts]
    chunks = (voxel.grown_to_grid(volume.chunk, volume.chunk_origin).intersect(volume.bounds) for voxel in voxels)
    return list(dict.fromkeys(chunks))


def describe_array(
    raw: ts.TensorStore, spec: dict[str, Any], axes: Zyx, uri: str, place: StoreLocation
) -> dict[str, Any]:
    """Return the fields of a `StoreVolume` of an open array, without a voxel size and a place.

    Parameters
    ----------
    raw : TensorStore
        The array.
    spec : dict
        Its spec.
    axes : tuple of int
        Which stored axes are z, y, x; ABSENT for z if the array is one section. All others have length 1.
    uri : str
        Name of the volume.
    place : StoreLocation
        Folder of the array.
    """
    dtype = raw.dtype.numpy_dtype
    if dtype.kind not in "buif":
        raise InputError(f"{uri} holds {raw.dtype.name}; a volume holds integers or floats")
    store = as_zyx(raw, axes, uri)
    layout: Any = store.chunk_layout
    return {
        "uri": uri,
        "bounds": Box.at(store.domain.inclusive_min, store.shape),
        "dtype": dtype,
        "voxel_size_nm": None,
        "chunk": per_axis(lambda length, whole: length or whole, layout.read_chunk.shape, store.shape),
        "chunk_origin": per_axis(lambda origin: origin or 0, layout.grid_origin),
        "remote": place.remote,
        "fill_value": _fill_value(raw),
        "source_id": stored_id(spec),
        "folder": place.address,
        "spec": json.dumps(spec),
        "axes": axes,
        "opening": make_opening_id(),
    }


def _fill_value(raw: ts.TensorStore) -> float:
    """Return the value of voxels in chunks that are not stored; 0 if the format does not state it."""
    value = None if raw.fill_value is None else float(np.asarray(raw.fill_value).item())
    return 0.0 if value is None or np.isnan(value) else value


def stored_id(spec: dict[str, Any]) -> str:
    """Return a spec as text, without credentials and with links resolved: a unique name of the stored voxels."""

    def normalized(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        real = {"path": os.path.realpath(value["path"])} if value.get("driver") == "file" else {}
        return {name: normalized(item) for name, item in {**value, **real}.items() if name != "aws_credentials"}

    return json.dumps(normalized(spec), sort_keys=True)


def as_zyx(raw: ts.TensorStore, axes: Zyx, uri: str) -> ts.TensorStore:
    """Return the store with the axes z, y, x; the other axes, of length 1, are dropped."""
    if axes[0] == ABSENT:
        raw, axes = raw[ts.newaxis], per_axis(lambda axis: axis + 1, axes)
        raw = raw[ts.d[0].mark_bounds_implicit[False]]
    for axis in sorted(set(range(raw.rank)) - set(axes), reverse=True):
        if raw.shape[axis] != 1:
            raise InputError(
                f"{uri} has {raw.shape[axis]} channels along axis {axis} of its shape {tuple(raw.shape)}; a volume has "
                "one"
            )
        raw = raw[ts.d[axis][raw.domain.inclusive_min[axis]]]
    kept = sorted(axes)
    return raw[ts.d[[kept.index(axis) for axis in axes]].transpose[:]]


def with_metadata(spec: dict[str, Any], metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the spec of an array with other metadata than its store holds; this process keeps them in memory."""
    content, name = json.dumps(metadata).encode(), METADATA[spec["driver"]]
    folder = f"{hashlib.sha256(content).hexdigest()}/"
    ts.KvStore.open({"driver": "memory", "path": folder}, context=tensorstore_context()).result()[name] = content
    layers = [{"base": spec["kvstore"]}, {"exact": name, "base": {"driver": "memory", "path": folder + name}}]
    return {**spec, "kvstore": {"driver": "kvstack", "layers": layers}}


def open_raw(spec: dict[str, Any], uri: str) -> ts.TensorStore:
    with translate_tensorstore_errors(uri, "opened"):
        future = ts.open(
            spec,
            read=True,
            open=True,
            context=tensorstore_context(),
            recheck_cached_metadata="open",
            recheck_cached_data="open",
        )
        return future.result(timeout=ANSWER_TIMEOUT_S)


@lru_cache(maxsize=32)
def _open_zyx(spec: str, axes: Zyx, opening: str, mended: str) -> ts.TensorStore:
    """Return the open store with the axes z, y, x; each process opens it once, at its first read."""
    whole = with_metadata(json.loads(spec), json.loads(mended)) if mended else json.loads(spec)
    return as_zyx(open_raw(whole, "the store"), axes, "the store")

"""Zarr 2, zarr 3, OME-Zarr, N5 and Neuroglancer precomputed, on disk and on S3, by tensorstore.

`open_store(uri)` finds the format out and gives a Volume. What was found out travels with the volume as a small JSON
spec; a process opens it once and reads through one handle, whose decoded chunks it keeps up to 64 MB.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import time
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import tensorstore as ts

from kasthuri_ray.geometry import Box, Zyx
from kasthuri_ray.volumes import formats
from kasthuri_ray.volumes.formats import ARRAY, DOCUMENTS, Document, Level, Nm, Node, find_node
from kasthuri_ray.volumes.inside import name_one, nothing_there
from kasthuri_ray.volumes.keyvalue import (
    ANSWER_SECONDS,
    Location,
    context,
    locate,
    read_documents,
    source_errors,
    words,
)
from kasthuri_ray.volumes.volume import SourceError, Volume

SLOWEST_BYTES_PER_SECOND = 250_000
_opened = itertools.count()


@dataclass(kw_only=True)
class StoreVolume(Volume):
    """A volume that tensorstore reads.

    spec: the tensorstore spec as JSON text.
    axes: which of the stored axes are z, y, x; the others have length 1.
    opened: distinguishes this opening from others of the same store, so that a store written anew is read anew.
    """

    spec: str
    axes: Zyx
    opened: str

    def _read(self, box: Box) -> np.ndarray:
        seconds = 60 + box.num_voxels * self.dtype.itemsize / SLOWEST_BYTES_PER_SECOND
        try:
            store = _handle(self.spec, self.axes, self.opened)
            return store[box.slices()].read(order="C").result(timeout=seconds)
        except TimeoutError as error:
            raise SourceError(f"{self.uri}: the cutout {box} (z,y,x) did not come within {seconds:.0f} s") from error
        except (ValueError, OSError) as error:
            raise SourceError(f"{self.uri}: the cutout {box} (z,y,x) could not be read: {words(error)}") from error


def open_store(uri: str, mip: int | None = None) -> Volume:
    """The volume that a path, an `s3://` URL or a tensorstore URL names; see `open_volume`.

    A pyramid (OME-Zarr group, N5 with s0, s1, ..., precomputed) gives its level `mip`; `uri#mip=1` says the same.
    Zarr begins at voxel 0 whatever its translation, precomputed at its `voxel_offset`. Axes of length 1 beside
    z, y, x are dropped; more than one channel is a ValueError.
    """
    name, mip = _split_mip(uri, mip)
    location = locate(name)
    folder = location.folder
    if folder is not None and folder.is_file():
        raise ValueError(f"{name} is a file; a zarr, N5 or precomputed volume is a folder")
    place, documents = read_documents(location, DOCUMENTS)
    node = find_node(documents, location.driver)
    if node is None:
        raise nothing_there(place)
    if node.driver == "neuroglancer_precomputed":
        return _open_precomputed(place, node, mip)
    if node.kind == ARRAY:
        group, level, index = _parent_of(place)
        _check_mip(place.uri, mip, 1)
        volume = _open_array(place, node, group, level, index, place.uri)
        if level is not None or (node.driver == "n5" and index is not None):
            volume.pyramid = _source_id(place.at("..").kvstore)
        return volume
    return _open_pyramid(place, node, documents, mip)


def _split_mip(uri: str, mip: int | None) -> tuple[str, int]:
    match = re.fullmatch(r"(.*)#mip=(\d+)", uri)
    if match is None:
        return uri, mip or 0
    if mip is not None and mip != int(match[2]):
        raise ValueError(f"{uri} names mip {match[2]}, but mip {mip} was asked for")
    return match[1], int(match[2])


def _check_mip(uri: str, mip: int, num_levels: int) -> None:
    if not 0 <= mip < num_levels:
        levels = "one resolution, mip 0" if num_levels == 1 else f"{num_levels} resolutions, mip 0 to {num_levels - 1}"
        raise ValueError(f"{uri} has {levels}; mip {mip} was asked for")


def _leveled(uri: str, mip: int) -> str:
    return f"{uri}#mip={mip}" if mip else uri


def _open_pyramid(place: Location, group: Node, documents: dict[str, Any], mip: int) -> Volume:
    """The level `mip` of a group; a ValueError that lists its arrays where the group is no pyramid."""
    levels: list[Level] | None = None
    if group.driver == "n5":
        paths = _n5_levels(place, documents)
    else:
        levels = formats.ome_levels(group.attributes)
        if levels is None and "bioformats2raw.layout" in group.attributes.get("ome", group.attributes):
            return open_store(f"{place.uri.rstrip('/')}{'' if place.uri.endswith(':') else '/'}0", mip)
        paths = [level.path for level in levels or []]
    if not paths:
        raise ValueError(f"{place.uri} is a group, not an array; {name_one(place, group)}")
    _check_mip(place.uri, mip, len(paths))
    inner = place.at(paths[mip])
    node = find_node(read_documents(inner, DOCUMENTS)[1], group.driver)
    if node is None or node.kind != ARRAY:
        raise FileNotFoundError(f"{place.uri} says that its mip {mip} is {paths[mip]!r}, but no array is there")
    volume = _open_array(inner, node, group.attributes, levels[mip] if levels else None, mip, _leveled(place.uri, mip))
    volume.pyramid = _source_id(place.kvstore)
    return volume


def _n5_levels(place: Location, documents: dict[str, Any]) -> list[str]:
    if "s0/attributes.json" not in documents:
        return []
    names = [f"s{level}" for level in range(20)]
    found = read_documents(place, [f"{name}/attributes.json" for name in names])[1]
    return list(itertools.takewhile(lambda name: f"{name}/attributes.json" in found, names))


def _parent_of(place: Location) -> tuple[Document, Level | None, int | None]:
    """What the group around an array says: its attributes, and which level of its pyramid the array is."""
    parent, name = place.at(".."), place.path.rstrip("/").rpartition("/")[2]
    if parent.path == place.path:
        return {}, None, None
    try:
        node = find_node(read_documents(parent, DOCUMENTS)[1], place.driver)
    except (PermissionError, ValueError):
        return {}, None, None  # the array may be read where its surroundings may not, or are something else
    attributes = node.attributes if node else {}
    level = next((level for level in formats.ome_levels(attributes) or [] if level.path.strip("/") == name), None)
    match = re.fullmatch(r"s(\d+)", name)
    return attributes, level, int(match[1]) if match else None


def _open_array(
    place: Location, node: Node, group: Document, level: Level | None, index: int | None, uri: str
) -> Volume:
    spec = {"driver": node.driver, "kvstore": place.kvstore}
    raw = _open_raw(spec, uri)
    if node.driver == "n5":
        order: Zyx = (2, 1, 0)  # N5 writes x, y, z, and a channel last
        size = formats.n5_voxel_size(node.attributes, group, index)
    else:
        order = formats.zarr_axes(node, level, raw.rank)
        size = formats.zarr_voxel_size(node.attributes, group, level)
    volume = _volume(raw, spec, order, uri, place, size)
    if level is not None:
        volume.translation_nm = level.translation_nm
    return volume


def _open_precomputed(place: Location, node: Node, mip: int) -> Volume:
    scales = node.metadata["scales"]
    _check_mip(place.uri, mip, len(scales))
    spec = {"driver": node.driver, "kvstore": place.kvstore, "scale_index": mip}
    uri = _leveled(place.uri, mip)
    size = formats.in_nanometers(scales[mip]["resolution"][::-1], ["nm"] * 3)
    volume = _volume(_open_raw(spec, uri), spec, (2, 1, 0), uri, place, size)  # stored as x, y, z, channel
    volume.pyramid = _source_id(place.kvstore)
    return volume


def _volume(raw: ts.TensorStore, spec: dict[str, Any], axes: Zyx, uri: str, place: Location, size: Nm | None) -> Any:
    _check_axes(raw, axes, uri)
    dtype = _numeric(raw, uri)
    store = _turned(raw, axes)
    layout: Any = store.chunk_layout
    return StoreVolume(
        uri=uri,
        bounds=Box.at(store.domain.inclusive_min, store.shape),
        dtype=dtype,
        voxel_size_nm=size,
        chunk=tuple(n or m for n, m in zip(layout.read_chunk.shape, store.shape, strict=True)),  # type: ignore[arg-type]
        chunk_origin=tuple(int(start) for start in layout.grid_origin),  # type: ignore[arg-type]
        remote=place.remote,
        fill_value=_fill_value(raw),
        source_id=_source_id(spec),
        folder=place.address,
        spec=json.dumps(spec),
        axes=axes,
        opened=f"{os.getpid()}-{time.time_ns()}-{next(_opened)}",
    )


def _fill_value(raw: ts.TensorStore) -> float:
    """What is read where no chunk is stored; 0 where the format does not say."""
    value = None if raw.fill_value is None else float(np.asarray(raw.fill_value).item())
    return 0.0 if value is None or np.isnan(value) else value


def _source_id(spec: dict[str, Any]) -> str:
    """The spec as text, without how access was gained and through which links: what tells equal names apart."""

    def bare(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        real = {"path": os.path.realpath(value["path"])} if value.get("driver") == "file" else {}
        return {name: bare(item) for name, item in {**value, **real}.items() if name != "aws_credentials"}

    return json.dumps(bare(spec), sort_keys=True)


def _check_axes(raw: ts.TensorStore, axes: Zyx, uri: str) -> None:
    if raw.rank < 3:
        raise ValueError(f"{uri} has {raw.rank} axes, shape {tuple(raw.shape)}; a volume has three: z, y, x")
    for axis in set(range(raw.rank)) - set(axes):
        if raw.shape[axis] != 1:
            name = raw.domain.labels[axis]
            what = f"{raw.shape[axis]} channels" if name in ("", "c", "channel") else f"{raw.shape[axis]} of {name!r}"
            raise ValueError(f"{uri} has {what} along axis {axis} of its shape {tuple(raw.shape)}; a volume has one")


def _numeric(raw: ts.TensorStore, uri: str) -> np.dtype:
    dtype = raw.dtype.numpy_dtype
    if dtype.kind not in "buif":
        raise ValueError(f"{uri} holds {raw.dtype.name}; a volume holds integers or floats")
    return dtype


def _turned(raw: ts.TensorStore, axes: Zyx) -> ts.TensorStore:
    """The store as z, y, x: the other axes, of length 1, dropped."""
    for axis in sorted(set(range(raw.rank)) - set(axes), reverse=True):
        raw = raw[ts.d[axis][raw.domain.inclusive_min[axis]]]
    kept = sorted(axes)
    return raw[ts.d[[kept.index(axis) for axis in axes]].transpose[:]]


def _open_raw(spec: dict[str, Any], uri: str) -> ts.TensorStore:
    with source_errors(uri, "opened"):
        future = ts.open(
            spec, read=True, open=True, context=context(), recheck_cached_metadata="open", recheck_cached_data="open"
        )
        return future.result(timeout=ANSWER_SECONDS)


@lru_cache(maxsize=32)
def _handle(spec: str, axes: Zyx, opened: str) -> ts.TensorStore:
    """This process's open store of one opening. A worker opens it at its first read."""
    return _turned(_open_raw(json.loads(spec), "the store"), axes)

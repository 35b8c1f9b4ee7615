"""Volumes in zarr, OME-Zarr, N5 and Neuroglancer precomputed stores, read with tensorstore.

The format is detected from the metadata files at the path. Where there is no array, the error lists those that exist.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from kasthuri_ray.errors import InputError, InputNotFound, VolumeError
from kasthuri_ray.geometry import Box, Nm, Zyx, per_axis
from kasthuri_ray.storage.kvstore import (
    ANSWER_TIMEOUT_S,
    MIN_BYTES_PER_SECOND,
    StoreLocation,
    first_error_line,
    locate_store,
    read_json_documents,
    tensorstore_context,
    translate_tensorstore_errors,
)
from kasthuri_ray.storage.s3 import s3_filesystem
from kasthuri_ray.volumes import store_metadata
from kasthuri_ray.volumes.store_metadata import ARRAY, DOCUMENTS, Document, OmeLevel, StoreNode, find_node
from kasthuri_ray.volumes.volume import Volume, make_opening_id

MAX_LISTED = 20  # arrays that a message names
MAX_N5_LEVELS = 20


@dataclass(kw_only=True)
class StoreVolume(Volume):
    """A volume that tensorstore reads."""

    spec: str  # tensorstore's spec as JSON
    axes: Zyx  # which stored axes are z, y, x; all other axes have length 1
    opening: str  # see `make_opening_id`

    def _read(self, box: Box) -> np.ndarray:
        timeout_s = 60 + box.num_voxels * self.dtype.itemsize / MIN_BYTES_PER_SECOND
        try:
            store = _open_zyx(self.spec, self.axes, self.opening)
            return store[box.slices()].read(order="C").result(timeout=timeout_s)
        except TimeoutError as error:
            cause = f"there was no answer within {timeout_s:.0f} s"
            raise VolumeError(f"{self.uri}: the cutout {box} (z,y,x) could not be read: {cause}") from error
        except (ValueError, OSError) as error:
            cause = first_error_line(error)
            raise VolumeError(f"{self.uri}: the cutout {box} (z,y,x) could not be read: {cause}") from error


def open_store(uri: str, mip: int | None = None) -> Volume:
    """Open a path, an `s3://` URL or a tensorstore URL; parameters and errors as of `open_volume`.

    `mip` is a level of a pyramid (OME-Zarr group, N5 with s0, s1, ..., precomputed); `#mip=1` at the end of the URI
    names it too. Zarr starts at voxel 0 whatever its translation, precomputed at its `voxel_offset`. Axes of length 1
    besides z, y, x are dropped; more than one channel is an InputError.
    """
    name, mip = _split_mip(uri, mip)
    location = locate_store(name)
    folder = location.folder
    if folder is not None and folder.is_file():
        raise InputError(f"{name} is a file; a zarr, N5 or precomputed volume is a folder")
    place, documents = read_json_documents(location, DOCUMENTS)
    node = find_node(documents, location.driver)
    if node is None:
        raise _no_array_error(place)
    if node.driver == "neuroglancer_precomputed":
        return _open_precomputed(place, node, mip)
    if node.kind == ARRAY:
        group, level, index = _read_group(place)
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
        raise InputError(f"{uri} names mip {match[2]}, which conflicts with the requested mip {mip}")
    return match[1], int(match[2])


def _check_mip(uri: str, mip: int, num_levels: int) -> None:
    if not 0 <= mip < num_levels:
        levels = "one resolution, mip 0" if num_levels == 1 else f"{num_levels} resolutions, mip 0 to {num_levels - 1}"
        raise InputError(f"{uri} has {levels}; mip {mip} does not exist")


def _uri_with_mip(uri: str, mip: int) -> str:
    return f"{uri}#mip={mip}" if mip else uri


def _open_pyramid(place: StoreLocation, group: StoreNode, documents: dict[str, Any], mip: int) -> Volume:
    """Open a level of a group; raise an InputError that lists its arrays if the group is not a pyramid."""
    levels: list[OmeLevel] | None = None
    if group.driver == "n5":
        paths = _n5_levels(place, documents)
    else:
        levels = store_metadata.ome_levels(group.attributes)
        if levels is None and "bioformats2raw.layout" in group.attributes.get("ome", group.attributes):
            return open_store(f"{place.uri.rstrip('/')}{'' if place.uri.endswith(':') else '/'}0", mip)
        paths = [level.path for level in levels or []]
    if not paths:
        raise InputError(f"{place.uri} is a group, not an array; {_name_array_advice(place, group)}")
    _check_mip(place.uri, mip, len(paths))
    inner = place.at(paths[mip])
    node = find_node(read_json_documents(inner, DOCUMENTS)[1], group.driver)
    if node is None or node.kind != ARRAY:
        raise InputNotFound(f"{place.uri} says that its mip {mip} is {paths[mip]!r}, but there is no array")
    volume = _open_array(
        inner, node, group.attributes, levels[mip] if levels else None, mip, _uri_with_mip(place.uri, mip)
    )
    volume.pyramid = _source_id(place.kvstore)
    return volume


def _n5_levels(place: StoreLocation, documents: dict[str, Any]) -> list[str]:
    """Return the paths s0, s1, ... that an N5 group holds; none if it is not a pyramid."""
    if "s0/attributes.json" not in documents:
        return []
    names = [f"s{level}" for level in range(MAX_N5_LEVELS)]
    levels = read_json_documents(place, [f"{name}/attributes.json" for name in names])[1]
    return list(itertools.takewhile(lambda name: f"{name}/attributes.json" in levels, names))


def _read_group(place: StoreLocation) -> tuple[Document, OmeLevel | None, int | None]:
    """Return the attributes of the group around an array, and which OME or N5 level of its pyramid the array is."""
    parent, name = place.at(".."), place.path.rstrip("/").rpartition("/")[2]
    if parent.path == place.path:
        return {}, None, None
    try:
        node = find_node(read_json_documents(parent, DOCUMENTS)[1], place.driver)
    except (PermissionError, ValueError):
        return {}, None, None  # access may be restricted to the array, and its folder may be something else
    attributes = node.attributes if node else {}
    levels = store_metadata.ome_levels(attributes) or []
    level = next((level for level in levels if level.path.strip("/") == name), None)
    match = re.fullmatch(r"s(\d+)", name)
    return attributes, level, int(match[1]) if match else None


def _open_array(
    place: StoreLocation, node: StoreNode, group: Document, level: OmeLevel | None, index: int | None, uri: str
) -> Volume:
    spec = {"driver": node.driver, "kvstore": place.kvstore}
    raw = _open_raw(spec, uri)
    if node.driver == "n5":
        order: Zyx = (2, 1, 0)  # N5 writes x, y, z, and a channel last
        size = store_metadata.n5_voxel_size(node.attributes, group, index)
    else:
        order = store_metadata.zarr_axes(node, level, raw.rank)
        size = store_metadata.zarr_voxel_size(node.attributes, group, level)
    volume = _make_volume(raw, spec, order, uri, place, size)
    if level is not None:
        volume.translation_nm = level.translation_nm
    return volume


def _open_precomputed(place: StoreLocation, node: StoreNode, mip: int) -> Volume:
    scales = node.metadata["scales"]
    _check_mip(place.uri, mip, len(scales))
    spec = {"driver": node.driver, "kvstore": place.kvstore, "scale_index": mip}
    uri = _uri_with_mip(place.uri, mip)
    size = store_metadata.in_nanometers(scales[mip]["resolution"][::-1], ["nm"] * 3)
    volume = _make_volume(_open_raw(spec, uri), spec, (2, 1, 0), uri, place, size)  # stored as x, y, z, channel
    volume.pyramid = _source_id(place.kvstore)
    return volume


def _make_volume(
    raw: ts.TensorStore, spec: dict[str, Any], axes: Zyx, uri: str, place: StoreLocation, size: Nm | None
) -> StoreVolume:
    _check_axes(raw, axes, uri)
    dtype = _numeric_dtype(raw, uri)
    store = _as_zyx(raw, axes)
    layout: Any = store.chunk_layout
    return StoreVolume(
        uri=uri,
        bounds=Box.at(store.domain.inclusive_min, store.shape),
        dtype=dtype,
        voxel_size_nm=size,
        chunk=per_axis(lambda length, whole: length or whole, layout.read_chunk.shape, store.shape),
        chunk_origin=per_axis(int, layout.grid_origin),
        remote=place.remote,
        fill_value=_fill_value(raw),
        source_id=_source_id(spec),
        folder=place.address,
        spec=json.dumps(spec),
        axes=axes,
        opening=make_opening_id(),
    )


def _fill_value(raw: ts.TensorStore) -> float:
    """Return the value of voxels in chunks that are not stored; 0 if the format does not state it."""
    value = None if raw.fill_value is None else float(np.asarray(raw.fill_value).item())
    return 0.0 if value is None or np.isnan(value) else value


def _source_id(spec: dict[str, Any]) -> str:
    """Return the spec as text, without credentials and with links resolved: a unique name of the stored voxels."""

    def normalized(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        real = {"path": os.path.realpath(value["path"])} if value.get("driver") == "file" else {}
        return {name: normalized(item) for name, item in {**value, **real}.items() if name != "aws_credentials"}

    return json.dumps(normalized(spec), sort_keys=True)


def _check_axes(raw: ts.TensorStore, axes: Zyx, uri: str) -> None:
    if raw.rank < 3:
        raise InputError(f"{uri} has {raw.rank} axes, shape {tuple(raw.shape)}; a volume has three: z, y, x")
    for axis in set(range(raw.rank)) - set(axes):
        if raw.shape[axis] != 1:
            name = raw.domain.labels[axis]
            what = f"{raw.shape[axis]} channels" if name in ("", "c", "channel") else f"{raw.shape[axis]} of {name!r}"
            raise InputError(f"{uri} has {what} along axis {axis} of its shape {tuple(raw.shape)}; a volume has one")


def _numeric_dtype(raw: ts.TensorStore, uri: str) -> np.dtype:
    dtype = raw.dtype.numpy_dtype
    if dtype.kind not in "buif":
        raise InputError(f"{uri} holds {raw.dtype.name}; a volume holds integers or floats")
    return dtype


def _as_zyx(raw: ts.TensorStore, axes: Zyx) -> ts.TensorStore:
    """Return the store with the axes z, y, x; the other axes, of length 1, are dropped."""
    for axis in sorted(set(range(raw.rank)) - set(axes), reverse=True):
        raw = raw[ts.d[axis][raw.domain.inclusive_min[axis]]]
    kept = sorted(axes)
    return raw[ts.d[[kept.index(axis) for axis in axes]].transpose[:]]


def _open_raw(spec: dict[str, Any], uri: str) -> ts.TensorStore:
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
def _open_zyx(spec: str, axes: Zyx, opening: str) -> ts.TensorStore:
    """Return the open store with the axes z, y, x; each process opens it once, at its first read."""
    return _as_zyx(_open_raw(json.loads(spec), "the store"), axes)


def _no_array_error(place: StoreLocation) -> Exception:
    """Return the error for a URI at which no known format was found; it lists what exists nearby."""
    looked = f"looked for {', '.join(name for name, driver in DOCUMENTS.items() if place.driver in (None, driver))}"
    parent = place.at("..")
    if place.folder is None:
        return InputNotFound(f"{place.uri}: nothing was found ({looked}){_listing(_folders_in_bucket(parent), parent)}")
    if place.folder.is_dir():
        return InputError(
            f"{place.uri} is not an array or a pyramid: {looked}{_listing(_arrays_in_folder(place.folder), place)}"
        )
    if parent.folder is None or not parent.folder.is_dir():
        return InputNotFound(f"{place.uri}: there is no {place.folder}")
    return InputNotFound(
        f"{place.uri}: nothing was found ({looked}){_listing(_arrays_in_folder(parent.folder), parent)}"
    )


def _name_array_advice(place: StoreLocation, group: StoreNode) -> str:
    """Return the advice to name an array of a group, with a list of them if they can be listed."""
    names = group.attributes.get("ome", group.attributes).get("labels") or []
    if not names and place.folder is not None:
        names = _arrays_in_folder(place.folder)
    elif not names:
        names = _folders_in_bucket(place)
    return f"name one: {_listed(names)}" if names else "name an array inside it"


def _listing(names: list[str], place: StoreLocation) -> str:
    return f"; {place.path} holds: {_listed(names)}" if names else ""


def _listed(names: list[str]) -> str:
    return ", ".join(names[:MAX_LISTED]) + (", ..." if len(names) > MAX_LISTED else "")


def _arrays_in_folder(folder: Path) -> list[str]:
    """Return the paths of arrays and pyramids up to two folders down."""
    documents = [file for depth in ("*", "*/*") for name in DOCUMENTS for file in folder.glob(f"{depth}/{name}")]
    return sorted({file.parent.relative_to(folder).as_posix() for file in documents if _describes_volume(file)})


def _describes_volume(document: Path) -> bool:
    """Return whether a metadata file is that of an array or a pyramid."""
    if document.name in (".zarray", "info"):
        return True
    try:
        text = document.read_text(errors="replace")
    except OSError:
        return False
    return any(key in text for key in ('"array"', '"multiscales"', '"blockSize"'))


def _folders_in_bucket(place: StoreLocation) -> list[str]:
    """Return the names of the folders at a path on S3; none if they may not be listed, since this is only advice."""
    kvstore = place.kvstore
    if kvstore["driver"] != "s3" or not kvstore.get("path"):
        return []
    from pyarrow.fs import FileSelector, FileType

    anonymous = kvstore.get("aws_credentials", {}).get("type") == "anonymous"
    try:
        files = s3_filesystem(kvstore["bucket"], anonymous)
        entries = files.get_file_info(FileSelector(f"{kvstore['bucket']}/{kvstore['path'].strip('/')}"))
    except OSError:
        return []
    return sorted(entry.base_name for entry in entries if entry.type == FileType.Directory)

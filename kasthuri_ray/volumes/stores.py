"""Which arrays lie at a place, for the errors that advise a person to name one of them."""

from __future__ import annotations

import itertools
import json
import os
import re
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from kasthuri_ray.errors import VolumeError
from kasthuri_ray.geometry import Box, Nm, Zyx
from kasthuri_ray.storage.kvstore import (
    ANSWER_TIMEOUT_S,
    MIN_BYTES_PER_SECOND,
    StoreLocation,
    first_error_line,
    locate_store,
    read_json_documents,
    s3_filesystem,
    tensorstore_context,
    translate_tensorstore_errors,
)
from kasthuri_ray.volumes import store_metadata
from kasthuri_ray.volumes.store_metadata import ARRAY, DOCUMENTS, Document, OmeLevel, StoreNode, find_node
from kasthuri_ray.volumes.volume import Volume

MAX_LISTED = 20


_opened = itertools.count()


def no_array_message(place: StoreLocation) -> Exception:
    """What to tell a person whose URI leads to nothing that is known."""
    looked = f"looked for {', '.join(name for name, driver in DOCUMENTS.items() if place.driver in (None, driver))}"
    parent = place.at("..")
    if place.folder is None:
        return FileNotFoundError(
            f"{place.uri}: nothing is there ({looked}){_listing(_folders_in_bucket(parent), parent)}"
        )
    if place.folder.is_dir():
        return ValueError(
            f"{place.uri} is no array or pyramid: {looked}{_listing(_arrays_in_folder(place.folder), place)}"
        )
    if parent.folder is None or not parent.folder.is_dir():
        return FileNotFoundError(f"{place.uri}: there is no {place.folder}")
    return FileNotFoundError(
        f"{place.uri}: nothing is there ({looked}){_listing(_arrays_in_folder(parent.folder), parent)}"
    )


def name_array_message(place: StoreLocation, group: StoreNode) -> str:
    """The advice to name an array of a group, with those inside where they can be seen."""
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
    """The arrays and pyramids up to two folders down."""
    marks = [mark for depth in ("*", "*/*") for name in DOCUMENTS for mark in folder.glob(f"{depth}/{name}")]
    return sorted({mark.parent.relative_to(folder).as_posix() for mark in marks if _is_readable(mark)})


def _is_readable(mark: Path) -> bool:
    """Whether this document is that of an array or a pyramid."""
    if mark.name in (".zarray", "info"):
        return True
    try:
        text = mark.read_text(errors="replace")
    except OSError:
        return False
    return any(word in text for word in ('"array"', '"multiscales"', '"blockSize"'))


def _folders_in_bucket(place: StoreLocation) -> list[str]:
    """The folders at a place on S3; none where they may not be listed, since this only serves advice."""
    kvstore = place.kvstore
    if kvstore["driver"] != "s3" or not kvstore.get("path"):
        return []
    from pyarrow.fs import FileSelector, FileType

    anonymous = kvstore.get("aws_credentials", {}).get("type") == "anonymous"
    try:
        files = s3_filesystem(kvstore["bucket"], anonymous)
        found = files.get_file_info(FileSelector(f"{kvstore['bucket']}/{kvstore['path'].strip('/')}"))
    except OSError:
        return []
    return sorted(info.base_name for info in found if info.type == FileType.Directory)


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
        seconds = 60 + box.num_voxels * self.dtype.itemsize / MIN_BYTES_PER_SECOND
        try:
            store = _handle(self.spec, self.axes, self.opened)
            return store[box.slices()].read(order="C").result(timeout=seconds)
        except TimeoutError as error:
            raise VolumeError(f"{self.uri}: the cutout {box} (z,y,x) did not come within {seconds:.0f} s") from error
        except (ValueError, OSError) as error:
            raise VolumeError(
                f"{self.uri}: the cutout {box} (z,y,x) could not be read: {first_error_line(error)}"
            ) from error


def open_store(uri: str, mip: int | None = None) -> Volume:
    """The volume that a path, an `s3://` URL or a tensorstore URL names; see `open_volume`.

    A pyramid (OME-Zarr group, N5 with s0, s1, ..., precomputed) gives its level `mip`; `uri#mip=1` says the same.
    Zarr begins at voxel 0 whatever its translation, precomputed at its `voxel_offset`. Axes of length 1 beside
    z, y, x are dropped; more than one channel is a ValueError.
    """
    name, mip = _split_mip(uri, mip)
    location = locate_store(name)
    folder = location.folder
    if folder is not None and folder.is_file():
        raise ValueError(f"{name} is a file; a zarr, N5 or precomputed volume is a folder")
    place, documents = read_json_documents(location, DOCUMENTS)
    node = find_node(documents, location.driver)
    if node is None:
        raise no_array_message(place)
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


def _open_pyramid(place: StoreLocation, group: StoreNode, documents: dict[str, Any], mip: int) -> Volume:
    """The level `mip` of a group; a ValueError that lists its arrays where the group is no pyramid."""
    levels: list[OmeLevel] | None = None
    if group.driver == "n5":
        paths = _n5_levels(place, documents)
    else:
        levels = store_metadata.ome_levels(group.attributes)
        if levels is None and "bioformats2raw.layout" in group.attributes.get("ome", group.attributes):
            return open_store(f"{place.uri.rstrip('/')}{'' if place.uri.endswith(':') else '/'}0", mip)
        paths = [level.path for level in levels or []]
    if not paths:
        raise ValueError(f"{place.uri} is a group, not an array; {name_array_message(place, group)}")
    _check_mip(place.uri, mip, len(paths))
    inner = place.at(paths[mip])
    node = find_node(read_json_documents(inner, DOCUMENTS)[1], group.driver)
    if node is None or node.kind != ARRAY:
        raise FileNotFoundError(f"{place.uri} says that its mip {mip} is {paths[mip]!r}, but no array is there")
    volume = _open_array(inner, node, group.attributes, levels[mip] if levels else None, mip, _leveled(place.uri, mip))
    volume.pyramid = _source_id(place.kvstore)
    return volume


def _n5_levels(place: StoreLocation, documents: dict[str, Any]) -> list[str]:
    if "s0/attributes.json" not in documents:
        return []
    names = [f"s{level}" for level in range(20)]
    found = read_json_documents(place, [f"{name}/attributes.json" for name in names])[1]
    return list(itertools.takewhile(lambda name: f"{name}/attributes.json" in found, names))


def _parent_of(place: StoreLocation) -> tuple[Document, OmeLevel | None, int | None]:
    """What the group around an array says: its attributes, and which level of its pyramid the array is."""
    parent, name = place.at(".."), place.path.rstrip("/").rpartition("/")[2]
    if parent.path == place.path:
        return {}, None, None
    try:
        node = find_node(read_json_documents(parent, DOCUMENTS)[1], place.driver)
    except (PermissionError, ValueError):
        return {}, None, None  # the array may be read where its surroundings may not, or are something else
    attributes = node.attributes if node else {}
    level = next(
        (level for level in store_metadata.ome_levels(attributes) or [] if level.path.strip("/") == name), None
    )
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
    volume = _volume(raw, spec, order, uri, place, size)
    if level is not None:
        volume.translation_nm = level.translation_nm
    return volume


def _open_precomputed(place: StoreLocation, node: StoreNode, mip: int) -> Volume:
    scales = node.metadata["scales"]
    _check_mip(place.uri, mip, len(scales))
    spec = {"driver": node.driver, "kvstore": place.kvstore, "scale_index": mip}
    uri = _leveled(place.uri, mip)
    size = store_metadata.in_nanometers(scales[mip]["resolution"][::-1], ["nm"] * 3)
    volume = _volume(_open_raw(spec, uri), spec, (2, 1, 0), uri, place, size)  # stored as x, y, z, channel
    volume.pyramid = _source_id(place.kvstore)
    return volume


def _volume(
    raw: ts.TensorStore, spec: dict[str, Any], axes: Zyx, uri: str, place: StoreLocation, size: Nm | None
) -> Any:
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
def _handle(spec: str, axes: Zyx, opened: str) -> ts.TensorStore:
    """This process's open store of one opening. A worker opens it at its first read."""
    return _turned(_open_raw(json.loads(spec), "the store"), axes)

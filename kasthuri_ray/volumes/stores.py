"""Volumes in zarr, OME-Zarr, N5 and Neuroglancer precomputed stores: which array a URI names, and what it states.

The format is detected from the metadata files at the path. Where there is no array, the error lists those that exist.
`store_volume.py` reads the voxels.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from kasthuri_ray.errors import InputError, InputNotFound
from kasthuri_ray.geometry import per_axis
from kasthuri_ray.storage.kvstore import StoreLocation, locate_store, read_json_documents
from kasthuri_ray.volumes import store_metadata
from kasthuri_ray.volumes.array_opening import open_array
from kasthuri_ray.volumes.axes import ABSENT, choose_axes
from kasthuri_ray.volumes.place import Place
from kasthuri_ray.volumes.store_listing import (
    below_only_folder,
    check_archive_exists,
    name_array_advice,
    no_array_error,
)
from kasthuri_ray.volumes.store_metadata import ARRAY, DOCUMENTS, Document, OmeLevel, StoreNode, find_node
from kasthuri_ray.volumes.store_urls import resolve_store_url
from kasthuri_ray.volumes.store_volume import stored_id
from kasthuri_ray.volumes.uri_options import UriOptions
from kasthuri_ray.volumes.volume import Volume

MAX_N5_LEVELS = 20
MAX_FOLDERS_IN_PYRAMID = 2  # between an array and the group of its pyramid, its own included


@dataclass(frozen=True)
class FoundArray:
    """An array that a URI names, and the group around it.

    Parameters
    ----------
    uri : str
        Name of the volume, resolution included.
    place : StoreLocation
        Folder of the array.
    node : StoreNode
        Its metadata.
    group : mapping
        Attributes of the group.
    level : OmeLevel or None
        The array's level in the group's OME pyramid.
    index : int or None
        The array's level in an N5 pyramid.
    pyramid : StoreLocation or None
        The group of the OME pyramid.
    """

    uri: str
    place: StoreLocation
    node: StoreNode
    group: Document
    level: OmeLevel | None = None
    index: int | None = None
    pyramid: StoreLocation | None = None


def open_store(uri: str, mip: int | None = None, options: UriOptions | None = None) -> Volume:
    """Open a path, an `s3://` URL or a tensorstore URL; parameters and errors as of `open_volume`.

    `mip` is a level of a pyramid (OME-Zarr group, N5 with s0, s1, ..., precomputed); `#mip=1` at the end of the URI
    names it too. Zarr starts at voxel 0 whatever its translation, precomputed at its `voxel_offset`. Axes of length 1
    besides z, y, x are dropped; more than one channel is an InputError.
    """
    name, mip = _split_mip(uri, mip)
    options = options or UriOptions()
    location = replace(locate_store(resolve_store_url(name)), uri=name)
    folder = location.folder
    if folder is not None and folder.is_file():
        raise InputError(f"{name} is a file; a zarr, N5 or precomputed volume is a folder")
    check_archive_exists(location)
    place, documents = read_json_documents(location, DOCUMENTS)
    node = find_node(documents, location.driver)
    if node is None and (inside := below_only_folder(place)):
        place, documents = read_json_documents(inside, DOCUMENTS)
        node = find_node(documents, location.driver)
    if node is None:
        raise no_array_error(place)
    if node.driver == "neuroglancer_precomputed":
        volume = _open_precomputed(place, node, mip, options)
    elif node.kind == ARRAY:
        _check_mip(place.uri, mip, 1)
        found = _find_group(place, node)
        volume = _open_array(found, options)
        if found.pyramid is not None or (node.driver == "n5" and found.index is not None):
            volume = replace(volume, pyramid=stored_id((found.pyramid or place.at("..")).kvstore))
    else:
        volume = _open_pyramid(place, node, documents, mip, options)
    return volume if options.dtype is None else _with_type(volume, np.dtype(options.dtype))


def _with_type(volume: Volume, dtype: np.dtype) -> Volume:
    """Return the volume with its stored bytes taken for another type of the same size."""
    if dtype.itemsize != volume.dtype.itemsize:
        raise InputError(f"{volume.uri} holds {volume.dtype}, whose bytes cannot be taken for {dtype}")
    fill_value = float(np.array(volume.fill_value, volume.dtype).view(dtype))
    return replace(volume, dtype=dtype, fill_value=fill_value)


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


def _open_pyramid(
    place: StoreLocation, group: StoreNode, documents: dict[str, Any], mip: int, options: UriOptions
) -> Volume:
    """Open a level of a group; raise an InputError that lists its arrays if the group is not a pyramid."""
    levels: list[OmeLevel] | None = None
    if group.driver == "n5":
        paths = _n5_levels(place, documents)
    else:
        levels = store_metadata.ome_levels(group.attributes)
        if levels is None and "bioformats2raw.layout" in group.attributes.get("ome", group.attributes):
            return open_store(f"{place.uri.rstrip('/')}{'' if place.uri.endswith(':') else '/'}0", mip, options)
        paths = [level.path for level in levels or []]
    if not paths:
        raise InputError(f"{place.uri} is a group, not an array; {name_array_advice(place, group)}")
    _check_mip(place.uri, mip, len(paths))
    inner = place.at(paths[mip])
    node = find_node(read_json_documents(inner, DOCUMENTS)[1], group.driver)
    if node is None or node.kind != ARRAY:
        raise InputNotFound(f"{place.uri} says that its mip {mip} is {paths[mip]!r}, but there is no array")
    level = levels[mip] if levels else None
    found = FoundArray(_uri_with_mip(place.uri, mip), inner, node, group.attributes, level, mip)
    return replace(_open_array(found, options), pyramid=stored_id(place.kvstore))


def _n5_levels(place: StoreLocation, documents: dict[str, Any]) -> list[str]:
    """Return the paths s0, s1, ... that an N5 group holds; none if it is not a pyramid."""
    if "s0/attributes.json" not in documents:
        return []
    names = [f"s{level}" for level in range(MAX_N5_LEVELS)]
    levels = read_json_documents(place, [f"{name}/attributes.json" for name in names])[1]
    return list(itertools.takewhile(lambda name: f"{name}/attributes.json" in levels, names))


def _find_group(place: StoreLocation, node: StoreNode) -> FoundArray:
    """Return an array with the attributes of the group around it, and its level in an OME or N5 pyramid.

    The level of an OME pyramid may lie in a folder of its own: `x.zarr/scale0/image`.
    """
    found, around = FoundArray(place.uri, place, node, {}), place
    names: list[str] = []
    for depth in range(MAX_FOLDERS_IN_PYRAMID):
        names.insert(0, around.path.rstrip("/").rpartition("/")[2])
        if around.at("..").path == around.path:
            break
        around = around.at("..")
        try:
            group = find_node(read_json_documents(around, DOCUMENTS)[1], place.driver)
        except (PermissionError, ValueError):
            break  # access may be restricted to the array, and its folder may be something else
        attributes = group.attributes if group else {}
        levels = store_metadata.ome_levels(attributes) or []
        level = next((level for level in levels if level.path.strip("/") == "/".join(names)), None)
        match = re.fullmatch(r"s(\d+)", names[-1])
        if depth == 0:
            found = FoundArray(place.uri, place, node, attributes, level, int(match[1]) if match else None)
        if level is not None:
            return replace(found, level=level, pyramid=around)
        if node.driver == "n5":
            break
    return found


def _open_array(found: FoundArray, options: UriOptions) -> Volume:
    """Open a zarr or N5 array."""
    node, level, attributes = found.node, found.level, found.node.attributes
    if level is not None and level.problem and options.voxel_size_nm is None:
        raise InputError(
            f"{found.uri}: {level.problem}; correct coordinateTransformations in its metadata, or give the size: "
            "?voxel_size_nm=z,y,x"
        )
    shape = node.metadata["dimensions" if node.driver == "n5" else "shape"]
    if node.driver == "n5" and options.axes is None:  # x, y, z, and a channel last
        backward = choose_axes(shape[::-1], found.uri)
        order = per_axis(lambda axis: axis if axis == ABSENT else len(shape) - 1 - axis, backward)
    else:
        names = store_metadata.axis_names(node, level, len(shape))
        order = choose_axes(shape, found.uri, names=names, option=options.axes)
    if node.driver == "n5":
        size = store_metadata.n5_voxel_size(attributes, found.group, found.index)
    else:
        size = store_metadata.zarr_voxel_size(attributes, found.group, level, order)
    place = store_metadata.store_place(attributes, level, order, size)
    spec = {"driver": node.driver, "kvstore": found.place.kvstore}
    volume = open_array(spec, order, found.uri, found.place, node)
    return replace(volume, voxel_size_nm=size, place=place)


def _open_precomputed(place: StoreLocation, node: StoreNode, mip: int, options: UriOptions) -> Volume:
    scales = node.metadata["scales"]
    _check_mip(place.uri, mip, len(scales))
    if options.axes not in (None, "xyz", "xyzc"):
        raise InputError(f"{place.uri}: precomputed is stored as x,y,z,channel; axes={options.axes} cannot be")
    spec = {"driver": node.driver, "kvstore": place.kvstore, "scale_index": mip}
    uri = _uri_with_mip(place.uri, mip)
    volume = open_array(spec, (2, 1, 0), uri, place, node)  # stored as x, y, z, channel
    size = store_metadata.in_nanometers(scales[mip]["resolution"][::-1], ["nm"] * 3)
    start = Place((0.0, 0.0, 0.0), "corner", "voxel_offset")
    return replace(volume, voxel_size_nm=size, place=start, pyramid=stored_id(place.kvstore))

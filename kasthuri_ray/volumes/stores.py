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
from kasthuri_ray.geometry import Zyx, per_axis
from kasthuri_ray.storage.kvstore import StoreLocation, locate_store, read_json_documents
from kasthuri_ray.volumes import store_metadata
from kasthuri_ray.volumes.array_opening import open_array
from kasthuri_ray.volumes.axes import ABSENT, axes_text, choose_axes
from kasthuri_ray.volumes.length_units import positive_sizes
from kasthuri_ray.volumes.ome_pyramid import OmeLevel, ome_pyramids
from kasthuri_ray.volumes.place import Place, StatedSize, check_unit, size_fields
from kasthuri_ray.volumes.store_listing import (
    below_only_folder,
    check_archive_exists,
    name_array_advice,
    no_array_error,
)
from kasthuri_ray.volumes.store_metadata import ARRAY, DOCUMENTS, Document, StoreNode, find_node
from kasthuri_ray.volumes.store_urls import resolve_store_url
from kasthuri_ray.volumes.store_volume import stored_id
from kasthuri_ray.volumes.unread_formats import describe_unread_file
from kasthuri_ray.volumes.uri_options import UriOptions
from kasthuri_ray.volumes.volume import Volume

FORMATS = {"zarr": "zarr 2", "zarr3": "zarr 3", "n5": "N5"}
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
        what = describe_unread_file(folder) or "a file; a zarr, N5 or precomputed volume is a folder"
        raise InputError(f"{name} is {what}")
    check_archive_exists(location)
    place, documents = read_json_documents(location, DOCUMENTS)
    node = find_node(documents, location.driver)
    if node is None and (inside := below_only_folder(place)):
        place, documents = read_json_documents(inside, DOCUMENTS)
        node = find_node(documents, location.driver)
    if node is None:
        raise no_array_error(place, documents)
    try:
        volume = _open_node(place, node, documents, mip, options)
    except (KeyError, TypeError, AttributeError, IndexError) as error:  # JSON of any shape
        cause = f"{type(error).__name__}: {error}"
        raise InputError(f"{name}: its {node.driver} metadata cannot be understood ({cause})") from error
    return volume if options.dtype is None else _with_type(volume, np.dtype(options.dtype))


def _open_node(
    place: StoreLocation, node: StoreNode, documents: dict[str, Any], mip: int, options: UriOptions
) -> Volume:
    if node.driver == "neuroglancer_precomputed":
        return _open_precomputed(place, node, mip, options)
    if node.kind != ARRAY:
        return _open_pyramid(place, node, documents, mip, options)
    _check_mip(place.uri, mip, 1)
    found = _find_group(place, node)
    volume = _open_array(found, options)
    if found.pyramid is None and (node.driver != "n5" or found.index is None):
        return volume
    return replace(volume, pyramid=stored_id((found.pyramid or place.at("..")).kvstore))


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
    levels: list[OmeLevel] = []
    if group.driver == "n5":
        paths = _n5_levels(place, documents)
    else:
        levels = _only_pyramid(place, group)
        paths = [level.path for level in levels]
    if not paths and (inner_name := _only_volume_inside(place, group)):
        return open_store(f"{place.uri.rstrip('/')}{'' if place.uri.endswith(':') else '/'}{inner_name}", mip, options)
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


def _only_pyramid(place: StoreLocation, group: StoreNode) -> list[OmeLevel]:
    """Return the levels of a group's pyramid; none without one. Raise an InputError if there are several images."""
    pyramids = ome_pyramids(group.attributes)
    firsts = list(dict.fromkeys(levels[0].path for levels in pyramids))
    if len(firsts) > 1:
        raise InputError(f"{place.uri} holds {len(firsts)} images; name an array: {', '.join(firsts)}")
    return pyramids[0] if pyramids else []


def _only_volume_inside(place: StoreLocation, group: StoreNode) -> str | None:
    """Return the path of the volume in a group of Paintera or bioformats2raw; None for other groups.

    bioformats2raw writes each image of a file as a group of its own. The first of several is not what people expect.
    """
    attributes = group.attributes.get("ome", group.attributes)
    if "painteraData" in attributes:
        return "data"
    if "bioformats2raw.layout" not in attributes:
        return None
    listed = find_node(read_json_documents(place.at("OME"), DOCUMENTS)[1])
    series = listed.attributes.get("ome", listed.attributes).get("series") if listed else None
    names = [str(name) for name in series] if isinstance(series, list) else _numbered_groups(place)
    if len(names) > 1:
        raise InputError(f"{place.uri} holds {len(names)} images; name one: {', '.join(names)}")
    return names[0] if names else None


def _numbered_groups(place: StoreLocation) -> list[str]:
    """Return which of the groups 0 and 1 exist."""
    return [name for name in ("0", "1") if find_node(read_json_documents(place.at(name), DOCUMENTS)[1]) is not None]


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
        levels = itertools.chain.from_iterable(ome_pyramids(attributes))
        level = next((level for level in levels if level.path == "/".join(names)), None)
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
    _check_no_multiset(found)
    shape = node.metadata["dimensions" if node.driver == "n5" else "shape"]
    names = store_metadata.axis_names(node, level, len(shape))
    if node.driver == "n5" and names is None and options.axes is None:  # x, y, z, and a channel last
        backward = choose_axes(shape[::-1], found.uri)
        order = per_axis(lambda axis: axis if axis == ABSENT else len(shape) - 1 - axis, backward)
    else:
        order = choose_axes(shape, found.uri, names=names, option=options.axes)
    if node.driver == "n5":
        size = store_metadata.n5_voxel_size(attributes, found.group, found.index, order)
    else:
        size = store_metadata.zarr_voxel_size(attributes, found.group, level, order)
    if options.voxel_size_nm is None:
        check_unit(size, found.uri)
    of_group = found.group if node.driver == "n5" else {}
    place = store_metadata.store_place(attributes, of_group, level, order, size and size.size_nm)
    ignores_offset = size is not None and "offset" in {**of_group, **attributes} and not (place and place.stated)
    if options.axes is not None:
        size, place = _turned(size, place, order, store_metadata.named_axes(node, names, len(shape)))
    spec = {"driver": node.driver, "kvstore": found.place.kvstore}
    volume = open_array(spec, order, found.uri, found.place, node)
    name = f"{'' if level is None else 'OME-Zarr, '}{FORMATS[node.driver]}"
    if ignores_offset and options.offset_nm is None:
        note = f"{found.uri}: its offset is not three lengths and does not count; give the place: ?offset_nm=z,y,x"
        volume = replace(volume, notes=(*volume.notes, note))
    return replace(volume, **size_fields(size), place=place, format=name, stored_axes=axes_text(order, len(shape)))


def _turned(
    size: StatedSize | None, place: Place | None, order: Zyx, named: Zyx | None
) -> tuple[StatedSize | None, Place | None]:
    """Return size and place along the axes of `?axes=`: what is stated for a named axis goes with this axis.

    What is stated in the order of the stored axes (`resolution`, `offset`) goes with them already.
    """
    if named is None:
        return size, place
    if size is not None and size.source.startswith(store_metadata.SIZES_BY_NAME):
        size = size.turned(named, order)
    if place is not None and place.source in store_metadata.PLACES_BY_NAME:
        place = place.turned(named, order)
    return size, place


def _check_no_multiset(found: FoundArray) -> None:
    """Raise an InputError for labels that Paintera stores as multisets, several with their counts for each voxel."""
    if found.node.attributes.get("isLabelMultiset") or found.group.get("isLabelMultiset"):
        raise InputError(
            f"{found.uri} is a label multiset of Paintera, which is not read; convert it to plain labels "
            "(paintera-convert to-scalar)"
        )


def _open_precomputed(place: StoreLocation, node: StoreNode, mip: int, options: UriOptions) -> Volume:
    scales = node.metadata["scales"]
    if not scales:
        raise InputError(f"{place.uri}: its info lists no scales, so that it holds no voxels")
    _check_mip(place.uri, mip, len(scales))
    if options.axes not in (None, "xyz", "xyzc"):
        raise InputError(f"{place.uri}: precomputed is stored as x,y,z,channel; axes={options.axes} cannot be")
    spec = {"driver": node.driver, "kvstore": place.kvstore, "scale_index": mip}
    uri = _uri_with_mip(place.uri, mip)
    volume = open_array(spec, (2, 1, 0), uri, place, node)  # stored as x, y, z, channel
    size = StatedSize.of(positive_sizes(scales[mip]["resolution"][::-1]), "resolution", states_unit=False)
    if options.voxel_size_nm is None:
        check_unit(size, uri)
    start = Place((0.0, 0.0, 0.0), "corner", "voxel_offset")
    return replace(
        volume,
        **size_fields(size),
        place=start,
        pyramid=stored_id(place.kvstore),
        format=f"Neuroglancer precomputed, {scales[mip].get('encoding', 'raw')}",
        stored_axes="x,y,z,-",
    )

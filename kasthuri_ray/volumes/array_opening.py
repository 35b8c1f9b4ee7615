"""Opening an array of a store: with tensorstore, or with what reads it where tensorstore does not."""

from __future__ import annotations

import json
import posixpath
from typing import Any

import tensorstore as ts

from kasthuri_ray.errors import InputError, VolumeError
from kasthuri_ray.geometry import Zyx
from kasthuri_ray.storage.content_encoding import is_encoding_refused
from kasthuri_ray.storage.kvstore import StoreLocation
from kasthuri_ray.volumes.chunk_keys import ChunkKeys
from kasthuri_ray.volumes.decoded_store import SUFFIXES, DecodedStoreVolume, are_absent, find_keys, open_in_memory
from kasthuri_ray.volumes.mended_metadata import mend_metadata
from kasthuri_ray.volumes.store_metadata import Document, StoreNode
from kasthuri_ray.volumes.store_volume import StoreVolume, describe_array, open_raw, stored_id, with_metadata
from kasthuri_ray.volumes.volume import Volume

NUM_SAMPLES = 32  # objects that are looked for, to find how the others are named
REFUSED_ENCODINGS = ("fpzip", "kempressed", "zfpc", "compresso", "crackle", "jxl")  # of precomputed


def open_array(spec: dict[str, Any], axes: Zyx, uri: str, place: StoreLocation, node: StoreNode) -> Volume:
    """Open an array of a store.

    Parameters
    ----------
    spec : dict
        Tensorstore's spec.
    axes : tuple of int
        Which stored axes are z, y, x; ABSENT for z if the array is one section. All others have length 1.
    uri : str
        Name of the volume.
    place : StoreLocation
        Folder of the array.
    node : StoreNode
        Metadata of the array.

    Returns
    -------
    Volume
        The array, without a voxel size and a place.

    Raises
    ------
    InputError
        If nothing reads it; the message names the compression.
    """
    stored = {
        name: value for name, value in node.metadata.items() if name not in ("attributes", "consolidated_metadata")
    }
    metadata = mend_metadata(node.driver, stored)
    more: dict[str, Any] = {}
    if node.driver == "neuroglancer_precomputed":
        more["source_id"] = stored_id(spec)  # of the folder of the info, wherever the objects are
        place, metadata = _resolve_key(place, metadata, spec["scale_index"])
        spec = {**spec, "kvstore": place.kvstore}
        _check_encoding(metadata["scales"][spec["scale_index"]], uri)
    if node.driver == "zarr" and "dimension_separator" not in metadata and _is_nested(place, metadata):
        spec = {**spec, "metadata": {"dimension_separator": "/"}}
    is_lz4 = node.driver == "n5" and metadata.get("compression", {}).get("type") == "lz4"
    mended = "" if metadata == stored else json.dumps(metadata)
    try:
        raw = open_in_memory(spec, metadata, {}, is_lz4=True) if is_lz4 else _open(spec, uri, metadata, bool(mended))
    except InputError as error:
        return _open_refused(error, {**metadata, **spec.get("metadata", {})}, axes, uri, place)
    fields = {**describe_array(raw, spec, axes, uri, place), **more, "mended": mended}
    if not (is_lz4 or place.remote or node.driver == "neuroglancer_precomputed"):
        return StoreVolume(**fields)
    keys = find_keys(spec, metadata)
    suffixes = _find_suffixes(place, keys) if keys.ranges else ()
    is_plain = not (is_lz4 or suffixes)
    return DecodedStoreVolume(
        **fields, metadata=json.dumps(metadata), suffixes=suffixes, is_lz4=is_lz4, is_plain=is_plain
    )


def _resolve_key(
    place: StoreLocation, metadata: dict[str, Any], scale_index: int
) -> tuple[StoreLocation, dict[str, Any]]:
    """Return the folder around the objects of a precomputed scale and the metadata for it, if its key leads upwards.

    Tensorstore refuses such keys, `../em/4_4_40`, which the format allows.
    """
    folder, name = posixpath.split(metadata["scales"][scale_index]["key"])
    if ".." not in folder.split("/"):
        return place, metadata
    scales = [{**scale, "key": name} if i == scale_index else scale for i, scale in enumerate(metadata["scales"])]
    return place.at(folder), {**metadata, "scales": scales}


def _open_refused(error: InputError, metadata: dict[str, Any], axes: Zyx, uri: str, place: StoreLocation) -> Volume:
    """Return an array that tensorstore refuses, read with zarr-python."""
    if "zarr_format" not in metadata:
        raise error
    from kasthuri_ray.volumes.zarr_python import open_with_zarr_python

    try:
        return open_with_zarr_python(metadata, axes, uri, place)
    except InputError as second:
        raise InputError(f"{error}; zarr-python cannot read it either: {second}") from error


def _open(spec: dict[str, Any], uri: str, metadata: dict[str, Any], is_mended: bool) -> ts.TensorStore:
    """Return the open array, also if the object of its metadata has an encoding that tensorstore does not know."""
    try:
        return open_raw(with_metadata(spec, metadata) if is_mended else spec, uri)
    except VolumeError as error:
        if not is_encoding_refused(error):
            raise
        return open_in_memory(spec, metadata, {})


def _check_encoding(scale: Document, uri: str) -> None:
    encoding = scale.get("encoding")
    if encoding in REFUSED_ENCODINGS:
        raise InputError(
            f"{uri} is stored in the encoding {encoding!r}, which is not read; expected raw, jpeg, png or "
            "compressed_segmentation. Convert it with CloudVolume (igneous image xfer --encoding raw)"
        )


def _is_nested(place: StoreLocation, metadata: Document) -> bool:
    """Return whether the chunks of a zarr 2 array that does not say so are in folders, 0/0/0, and not in one, 0.0.0.

    On a disk all names in its folder are looked at, elsewhere some chunks that are spread over the array.
    """
    if len(metadata["shape"]) < 2:
        return False
    if place.folder is not None:
        names = [path.name for path in place.folder.iterdir()]
        flat = any(name.replace(".", "").isdigit() and "." in name for name in names)
        return not flat and any(name.isdigit() for name in names)
    by_name = {name: ChunkKeys.of("zarr", {**metadata, "dimension_separator": name}) for name in (".", "/")}
    found = {name: _exists_any(place, keys.samples(NUM_SAMPLES)) for name, keys in by_name.items()}
    return found["/"] and not found["."]


def _find_suffixes(place: StoreLocation, keys: ChunkKeys) -> tuple[str, ...]:
    """Return the endings of compressed objects of a precomputed scale; none if its objects are plain.

    On a disk all names are looked at, elsewhere some objects that are spread over the array.
    """
    if place.folder is not None:
        folder = place.folder / keys.prefix
        endings = {path.suffix for path in folder.iterdir()} if folder.is_dir() else set()
        return tuple(ending for ending in SUFFIXES if ending in endings)
    samples = keys.samples(NUM_SAMPLES)
    if _exists_any(place, samples):
        return ()
    return tuple(ending for ending in SUFFIXES if _exists_any(place, [key + ending for key in samples]))


def _exists_any(place: StoreLocation, names: list[Any]) -> bool:
    """Return whether one of several objects exists. Errors count as no: reading will show them."""
    try:
        return not all(are_absent(place, [names]))
    except (ValueError, OSError):
        return False

"""Metadata of arrays that writers leave in forms which tensorstore refuses or misreads: the same in the usual form.

All functions are pure. What is not known to mean the same is left as it is.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Mapping
from typing import Any

from kasthuri_ray.volumes.length_units import is_number

# The members of a compression that matter to a reader, by its type. Others say how the writer worked, such as threads.
N5_COMPRESSIONS = {
    "raw": (),
    "gzip": ("level", "useZlib"),
    "bzip2": ("blockSize",),
    "xz": ("preset",),
    "blosc": ("cname", "clevel", "shuffle", "blocksize"),
    "zstd": ("level",),
    "lz4": ("blockSize",),
}


def mend_metadata(driver: str, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata of an array in the form that tensorstore reads.

    Parameters
    ----------
    driver : str
        Format, as the name of a tensorstore driver.
    metadata : mapping
        Content of `.zarray`, `zarr.json`, `attributes.json` or `info`.

    Returns
    -------
    dict
        Equal to `metadata` where nothing deviates.
    """
    mends = {"zarr": _mend_zarr_2, "zarr3": _without_threads, "n5": _mend_n5}
    return mends.get(driver, _mend_precomputed)(metadata)


def _without_threads(metadata: Any) -> Any:
    """Return metadata without the numbers of threads that Java writes into the codecs of zarr."""
    if isinstance(metadata, Mapping):
        return {name: _without_threads(value) for name, value in metadata.items() if name != "nthreads"}
    return [_without_threads(each) for each in metadata] if isinstance(metadata, list) else metadata


def _mend_zarr_2(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return metadata whose fill value is a number: some writers put it in quotes."""
    fill_value = metadata.get("fill_value")
    try:
        number = json.loads(fill_value) if isinstance(fill_value, str) else None
    except ValueError:
        number = None
    mended = _without_threads(metadata)
    return {**mended, "fill_value": _integers(number)} if is_number(number) else mended


def _mend_n5(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return metadata with a compression of known members, and without units in a form of their own.

    N5 before version 2 wrote `compressionType`; n5-blosc, n5-zstandard and zarr-python add members; z5 does too.
    """
    mended = dict(metadata)
    compression = mended.get("compression")
    if compression is None and "compressionType" in mended:
        compression = {"type": mended["compressionType"]}
    if isinstance(compression, Mapping) and compression.get("type") in N5_COMPRESSIONS:
        known = ("type", *N5_COMPRESSIONS[compression["type"]])
        mended["compression"] = {name: value for name, value in compression.items() if name in known}
    rank = len(mended.get("dimensions", ()))
    for name in ("units", "axes", "resolution"):
        if not isinstance(mended.get(name, []), list) or (name in mended and len(mended[name]) != rank):
            del mended[name]
    return mended


def _mend_precomputed(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return an info whose counts are integers and whose keys are plain paths."""
    mended = dict(metadata)
    if isinstance(mended.get("data_type"), str):
        mended["data_type"] = mended["data_type"].lower()
    mended["scales"] = [_mend_scale(scale) if isinstance(scale, Mapping) else scale for scale in mended["scales"]]
    return mended


def _mend_scale(scale: Mapping[str, Any]) -> dict[str, Any]:
    mended = {
        name: _integers(value) if name in ("size", "voxel_offset", "chunk_sizes") else value
        for name, value in scale.items()
    }
    if isinstance(mended.get("key"), str) and mended["key"]:
        mended["key"] = posixpath.normpath(mended["key"].strip("/"))
    if mended.get("encoding") != "compressed_segmentation":
        mended.pop("compressed_segmentation_block_size", None)
    return mended


def _integers(value: Any) -> Any:
    """Return a number, or lists of numbers, with whole floats as integers."""
    if isinstance(value, list):
        return [_integers(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value

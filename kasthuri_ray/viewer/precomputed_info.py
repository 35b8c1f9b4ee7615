"""Neuroglancer's precomputed format of volumes: `info` and chunks, from served levels. Pure functions.

Format: https://neuroglancer-docs.web.app/datasource/precomputed/volume.html
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from kasthuri_ray.geometry import Box, Nm, Zyx, per_axis
from kasthuri_ray.viewer.served_levels import ServedLevel

CHUNK_NAME = re.compile(r"(-?\d+)-(-?\d+)_(-?\d+)-(-?\d+)_(-?\d+)-(-?\d+)")
SEGMENT_PROPERTIES = "segment_properties"
IMAGE_TYPES = {"uint8", "int8", "uint16", "int16", "uint32", "int32", "float32"}


def stored_type(dtype: np.dtype, is_segmentation: bool) -> np.dtype:
    """Return the type in which voxels are sent: one that Neuroglancer shows.

    Parameters
    ----------
    dtype : np.dtype
        Type of the voxels.
    is_segmentation : bool
        Whether they are ids.

    Returns
    -------
    np.dtype
        Ids are unsigned integers; images of 64 bits become float32, and those of bools uint8.
    """
    if is_segmentation:
        return np.dtype(np.uint8 if dtype.kind == "b" else np.uint64 if dtype.kind in "if" else dtype)
    if dtype.kind == "b":
        return np.dtype(np.uint8)
    return dtype.newbyteorder("=") if dtype.newbyteorder("=").name in IMAGE_TYPES else np.dtype(np.float32)


def level_offset(level: ServedLevel) -> Zyx:
    """Return the voxel at which a level begins; what is left is in `offset_remainder`."""
    return per_axis(lambda corner, size: round(corner / size), level.corner, level.size)


def offset_remainder(level: ServedLevel) -> Nm:
    """Return how far a level begins after its `voxel_offset`, in its voxels, z, y, x."""
    return per_axis(lambda corner, size: round(corner / size - round(corner / size), 6), level.corner, level.size)


def level_key(number: int) -> str:
    """Return the name of a level in the URLs of its chunks."""
    return f"s{number}"


def volume_info(levels: Sequence[ServedLevel], is_segmentation: bool, has_properties: bool = False) -> dict[str, Any]:
    """Return the `info` of a volume.

    Parameters
    ----------
    levels : sequence of ServedLevel
        Finest first.
    is_segmentation : bool
        Whether the voxels are ids.
    has_properties : bool
        Whether segment properties are served with it.

    Returns
    -------
    dict
        JSON object.
    """
    dtype = stored_type(levels[0].volume.dtype, is_segmentation)
    scales = [
        {
            "key": level_key(number),
            "size": list(level.volume.shape[::-1]),
            "resolution": list(level.size[::-1]),
            "voxel_offset": list(level_offset(level)[::-1]),
            "chunk_sizes": [list(level.chunk[::-1])],
            "encoding": "raw",
        }
        for number, level in enumerate(levels)
    ]
    info: dict[str, Any] = {
        "@type": "neuroglancer_multiscale_volume",
        "type": "segmentation" if is_segmentation else "image",
        "data_type": dtype.name,
        "num_channels": 1,
        "scales": scales,
    }
    return {**info, "segment_properties": SEGMENT_PROPERTIES} if has_properties else info


def chunk_box(name: str, level: ServedLevel) -> Box | None:
    """Return the voxels of a chunk, in voxels of the level's volume; None if the name is not that of a chunk.

    Parameters
    ----------
    name : str
        Such as `0-64_64-128_0-16`: x, y, z.
    level : ServedLevel
        The level.
    """
    match = CHUNK_NAME.fullmatch(name)
    if match is None:
        return None
    x, x_stop, y, y_stop, z, z_stop = map(int, match.groups())
    shape, offset = level.volume.shape, level_offset(level)
    box = Box((z, y, x), (z_stop, y_stop, x_stop)).relative_to(offset)
    whole = Box.at((0, 0, 0), shape)
    starts_on_grid = not any(per_axis(lambda a, n: a % n, box.start, level.chunk))
    if not starts_on_grid or not whole.contains(box) or box != Box.at(box.start, level.chunk).intersect(whole):
        return None
    return box.shifted(level.volume.bounds.start)


def encode_chunk(voxels: np.ndarray, is_segmentation: bool) -> bytes:
    """Return the voxels of a chunk as they are sent: x fastest, little-endian; True of an image is 255.

    Parameters
    ----------
    voxels : ndarray
        z, y, x.
    is_segmentation : bool
        Whether they are ids.
    """
    dtype = stored_type(voxels.dtype, is_segmentation).newbyteorder("<")
    sent = voxels.astype(dtype, copy=False)
    if voxels.dtype.kind == "b" and not is_segmentation:
        sent = sent * np.uint8(255)  # shaders divide by it
    return np.ascontiguousarray(sent).tobytes()

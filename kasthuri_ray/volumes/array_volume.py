"""Arrays in memory as volumes: each is written once as zarr 3, where every process of a job can read it."""

from __future__ import annotations

import hashlib
import os
from typing import Any

import numpy as np
import tensorstore as ts

from kasthuri_ray.errors import InputError, missing_is_bad_input
from kasthuri_ray.geometry import Nm
from kasthuri_ray.storage.folder import open_storage
from kasthuri_ray.storage.kvstore import tensorstore_context, translate_tensorstore_errors, writable_kvstore
from kasthuri_ray.volumes.volume import Volume

CHUNK = (16, 256, 256)
DTYPE_KINDS = "buif"  # bool, integers and floats
WHOLE = "whole"  # empty file in the folder of a copy that is complete


@missing_is_bad_input()
def volume_uri(volume: Any, name: str, folder: str) -> str:
    """Return the URI of a volume that a person gave as a URI, a path or an array.

    Parameters
    ----------
    volume : str, path or array
        What was given.
    name : str
        Name of the argument, for messages and for the copy of an array.
    folder : str
        As of `array_uri`.

    Returns
    -------
    str
        URI for `open_volume`.

    Raises
    ------
    InputError
        If it is neither, or if `array_uri` raises it.
    """
    if isinstance(volume, str | os.PathLike):
        return os.fspath(volume)
    if isinstance(volume, Volume):
        raise InputError(f"{name} is an opened volume; give its URI, or its voxels, such as volume[:]")
    if not hasattr(volume, "__array__"):
        path = getattr(volume, "path", None)
        advice = f"; give its path, {path!r}" if isinstance(path, str) else ""
        raise InputError(f"{name} is a URI, or an array with axes z, y, x, not {type(volume).__name__}{advice}")
    return array_uri(volume, name, folder)


def array_uri(array: Any, name: str, folder: str) -> str:
    """Return a URI for an array, which is written below a folder unless it lies on this machine's disk already.

    Parameters
    ----------
    array : array_like or zarr.Array
        Voxels, z, y, x, that fit into memory. The attribute `voxel_size_nm_zyx` of a zarr array is kept.
    name : str
        What the array is, such as `image`.
    folder : str
        Path or `s3://` URL. The copy is FOLDER/arrays/NAME-DIGEST.zarr, so that equal arrays are written once.

    Returns
    -------
    str
        URI for `open_volume`.

    Raises
    ------
    InputError
        If the array does not have three axes, holds no voxels, or no numbers.
    """
    path = _path_on_disk(array)
    if path is not None:
        return path
    voxels = np.ascontiguousarray(array)
    if voxels.ndim != 3 or not voxels.size or voxels.dtype.kind not in DTYPE_KINDS:
        raise InputError(
            f"{name} is an array of {voxels.dtype}, shape {voxels.shape}; expected numbers with axes z, y, x"
        )
    if voxels.dtype == bool:
        voxels = voxels.view(np.uint8)
    size = getattr(array, "attrs", {}).get("voxel_size_nm_zyx")
    digest = hashlib.blake2b(repr((voxels.shape, voxels.dtype.str, size)).encode(), digest_size=12)
    digest.update(voxels.data)
    storage = open_storage(folder).child("arrays")
    copy, unnamed = f"{name}-{digest.hexdigest()}.zarr", f"{digest.hexdigest()}.zarr"
    if storage.exists(f"{unnamed}/{WHOLE}"):  # of an earlier version; runs that resume have recorded its path
        return f"{storage.path}/{unnamed}"
    if not storage.exists(f"{copy}/{WHOLE}"):
        _write(voxels, size, f"{storage.path}/{copy}")
        storage.write_bytes(f"{copy}/{WHOLE}", b"")
    return f"{storage.path}/{copy}"


def _path_on_disk(array: Any) -> str | None:
    """Return the path of a zarr array of three axes in a folder of this machine; None for any other array."""
    root = getattr(getattr(array, "store", None), "root", None)
    if root is None or getattr(array, "ndim", 0) != 3:
        return None
    return f"{root}/{array.path}".rstrip("/")


def _write(voxels: np.ndarray, voxel_size_nm: Nm | None, path: str) -> None:
    spec = {
        "driver": "zarr3",
        "kvstore": writable_kvstore(path),
        "metadata": {
            "shape": voxels.shape,
            "data_type": voxels.dtype.name,
            "chunk_grid": {
                "name": "regular",
                "configuration": {"chunk_shape": np.minimum(CHUNK, voxels.shape).tolist()},
            },
            "attributes": {"voxel_size_nm_zyx": voxel_size_nm} if voxel_size_nm else {},
        },
    }
    with translate_tensorstore_errors(path, "written"):
        store = ts.open(spec, context=tensorstore_context(), create=True, delete_existing=True).result()
        store[...].write(voxels).result()

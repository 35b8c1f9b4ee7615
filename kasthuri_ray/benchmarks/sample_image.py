"""Images of any shape for benchmarks: a smaller one, mirrored until it fills the shape."""

from __future__ import annotations

import numpy as np

from kasthuri_ray.geometry import Box, Zyx, per_axis
from kasthuri_ray.volumes.opening import open_volume

PHANTOM = "phantom://em?shape=20,1024,1024&seed=7"
IMAGE_CHUNK: Zyx = (16, 256, 256)


def mirrored_voxels(source: str, shape: Zyx) -> np.ndarray:
    """Return an array of `shape` with the voxels of an image, mirrored until they fill it.

    Parameters
    ----------
    source : str
        URI of the image.
    shape : tuple of int
        z, y, x.

    Returns
    -------
    ndarray
        Of the type of the image.
    """
    volume = open_volume(source)
    voxels = volume.read(Box.at(volume.bounds.start, per_axis(min, volume.bounds.shape, shape)))
    padding = per_axis(lambda n, m: (0, n - m), shape, voxels.shape)
    return np.pad(voxels, padding, mode="symmetric")


def mirror_image(path: str, source: str, shape: Zyx) -> str:
    """Write a zarr with what `mirrored_voxels` returns, as uint8; return its path.

    Parameters
    ----------
    path : str
        Folder to write.
    source, shape : str, tuple of int
        As for `mirrored_voxels`.

    Returns
    -------
    str
        `path`.
    """
    import zarr

    array = zarr.create_array(path, shape=shape, chunks=per_axis(min, IMAGE_CHUNK, shape), dtype="uint8")
    array[:] = mirrored_voxels(source, shape)
    return path

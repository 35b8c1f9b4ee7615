"""An array in memory as a volume."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kasthuri_ray.geometry import Box, Nm, Zyx, per_axis
from kasthuri_ray.volumes.place import Place
from kasthuri_ray.volumes.volume import Volume

CHUNK: Zyx = (32, 128, 128)


@dataclass(kw_only=True)
class MemoryVolume(Volume):
    """Voxels in memory.

    Parameters
    ----------
    voxels : np.ndarray
        Voxels z, y, x of `bounds`.
    """

    voxels: np.ndarray

    def _read(self, box: Box) -> np.ndarray:
        return self.voxels[box.slices(self.bounds.start)]


def volume_of_array(
    voxels: np.ndarray, uri: str, start: Zyx = (0, 0, 0), voxel_size_nm: Nm | None = None,
    place: Place | None = None, chunk: Zyx = CHUNK,
) -> MemoryVolume:  # fmt: skip
    """Return an array as a volume.

    Parameters
    ----------
    voxels : np.ndarray
        Voxels z, y, x; they are not copied.
    uri : str
        Name of the volume in messages.
    start : tuple of int
        Coordinates z, y, x of the first voxel.
    voxel_size_nm : tuple of float, optional
        Size of a voxel z, y, x in nm.
    place : Place, optional
        Where the voxels lie in the tissue.
    chunk : tuple of int
        Shape z, y, x that readers take at once; an array that is smaller is one chunk.

    Returns
    -------
    MemoryVolume
        The volume.
    """
    return MemoryVolume(
        uri=uri,
        bounds=Box.at(start, voxels.shape),
        dtype=voxels.dtype,
        voxel_size_nm=voxel_size_nm,
        place=place,
        chunk=per_axis(min, chunk, voxels.shape),
        chunk_origin=start,
        voxels=voxels,
    )

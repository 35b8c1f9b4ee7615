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
    """Voxels z, y, x in memory."""

    voxels: np.ndarray

    @classmethod
    def of(
        cls, voxels: np.ndarray, uri: str, start: Zyx = (0, 0, 0), voxel_size_nm: Nm | None = None,
        place: Place | None = None, chunk: Zyx = CHUNK,
    ) -> MemoryVolume:  # fmt: skip
        """Return a volume of an array whose first voxel is `start`."""
        return cls(
            uri=uri,
            bounds=Box.at(start, voxels.shape),
            dtype=voxels.dtype,
            voxel_size_nm=voxel_size_nm,
            place=place,
            chunk=per_axis(min, chunk, voxels.shape),
            chunk_origin=start,
            voxels=voxels,
        )

    def _read(self, box: Box) -> np.ndarray:
        return self.voxels[box.slices(self.bounds.start)]

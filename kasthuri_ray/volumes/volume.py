"""What every source of voxels is to the rest: a Volume."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from kasthuri_ray.geometry import Box, Zyx, check_inside


@dataclass(kw_only=True)
class Volume(ABC):
    """A read-only array of voxels with a name. Picklable: Ray carries it to where it is read.

    uri: the name it was opened by, resolution included.
    bounds: the box of voxels that it holds, z, y, x, its own offset included.
    dtype: of what `read` gives.
    voxel_size_nm: z, y, x in nanometers; None where the source does not say.
    chunk: z, y, x; what the source fetches at once. A read that is aligned to the chunk grid wastes nothing.
    chunk_origin: a voxel at a corner of the chunk grid.
    remote: whether a read crosses the network, so that a cache pays.
    fill_value: what the source gives where nothing is stored.
    source_id: names the voxels where the uri alone does not, since it leaves out the server or the bucket.
    translation_nm: z, y, x; where the middle of voxel 0, 0, 0 lies, from OME's metadata. It does not move the bounds,
        which count voxels of this array.
    pyramid: names the volume that this is one of several resolutions of; None where there are no others.
    folder: where its bytes lie, as a real path or `s3://bucket/key`; None where it is neither.
    """

    uri: str
    bounds: Box
    dtype: np.dtype
    voxel_size_nm: tuple[float, float, float] | None
    chunk: Zyx
    chunk_origin: Zyx
    remote: bool = False
    fill_value: float = 0
    source_id: str | None = None
    translation_nm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    pyramid: str | None = None
    folder: str | None = None

    @property
    def identity(self) -> str:
        """What tells these voxels from all others: a cache keeps them under it."""
        return self.source_id or self.uri

    def read(self, box: Box) -> np.ndarray:
        """The voxels of `box`: an array z, y, x of `dtype`, C order, possibly read-only.

        Raises ValueError for a box outside the bounds, and SourceError, naming the volume and the box, where the
        source fails.
        """
        check_inside(box, self.bounds, f"a cutout of {self.uri}")
        voxels = self._read(box)
        assert voxels.shape == box.shape, (self.uri, box, voxels.shape)
        assert voxels.dtype == self.dtype, (self.uri, box, voxels.dtype)
        return voxels

    @abstractmethod
    def _read(self, box: Box) -> np.ndarray:
        """`read`, for a box that is known to lie inside the bounds."""


def count_blank_chunks(voxels: np.ndarray, box: Box, volume: Volume) -> int:
    """How many chunks of `volume` are zero in all of `voxels`, its cutout `box`.

    In an image that is how a missing chunk looks: BossDB and most stores answer zeros there.
    """
    return sum(not voxels[cell.slices(box.start)].any() for cell in box.cells(volume.chunk, volume.chunk_origin))

"""The interface of every source of voxels: `Volume`."""

from __future__ import annotations

import itertools
import os
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from kasthuri_ray.errors import InputError
from kasthuri_ray.geometry import Box, Nm, Zyx, check_inside, per_axis

_opening_numbers = itertools.count()


@dataclass(kw_only=True)
class Volume(ABC):
    """A read-only array of voxels with a URI, a voxel size and a position in nm.

    It is picklable: Ray sends it to the process that reads it.

    Parameters
    ----------
    uri : str
        Name by which the volume was opened, resolution included.
    bounds : Box
        Voxels that the volume holds, z, y, x, its own offset included.
    dtype : np.dtype
        Type of the voxels that `read` returns.
    voxel_size_nm : tuple of float or None
        Size of a voxel along z, y, x, in nm; None if the source does not state it.
    chunk : tuple of int
        Shape of what the source fetches at once, z, y, x. A read that is aligned to the chunk grid wastes nothing.
    chunk_origin : tuple of int
        A voxel at a corner of the chunk grid, z, y, x.
    remote : bool
        Whether reads use the network (and are cached).
    fill_value : float
        Value of the voxels that are not stored.
    source_id : str or None
        Unique name of the voxels where the URI is not unique, because it omits the server or the bucket.
    translation_nm : tuple of float
        Position of the middle of voxel 0, 0, 0 along z, y, x, in nm, from OME's metadata. It does not move the bounds,
        which count the voxels of this array.
    pyramid : str or None
        Name that all resolutions of a volume share; None if there is only one resolution.
    folder : str or None
        Where the bytes are stored, as a real path or `s3://bucket/key`; None if it is neither.
    """

    uri: str
    bounds: Box
    dtype: np.dtype
    voxel_size_nm: Nm | None
    chunk: Zyx
    chunk_origin: Zyx
    remote: bool = False
    fill_value: float = 0
    source_id: str | None = None
    translation_nm: Nm = (0.0, 0.0, 0.0)
    pyramid: str | None = None
    folder: str | None = None

    @property
    def identity(self) -> str:
        """Unique name of these voxels; the cache stores their chunks under it."""
        return self.source_id or self.uri

    def read(self, box: Box) -> np.ndarray:
        """Return the voxels of a box.

        Parameters
        ----------
        box : Box
            Voxels to read, z, y, x; they must be inside the bounds.

        Returns
        -------
        np.ndarray
            Voxels, z, y, x, of `dtype`, in C order, possibly read-only.

        Raises
        ------
        InputError
            If the box is outside the bounds or empty.
        VolumeError
            If the source fails; the message names the volume and the box.
        """
        check_inside(box, self.bounds, f"a cutout of {self.uri}")
        voxels = self._read(box)
        assert voxels.shape == box.shape, (self.uri, box, voxels.shape)
        assert voxels.dtype == self.dtype, (self.uri, box, voxels.dtype)
        return voxels

    @property
    def shape(self) -> Zyx:
        """Number of voxels along z, y, x."""
        return self.bounds.shape

    def __getitem__(self, ranges: slice | tuple[slice, ...]) -> np.ndarray:
        """Return the voxels of up to three slices along z, y, x, in voxels of the volume, its own offset included.

        `volume[0:10, 100:200]` reads ten sections of 100 rows. Steps, single numbers and negative indices that count
        from the end are refused with an InputError: an index of a volume may itself be negative.
        """
        given = ranges if isinstance(ranges, tuple) else (ranges,)
        if len(given) > 3 or not all(isinstance(each, slice) and each.step in (None, 1) for each in given):
            raise InputError(f"{self.uri}: a volume is read by up to three slices without steps, such as [0:10, 5:9]")
        given += (slice(None),) * (3 - len(given))
        low, high = self.bounds.start, self.bounds.stop
        start = per_axis(lambda each, default: default if each.start is None else int(each.start), given, low)
        stop = per_axis(lambda each, default: default if each.stop is None else int(each.stop), given, high)
        return self.read(Box(start, stop))

    @abstractmethod
    def _read(self, box: Box) -> np.ndarray:
        """Return the voxels of a box that is known to be inside the bounds."""


def make_opening_id() -> str:
    """Return a unique id of one opening of a source.

    A process keeps its open files by this id: a volume that is written and opened again is read again.
    """
    return f"{os.getpid()}-{time.time_ns()}-{next(_opening_numbers)}"

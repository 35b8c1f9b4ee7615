"""What an exported file holds, and the interface of the formats that write it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from kasthuri_ray.geometry import Box, Nm, Zyx


@dataclass(frozen=True)
class ExportSpec:
    """What a file holds.

    Parameters
    ----------
    shape : tuple of int
        Voxels along z, y, x.
    channels : tuple of str
        Names of the channels; with one there is no axis of channels.
    dtype : np.dtype
        Type of the voxels.
    voxel_size_nm : tuple of float or None
        Size of a voxel along z, y, x, in nm; None if it is not known, and then the file states no place either.
    origin_nm : tuple of float
        Position of the first voxel along z, y, x, in nm.
    highest : int
        Value that is shown white.
    provenance : mapping
        A JSON object that says what was exported from where.
    """

    shape: Zyx
    channels: tuple[str, ...]
    dtype: np.dtype
    voxel_size_nm: Nm | None
    origin_nm: Nm
    highest: int
    provenance: Mapping[str, Any]

    @property
    def num_bytes(self) -> int:
        """Bytes of the voxels, uncompressed."""
        z, y, x = self.shape
        return z * y * x * len(self.channels) * self.dtype.itemsize


class ExportWriter(Protocol):
    """A file that is being written."""

    def write(self, box: Box, voxels: np.ndarray) -> None:
        """Write the voxels [c, z, y, x] of a box, which is counted from the first voxel of the file."""

    def close(self) -> None:
        """Complete the file."""

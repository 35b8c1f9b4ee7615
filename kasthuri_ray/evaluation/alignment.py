"""Where two volumes show the same tissue: which voxel of the one is which of the other. Pure arithmetic on metadata."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kasthuri_ray.geometry import Box, Zyx
from kasthuri_ray.volumes import Volume

SAME_SIZE = 0.01  # two voxel sizes that differ by less are one, written with fewer digits
Nm = tuple[float, float, float]


@dataclass(frozen=True)
class Grid:
    """The voxels of a volume. origin: where its voxel 0, 0, 0 lies, z, y, x in its own voxels; size_nm: None unknown.

    Places are in voxels and not in nm: where two say one voxel size with different digits, lengths of thousands of
    voxels would not agree.
    """

    name: str
    bounds: Box
    size_nm: Nm | None
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @classmethod
    def of(cls, volume: Volume, start: Zyx | None = None) -> Grid:
        """start: where the first voxel lies if the volume does not say it in nm, as one without a voxel size cannot."""
        size = volume.voxel_size_nm
        if size is None:
            origin = (0.0, 0.0, 0.0) if start is None else tuple(np.subtract(start, volume.bounds.start).tolist())
            return cls(volume.uri, volume.bounds, None, origin)  # type: ignore[arg-type]
        translation = getattr(volume, "translation_nm", (0.0, 0.0, 0.0))
        origin = tuple(t / s for t, s in zip(translation, size, strict=True))
        return cls(volume.uri, volume.bounds, size, origin)  # type: ignore[arg-type]

    @property
    def placed(self) -> Box:
        """The bounds, shifted by the origin to the nearest voxels."""
        return moved(self.bounds, tuple(int(np.floor(value + 0.5)) for value in self.origin))  # type: ignore[arg-type]


def moved(box: Box, shift: Zyx) -> Box:
    """The box, `shift` voxels further."""
    return Box(
        tuple(a + s for a, s in zip(box.start, shift, strict=True)),  # type: ignore[arg-type]
        tuple(b + s for b, s in zip(box.stop, shift, strict=True)),  # type: ignore[arg-type]
    )


def shift_between(one: Grid, other: Grid) -> Zyx:
    """What to add to a voxel of `one` to have the voxel of `other` at the same place, or the nearest.

    Raises ValueError where both know their voxel sizes and these differ by more than 1%.
    """
    if one.size_nm and other.size_nm and not np.allclose(one.size_nm, other.size_nm, rtol=SAME_SIZE):
        raise ValueError(
            f"voxels of different size cannot be compared: {one.name} has {_nm(one.size_nm)}, {other.name} "
            f"{_nm(other.size_nm)} (z,y,x); name the resolution of the one that fits the other, such as "
            "bossdb://collection/experiment/channel/1 or x.zarr/s1"
        )
    return tuple(int(np.floor(a - b + 0.5)) for a, b in zip(one.origin, other.origin, strict=True))  # type: ignore[return-value]


def shared_box(one: Grid, other: Grid, shift: Zyx) -> Box:
    """The voxels of `one` that `other` has too. ValueError, with where both lie, where there are none."""
    box = one.bounds.intersect(moved(other.bounds, tuple(-s for s in shift)))  # type: ignore[arg-type]
    if box.num_voxels == 0:
        size = one.size_nm or other.size_nm
        raise ValueError(
            f"nothing to compare: {one.name} and {other.name} do not overlap. The one lies at {_place(one, size)}, "
            f"the other at {_place(other, size)} (z,y,x)"
        )
    return box


def _nm(size: Nm) -> str:
    return " x ".join(f"{value:g}" for value in size) + " nm"


def _place(grid: Grid, size: Nm | None) -> str:
    placed = grid.placed
    if size is None:
        return f"voxels {placed}"
    ranges = (f"{a * s:g}:{b * s:g}" for a, b, s in zip(placed.start, placed.stop, size, strict=True))
    return f"{','.join(ranges)} nm"

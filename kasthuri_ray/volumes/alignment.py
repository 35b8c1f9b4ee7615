"""Where two volumes show the same tissue: which voxel of the one is which of the other. Pure arithmetic on metadata."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from kasthuri_ray.geometry import Box, Nm, Zyx
from kasthuri_ray.volumes.volume import Volume

VOXEL_SIZE_TOLERANCE = 0.01  # two voxel sizes that differ by less are one, written with fewer digits


ROUNDING_NM = 1e-6  # of a voxel


@dataclass(frozen=True)
class VoxelGrid:
    """The voxels of a volume. origin: where its voxel 0, 0, 0 lies, z, y, x in its own voxels; size_nm: None unknown.

    Places are in voxels and not in nm: where two say one voxel size with different digits, lengths of thousands of
    voxels would not agree.
    """

    name: str
    bounds: Box
    size_nm: Nm | None
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @classmethod
    def of(cls, volume: Volume, start: Zyx | None = None) -> VoxelGrid:
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
        return self.bounds.shifted([int(np.floor(value + 0.5)) for value in self.origin])


def voxel_shift(one: VoxelGrid, other: VoxelGrid) -> Zyx:
    """What to add to a voxel of `one` to have the voxel of `other` at the same place, or the nearest.

    Raises ValueError where both know their voxel sizes and these differ by more than 1%.
    """
    if one.size_nm and other.size_nm and not np.allclose(one.size_nm, other.size_nm, rtol=VOXEL_SIZE_TOLERANCE):
        raise ValueError(
            f"voxels of different size cannot be compared: {one.name} has {_size_text(one.size_nm)}, {other.name} "
            f"{_size_text(other.size_nm)} (z,y,x); name the resolution of the one that fits the other, such as "
            "bossdb://collection/experiment/channel/1 or x.zarr/s1"
        )
    return tuple(int(np.floor(a - b + 0.5)) for a, b in zip(one.origin, other.origin, strict=True))  # type: ignore[return-value]


def overlap_box(one: VoxelGrid, other: VoxelGrid, shift: Zyx) -> Box:
    """The voxels of `one` that `other` has too. ValueError, with where both lie, where there are none."""
    box = one.bounds.intersect(other.bounds.relative_to(shift))
    if box.num_voxels == 0:
        size = one.size_nm or other.size_nm
        raise ValueError(
            f"nothing to compare: {one.name} and {other.name} do not overlap. The one lies at {_place_text(one, size)}, "
            f"the other at {_place_text(other, size)} (z,y,x)"
        )
    return box


def _size_text(size: Nm) -> str:
    return " x ".join(f"{value:g}" for value in size) + " nm"


def _place_text(grid: VoxelGrid, size: Nm | None) -> str:
    placed = grid.placed
    if size is None:
        return f"voxels {placed}"
    ranges = (f"{a * s:g}:{b * s:g}" for a, b, s in zip(placed.start, placed.stop, size, strict=True))
    return f"{','.join(ranges)} nm"


def mask_box(block: Box, mask: Volume, image: Volume) -> Box:
    """The voxels of the mask that the block touches, cut to the mask; maybe none."""
    if mask.voxel_size_nm is None or image.voxel_size_nm is None:
        return block.intersect(mask.bounds)
    start, stop = [], []
    shifts = zip(image.voxel_size_nm, mask.voxel_size_nm, _corner_shift_nm(mask, image), strict=True)
    for a, b, (size, mask_size, shift) in zip(block.start, block.stop, shifts, strict=True):
        start.append(math.floor((a * size + shift) / mask_size + ROUNDING_NM))
        stop.append(math.ceil((b * size + shift) / mask_size - ROUNDING_NM))
    return Box(tuple(start), tuple(stop)).intersect(mask.bounds)  # type: ignore[arg-type]


def _corner_shift_nm(mask: Volume, image: Volume) -> list[float]:
    """How far the corner of the image's voxel 0, 0, 0 lies beyond that of the mask's.

    OME says where the middle of a voxel lies; where neither says anything the corners are one.
    """
    there, here = (getattr(volume, "translation_nm", (0.0, 0.0, 0.0)) for volume in (mask, image))
    if not any(there) and not any(here):
        return [0.0, 0.0, 0.0]
    sizes = zip(image.voxel_size_nm or (), mask.voxel_size_nm or (), strict=True)
    return [(b - n / 2) - (a - m / 2) for a, b, (n, m) in zip(there, here, sizes, strict=True)]


def box_nm(volume: Volume, box: Box) -> list[tuple[float, float]]:
    """Return from where to where a box of a volume reaches along z, y and x, in nm; a voxel lies at its middle."""
    assert volume.voxel_size_nm is not None
    axes = zip(box.start, box.stop, volume.voxel_size_nm, volume.translation_nm, strict=True)
    return [(moved + (a - 0.5) * size, moved + (b - 0.5) * size) for a, b, size, moved in axes]

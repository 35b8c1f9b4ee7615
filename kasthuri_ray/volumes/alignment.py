"""Positions of volumes relative to each other: which voxel of one volume shows the tissue of a voxel of another.

This is arithmetic on metadata. Where a volume states a translation, as OME defines it, that is the position of the
middle of voxel 0, 0, 0.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass

import numpy as np

from kasthuri_ray.errors import InputError
from kasthuri_ray.geometry import Box, Nm, Zyx, per_axis
from kasthuri_ray.volumes.volume import Volume

VOXEL_SIZE_TOLERANCE = 0.01  # two voxel sizes that differ by less, relatively, are treated as equal (rounded metadata)
ROUNDING_VOXELS = 1e-6  # rounding error of a position, which must not add a voxel


@dataclass(frozen=True)
class VoxelGrid:
    """The voxels of a volume and the position of the first.

    Parameters
    ----------
    name : str
        URI of the volume, for messages.
    bounds : Box
        Voxels that the volume holds, z, y, x.
    size_nm : tuple of float or None
        Size of a voxel along z, y, x, in nm; None if the volume does not state it.
    origin : tuple of float
        Position of voxel 0, 0, 0 along z, y, x, in voxels of this volume.

    Notes
    -----
    Positions are in voxels, not in nm: if two volumes state one voxel size with different digits, lengths of
    thousands of voxels in nm would not agree.
    """

    name: str
    bounds: Box
    size_nm: Nm | None
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @classmethod
    def of(cls, volume: Volume, start: Zyx | None = None) -> VoxelGrid:
        """Return the grid of a volume.

        Parameters
        ----------
        volume : Volume
        start : tuple of int or None
            Position of the first voxel along z, y, x, in voxels, for a volume without a voxel size, which cannot state
            its position in nm.

        Returns
        -------
        VoxelGrid
        """
        size = volume.voxel_size_nm
        if size is not None:
            return cls(volume.uri, volume.bounds, size, per_axis(operator.truediv, volume.translation_nm, size))
        shift = (0, 0, 0) if start is None else per_axis(operator.sub, start, volume.bounds.start)
        return cls(volume.uri, volume.bounds, None, per_axis(float, shift))


def voxel_shift(one: VoxelGrid, other: VoxelGrid) -> Zyx:
    """Return what to add to a voxel of one volume to get the voxel of another at the same position.

    Parameters
    ----------
    one, other : VoxelGrid
        Grids of the two volumes.

    Returns
    -------
    tuple of int
        Shift along z, y, x, in voxels, rounded to the nearest voxel.

    Raises
    ------
    InputError
        If both voxel sizes are known and differ by more than 1%.
    """
    if one.size_nm and other.size_nm and not np.allclose(one.size_nm, other.size_nm, rtol=VOXEL_SIZE_TOLERANCE):
        raise InputError(
            f"voxel sizes differ: {one.name} has {_size_text(one.size_nm)}, {other.name} has "
            f"{_size_text(other.size_nm)} (z,y,x); open the volume with several resolutions at the matching level, "
            "such as bossdb://collection/experiment/channel/1 or x.zarr/s1"
        )
    return per_axis(_nearest_voxel, per_axis(operator.sub, one.origin, other.origin))


def overlap_box(one: VoxelGrid, other: VoxelGrid, shift: Zyx) -> Box:
    """Return the voxels that two volumes share.

    Parameters
    ----------
    one, other : VoxelGrid
        Grids of the two volumes.
    shift : tuple of int
        Shift from voxels of `one` to voxels of `other`, z, y, x; see `voxel_shift`.

    Returns
    -------
    Box
        Shared voxels, in voxels of `one`.

    Raises
    ------
    InputError
        If there are none; the message shows the positions of both volumes.
    """
    box = one.bounds.intersect(other.bounds.relative_to(shift))
    if box.num_voxels == 0:
        size = one.size_nm or other.size_nm
        raise InputError(
            f"nothing to compare: {one.name} and {other.name} do not overlap. The first covers "
            f"{_position_text(one, size)}, the second {_position_text(other, size)} (z,y,x)"
        )
    return box


def mask_box(block: Box, mask: Volume, image: Volume) -> Box:
    """Return the voxels of a mask that a block of the image touches.

    Parameters
    ----------
    block : Box
        Block in voxels of the image, z, y, x.
    mask, image : Volume
        If one of them has no voxel size, both have the same voxels.

    Returns
    -------
    Box
        Box in voxels of the mask, cut to the mask; it may be empty.
    """
    if mask.voxel_size_nm is None or image.voxel_size_nm is None:
        return block.intersect(mask.bounds)

    def first(index: int, size: float, mask_size: float, shift: float) -> int:
        return math.floor((index * size + shift) / mask_size + ROUNDING_VOXELS)

    def after_last(index: int, size: float, mask_size: float, shift: float) -> int:
        return math.ceil((index * size + shift) / mask_size - ROUNDING_VOXELS)

    scale = (image.voxel_size_nm, mask.voxel_size_nm, _corner_shift_nm(mask, image))
    start, stop = per_axis(first, block.start, *scale), per_axis(after_last, block.stop, *scale)
    return Box(start, stop).intersect(mask.bounds)


def box_nm(volume: Volume, box: Box) -> list[tuple[float, float]]:
    """Return the positions in nm where a box of a volume starts and stops along each axis.

    Parameters
    ----------
    volume : Volume
        Volume with a voxel size.
    box : Box
        Box in voxels of the volume, z, y, x.

    Returns
    -------
    list of tuple of float
        Start and stop in nm, one pair for each of z, y, x.
    """
    return list(zip(_voxel_corner_nm(volume, box.start), _voxel_corner_nm(volume, box.stop), strict=True))


def _voxel_corner_nm(volume: Volume, voxel: Zyx) -> Nm:
    """Return the position of a voxel's lower corner, half a voxel before its middle."""
    assert volume.voxel_size_nm is not None
    return per_axis(
        lambda middle, index, size: middle + (index - 0.5) * size, volume.translation_nm, voxel, volume.voxel_size_nm
    )


def _corner_shift_nm(mask: Volume, image: Volume) -> Nm:
    """Return the distance from the corner of the mask to that of the image; 0 if neither states a translation."""
    if not any(mask.translation_nm) and not any(image.translation_nm):
        return (0.0, 0.0, 0.0)
    return per_axis(operator.sub, _voxel_corner_nm(image, (0, 0, 0)), _voxel_corner_nm(mask, (0, 0, 0)))


def _nearest_voxel(position: float) -> int:
    return int(np.floor(position + 0.5))


def _size_text(size: Nm) -> str:
    return " x ".join(f"{value:g}" for value in size) + " nm"


def _position_text(grid: VoxelGrid, size: Nm | None) -> str:
    """Return where a grid's bounds are, in nm if a voxel size is known."""
    box = grid.bounds.shifted(per_axis(_nearest_voxel, grid.origin))
    if size is None:
        return f"voxels {box}"
    ranges = per_axis(lambda start, stop, length: f"{start * length:g}:{stop * length:g}", box.start, box.stop, size)
    return f"{','.join(ranges)} nm"

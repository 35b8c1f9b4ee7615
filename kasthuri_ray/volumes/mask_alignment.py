"""Masks of images, which may be of another resolution: which voxels of a mask a block of the image touches."""

from __future__ import annotations

import math

from kasthuri_ray.geometry import Box, per_axis
from kasthuri_ray.volumes.alignment import Alignment, align_volumes
from kasthuri_ray.volumes.volume import Volume
from kasthuri_ray.volumes.voxel_grid import (
    check_extents,
    corner_shift_nm,
    has_same_voxel_size,
)

ROUNDING_VOXELS = 1e-6  # rounding error of a position, which must not add a voxel


def align_mask(image: Volume, mask: Volume) -> Alignment:
    """Return a mask that can be compared with an image by `mask_box`.

    Parameters
    ----------
    image : Volume
        The image.
    mask : Volume
        Its mask, which may be of another resolution.

    Returns
    -------
    Alignment
        The mask in voxels of the image if their voxel sizes agree, else the mask itself.

    Raises
    ------
    InputError
        As of `align_volumes`. Volumes of two resolutions of which one states no place must have the same extent.
    """
    if has_same_voxel_size(image, mask):
        return align_volumes(image, mask)
    check_extents(image, mask)
    return Alignment(image, mask)


def mask_box(block: Box, mask: Volume, image: Volume) -> Box:
    """Return the voxels of a mask that a block of the image touches.

    Parameters
    ----------
    block : Box
        Block in voxels of the image, z, y, x.
    mask, image : Volume
        If one of them has no voxel size or no place, both have the same corner and, without a size, the same voxels.

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

    scale = (image.voxel_size_nm, mask.voxel_size_nm, corner_shift_nm(mask, image))
    start, stop = per_axis(first, block.start, *scale), per_axis(after_last, block.stop, *scale)
    return Box(start, stop).intersect(mask.bounds)

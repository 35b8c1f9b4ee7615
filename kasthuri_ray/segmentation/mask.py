"""A mask laid over an image: which of its voxels a block of the image touches, and whether they are all 0."""

from __future__ import annotations

import math

from kasthuri_ray.geometry import Box, Zyx
from kasthuri_ray.volumes import Volume

PIECE: Zyx = (64, 512, 512)  # of a mask that is looked at at once
ROUNDING = 1e-6  # of a voxel


def check_mask(mask: Volume, image: Volume, box: Box) -> None:
    """Raise a ValueError for a mask that cannot be laid over the image, or meets no voxel of `box`."""
    if mask.dtype.kind not in "bui":
        raise ValueError(f"--mask {mask.uri} holds {mask.dtype}; a mask holds whole numbers, 0 outside")
    if mask.bounds != image.bounds and (mask.voxel_size_nm is None or image.voxel_size_nm is None):
        raise ValueError(
            f"--mask {mask.uri} is {mask.bounds}, the image {image.bounds} (z,y,x); to lay one over the other both "
            "must say how large their voxels are"
        )
    if mask_box(box, mask, image).num_voxels == 0:
        raise ValueError(
            f"--mask {mask.uri} covers nothing of what is to be segmented, {box} of {image.uri} (z,y,x), so that all "
            "of it would be left out; look at voxel size and offset of both"
        )


def is_outside(block: Box, mask: Volume, image: Volume) -> bool:
    """Whether the mask is 0 in all of a block, compared in nm where mask and image are not of one grid.

    What the mask does not cover is outside.
    """
    part = mask_box(block, mask, image)
    if part.num_voxels == 0:
        return True
    return not any(mask.read(piece).any() for piece in part.cells(PIECE, mask.chunk_origin))


def mask_box(block: Box, mask: Volume, image: Volume) -> Box:
    """The voxels of the mask that the block touches, cut to the mask; maybe none."""
    if mask.voxel_size_nm is None or image.voxel_size_nm is None:
        return block.intersect(mask.bounds)
    start, stop = [], []
    shifts = zip(image.voxel_size_nm, mask.voxel_size_nm, _shift_nm(mask, image), strict=True)
    for a, b, (size, mask_size, shift) in zip(block.start, block.stop, shifts, strict=True):
        start.append(math.floor((a * size + shift) / mask_size + ROUNDING))
        stop.append(math.ceil((b * size + shift) / mask_size - ROUNDING))
    return Box(tuple(start), tuple(stop)).intersect(mask.bounds)  # type: ignore[arg-type]


def _shift_nm(mask: Volume, image: Volume) -> list[float]:
    """How far the corner of the image's voxel 0, 0, 0 lies beyond that of the mask's.

    OME says where the middle of a voxel lies; where neither says anything the corners are one.
    """
    there, here = (getattr(volume, "translation_nm", (0.0, 0.0, 0.0)) for volume in (mask, image))
    if not any(there) and not any(here):
        return [0.0, 0.0, 0.0]
    sizes = zip(image.voxel_size_nm or (), mask.voxel_size_nm or (), strict=True)
    return [(b - n / 2) - (a - m / 2) for a, b, (n, m) in zip(there, here, sizes, strict=True)]

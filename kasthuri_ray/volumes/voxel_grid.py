"""The voxel grids of two volumes: voxel sizes, corners in nm, and how messages name them. Arithmetic on metadata."""

from __future__ import annotations

import math

import numpy as np

from kasthuri_ray.errors import InputError
from kasthuri_ray.geometry import Box, Nm, per_axis
from kasthuri_ray.volumes.volume import Volume

VOXEL_SIZE_TOLERANCE = 0.01  # two voxel sizes that differ by less, relatively, are treated as equal (rounded metadata)
MAX_REMAINDER_VOXELS = 0.05  # distance from whole voxels that is not worth a line
OFFSET_ADVICE = "Give it at the end of the URI, such as ?offset_nm=0,0,0 (corner of the first voxel, in nm, z,y,x)"


def has_same_voxel_size(one: Volume, other: Volume) -> bool:
    """Return whether two volumes have the same voxel size.

    Parameters
    ----------
    one, other : Volume
        Any two volumes.

    Returns
    -------
    bool
        True if the sizes differ by at most 1%, or one of them is not known.
    """
    a, b = one.voxel_size_nm, other.voxel_size_nm
    return not (a and b) or bool(np.allclose(a, b, rtol=VOXEL_SIZE_TOLERANCE, atol=0))


def are_placed(one: Volume, other: Volume) -> bool:
    """Return whether two volumes can be aligned by their places; see `Place.stated`."""
    return one.place is not None and other.place is not None and (one.place.stated or other.place.stated)


def has_same_extent(one: Volume, other: Volume) -> bool:
    """Return whether two volumes with voxel sizes are equally long along each axis, up to a voxel."""
    assert one.voxel_size_nm is not None
    assert other.voxel_size_nm is not None

    def is_equal(n: int, size: float, m: int, other_size: float) -> bool:
        return abs(n * size - m * other_size) < max(size, other_size)

    return all(per_axis(is_equal, one.shape, one.voxel_size_nm, other.shape, other.voxel_size_nm))


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
    assert volume.voxel_size_nm is not None
    size = volume.voxel_size_nm
    corner = (0.0, 0.0, 0.0) if volume.place is None else volume.place.corner_nm(size)
    return list(per_axis(lambda c, a, b, n: (c + a * n, c + b * n), corner, box.start, box.stop, size))


def corner_shift_nm(mask: Volume, image: Volume) -> Nm:
    """Return the distance from the corner of the mask's voxel 0 to that of the image; any resolutions.

    If one states no place, their first voxels have one corner.
    """
    assert mask.voxel_size_nm is not None
    assert image.voxel_size_nm is not None
    if mask.place is None or image.place is None or not are_placed(mask, image):
        starts = mask.bounds.start, mask.voxel_size_nm, image.bounds.start, image.voxel_size_nm
        return per_axis(lambda a, size, b, image_size: a * size - b * image_size, *starts)
    corners = image.place.corner_nm(image.voxel_size_nm), mask.place.corner_nm(mask.voxel_size_nm)
    half = half_voxel(mask) - half_voxel(image)

    def shift(image_corner: float, mask_corner: float, size: float) -> float:
        exact = (image_corner - mask_corner) / size
        mixed_up = half and abs(exact - nearest_voxel(exact)) >= 0.5 - MAX_REMAINDER_VOXELS
        return (exact + half if mixed_up else exact) * size

    return per_axis(shift, *corners, image.voxel_size_nm)


def half_voxel(volume: Volume) -> float:
    """Return how far, in voxels, the lower corner of voxel 0 is from the position that is stated."""
    return -0.5 if volume.place is not None and volume.place.anchor == "middle" else 0.0


def nearest_voxel(position: float) -> int:
    """Return the voxel whose lower corner is nearest to a position in voxels."""
    return math.floor(position + 0.5)


def size_text(size: Nm | None) -> str:
    """Return a voxel size for a message.

    Parameters
    ----------
    size : tuple of float or None
        Size along z, y, x, in nm.

    Returns
    -------
    str
        Such as `30 x 4 x 4 nm`.
    """
    return "no voxel size" if size is None else " x ".join(f"{value:g}" for value in size) + " nm"


def place_text(volume: Volume) -> str:
    """Return where the bounds of a volume are, in nm if its voxel size is known, and what says so."""
    bounds, size, place = volume.bounds, volume.voxel_size_nm, volume.place
    if size is None:
        return f"voxels {bounds}"
    ends = per_axis(
        lambda t, a, b, n: f"{t + a * n:g}:{t + b * n:g}", volume.translation_nm, bounds.start, bounds.stop, size
    )
    source = "which states no place" if place is None else f"by its {place.source}"
    return f"{','.join(ends)} nm in voxels of {size_text(size)}, {source}"


def silent_text(fixed: Volume, moving: Volume) -> str:
    """Return which of two volumes states no place, for a message."""
    silent = [volume for volume in (fixed, moving) if volume.place is None]
    silent = silent or [volume for volume in (fixed, moving) if volume.place and not volume.place.stated]
    return f"{silent[0].uri} states no place in nm" if len(silent) == 1 else "neither states a place in nm"


def check_extents(one: Volume, other: Volume) -> None:
    """Raise an InputError if one of two volumes of different resolutions states no place and their extents differ."""
    if not are_placed(one, other) and not has_same_extent(one, other):
        raise InputError(
            f"different extents: {one.uri} covers {place_text(one)}; {other.uri} covers {place_text(other)} (z,y,x), "
            f"and {silent_text(one, other)}. {OFFSET_ADVICE}"
        )

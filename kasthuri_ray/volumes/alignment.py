"""Places of volumes relative to each other: which voxel of one volume shows the tissue of a voxel of another.

`align_volumes` returns a volume on the voxel grid of another one, shifted by whole voxels. This is arithmetic on
metadata; nothing is read. `resampled_volume.py` reads a volume on a grid with other voxel sizes.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import numpy as np

from kasthuri_ray.errors import InputError
from kasthuri_ray.geometry import Box, Nm, Zyx, per_axis
from kasthuri_ray.volumes.resampled_volume import Resampling, resample_onto
from kasthuri_ray.volumes.volume import Volume
from kasthuri_ray.volumes.voxel_grid import (
    MAX_REMAINDER_VOXELS,
    OFFSET_ADVICE,
    VOXEL_SIZE_TOLERANCE,
    are_placed,
    half_voxel,
    has_same_voxel_size,
    nearest_voxel,
    place_text,
    silent_text,
    size_text,
)

MAX_MIPS = 16

OpenMip = Callable[[str, int], Volume]  # URI and mip


@dataclass(kw_only=True)
class AlignedVolume(Volume):
    """A volume on the voxel grid of another one: its bounds count the voxels of that one.

    Parameters
    ----------
    source : Volume
        Where the voxels are read.
    shift : tuple of int
        What to add to a voxel of `source` to get the voxel of this volume, z, y, x.
    """

    source: Volume
    shift: Zyx

    @classmethod
    def of(cls, source: Volume, shift: Zyx, like: Volume | None = None) -> Volume:
        """Return a volume that is shifted by whole voxels; voxel size and place are those of `like`, if given."""
        if like is not None and like.voxel_size_nm is None:
            like = None
        size, place = (like.voxel_size_nm, like.place) if like else (source.voxel_size_nm, None)
        if shift == (0, 0, 0):
            is_same = like is None or (size, place) == (source.voxel_size_nm, source.place)
            return source if is_same else replace(source, voxel_size_nm=size, place=place)
        shared = {item.name: getattr(source, item.name) for item in fields(Volume)}
        moved = {
            "bounds": source.bounds.shifted(shift),
            "chunk_origin": per_axis(operator.add, source.chunk_origin, shift),
            "voxel_size_nm": size,
            "place": place,
        }
        return cls(**{**shared, **moved}, source=source, shift=shift)

    def _read(self, box: Box) -> np.ndarray:
        return self.source.read(box.relative_to(self.shift))

    def count_absent(self, box: Box, voxels: np.ndarray | None = None, within: Box | None = None) -> tuple[int, int]:
        whole = None if within is None else within.relative_to(self.shift)
        return self.source.count_absent(box.relative_to(self.shift), voxels, whole)

    def has_any_chunk(self, box: Box) -> bool:
        return self.source.has_any_chunk(box.relative_to(self.shift))

    def find_stored(self, box: Box) -> Box | None:
        found = self.source.find_stored(box.relative_to(self.shift))
        return found and found.shifted(self.shift)


@dataclass(frozen=True)
class Alignment:
    """Two volumes on one voxel grid.

    Parameters
    ----------
    fixed : Volume
        The volume whose grid it is. It has the voxel size of the other one if it states none.
    moving : Volume
        The other one, in voxels of `fixed`.
    notes : tuple of str
        What had to be assumed, one line each.
    """

    fixed: Volume
    moving: Volume
    notes: tuple[str, ...] = ()

    @property
    def overlap(self) -> Box:
        """Voxels of `fixed` that both volumes hold; at least one."""
        return self.fixed.bounds.intersect(self.moving.bounds)


def align_volumes(
    fixed: Volume,
    moving: Volume,
    open_mip: OpenMip | None = None,
    *,
    shift: Zyx | None = None,
    resample: Resampling | None = None,
) -> Alignment:
    """Return a volume on the voxel grid of another one.

    Parameters
    ----------
    fixed : Volume
        The volume whose grid is wanted.
    moving : Volume
        The volume to align.
    open_mip : callable, optional
        Opens other resolutions of either volume, to name one that would match.
    shift : tuple of int, optional
        What to add to a voxel of `moving` to get that of `fixed`, if it is known whatever their places are.
    resample : {"nearest", "mean"}, optional
        How a volume of another voxel size is resampled, see `resample_onto`; None: it is refused.

    Returns
    -------
    Alignment
        Both volumes. If only one states a voxel size, it counts for both. If one states no place, both must have the
        same shape, and voxel lies on voxel.

    Raises
    ------
    InputError
        If the voxel sizes differ by more than 1%, if the volumes do not overlap, or if they have different shapes and
        one states no place. The message shows places and sizes in nm, and says what to type.
    """
    fixed, moving, notes = _share_voxel_size(fixed, moving)
    if resample is not None and not has_same_voxel_size(fixed, moving):
        moving, shift = resample_onto(moving, fixed, resample), (0, 0, 0)
    check_voxel_sizes(fixed, moving, open_mip)
    found, note = (shift, ()) if shift is not None else _find_shift(fixed, moving)
    aligned = Alignment(fixed, AlignedVolume.of(moving, found, fixed), (*notes, *note))
    if aligned.overlap.num_voxels == 0:
        raise InputError(f"{fixed.uri} and {moving.uri} do not overlap. {both_places_text(fixed, moving)}")
    return aligned


def check_voxel_sizes(fixed: Volume, moving: Volume, open_mip: OpenMip | None = None) -> None:
    """Raise an InputError if both voxel sizes are known and differ by more than 1%; see `align_volumes`."""
    if has_same_voxel_size(fixed, moving):
        return
    raise InputError(
        f"voxel sizes differ: {fixed.uri} has {size_text(fixed.voxel_size_nm)}, {moving.uri} has "
        f"{size_text(moving.voxel_size_nm)} (z,y,x). {both_places_text(fixed, moving)}. "
        f"{_matching_mip_advice(fixed, moving, open_mip)}"
    )


def _share_voxel_size(fixed: Volume, moving: Volume) -> tuple[Volume, Volume, tuple[str, ...]]:
    """Return the volumes with the voxel size of the one that states it, and the line that says so."""
    if (fixed.voxel_size_nm is None) == (moving.voxel_size_nm is None):
        return fixed, moving, ()
    known, unknown = (fixed, moving) if fixed.voxel_size_nm else (moving, fixed)
    note = f"{unknown.uri} does not state its voxel size: it is taken to be that of {known.uri}, " + size_text(
        known.voxel_size_nm
    )
    size = known.voxel_size_nm
    return replace(fixed, voxel_size_nm=size), replace(moving, voxel_size_nm=size), (note,)


def _find_shift(fixed: Volume, moving: Volume) -> tuple[Zyx, tuple[str, ...]]:
    """Return what to add to a voxel of `moving` to get that of `fixed`, and what had to be assumed."""
    if fixed.place is None or moving.place is None or not are_placed(fixed, moving):
        return _shift_between_equal_shapes(fixed, moving)
    if fixed.voxel_size_nm is None or moving.voxel_size_nm is None:
        if any(fixed.place.origin_nm) or any(moving.place.origin_nm):
            raise InputError(
                f"{fixed.uri} and {moving.uri} state places in nm, but no voxel size: give it, such as "
                "--voxel-size z,y,x or ?voxel_size_nm=z,y,x"
            )
        return (0, 0, 0), ()
    half = (half_voxel(moving) - half_voxel(fixed),) * 3
    exact = per_axis(_exact_shift, _origin_voxels(moving), _origin_voxels(fixed), half)
    shift = per_axis(nearest_voxel, exact)
    remainders = per_axis(operator.sub, exact, shift)
    if max(map(abs, remainders)) <= MAX_REMAINDER_VOXELS:
        return shift, ()
    shown = ",".join(f"{value:.2f}" for value in remainders)
    return shift, (
        f"{moving.uri} lies between the voxels of {fixed.uri}: it is moved to whole voxels, by {shown} voxel (z,y,x)",
    )


def _shift_between_equal_shapes(fixed: Volume, moving: Volume) -> tuple[Zyx, tuple[str, ...]]:
    """Return the shift of two volumes of which one states no place: voxel lies on voxel, if the shapes are equal."""
    if fixed.shape != moving.shape:
        shapes = f"different shapes: {fixed.uri} is {fixed.bounds}, {moving.uri} is {moving.bounds} (z,y,x)"
        if sorted(fixed.shape) == sorted(moving.shape):
            raise InputError(f"{shapes}. {_axes_advice(fixed, moving)}")
        raise InputError(
            f"{shapes}, and {silent_text(fixed, moving)}. If they show the same voxels, check the order of the axes "
            f"and the crop. If one is a part of the other, its place is needed. {OFFSET_ADVICE}"
        )
    shift = per_axis(operator.sub, fixed.bounds.start, moving.bounds.start)
    if (fixed.place is None) == (moving.place is None):
        return shift, ()
    note = f"{silent_text(fixed, moving)}: voxel lies on voxel, since their shapes are equal, {fixed.shape} (z,y,x)"
    return shift, (note,)


def _origin_voxels(volume: Volume) -> Nm:
    """Return the position that is stated, in voxels of this volume.

    In voxels, not in nm: if two volumes state one voxel size with different digits, lengths of thousands of voxels in
    nm would not agree.
    """
    assert volume.place is not None
    assert volume.voxel_size_nm is not None
    return per_axis(operator.truediv, volume.place.origin_nm, volume.voxel_size_nm)


def _exact_shift(moving: float, fixed: float, half: float) -> float:
    """Return the distance of two corners; many writers mix up corner and middle, so half a voxel counts as none."""
    shift = moving - fixed + half
    remainder = abs(shift - nearest_voxel(shift))
    return moving - fixed if half and remainder >= 0.5 - MAX_REMAINDER_VOXELS else shift


def both_places_text(one: Volume, other: Volume) -> str:
    """Return where two volumes are, for a message.

    Parameters
    ----------
    one, other : Volume
        Any two volumes.

    Returns
    -------
    str
        A sentence with both places and voxel sizes in nm.
    """
    return f"The first covers {place_text(one)}, the second {place_text(other)} (z,y,x)"


def _matching_mip_advice(fixed: Volume, moving: Volume, open_mip: OpenMip | None) -> str:
    """Return what to type so that the voxel sizes of two volumes match: other axes, or a resolution that does."""
    assert fixed.voxel_size_nm is not None
    assert moving.voxel_size_nm is not None
    if np.allclose(sorted(fixed.voxel_size_nm), sorted(moving.voxel_size_nm), rtol=VOXEL_SIZE_TOLERANCE, atol=0):
        return _axes_advice(fixed, moving)
    for volume, other in ((moving, fixed), (fixed, moving)):
        match = open_mip and find_matching_mip(volume, other, open_mip)
        if match:
            return f"{match} has the voxel size of {other.uri}: give that, or --resample"
    return (
        "Neither has a resolution that matches; give the voxel size with ?voxel_size_nm= if it is wrong, or --resample"
    )


def _axes_advice(fixed: Volume, moving: Volume) -> str:
    """Return what to type if two volumes have the same lengths in another order."""
    named = [volume.uri for volume in (fixed, moving) if "axes=" in volume.uri]
    turn = "name those of one of them, such as ?axes=xyz"
    if len(named) == 1:
        turn = f"leave ?axes= out of {named[0]}, or name those of the other volume too"
    elif named:
        turn = "change ?axes= of one of them"
    return f"These are the same lengths in another order, so the axes of one of them are not z, y, x: {turn}"


def find_matching_mip(volume: Volume, other: Volume, open_mip: OpenMip) -> str | None:
    """Return the URI of the resolution of a volume that has the voxel size of another one; None if there is none."""
    if volume.pyramid is None:
        return None
    whole = re.sub(r"#mip=\d+$|(?<=[^/])/\d+/?$" if volume.uri.startswith("bossdb:") else r"#mip=\d+$", "", volume.uri)
    group = re.sub(r"/[^/?|:]+(?=$|\?)", "", whole)  # of an array that was named inside its pyramid
    for uri in dict.fromkeys((whole, group)):
        for mip in range(MAX_MIPS):
            try:
                level = open_mip(uri, mip)
            except (OSError, ValueError):
                break  # there is no such resolution, or no pyramid
            if has_same_voxel_size(level, other):
                return level.uri
    return None

"""Volumes on a grid of other voxel sizes, resampled as they are read."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Literal

import numpy as np

from kasthuri_ray.geometry import Box, Nm, Zyx, per_axis
from kasthuri_ray.volumes.volume import Volume
from kasthuri_ray.volumes.voxel_grid import check_extents, corner_shift_nm, nearest_voxel

Resampling = Literal["nearest", "mean"]  # nearest: of labels; mean: of grey levels and probabilities

MAX_SOURCE_VOXELS = 1 << 24  # read at once
ROUNDING = 1e-6  # rounding error of a position in voxels

Taps = list[tuple[np.ndarray, np.ndarray]]  # voxels of the source, and their weights, for each resampled voxel


@dataclass(kw_only=True)
class ResampledVolume(Volume):
    """A volume on the grid of other voxels.

    Parameters
    ----------
    source : Volume
        Where the voxels are read.
    corner : tuple of float
        Lower corner of voxel 0, 0, 0 of this volume, in voxels of `source`.
    step : tuple of float
        Length of a voxel of this volume, in voxels of `source`.
    resampling : {"nearest", "mean"}
        "nearest" takes the voxel of the source in which the middle of a voxel lies. "mean" takes the mean over the
        voxel's length along axes with longer voxels, and interpolates between two middles along the others.
    """

    source: Volume
    corner: Nm
    step: Nm
    resampling: Resampling

    @classmethod
    def of(cls, source: Volume, corner: Nm, step: Nm, resampling: Resampling) -> ResampledVolume:
        """Return a volume of all voxels of which at least half are in the source; without voxel size and place."""

        def to_grid(position: float, first: float, length: float) -> float:
            return (position - first) / length

        start = per_axis(to_grid, source.bounds.start, corner, step)
        stop = per_axis(to_grid, source.bounds.stop, corner, step)
        first = per_axis(lambda value: math.ceil(value - 0.5 - ROUNDING), start)
        shared = {item.name: getattr(source, item.name) for item in fields(Volume)}
        own = {
            "bounds": Box(first, per_axis(lambda a, b: max(a + 1, math.floor(b + 0.5 + ROUNDING)), first, stop)),
            "voxel_size_nm": None,
            "place": None,
            "chunk": per_axis(lambda n, length: max(1, nearest_voxel(n / length)), source.chunk, step),
            "chunk_origin": per_axis(nearest_voxel, per_axis(to_grid, source.chunk_origin, corner, step)),
            "source_id": f"{source.identity} {resampling} {corner} {step}",
        }
        return cls(**{**shared, **own}, source=source, corner=corner, step=step, resampling=resampling)

    def _read(self, box: Box) -> np.ndarray:
        voxels = np.empty(box.shape, self.dtype)
        for piece in box.cells(self._piece_shape(box)):
            voxels[piece.slices(box.start)] = self._resample(piece)
        return voxels

    def count_absent(self, box: Box, voxels: np.ndarray | None = None, within: Box | None = None) -> tuple[int, int]:
        whole = None if within is None else self._source_box(within)
        return self.source.count_absent(self._source_box(box), None, whole)

    def has_any_chunk(self, box: Box) -> bool:
        return self.source.has_any_chunk(self._source_box(box))

    def _source_box(self, box: Box) -> Box:
        """Return the voxels of the source that begin in a box; boxes that divide this volume divide the source."""

        def ceil(corner: float, voxel: int, length: float, first: int, last: int) -> int:
            if voxel in (first, last):  # up to the ends of the source, which may be cut within a voxel
                return -(10**9) if voxel == first else 10**9
            return math.ceil(corner + voxel * length - ROUNDING)

        ends = self.bounds.start, self.bounds.stop
        start = per_axis(ceil, self.corner, box.start, self.step, *ends)
        return Box(start, per_axis(ceil, self.corner, box.stop, self.step, *ends)).intersect(self.source.bounds)

    def _piece_shape(self, box: Box) -> Zyx:
        """Return the shape of pieces of a box that read a limited number of voxels."""
        shape = list(box.shape)
        while math.prod(n * length for n, length in zip(shape, self.step, strict=True)) > MAX_SOURCE_VOXELS:
            axis = next((axis for axis in range(3) if shape[axis] > 1), None)
            if axis is None:
                break
            shape[axis] = -(-shape[axis] // 2)
        return per_axis(int, shape)

    def _resample(self, box: Box) -> np.ndarray:
        taps = [self._taps(axis, box.start[axis], box.stop[axis]) for axis in range(3)]
        start = per_axis(lambda along: min(int(voxels.min()) for voxels, _ in along), taps)
        stop = per_axis(lambda along: max(int(voxels.max()) for voxels, _ in along) + 1, taps)
        voxels = self.source.read(Box(start, stop))
        if self.resampling == "nearest":
            return voxels[np.ix_(*(along[0][0] - first for along, first in zip(taps, start, strict=True)))]
        exact = np.float32 if voxels.dtype.itemsize <= 2 or voxels.dtype == np.float32 else np.float64
        values = voxels.astype(exact)
        for axis, along in enumerate(taps):
            values = _weighted_sum(values, axis, [(index - start[axis], weight) for index, weight in along])
        if self.dtype.kind not in "iu":
            return values.astype(self.dtype)
        limits = np.iinfo(self.dtype)
        return np.clip(np.rint(values), limits.min, limits.max).astype(self.dtype)

    def _taps(self, axis: int, start: int, stop: int) -> Taps:
        """Return the voxels of the source that each voxel of a range along an axis is made of, with weights."""
        corner, step = self.corner[axis], self.step[axis]
        low, high = self.source.bounds.start[axis], self.source.bounds.stop[axis] - 1
        begin = corner + np.arange(start, stop) * step
        if self.resampling == "nearest":
            middle = np.floor(begin + step / 2 + ROUNDING).astype(np.int64)
            return [(middle.clip(low, high), np.ones(len(begin)))]
        if step < 1 - ROUNDING:
            position = begin + step / 2 - 0.5
            first = np.floor(position + ROUNDING).astype(np.int64)
            share = (position - first).clip(0, 1)
            return [(first.clip(low, high), 1 - share), ((first + 1).clip(low, high), share)]
        first = np.floor(begin + ROUNDING).astype(np.int64)
        taps: Taps = []
        for number in range(math.ceil(step - ROUNDING) + 1):
            voxel = first + number
            overlap = np.minimum(voxel + 1, begin + step) - np.maximum(voxel, begin)
            weight = np.where((voxel >= low) & (voxel <= high), overlap.clip(0, 1), 0.0)
            taps.append((voxel.clip(low, high), np.where(weight < ROUNDING, 0.0, weight)))
        total = np.sum([weight for _, weight in taps], axis=0)
        return [(voxel, weight / total) for voxel, weight in taps if weight.any()]


def _weighted_sum(values: np.ndarray, axis: int, taps: Taps) -> np.ndarray:
    """Return the sum of the values that taps name along an axis. It does not depend on what else is read."""
    total = None
    shape = [1, 1, 1]
    shape[axis] = -1
    for index, weight in taps:
        part = np.take(values, index, axis) * weight.astype(values.dtype).reshape(shape)
        total = part if total is None else np.add(total, part, out=total)
    assert total is not None
    return total


def is_resampled(volume: Volume) -> bool:
    """Return whether a volume is read on the grid of other voxels.

    Parameters
    ----------
    volume : Volume
        Any volume.

    Returns
    -------
    bool
        True for what `resample_image` returned.
    """
    return isinstance(volume, ResampledVolume)


def resample_onto(moving: Volume, fixed: Volume, resampling: Resampling) -> Volume:
    """Return a volume on the voxel grid of another one.

    Parameters
    ----------
    moving : Volume
        What is read.
    fixed : Volume
        The volume whose grid is wanted.
    resampling : {"nearest", "mean"}
        See `ResampledVolume`; masks of bools take the nearest voxel.

    Returns
    -------
    Volume
        Its bounds count the voxels of `fixed`.

    Raises
    ------
    InputError
        If one of them states no place and they have different extents.
    """
    check_extents(fixed, moving)
    assert fixed.voxel_size_nm is not None
    assert moving.voxel_size_nm is not None
    corner = per_axis(lambda shift, size: shift / size, corner_shift_nm(moving, fixed), moving.voxel_size_nm)
    step = per_axis(lambda size, of: size / of, fixed.voxel_size_nm, moving.voxel_size_nm)
    kind: Resampling = "nearest" if moving.dtype == bool else resampling
    resampled = ResampledVolume.of(moving, corner, step, kind)
    return replace(resampled, voxel_size_nm=fixed.voxel_size_nm, place=fixed.place)


def resample_image(image: Volume, voxel_size_nm: Nm) -> Volume:
    """Return an image with voxels of another size; the corner of its voxel 0, 0, 0 stays where it is.

    Parameters
    ----------
    image : Volume
        Image with a voxel size.
    voxel_size_nm : tuple of float
        The wanted voxel size, z, y, x.

    Returns
    -------
    Volume
        The resampled image.
    """
    assert image.voxel_size_nm is not None
    step = per_axis(lambda size, of: size / of, voxel_size_nm, image.voxel_size_nm)
    resampled = ResampledVolume.of(image, (0.0, 0.0, 0.0), step, "mean")
    place = image.place
    if place is not None and place.anchor == "middle":
        corner = place.corner_nm(image.voxel_size_nm)
        place = replace(place, origin_nm=per_axis(lambda c, size: c + size / 2, corner, voxel_size_nm))
    return replace(resampled, voxel_size_nm=voxel_size_nm, place=place)

"""Boxes of an image as a record keeps them, and finding them again: in the same volume, another resolution, or a copy.

A copy has another name. It is recognised by rows of voxels that the record holds: they are looked for at the same
voxels, at the same place in nm, and, in a volume that is small enough to be read whole, everywhere. A copy with other
grey levels or of another resolution is recognised by patches (`voxel_patches`).
"""

from __future__ import annotations

import hashlib
import itertools
import math
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kasthuri_ray.geometry import Box, Nm, Zyx, box_of_text, per_axis
from kasthuri_ray.storage.uris import redact_secrets
from kasthuri_ray.volumes.alignment import AlignedVolume
from kasthuri_ray.volumes.resampled_volume import ROUNDING, ResampledVolume
from kasthuri_ray.volumes.volume import Volume
from kasthuri_ray.volumes.voxel_grid import box_nm, nearest_voxel
from kasthuri_ray.volumes.voxel_patches import (
    NUM_PATCHES,
    GridChange,
    VoxelPatch,
    record_patches,
    shows_patches,
    size_factors,
)

ROW = 32  # voxels of a row that is recorded
NUM_ROWS = 8  # of an image, at least one of each box
MIN_VALUES = 4  # different ones of a row that is worth keeping
# Of a volume in which rows are looked for everywhere, and of a remote one.
MAX_SEARCHED_VOXELS, MAX_SEARCHED_REMOTE_VOXELS = 1 << 26, 1 << 24
MAX_FOUND = 100  # places of a row that are compared further
SAME_SIZE: Nm = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class VoxelRow:
    """Voxels of an image along x. start: the first voxel, z, y, x. voxels: their bytes, of the type `dtype`."""

    start: Zyx
    dtype: str
    voxels: bytes

    @property
    def values(self) -> np.ndarray:
        return np.frombuffer(self.voxels, self.dtype)

    @property
    def box(self) -> Box:
        return Box.at(self.start, (1, 1, len(self.values)))


@dataclass(frozen=True)
class RecordedImage:
    """Boxes of an image, and what recognises the image.

    Parameters
    ----------
    image : str
        URI of the image, without secrets.
    boxes : mapping
        For each split ("train", "val"), boxes in voxels of the image, z, y, x.
    first_voxel : tuple of int
        First voxel of the image.
    identity, pyramid : str
        Digests of `Volume.identity` and `Volume.pyramid`; "" for a volume without a pyramid.
    voxel_size_nm : tuple of float, optional
        Voxel size of the image.
    corner_nm : tuple of float, optional
        Position of the lower corner of voxel 0, 0, 0; None if the image states no place or no voxel size.
    rows : tuple of VoxelRow
        Rows of the boxes in which voxels differ.
    patches : tuple of VoxelPatch
        Patches of the boxes in which voxels differ.
    """

    image: str
    boxes: Mapping[str, tuple[Box, ...]]
    first_voxel: Zyx
    identity: str
    pyramid: str
    voxel_size_nm: Nm | None = None
    corner_nm: Nm | None = None
    rows: tuple[VoxelRow, ...] = ()
    patches: tuple[VoxelPatch, ...] = ()

    @property
    def all_boxes(self) -> tuple[Box, ...]:
        """Boxes of all splits."""
        return tuple(itertools.chain.from_iterable(self.boxes.values()))

    def to_plain(self) -> dict[str, Any]:
        """Return the record as JSON values; `boxes_nm` is for people."""
        boxes_nm = {split: [self._text_nm(box) for box in boxes] for split, boxes in self.boxes.items()}
        return {
            "image": self.image,
            "boxes": {split: [str(box) for box in boxes] for split, boxes in self.boxes.items()},
            "boxes_nm": None if self.voxel_size_nm is None else boxes_nm,
            "voxel_size_nm": None if self.voxel_size_nm is None else list(self.voxel_size_nm),
            "corner_nm": None if self.corner_nm is None else list(self.corner_nm),
            "first_voxel": list(self.first_voxel),
            "identity": self.identity,
            "pyramid": self.pyramid,
            "rows": [f"{_comma(row.start)} {row.dtype} {row.voxels.hex()}" for row in self.rows],
            "patches": [patch.to_text() for patch in self.patches],
        }

    @classmethod
    def from_plain(cls, record: Mapping[str, Any]) -> RecordedImage:
        """Return the image of a record of `to_plain`; raise KeyError, TypeError or ValueError for another record."""
        size, corner = record["voxel_size_nm"], record["corner_nm"]
        return cls(
            image=str(record["image"]),
            boxes={split: tuple(map(box_of_text, boxes)) for split, boxes in record["boxes"].items()},
            first_voxel=per_axis(int, record["first_voxel"]),
            identity=str(record["identity"]),
            pyramid=str(record["pyramid"]),
            voxel_size_nm=None if size is None else per_axis(float, size),
            corner_nm=None if corner is None else per_axis(float, corner),
            rows=tuple(_parse_row(text) for text in record["rows"]),
            patches=tuple(VoxelPatch.from_text(text) for text in record.get("patches", ())),
        )

    def find_in(self, volume: Volume) -> list[Box] | None:
        """Return the voxels of a volume that show the boxes.

        Parameters
        ----------
        volume : Volume
            Any volume; it may be aligned with another one, or resampled.

        Returns
        -------
        list of Box or None
            In voxels of `volume`, also outside of its bounds; None if it is not known to show the image.
        """
        found = self._find_in_base(_base_of(volume))
        return None if found is None else [map_box(volume, box) for box in found]

    def _find_in_base(self, volume: Volume) -> list[Box] | None:
        if self.identity == _digest(volume.identity) or self.image == redact_secrets(volume.uri):
            return list(self.all_boxes)
        if self.pyramid and self.pyramid == _digest(volume.pyramid) and self.voxel_size_nm and volume.voxel_size_nm:
            return [self._box_by_nm(box, volume) for box in self.all_boxes]
        try:
            change = self._find_change(volume)
        except OSError:  # a volume that cannot be read now shows nothing that is known
            return None
        return None if change is None else [change.box(box) for box in self.all_boxes]

    def _find_change(self, volume: Volume) -> GridChange | None:
        """Return which voxel of a copy of the image, or of a part of it, shows a voxel of the image; None if none."""
        likely = list(dict.fromkeys(self._likely_changes(volume)))
        for change in likely:
            if change.factors == SAME_SIZE and self._shows_rows(volume, change.shift):
                return change
        for change in likely:
            if shows_patches(volume, self.patches, change):
                return change
        limit = MAX_SEARCHED_REMOTE_VOXELS if volume.remote else MAX_SEARCHED_VOXELS
        if volume.bounds.num_voxels > limit or not self.rows:
            return None
        return self._search(volume)

    def _likely_changes(self, volume: Volume) -> Iterator[GridChange]:
        """Yield those of copies with the same voxel indices, with the same first voxel, and at the same place."""
        size, own = volume.voxel_size_nm, self.voxel_size_nm
        for factors in dict.fromkeys((size_factors(own, size) or SAME_SIZE, SAME_SIZE)):
            first = GridChange(factors, (0, 0, 0)).box(Box.at(self.first_voxel, (1, 1, 1))).start
            yield GridChange(factors, (0, 0, 0))
            yield GridChange(factors, per_axis(operator.sub, volume.bounds.start, first))
            if self.corner_nm and volume.place and size and own and size_factors(own, size) == factors:
                zero = Box((0, 0, 0), (1, 1, 1))
                yield GridChange(factors, self._box_by_nm(zero, volume).start)

    def _shows_rows(self, volume: Volume, shift: Zyx) -> bool:
        """Return whether a volume shows all rows that lie in it, at least one."""
        boxes = [(row, row.box.shifted(shift)) for row in self.rows]
        inside = [(row, box) for row, box in boxes if volume.bounds.contains(box)]
        return bool(inside) and all(np.array_equal(volume.read(box).ravel(), row.values) for row, box in inside)

    def _search(self, volume: Volume) -> GridChange | None:
        """Return the change that rows show which are found in a volume, whatever its grey levels; it is read whole."""
        voxels = volume.read(volume.bounds)
        data = voxels.tobytes()
        for change in self._changes_at(volume, (_find_values(data, row.values, voxels.dtype) for row in self.rows)):
            if self._shows_rows(volume, change.shift):
                return change
        steps = _steps(voxels.ravel())
        for change in self._changes_at(volume, (_find_steps(steps, row.values) for row in self.rows)):
            if shows_patches(volume, self.patches, change):
                return change
        return None

    def _changes_at(self, volume: Volume, found: Iterable[Iterator[int]]) -> Iterator[GridChange]:
        """Yield the changes by which rows begin at voxels of a volume, whose numbers were found for each row."""
        for row, indices in zip(self.rows, found, strict=True):
            for index in indices:
                at = np.unravel_index(index, volume.shape)
                first = per_axis(lambda a, b: int(a) + b, at, volume.bounds.start)
                yield GridChange(SAME_SIZE, per_axis(operator.sub, first, row.start))

    def _box_by_nm(self, box: Box, volume: Volume) -> Box:
        """Return the voxels of a volume at the place of a box, in whole voxels, at least one along each axis."""
        assert volume.voxel_size_nm is not None
        size = volume.voxel_size_nm
        corner = [ends[0] for ends in box_nm(volume, Box((0, 0, 0), (1, 1, 1)))]
        start, stop = (
            per_axis(lambda at, c, n: nearest_voxel((at - c) / n), self._position_nm(voxel), corner, size)
            for voxel in (box.start, box.stop)
        )
        return Box(start, per_axis(lambda a, b: max(a + 1, b), start, stop))

    def _position_nm(self, voxel: Zyx) -> Nm:
        """Return the lower corner of a voxel in nm."""
        assert self.voxel_size_nm is not None
        return per_axis(lambda c, a, n: c + a * n, self.corner_nm or (0.0, 0.0, 0.0), voxel, self.voxel_size_nm)

    def _text_nm(self, box: Box) -> str:
        if self.voxel_size_nm is None:
            return ""
        ends = zip(self._position_nm(box.start), self._position_nm(box.stop), strict=True)
        return ",".join(f"{start:g}:{stop:g}" for start, stop in ends)


def record_image(volume: Volume, boxes: Mapping[str, Sequence[Box]], num_rows: int = NUM_ROWS) -> RecordedImage:
    """Return the record of boxes of a volume; read some rows and patches of them.

    Parameters
    ----------
    volume : Volume
        The image.
    boxes : mapping
        For each split, boxes in its voxels, z, y, x.
    num_rows : int
        Rows to read, at least one of each box, and most patches; those of few values are not kept.

    Returns
    -------
    RecordedImage
        The record.

    Raises
    ------
    VolumeError
        If the source fails.
    """
    all_boxes = [box for split in boxes.values() for box in split]
    places = [at for box in all_boxes for at in _row_boxes(box, -(-num_rows // len(all_boxes)))]
    rows = [VoxelRow(at.start, volume.dtype.str, volume.read(at).tobytes()) for at in places]
    size, place = volume.voxel_size_nm, volume.place
    num_patches = min(NUM_PATCHES, num_rows)
    return RecordedImage(
        image=redact_secrets(volume.uri),
        boxes={split: tuple(each) for split, each in boxes.items() if each},
        first_voxel=volume.bounds.start,
        identity=_digest(volume.identity),
        pyramid=_digest(volume.pyramid),
        voxel_size_nm=None if size is None else per_axis(float, size),
        corner_nm=None if size is None or place is None else per_axis(float, place.corner_nm(size)),
        rows=tuple(row for row in rows if len(np.unique(row.values)) >= MIN_VALUES),
        patches=record_patches(volume, all_boxes, num_patches),
    )


def map_box(volume: Volume, box: Box) -> Box:
    """Return a box of the volume that an aligned or resampled one reads, in voxels of the latter.

    Parameters
    ----------
    volume : Volume
        A volume of `align_volumes` or `resample_image`, or any other one.
    box : Box
        In voxels of the volume that is read.

    Returns
    -------
    Box
        All voxels that lie in the box, wholly or in part; also outside of the bounds.
    """
    if isinstance(volume, AlignedVolume):
        return map_box(volume.source, box).shifted(volume.shift)
    if isinstance(volume, ResampledVolume):
        inner = map_box(volume.source, box)
        start = per_axis(lambda a, c, n: math.floor((a - c) / n + ROUNDING), inner.start, volume.corner, volume.step)
        stop = per_axis(lambda b, c, n: math.ceil((b - c) / n - ROUNDING), inner.stop, volume.corner, volume.step)
        return Box(start, stop)
    return box


def _base_of(volume: Volume) -> Volume:
    while isinstance(volume, AlignedVolume | ResampledVolume):
        volume = volume.source
    return volume


def _row_boxes(box: Box, num_rows: int) -> Iterator[Box]:
    """Yield rows along x that are spread over a box; no two share z, y and x."""
    length = min(ROW, box.shape[2])
    room = (box.shape[0], box.shape[1], box.shape[2] - length + 1)
    for number in range(num_rows):
        places = number, 3 * number % num_rows, 5 * number % num_rows
        start = per_axis(lambda a, n, k: a + (2 * k + 1) * n // (2 * num_rows), box.start, room, places)
        yield Box.at(start, (1, 1, length))


def _find_values(data: bytes, values: np.ndarray, dtype: np.dtype) -> Iterator[int]:
    """Yield the numbers of the items of `data` from which on it holds `values`; both may have different types."""
    wanted = values.astype(dtype)
    if not np.array_equal(wanted, values):
        return
    pattern, size = wanted.tobytes(), dtype.itemsize
    starts = itertools.accumulate(itertools.repeat(None), lambda at, _: data.find(pattern, at + 1), initial=-1)
    for start in itertools.takewhile(lambda at: at >= 0, itertools.islice(starts, 1, None)):
        if start % size == 0:
            yield start // size


def _steps(values: np.ndarray) -> np.ndarray:
    """Return where values rise and fall, int8 of -1, 0, 1: the same for all grey levels that keep their order."""
    return (values[1:] > values[:-1]).view(np.int8) - (values[1:] < values[:-1]).view(np.int8)


def _find_steps(steps: np.ndarray, values: np.ndarray) -> Iterator[int]:
    """Yield where the steps of an image are those of a row, of the row itself and of its inversion."""
    wanted, data = _steps(values), steps.tobytes()
    for pattern in (wanted.tobytes(), (-wanted).tobytes()):
        starts = itertools.accumulate(itertools.repeat(None), lambda at, _: data.find(pattern, at + 1), initial=-1)  # noqa: B023
        yield from itertools.takewhile(lambda at: at >= 0, itertools.islice(starts, 1, MAX_FOUND))


def _digest(name: str | None) -> str:
    return "" if name is None else hashlib.blake2b(name.encode(), digest_size=16).hexdigest()


def _comma(values: Sequence[int]) -> str:
    return ",".join(map(str, values))


def _parse_row(text: str) -> VoxelRow:
    start, dtype, voxels = text.split(" ")
    return VoxelRow(per_axis(int, start.split(",")), dtype, bytes.fromhex(voxels))

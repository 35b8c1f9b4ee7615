"""The interface of every source of voxels: `Volume`."""

from __future__ import annotations

import itertools
import math
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from types import EllipsisType
from typing import Any, ClassVar

import numpy as np

from kasthuri_ray.errors import InputError
from kasthuri_ray.geometry import Box, Nm, Zyx, check_inside, per_axis
from kasthuri_ray.volumes.place import Place

_opening_numbers = itertools.count()


@dataclass(kw_only=True)
class Volume(ABC):
    """A read-only array of voxels with a URI, a voxel size and a place in nm.

    It is picklable: Ray sends it to the process that reads it.

    Parameters
    ----------
    uri : str
        Name by which the volume was opened, resolution included.
    bounds : Box
        Voxels that the volume holds, z, y, x, its own offset included.
    dtype : np.dtype
        Type of the voxels that `read` returns.
    voxel_size_nm : tuple of float or None
        Size of a voxel along z, y, x, in nm; None if the source does not state it.
    chunk : tuple of int
        Shape of what the source fetches at once, z, y, x. A read that is aligned to the chunk grid wastes nothing.
    chunk_origin : tuple of int
        A voxel at a corner of the chunk grid, z, y, x.
    remote : bool
        Whether reads use the network (and are cached).
    fill_value : float
        Value of the voxels that are not stored.
    source_id : str or None
        Unique name of the voxels where the URI is not unique, because it omits the server or the bucket.
    place : Place or None
        Position of voxel 0, 0, 0 in nm; None if the source states none. It does not move the bounds, which count the
        voxels of this array.
    pyramid : str or None
        Name that all resolutions of a volume share; None if there is only one resolution.
    folder : str or None
        Where the bytes are stored, as a real path or `s3://bucket/key`; None if it is neither.
    notes : tuple of str
        Lines that a person should read about how the volume was understood.
    format : str
        Name of the format, for people.
    stored_axes : str
        Stored axes in their order, such as `x,y,z,-`; `-` is one of length 1 that is dropped.
    voxel_size_source : str
        What states the voxel size; empty without one.
    decode_shape : tuple of int or None
        What any read decodes at once, z, y, x, if that is much more than a chunk, such as a compressed section. Its
        grid begins at `chunk_origin`, and along each axis it is a multiple of a chunk or not shorter than the volume.
    """

    uri: str
    bounds: Box
    dtype: np.dtype
    voxel_size_nm: Nm | None
    chunk: Zyx
    chunk_origin: Zyx
    remote: bool = False
    fill_value: float = 0
    source_id: str | None = None
    place: Place | None = None
    pyramid: str | None = None
    folder: str | None = None
    notes: tuple[str, ...] = ()
    format: str = ""
    stored_axes: str = ""
    voxel_size_source: str = ""

    may_lack_chunks: ClassVar[bool] = False  # whether the source stores chunks that may be absent
    decode_shape: Zyx | None = None

    @property
    def identity(self) -> str:
        """Unique name of these voxels; the cache stores their chunks under it."""
        return self.source_id or self.uri

    @property
    def is_cached(self) -> bool:
        """Whether the chunk cache keeps the chunks: a read uses the network, or decodes much more than a chunk."""
        return self.remote or self.decode_shape is not None

    @property
    def translation_nm(self) -> Nm:
        """Position of voxel 0, 0, 0 as it is stated, whether of its middle or its corner; 0 without a place.

        An output of this image states it as the translation of OME.
        """
        return (0.0, 0.0, 0.0) if self.place is None else self.place.origin_nm

    def read(self, box: Box) -> np.ndarray:
        """Return the voxels of a box.

        Parameters
        ----------
        box : Box
            Voxels to read, z, y, x; they must be inside the bounds.

        Returns
        -------
        np.ndarray
            Voxels, z, y, x, of `dtype`, in C order, possibly read-only.

        Raises
        ------
        InputError
            If the box is outside the bounds or empty.
        VolumeError
            If the source fails; the message names the volume and the box.
        """
        check_inside(box, self.bounds, f"a cutout of {self.uri}")
        voxels = self._read(box)
        assert voxels.shape == box.shape, (self.uri, box, voxels.shape)
        assert voxels.dtype == self.dtype, (self.uri, box, voxels.dtype)
        return voxels

    def count_absent(self, box: Box, voxels: np.ndarray | None = None, within: Box | None = None) -> tuple[int, int]:
        """Count the chunks that are not stored.

        Parameters
        ----------
        box : Box
            Box of voxels.
        voxels : ndarray, optional
            Voxels of the box, or their classes, if they were read: only chunks that hold one value alone are asked for.
        within : Box, optional
            Box that is divided into several of which `box` is one: of its chunks those count whose part in `within`
            begins in `box`, so that each counts once. By default all chunks that meet `box`.

        Returns
        -------
        absent, chunks : int
            Number of chunks that are not stored, and of all.
        """
        within = (within or box).intersect(self.bounds)
        if not self.may_lack_chunks:
            return 0, self.count_chunks(box, within)
        ranges = self._chunk_ranges(box, within)
        chunks = [Box(*zip(*each, strict=True)) for each in itertools.product(*ranges)]
        suspects = chunks
        if voxels is not None:
            parts = [voxels[chunk.intersect(box).slices(box.start)] for chunk in chunks]
            suspects = [chunk for chunk, part in zip(chunks, parts, strict=True) if _is_constant(part)]
        try:
            return sum(self._are_absent(suspects)), len(chunks)
        except (OSError, ValueError):  # no reason to lose voxels that were read
            return 0, len(chunks)

    def count_chunks(self, box: Box, within: Box | None = None) -> int:
        """Return how many chunks there are; parameters as of `count_absent`."""
        return math.prod(map(len, self._chunk_ranges(box, (within or box).intersect(self.bounds))))

    def has_any_chunk(self, box: Box) -> bool:
        """Return whether at least one chunk of a box is stored, as far as the source can say."""
        return True

    def find_stored(self, box: Box) -> Box | None:
        """Return a stored chunk of a box, cut to it; None if there is none, or if the source cannot find one soon."""
        return None

    def _chunk_ranges(self, box: Box, within: Box) -> tuple[list[tuple[int, int]], ...]:
        """Return along each axis the ranges of chunks, cut to `within`, that begin in a box."""

        def along(length: int, origin: int, start: int, stop: int, low: int, high: int) -> list[tuple[int, int]]:
            first = origin + (max(start, low) - origin) // length * length
            cut = ((max(at, low), min(at + length, high)) for at in range(first, min(stop, high), length))
            return [(begin, end) for begin, end in cut if start <= begin < stop]

        return per_axis(along, self.chunk, self.chunk_origin, box.start, box.stop, within.start, within.stop)

    def _are_absent(self, chunks: list[Box]) -> list[bool]:
        """Return which of several chunks are not stored."""
        raise NotImplementedError

    @property
    def shape(self) -> Zyx:
        """Number of voxels along z, y, x."""
        return self.bounds.shape

    @property
    def ndim(self) -> int:
        """Number of axes, always 3."""
        return 3

    def __getitem__(self, index: Any) -> np.ndarray:
        """Return the voxels of slices or numbers along z, y, x, in voxels of the volume, its own offset included.

        `volume[0:10, 100:200]` reads ten sections of 100 rows, `volume[3]` one section, without its axis z, and
        `volume[...]` all. Steps are refused with an InputError, and so are negative indices that count from the end: an
        index of a volume may itself be negative.
        """
        given = _index_of_each_axis(index)
        ranges = [each if isinstance(each, slice) else slice(each, each + 1) for each in given]
        if len(ranges) != 3 or not all(each.step in (None, 1) for each in ranges):
            raise InputError(
                f"{self.uri}: a volume is read by up to three slices without steps, or whole numbers, such as "
                "[0:10, 5:9] or [3]"
            )
        low, high = self.bounds.start, self.bounds.stop
        start = per_axis(lambda each, default: default if each.start is None else int(each.start), ranges, low)
        stop = per_axis(lambda each, default: default if each.stop is None else int(each.stop), ranges, high)
        return self.read(Box(start, stop))[tuple(slice(None) if isinstance(each, slice) else 0 for each in given)]

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield the sections."""
        return (self[z] for z in range(self.bounds.start[0], self.bounds.stop[0]))

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        """Return all voxels."""
        return np.array(self[:], dtype)

    def __repr__(self) -> str:
        size = ",".join(f"{length:g}" for length in self.voxel_size_nm) + " nm" if self.voxel_size_nm else "unknown"
        return f"<Volume {self.uri}: {self.bounds} (z,y,x), {self.dtype}, voxel size {size}>"

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.__repr__ = Volume.__repr__  # type: ignore[method-assign]  # else `dataclass` makes one of all fields

    @abstractmethod
    def _read(self, box: Box) -> np.ndarray:
        """Return the voxels of a box that is known to be inside the bounds."""


def _index_of_each_axis(index: Any) -> list[Any]:
    """Return the slices and whole numbers of an index, one for each axis; an empty list for any other index."""
    given = list(index) if isinstance(index, tuple) else [index]
    kinds = [type(each) for each in given]
    at = kinds.index(EllipsisType) if kinds.count(EllipsisType) == 1 else len(given)
    given[at : at + 1] = [slice(None)] * (3 - len(given) + (at < len(given)))
    is_valid = all(issubclass(kind, slice | int | np.integer) and kind is not bool for kind in map(type, given))
    return given if is_valid else []


def _is_constant(voxels: np.ndarray) -> bool:
    first = voxels.flat[0]
    if first != first:  # nan
        return bool(np.isnan(voxels).all())
    return not any((section != first).any() for section in voxels)


def make_opening_id() -> str:
    """Return a unique id of one opening of a source.

    A process keeps its open files by this id: a volume that is written and opened again is read again.
    """
    return f"{os.getpid()}-{time.time_ns()}-{next(_opening_numbers)}"

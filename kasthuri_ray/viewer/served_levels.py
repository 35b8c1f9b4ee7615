"""The resolutions of a volume that the viewer can show: those that it has, and coarser ones that are made from them."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np

from kasthuri_ray.errors import InputError
from kasthuri_ray.geometry import Box, Nm, Zyx, ceil_div, per_axis
from kasthuri_ray.output import pyramid
from kasthuri_ray.viewer.chunk_memory import ChunkMemory, RememberedVolume
from kasthuri_ray.volumes.opening import VolumeOpener
from kasthuri_ray.volumes.uri_options import split_uri_options
from kasthuri_ray.volumes.volume import Volume

MAX_MADE_FROM_VOXELS = 512_000_000  # of a level from which coarser ones are made
MAX_MIPS = 16
MIN_SECTION = 256  # voxels of the longer side of a section: below it no coarser resolution is looked for
MAX_UNIT_BYTES = 32_000_000  # of a chunk of the source that is read whole
MIN_CHUNK_VOXELS, MAX_CHUNK_VOXELS = 1 << 15, 1 << 20  # of what the viewer asks for at once

Content = Literal["image", "probability", "labels"]


@dataclass(frozen=True)
class ServedLevel:
    """A resolution that is served.

    Parameters
    ----------
    volume : Volume
        Its voxels, kept in memory.
    size : tuple of float
        Length of a voxel along z, y, x, in nm; in voxels of the finest level if its size is not known.
    corner : tuple of float
        Position of the lower corner of its first voxel, in the same unit.
    chunk : tuple of int
        What the viewer asks for at once; its grid begins at the first voxel.
    """

    volume: Volume
    size: Nm
    corner: Nm
    chunk: Zyx


@dataclass(kw_only=True)
class DownsampledVolume(Volume):
    """Every cell of voxels of another volume as one voxel: the mean of an image, the highest label.

    The highest label keeps an object visible that is smaller than a voxel.
    """

    source: Volume
    factors: Zyx
    content: Content

    @classmethod
    def of(cls, source: Volume, factors: Zyx, content: Content) -> DownsampledVolume:
        """Return the level; its first voxel is 0, 0, 0."""
        shared: dict[str, Any] = {item.name: getattr(source, item.name) for item in fields(Volume)}
        shared |= {
            "bounds": Box.at((0, 0, 0), per_axis(ceil_div, source.bounds.shape, factors)),
            "chunk_origin": (0, 0, 0),
            "place": None,
        }
        return cls(**shared, source=source, factors=factors, content=content)

    def _read(self, box: Box) -> np.ndarray:
        finer = box.scaled(self.factors).shifted(self.source.bounds.start).intersect(self.source.bounds)
        return reduce_cells(self.source.read(finer), self.factors, self.content)


def reduce_cells(voxels: np.ndarray, factors: Zyx, content: Content) -> np.ndarray:
    """Return one voxel for each cell: the mean, or the highest label.

    Parameters
    ----------
    voxels : ndarray
        z, y, x.
    factors : tuple of int
        Shape of a cell; the last cell along an axis may be cut.
    content : {"image", "probability", "labels"}
        What the voxels are.

    Returns
    -------
    ndarray
        Of the type of `voxels`.
    """
    if content != "labels" and voxels.dtype == np.uint8 and set(factors) <= {1, 2}:
        return pyramid.downsample(voxels, factors)
    missing = per_axis(lambda n, f: -n % f, voxels.shape, factors)
    if any(missing):
        voxels = np.pad(voxels, [(0, n) for n in missing], mode="edge")
    z, y, x = per_axis(operator.floordiv, voxels.shape, factors)
    cells = voxels.reshape(z, factors[0], y, factors[1], x, factors[2])
    if content == "labels":
        return cells.max((1, 3, 5))
    mean = cells.mean((1, 3, 5), dtype=np.float64)
    return (np.rint(mean) if voxels.dtype.kind in "ui" else mean).astype(voxels.dtype)


def find_levels(uri: str, volume: Volume, opener: VolumeOpener, content: Content) -> Iterator[Volume]:
    """Yield a volume and the coarser resolutions that its source has, finest first.

    Parameters
    ----------
    uri : str
        What a person gave; it may name a resolution, from which on they are returned.
    volume : Volume
        What it opened.
    opener : VolumeOpener
        Opens the others.
    content : {"image", "probability", "labels"}
        What the voxels are.
    """
    yield volume
    if (volume.pyramid is None and not uri.startswith("bossdb://")) or max(volume.shape[1:]) <= MIN_SECTION:
        return
    whole, first = _split_resolution(uri)
    for mip in range(first + 1, MAX_MIPS):
        try:
            coarser = opener.open(whole, mip, labels=content == "labels")
        except (InputError, FileNotFoundError):
            return  # there is none
        yield coarser
        if max(coarser.shape[1:]) <= MIN_SECTION:
            return


def _split_resolution(uri: str) -> tuple[str, int]:
    """Return a URI without the resolution that it names, and this resolution."""
    match = re.fullmatch(r"(.*)#mip=(\d+)", uri) or re.fullmatch(r"(bossdb://[^/]+/[^/]+/[^/]+)/(\d+)/?", uri)
    return (match[1], int(match[2])) if match else (uri, 0)


def serve_levels(
    volumes: Sequence[Volume], memory: ChunkMemory, content: Content, *, size_is_given: bool = False
) -> list[ServedLevel]:
    """Return what is served of a volume.

    Parameters
    ----------
    volumes : sequence of Volume
        Its resolutions, finest first.
    memory : ChunkMemory
        Keeps the chunks of all of them.
    content : {"image", "probability", "labels"}
        What the voxels are.
    size_is_given : bool
        Whether the voxel size or the place of the finest one is given, so that of the sizes of the others only their
        ratios count, and of their places nothing.

    Returns
    -------
    list of ServedLevel
        The resolutions, and coarser ones that are made of the last one if it has fewer than 512 million voxels.
    """
    finest = volumes[0]
    size = finest.voxel_size_nm or (1.0, 1.0, 1.0)
    origin = corner_of_first_voxel(finest)
    levels = []
    for volume in volumes:
        of_level, corner = volume.voxel_size_nm, corner_of_first_voxel(volume)
        if size_is_given or of_level is None or finest.voxel_size_nm is None:
            of_level, corner = per_axis(operator.mul, size, _find_factors(finest, volume)), origin
        levels.append(_serve(volume, of_level, corner, memory))
    if volumes[-1].bounds.num_voxels < MAX_MADE_FROM_VOXELS:
        levels += _make_coarser(levels[-1], finest.voxel_size_nm is not None, memory, content)
    return levels


def _find_factors(finest: Volume, coarser: Volume) -> Nm:
    """Return how many voxels of the finest resolution a voxel of another one is long, z, y, x.

    That is the ratio of the voxel sizes, if both are known and the shapes fit it: the options of a URI state one size
    for all resolutions. Else it is the ratio of the shapes, which is inexact along an axis of few voxels.
    """
    sizes = finest.voxel_size_nm, coarser.voxel_size_nm
    ratios = per_axis(operator.truediv, sizes[1], sizes[0]) if sizes[0] and sizes[1] else (0.0, 0.0, 0.0)

    def choose(n: int, m: int, ratio: float) -> float:
        return ratio if abs(n - m * ratio) < max(1.0, ratio) else max(1, round(n / m))

    return per_axis(choose, finest.shape, coarser.shape, ratios)


def has_size_or_place(uri: str) -> bool:
    """Return whether the options of a URI state a voxel size or a place."""
    options = split_uri_options(uri)[1]
    return options.voxel_size_nm is not None or options.offset_nm is not None


def with_voxel_size(volumes: Sequence[Volume], size: Nm) -> list[Volume]:
    """Return the resolutions of a volume with another voxel size of the finest one; the ratios of their sizes stay."""
    own = volumes[0].voxel_size_nm

    def rescale(volume: Volume) -> Volume:
        stated = volume.voxel_size_nm
        ratio = per_axis(operator.truediv, stated, own) if own and stated else None
        return replace(volume, voxel_size_nm=ratio and per_axis(operator.mul, size, ratio))

    return [replace(volumes[0], voxel_size_nm=size), *map(rescale, volumes[1:])]


def corner_of_first_voxel(volume: Volume) -> Nm:
    """Return the position of the lower corner of the first voxel of a volume, in nm, in voxels without a size."""
    size = volume.voxel_size_nm
    if size is None:
        return per_axis(float, volume.bounds.start)
    corner = (0.0, 0.0, 0.0) if volume.place is None else volume.place.corner_nm(size)
    return per_axis(lambda c, a, n: c + a * n, corner, volume.bounds.start, size)


def _serve(volume: Volume, size: Nm, corner: Nm, memory: ChunkMemory, is_computed: bool = False) -> ServedLevel:
    chunk = choose_chunk(volume.chunk, volume.shape)
    whole_chunks = math.prod(volume.chunk) * volume.dtype.itemsize <= MAX_UNIT_BYTES
    nests = all(per_axis(lambda n, m: n % m == 0 or n == m, volume.chunk, chunk))
    unit, origin = (volume.chunk, volume.chunk_origin) if whole_chunks and nests else (chunk, volume.bounds.start)
    remembered = RememberedVolume.of(volume, memory, unit, origin, is_computed)
    return ServedLevel(remembered, size, corner, chunk)


def choose_chunk(chunk: Zyx, shape: Zyx) -> Zyx:
    """Return the shape of what the viewer asks for at once: parts of a large chunk, or several small ones.

    Parameters
    ----------
    chunk : tuple of int
        Of the source, z, y, x.
    shape : tuple of int
        Of the volume.

    Returns
    -------
    tuple of int
        z, y, x.
    """
    sides = list(per_axis(min, chunk, shape))
    while math.prod(sides) > MAX_CHUNK_VOXELS:
        axis = max(range(3), key=lambda axis: (sides[axis] % 2 == 0 or sides[axis] > 1024, sides[axis]))
        sides[axis] = ceil_div(sides[axis], 2)
    while math.prod(sides) < MIN_CHUNK_VOXELS and any(n < m for n, m in zip(sides, shape, strict=True)):
        axis = min(range(3), key=lambda axis: (sides[axis] >= shape[axis], sides[axis], -axis))
        sides[axis] = min(2 * sides[axis], shape[axis])
    return sides[0], sides[1], sides[2]


def _make_coarser(last: ServedLevel, has_size: bool, memory: ChunkMemory, content: Content) -> Iterator[ServedLevel]:
    """Yield the levels that are made from the last one that the source has."""
    source, size = last.volume, last.size
    for level in pyramid.plan_levels(last.volume.shape, last.size if has_size else None)[1:]:
        size = per_axis(operator.mul, size, level.step)
        made = DownsampledVolume.of(source, level.step, content)
        served = _serve(made, size, last.corner, memory, is_computed=True)
        yield served
        source = served.volume

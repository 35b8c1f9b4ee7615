"""The values of a volume, from a bounded number of cutouts that are spread over it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from kasthuri_ray.geometry import Box, Zyx, per_axis
from kasthuri_ray.volumes.cutout_sample import NUM_THREADS, spread_cutouts
from kasthuri_ray.volumes.parallel_calls import map_threads
from kasthuri_ray.volumes.volume import Volume

MAX_WHOLE, MAX_WHOLE_FLOATS = 1 << 25, 1 << 23  # voxels of a volume that is read whole
CUTOUT_SIDE = 512  # voxels along y and x
NUM_STORED = 3  # stored chunks that are looked for in a volume of which next to nothing is stored


@dataclass(frozen=True, eq=False)
class ValueCounts:
    """Distinct values, and how often each occurs.

    Parameters
    ----------
    values : ndarray, shape (n,)
        Distinct values, rising, without nan.
    counts : ndarray of int64, shape (n,)
        Voxels of each.
    num_nan : int
        Voxels that are nan.
    """

    values: np.ndarray
    counts: np.ndarray
    num_nan: int = 0

    @classmethod
    def of(cls, voxels: np.ndarray) -> ValueCounts:
        """Count the values of voxels."""
        values, counts = np.unique(voxels, return_counts=True)
        num_nan = int(counts[-1]) if values.dtype.kind == "f" and len(values) and np.isnan(values[-1]) else 0
        kept = len(values) - bool(num_nan)
        return cls(values[:kept], counts[:kept].astype(np.int64), num_nan)

    @classmethod
    def merge(cls, parts: Sequence[ValueCounts]) -> ValueCounts:
        """Add up counts; there is at least one part."""
        values, index = np.unique(np.concatenate([part.values for part in parts]), return_inverse=True)
        counts = np.zeros(len(values), np.int64)
        np.add.at(counts, index, np.concatenate([part.counts for part in parts]))
        return cls(values, counts, sum(part.num_nan for part in parts))

    @property
    def num_voxels(self) -> int:
        """Number of voxels, nan included."""
        return int(self.counts.sum()) + self.num_nan

    def share(self, chosen: np.ndarray, among: np.ndarray | None = None) -> float:
        """Return the share of the voxels whose values are chosen; 0 without voxels.

        Parameters
        ----------
        chosen : ndarray of bool, shape (n,)
            Which of `values` are counted.
        among : ndarray of bool, shape (n,), optional
            Which of them count as all; by default all voxels do, nan included.
        """
        total = self.num_voxels if among is None else int(self.counts[among].sum())
        return float(self.counts[chosen].sum() / total) if total else 0.0

    def percentiles(self, percents: Iterable[float]) -> list[np.generic]:
        """Return percentiles, each of which is a value that occurs; none if all voxels are nan."""
        reached = np.cumsum(self.counts)
        if not len(reached):
            return []
        return [self.values[np.searchsorted(reached, percent / 100 * reached[-1])] for percent in percents]


@dataclass(frozen=True)
class ValueSample:
    """The values of some cutouts of a volume.

    Parameters
    ----------
    cutouts : tuple of (Box, ValueCounts)
        The cutouts, each of one section.
    is_whole : bool
        Whether they are all voxels of the volume.
    is_stored_part : bool
        Whether only chunks that are stored were taken, since nothing is stored in cutouts that are spread evenly.
    """

    cutouts: tuple[tuple[Box, ValueCounts], ...]
    is_whole: bool
    is_stored_part: bool = False

    @cached_property
    def total(self) -> ValueCounts:
        """The values of all cutouts."""
        return ValueCounts.merge([values for _, values in self.cutouts])

    def shifted(self, by: Zyx) -> ValueSample:
        """Return the sample with all boxes moved by a number of voxels."""
        return replace(self, cutouts=tuple((box.shifted(by), values) for box, values in self.cutouts))


def sample_values(volume: Volume) -> ValueSample:
    """Read cutouts of a volume, and count their values.

    A small volume is read whole. Of a larger one the cutouts are spread over all of it (`spread_cutouts`). If nothing
    is stored in any of them, chunks that are stored are looked for.

    Parameters
    ----------
    volume : Volume
        Any volume.

    Returns
    -------
    ValueSample
        Values and cutouts.

    Raises
    ------
    VolumeError
        If the source fails.
    """
    if volume.bounds.num_voxels <= (MAX_WHOLE_FLOATS if volume.dtype.kind == "f" else MAX_WHOLE):
        piece = (volume.chunk[0], *volume.shape[1:])
        return ValueSample(_count_sections(volume, list(volume.bounds.cells(piece, volume.chunk_origin))), True)
    cutouts = list(itertools.chain(*spread_cutouts(volume, volume.bounds, cutout=_cutout_shape(volume))))
    if all(absent == chunks for absent, chunks in map(volume.count_absent, cutouts)):
        thirds = split_sections(volume.bounds, NUM_STORED)
        stored = [chunk for third in thirds if (chunk := volume.find_stored(third)) is not None]
        if stored:
            return ValueSample(_count_sections(volume, [cutout_around(volume, chunk) for chunk in stored]), False, True)
    return ValueSample(_count_sections(volume, cutouts), False)


def _count_sections(volume: Volume, boxes: Sequence[Box]) -> tuple[tuple[Box, ValueCounts], ...]:
    """Read boxes, and count the values of each of their sections."""
    counts: dict[Box, ValueCounts] = {}

    def read(box: Box) -> None:
        for z, section in enumerate(volume.read(box), start=box.start[0]):
            counts[Box((z, *box.start[1:]), (z + 1, *box.stop[1:]))] = ValueCounts.of(section)

    map_threads(read, boxes, NUM_THREADS if volume.remote else 1)
    return tuple(sorted(counts.items(), key=lambda item: item[0].start))


def cutout_around(volume: Volume, box: Box) -> Box:
    """Return a cutout of the usual shape that holds the middle of a box, on the grid of the chunks.

    Parameters
    ----------
    volume : Volume
        Any volume.
    box : Box
        Voxels inside its bounds.

    Returns
    -------
    Box
        At most 512 x 512 voxels of one section, or of several small ones.
    """
    shape = _cutout_shape(volume)

    def first(at: int, length: int, chunk: int, origin: int, low: int, high: int) -> int:
        step = min(chunk, length)
        return max(low, min(origin + (at - origin) // step * step, high - length))

    middle = per_axis(lambda a, b: (a + b) // 2, box.start, box.stop)
    bounds = volume.bounds
    return Box.at(per_axis(first, middle, shape, volume.chunk, volume.chunk_origin, bounds.start, bounds.stop), shape)


def _cutout_shape(volume: Volume) -> Zyx:
    """Return the usual shape of a cutout: one section, or several of a volume of small sections."""
    height, width = (min(CUTOUT_SIDE, length) for length in volume.shape[1:])
    return max(1, min(volume.chunk[0], CUTOUT_SIDE**2 // (height * width))), height, width


def split_sections(box: Box, number: int) -> list[Box]:
    """Return parts of a box that divide its sections evenly.

    Parameters
    ----------
    box : Box
        What is divided.
    number : int
        Number of parts.

    Returns
    -------
    list of Box
        Fewer if the box has fewer sections.
    """
    starts = [box.start[0] + box.shape[0] * i // number for i in range(number + 1)]
    return [Box((a, *box.start[1:]), (b, *box.stop[1:])) for a, b in itertools.pairwise(starts) if a < b]


def best_cutout(sample: ValueSample, part: Box, score: Callable[[ValueCounts], float]) -> Box | None:
    """Return the cutout of a sample that has the highest score.

    Parameters
    ----------
    sample : ValueSample
        The cutouts.
    part : Box
        Those count that overlap this box.
    score : callable
        Returns the score of a cutout from its values.

    Returns
    -------
    Box or None
        The best cutout, cut to the box; of equal ones that nearest to the middle section. None if none scores above 0.
    """
    middle = (part.start[0] + part.stop[0] - 1) / 2
    scored = [(score(values), -abs(box.start[0] - middle), box) for box, values in sample.cutouts if part.overlaps(box)]
    best = max(scored, key=lambda each: each[:2], default=(0.0, 0.0, part))
    return best[2].intersect(part) if best[0] > 0 else None

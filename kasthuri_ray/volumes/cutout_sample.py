"""A sample of a box: cutouts that are spread over it, so that a check before the work reads little."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Sequence

import numpy as np

from kasthuri_ray.geometry import Box, Nm, Zyx, ceil_div, per_axis
from kasthuri_ray.volumes.parallel_calls import map_threads
from kasthuri_ray.volumes.volume import Volume

NUM_CUTOUTS = 32
CUTOUT: Zyx = (2, 64, 64)
MAX_DECODED_BYTES = 1 << 30  # of the chunks, or compressed sections, that hold the cutouts
NUM_THREADS = 8

# Steps of the R3 sequence, whose points spread evenly in a cube, however many they are (M. Roberts, "The unreasonable
# effectiveness of quasirandom sequences", 2018).
R3_STEPS = (0.8191725133961645, 0.6710436067037893, 0.5497004779019703)


def read_sample(volume: Volume, box: Box, num_cutouts: int = NUM_CUTOUTS) -> np.ndarray:
    """Read cutouts that are spread over a box.

    Parameters
    ----------
    volume : Volume
        Any volume.
    box : Box
        Voxels inside its bounds, z, y, x.
    num_cutouts : int
        Least number of cutouts; of a box that is not larger than they are together, all voxels are read.

    Returns
    -------
    ndarray
        The voxels in one row. They are the same each time, without those of chunks that cannot be read.

    Raises
    ------
    VolumeError
        If the source fails for more than half of the sample.
    """
    groups = spread_cutouts(volume, box, num_cutouts)
    voxels: dict[int, np.ndarray] = {}
    failures: list[OSError] = []

    def read(number: int) -> None:
        try:
            voxels[number] = np.concatenate([volume.read(cutout).ravel() for cutout in groups[number]])
        except OSError as error:  # of one chunk: the work will meet it, and deals with it
            failures.append(error)

    map_threads(read, range(len(groups)), NUM_THREADS)
    if 2 * len(failures) > len(groups):
        raise failures[0]
    return np.concatenate([voxels[number] for number in sorted(voxels)])


def sample_boxes(volume: Volume, boxes: Sequence[Box], num_cutouts: int = NUM_CUTOUTS) -> np.ndarray:
    """Read cutouts that are spread over several boxes of a volume, `num_cutouts` in all; see `read_sample`."""
    return np.concatenate([read_sample(volume, box, ceil_div(num_cutouts, len(boxes))) for box in boxes])


def spread_cutouts(volume: Volume, box: Box, num_cutouts: int = NUM_CUTOUTS, cutout: Zyx = CUTOUT) -> list[list[Box]]:
    """Return cutouts that are spread over a box, those of each chunk together.

    Parameters
    ----------
    volume, box, num_cutouts : Volume, Box, int
        As of `read_sample`.
    cutout : tuple of int
        Largest shape of a cutout, z, y, x.

    Returns
    -------
    list of list of Box
        All of a box that is small enough, else parts of at most `cutout`. None crosses the border of a chunk, or of a
        section that is decoded as a whole, unless chunks are smaller than a cutout.
    """
    unit = volume.decode_shape or per_axis(lambda n, c: ceil_div(n, c) * c, cutout, volume.chunk)
    counts = per_axis(operator.floordiv, box.grown_to_grid(unit, volume.chunk_origin).shape, unit)
    unit_bytes = math.prod(per_axis(min, unit, volume.shape)) * volume.dtype.itemsize
    most = max(2, MAX_DECODED_BYTES // unit_bytes)
    if box.num_voxels <= num_cutouts * math.prod(cutout) and math.prod(counts) <= most:
        return [[part] for part in box.cells(unit, volume.chunk_origin)]
    points = map(_r3_point, itertools.count())
    if math.prod(counts) <= min(num_cutouts, most):
        parts = list(box.cells(unit, volume.chunk_origin))
    else:
        found: dict[Box, None] = {}
        while len(found) < min(num_cutouts, most):
            voxel = _box_at(next(points), box, (1, 1, 1))
            found[voxel.grown_to_grid(unit, volume.chunk_origin).intersect(box)] = None
        parts = list(found)
    per_part = ceil_div(num_cutouts, len(parts))
    return [[_box_at(next(points), part, cutout) for _ in range(per_part)] for part in parts]


def _r3_point(number: int) -> Nm:
    return per_axis(lambda step: (0.5 + number * step) % 1, R3_STEPS)


def _box_at(point: Nm, within: Box, shape: Zyx) -> Box:
    """Return the box of a shape, or less, at a point of another box, which is given in shares of its length."""
    shape = per_axis(min, shape, within.shape)
    start = per_axis(
        lambda share, first, n, size: first + int(share * (n - size + 1)), point, within.start, within.shape, shape
    )
    return Box.at(start, shape)

"""Chunks that are not stored: images of which nothing is stored are refused, others are counted."""

from __future__ import annotations

import time
from collections.abc import Iterable

import numpy as np

from kasthuri_ray.errors import InputError
from kasthuri_ray.geometry import Box, per_axis
from kasthuri_ray.volumes.parallel_calls import map_threads
from kasthuri_ray.volumes.volume import Volume

# Chunks of a box that are looked for before the work: on a disk, and by requests.
MAX_COUNTED, MAX_REQUESTED = 20_000, 2_000
NUM_SAMPLED = 256  # chunks of a box that has more
PARALLEL_LOOKUPS = 8
SEARCH_S = 20.0  # after which the search for a stored chunk is given up


def check_any_chunk(image: Volume, box: Box, what: str, allow_empty: bool) -> None:
    """Raise an InputError if nothing of an image is stored in a box.

    Parameters
    ----------
    image : Volume
        The image.
    box : Box
        What will be read.
    what : str
        Names the box in the message.
    allow_empty : bool
        Whether to proceed all the same.

    Raises
    ------
    InputError
        If none of the chunks in the box is stored.
    """
    if allow_empty or image.has_any_chunk(box):
        return
    raise InputError(
        f"nothing of {image.uri} is stored in {what}, {box} (z,y,x), or all of it is {image.fill_value:g}: it would be "
        f"read as {image.fill_value:g} everywhere. Check the path, the format and the box, or proceed with "
        "--allow-empty"
    )


def count_absent_before(volume: Volume, box: Box) -> tuple[int, int] | None:
    """Count the absent chunks of a box before the work.

    Parameters
    ----------
    volume : Volume
        Any volume.
    box : Box
        What will be read.

    Returns
    -------
    tuple of int, or None
        Number of absent chunks, and of all; None if these are too many to look for.
    """
    if volume.count_chunks(box) > (MAX_REQUESTED if volume.remote else MAX_COUNTED):
        return None
    return volume.count_absent(box)


def sample_absent(volume: Volume, box: Box, number: int = NUM_SAMPLED) -> tuple[int, int]:
    """Count the absent chunks among some that are spread over a box.

    Parameters
    ----------
    volume : Volume
        Any volume.
    box : Box
        Voxels whose chunks are looked for.
    number : int
        How many are looked for, at most.

    Returns
    -------
    absent, chunks : int
        Number of absent chunks, and of those that were looked for.
    """
    voxels = np.random.default_rng(0).integers(box.start, box.stop, (number, 3)).tolist()
    cells = (Box.at(voxel, (1, 1, 1)).grown_to_grid(volume.chunk, volume.chunk_origin) for voxel in voxels)
    chunks = list(dict.fromkeys(cell.intersect(volume.bounds) for cell in cells))
    absent: list[int] = []
    map_threads(lambda chunk: absent.append(volume.count_absent(chunk)[0]), chunks, PARALLEL_LOOKUPS)
    return sum(absent), len(chunks)


def find_stored_chunk(volume: Volume, box: Box, axes: Iterable[int]) -> Box | None:
    """Return a stored chunk of a box, cut to it; None if there is none, or if the search takes too long.

    The box is halved along one axis after the other until it is one chunk. In the order of the stored axes the names of
    what is stored in such a box follow each other, so that a store finds out by listing whether there is anything.
    """
    deadline = time.monotonic() + SEARCH_S
    if not volume.has_any_chunk(box):
        return None
    for axis in axes:
        while (middle := _middle_of_chunks(volume, box, axis)) is not None:
            if time.monotonic() > deadline:
                return None
            lower, upper = _cut(box, axis, middle)
            box = lower if volume.has_any_chunk(lower) else upper
    return box if volume.count_absent(box) == (0, 1) else None


def _middle_of_chunks(volume: Volume, box: Box, axis: int) -> int | None:
    """Return the border between chunks that is nearest to the middle of a box; None if the box is within one chunk."""
    chunk, origin = volume.chunk[axis], volume.chunk_origin[axis]
    first, last = ((voxel - origin) // chunk for voxel in (box.start[axis], box.stop[axis] - 1))
    return None if first == last else origin + (first + last + 1) // 2 * chunk


def _cut(box: Box, axis: int, at: int) -> tuple[Box, Box]:
    start, stop = list(box.start), list(box.stop)
    start[axis] = stop[axis] = at
    return Box(box.start, per_axis(int, stop)), Box(per_axis(int, start), box.stop)


def absent_text(uri: str, absent: int, chunks: int, meaning: str = "its fill value") -> str:
    """Return the line about absent chunks.

    Parameters
    ----------
    uri : str
        The volume.
    absent, chunks : int
        Number of absent chunks, and of all.
    meaning : str
        What their voxels count as.

    Returns
    -------
    str
        One line.
    """
    return f"{absent:,} of {chunks:,} chunks absent in {uri}: their voxels count as {meaning}"

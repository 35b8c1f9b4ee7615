"""Chunks that are not stored: images of which nothing is stored are refused, others are counted."""

from __future__ import annotations

from kasthuri_ray.errors import InputError
from kasthuri_ray.geometry import Box
from kasthuri_ray.volumes.volume import Volume

# Chunks of a box that are looked for before the work: on a disk, and by requests.
MAX_COUNTED, MAX_REQUESTED = 20_000, 2_000


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
        f"nothing of {image.uri} is stored in {what}, {box} (z,y,x): it would be read as {image.fill_value:g} "
        "everywhere. Check the path, the format and the box, or proceed with --allow-empty"
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

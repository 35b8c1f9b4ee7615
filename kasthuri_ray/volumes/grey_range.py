"""Grey levels of an image compared with the range that becomes black to white, before any work.

The values decide, never the type: an image of uint16 may hold 0 to 255.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kasthuri_ray.errors import InputError
from kasthuri_ray.geometry import Box
from kasthuri_ray.volumes.cutout_sample import NUM_CUTOUTS, sample_boxes
from kasthuri_ray.volumes.volume import Volume

MAX_OUTSIDE = 0.5  # share of voxels outside the range
MIN_SPAN = 0.05  # of the range, between the percentiles
PERCENTILES = (1, 99)
MIN_IMAGED_SHARE = 0.25  # of a sample: below it a larger one is read
MIN_VOXELS = 1000  # of boxes: fewer may well be all of one grey level
BLANK_SHARE = 0.999  # of a sample from which nothing can be said about the image

# Origins of a range, as messages name them.
DEFAULT_RANGE = "of uint8"
STATED_RANGE = "that task.image_intensity states"

ADVICE = "If these voxels are right, give their range with --set task.image_intensity=LOW,HIGH"


def sample_grey_levels(image: Volume, boxes: Sequence[Box]) -> np.ndarray:
    """Return grey levels of cutouts that are spread over several boxes, without blank voxels.

    Parameters
    ----------
    image : Volume
        Image of numbers.
    boxes : sequence of Box
        Voxels inside its bounds, z, y, x.

    Returns
    -------
    ndarray
        In one row; empty if nearly all are blank: 0, nan or the fill value of the image.

    Raises
    ------
    VolumeError
        If the source fails.
    """
    for num_cutouts in (NUM_CUTOUTS, 4 * NUM_CUTOUTS):
        voxels = sample_boxes(image, boxes, num_cutouts)
        imaged = voxels[(voxels != 0) & (voxels != image.fill_value) & (voxels == voxels)]
        if imaged.size >= MIN_IMAGED_SHARE * voxels.size:
            break
    return imaged if imaged.size > (1 - BLANK_SHARE) * voxels.size else imaged[:0]


def describe_range_mismatch(levels: np.ndarray, intensity: tuple[float, float], origin: str) -> str:
    """Return how grey levels do not fit a range.

    Parameters
    ----------
    levels : ndarray
        Grey levels of an image.
    intensity : tuple of float
        The grey levels (low, high) that become black and white.
    origin : str
        Where the range comes from, such as "that the network was trained on".

    Returns
    -------
    str
        A sentence with both ranges, if more than half of the voxels lie outside, or if percentiles 1 to 99 span under
        5% of the range; else "", as without any grey levels.
    """
    if not levels.size:
        return ""
    low, high = intensity
    outside = float(((levels < low) | (levels > high)).mean())
    first, last = (float(value) for value in np.percentile(levels, PERCENTILES))
    span = (last - first) / (high - low)
    if outside <= MAX_OUTSIDE and not span < MIN_SPAN:
        return ""
    what = f"{outside:.0%} of its voxels lie outside" if outside > MAX_OUTSIDE else f"its voxels span {span:.1%} of"
    return (
        f"{what} the grey levels {low:g} to {high:g} {origin}: they hold {first:g} to {last:g} (percentiles 1 and 99 "
        "of a sample, without blank voxels)"
    )


def check_grey_range(
    image: Volume, boxes: Sequence[Box], intensity: tuple[float, float], origin: str, is_stated: bool
) -> list[str]:
    """Compare the grey levels of an image with the range that becomes black to white.

    Parameters
    ----------
    image, boxes : Volume, sequence of Box
        As of `sample_grey_levels`.
    intensity, origin : tuple of float, str
        As of `describe_range_mismatch`.
    is_stated : bool
        Whether a person gave this range for this image, so that it is not refused.

    Returns
    -------
    list of str
        A line if all is blank or cannot be read, or if a range that was stated does not fit. Of very few voxels nothing
        is said.

    Raises
    ------
    InputError
        If the grey levels do not fit the range; the message shows both ranges.
    """
    if sum(box.num_voxels for box in boxes) < MIN_VOXELS:
        return []
    try:
        levels = sample_grey_levels(image, boxes)
    except OSError as error:  # the work will meet it, and tries again
        return [f"the grey levels of {image.uri} are not checked, since a sample could not be read: {error}"]
    if not levels.size:
        return [f"{image.uri} {boxes[0]} is blank, or nearly so, in a sample: its grey levels are not checked"]
    mismatch = describe_range_mismatch(levels, intensity, origin)
    if mismatch and not is_stated:
        raise InputError(f"{image.uri} {boxes[0]}: {mismatch}. {ADVICE}")
    return [f"{image.uri} {boxes[0]}: {mismatch}"] if mismatch else []

"""Read a part of a section of the image that was segmented, as grey levels for a page."""

from __future__ import annotations

import math

import numpy as np

from kasthuri_ray.geometry import Box
from kasthuri_ray.labels import to_uint8
from kasthuri_ray.volumes.intensity import intensity_window
from kasthuri_ray.volumes.volume import Volume

MISSING_GREY = 128  # where no image is known


def read_image_section(box: Box, image: Volume | None, intensity: object) -> np.ndarray:
    """Return the image of one section.

    Parameters
    ----------
    box : Box
        One section deep.
    image : Volume or None
        The image, if it is known.
    intensity : object
        Grey levels that are black and white, as the provenance of the prediction has them.

    Returns
    -------
    ndarray of uint8, (y, x)
        Grey outside of the image.
    """
    shown = np.full(box.shape, MISSING_GREY, np.uint8)
    if image is None:
        return shown[0]
    inside = box.intersect(image.bounds)
    if inside.num_voxels:
        voxels = image.read(inside)
        shown[inside.slices(box.start)] = to_uint8(voxels, _grey_range(voxels, intensity))
    return shown[0]


def _grey_range(voxels: np.ndarray, intensity: object) -> tuple[float, float]:
    """Return the grey levels that become 0 and 255."""
    if isinstance(intensity, list | tuple) and len(intensity) == 2:
        return float(intensity[0]), float(intensity[1])
    if voxels.dtype == np.uint8:
        return 0.0, 255.0
    try:
        return intensity_window(voxels, voxels.dtype, {"percentiles": (0.5, 99.5)})
    except ValueError:  # all voxels are equal
        low = float(voxels.min())
        return low, max(low + 1, math.nextafter(low, math.inf))

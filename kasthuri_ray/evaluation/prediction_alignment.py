"""Alignment of a prediction with its annotation: by their places in nm, or as the provenance says."""

from __future__ import annotations

import operator
from collections.abc import Callable

from kasthuri_ray.errors import InputError
from kasthuri_ray.geometry import Box, Zyx, per_axis
from kasthuri_ray.volumes.alignment import Alignment, align_volumes
from kasthuri_ray.volumes.volume import Volume
from kasthuri_ray.volumes.voxel_grid import OFFSET_ADVICE

Align = Callable[..., Alignment]


def align_prediction(
    annotation: Volume, prediction: Volume, start: Zyx | None, image: Volume | None, align: Align = align_volumes
) -> Alignment:
    """Return a prediction on the voxel grid of its annotation.

    Parameters
    ----------
    annotation, prediction : Volume
    start : tuple of int or None
        The image's voxel that is the first voxel of the prediction; None if it is not known.
    image : Volume or None
        The image that was segmented, if it can be opened.
    align : callable, optional
        `align_volumes`, with the options that it shall have.

    Returns
    -------
    Alignment
        They are aligned by their places. If the annotation states none, or the prediction no voxel size, the annotation
        lies on the voxels of the image.

    Raises
    ------
    InputError
        As of `align_volumes`.
    """
    is_placed = annotation.place is not None and prediction.voxel_size_nm is not None
    if start is None or is_placed or prediction.shape == annotation.shape:
        return align(annotation, prediction)
    box = Box.at(start, prediction.shape)
    bounds = annotation.bounds if image is None else image.bounds
    if bounds.shape != annotation.shape or not bounds.contains(box):
        raise InputError(
            f"{annotation.uri} states no place in nm, and its shape is not that of the image that was segmented: it is "
            f"{annotation.bounds}, the image {bounds}, of which {box} was segmented (z,y,x). {OFFSET_ADVICE}"
        )
    first = box.relative_to(bounds.start).shifted(annotation.bounds.start).start
    shift = per_axis(operator.sub, first, prediction.bounds.start)
    return align(annotation, prediction, shift=shift)

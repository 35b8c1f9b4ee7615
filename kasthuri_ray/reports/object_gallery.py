"""Pictures of objects: the image with the outlines of annotation and prediction, as the page of an evaluation shows."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kasthuri_ray.reports.examples import ScaleBar, make_scale_bar
from kasthuri_ray.reports.section_images import Rgb, encode_jpeg, grey_to_rgb

TRUTH_COLOUR: Rgb = (86, 180, 233)
PREDICTION_COLOUR: Rgb = (240, 228, 66)
# Colour, whose outline it is, name of the colour.
OUTLINES = ((TRUTH_COLOUR, "annotation", "blue"), (PREDICTION_COLOUR, "prediction", "yellow"))
PICTURE_PIXELS = 320  # about, along the longer side
OTHER_OPACITY = 0.45  # of the outlines of other objects


@dataclass(frozen=True)
class ObjectCrop:
    """A part of a section around an object.

    Parameters
    ----------
    verdict : str
        wrong, missed or found.
    number, partner : int
        Of the object and of its partner, as in matches.csv; 0 without a partner.
    class_name : str
        Its class; "" if there is only one.
    position : tuple of int
        Voxel of its centroid, z, y, x.
    z : int
        The section, in which it is largest.
    size_voxels : int
        Number of its voxels.
    score : float
        Mean predicted probability in it.
    image : ndarray of uint8, (y, x)
        Grey levels.
    truth, predicted, own : ndarray of bool, (y, x)
        Voxels of its class in the annotation and in the prediction, and its own.
    is_cut : bool
        Whether it touches a face of the compared box, so that only a part of it is seen.
    """

    verdict: str
    number: int
    partner: int
    class_name: str
    position: tuple[int, ...]
    z: int
    size_voxels: int
    score: float
    image: np.ndarray
    truth: np.ndarray
    predicted: np.ndarray
    own: np.ndarray
    is_cut: bool = False


@dataclass(frozen=True)
class ObjectPicture:
    """A crop on a page. source: a data URL."""

    crop: ObjectCrop
    source: str
    scale_bar: ScaleBar | None


@dataclass(frozen=True)
class ObjectGroup:
    """The shown objects of one verdict. total: how many there are."""

    verdict: str
    total: int
    pictures: Sequence[ObjectPicture]


def make_object_groups(
    crops: Sequence[ObjectCrop], totals: Mapping[str, int], pixel_size_nm: tuple[float, float] | None
) -> list[ObjectGroup]:
    """Return the groups of a page, in the order of `totals`; those without pictures are left out.

    Parameters
    ----------
    crops : sequence of ObjectCrop
        What to show.
    totals : mapping of str to int
        Number of all objects of each verdict.
    pixel_size_nm : tuple of float or None
        (y, x), for scale bars; None draws none.

    Returns
    -------
    list of ObjectGroup
        With encoded pictures.
    """
    groups = [
        ObjectGroup(verdict, total, [_make_picture(crop, pixel_size_nm) for crop in crops if crop.verdict == verdict])
        for verdict, total in totals.items()
    ]
    return [group for group in groups if group.pictures]


def _make_picture(crop: ObjectCrop, pixel_size_nm: tuple[float, float] | None) -> ObjectPicture:
    data = base64.b64encode(encode_jpeg(draw_crop(crop), 2 * PICTURE_PIXELS)).decode()
    bar = None if pixel_size_nm is None else make_scale_bar(crop.image.shape[1] * pixel_size_nm[1])
    return ObjectPicture(crop, f"data:image/jpeg;base64,{data}", bar)


def draw_crop(crop: ObjectCrop) -> np.ndarray:
    """Return a crop with outlines, those of other objects paler.

    Parameters
    ----------
    crop : ObjectCrop
        What to draw.

    Returns
    -------
    ndarray of uint8, (y, x, 3)
        Enlarged by a whole factor to about PICTURE_PIXELS. The outline of the annotation lies outside of its voxels,
        that of the prediction inside, so that both are seen where they agree.
    """
    factor = max(1, round(PICTURE_PIXELS / max(crop.image.shape)))
    image, truth, predicted, own = (
        each.repeat(factor, 0).repeat(factor, 1) for each in (crop.image, crop.truth, crop.predicted, crop.own)
    )
    picture = grey_to_rgb(image).astype(np.float32)
    near = grow(own, 2 * factor)
    for colour, outline in (
        (TRUTH_COLOUR, grow(truth, 2) & ~truth),
        (PREDICTION_COLOUR, predicted & grow(~predicted, 2)),
    ):
        opacity = np.where(near, 1.0, OTHER_OPACITY)[outline][:, None]
        picture[outline] = (1 - opacity) * picture[outline] + opacity * np.array(colour, np.float32)
    return np.rint(picture).astype(np.uint8)


def grow(mask: np.ndarray, pixels: int) -> np.ndarray:
    """Return a mask, bool (y, x), with so many more pixels along y and x."""
    grown = mask.copy()
    for _ in range(pixels):
        before = grown.copy()
        grown[1:] |= before[:-1]
        grown[:-1] |= before[1:]
        grown[:, 1:] |= before[:, :-1]
        grown[:, :-1] |= before[:, 1:]
    return grown

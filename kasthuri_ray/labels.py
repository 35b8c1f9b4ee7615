"""Annotations as classes, and images as grey levels of one byte, converted as they are read. Needs numpy alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kasthuri_ray.errors import InputError

IGNORE_LABEL = 255  # the class of a voxel that counts neither in training nor in evaluation
DEFAULT_PERCENTILES = (0.5, 99.5)
VOXELS_AT_ONCE = 1 << 20  # so that a float32 copy of a whole cutout is never made


def to_classes(
    labels: np.ndarray, *, threshold_value: float | None, num_classes: int, ignore_label: int | None, where: str
) -> np.ndarray:
    """Convert an annotation to the class of every voxel.

    Parameters
    ----------
    labels : ndarray
        Any integer type or bool; floats only with a threshold.
    threshold_value : float or None
        A label above it is class 1, any other class 0. None takes the values 0..num_classes-1 as they are.
    num_classes : int
        Number of classes.
    ignore_label : int or None
        The value whose voxels become IGNORE_LABEL, before any threshold; None if there is none.
    where : str
        Names the annotation in messages.

    Returns
    -------
    ndarray
        uint8, the shape of `labels`.

    Raises
    ------
    InputError
        If a label is not a class; the message shows the values, and what is allowed.
    """
    if labels.dtype.kind not in "buif":
        raise InputError(f"{where}: an annotation holds integers, this one holds {labels.dtype}")
    if threshold_value is None and labels.dtype.kind == "f":
        raise InputError(
            f"{where}: an annotation holds integers, this one holds {labels.dtype}; "
            "set `threshold` to true in the task to take the voxels above its `threshold_value` as class 1"
        )
    if labels.dtype.kind == "f" and np.isnan(labels).any():
        raise InputError(f"{where}: the annotation holds nan, which is neither above nor below the threshold")
    if labels.dtype == bool:
        labels = labels.view(np.uint8)
    if threshold_value is None:
        classes = _check_classes(labels, num_classes, ignore_label, where)
    else:
        classes = (labels > _exact_threshold(labels.dtype, threshold_value)).view(np.uint8)
    if ignore_label is not None:
        classes[labels == ignore_label] = IGNORE_LABEL
    return classes


def _exact_threshold(dtype: np.dtype, threshold: float) -> Any:
    """Return the threshold in a type that compares exactly: floats cannot hold uint64 labels above 2**53."""
    if dtype.kind == "f":
        return threshold
    return int(np.floor(threshold))  # for integers, label > 0.5 is label > 0


def _check_classes(labels: np.ndarray, num_classes: int, ignore_label: int | None, where: str) -> np.ndarray:
    """Return `labels` as uint8; raise an InputError if one is neither a class nor `ignore_label`."""
    classes = labels.astype(np.uint8)
    wrong = (labels < 0) | (labels >= num_classes)
    if ignore_label is not None:
        wrong &= labels != ignore_label
    if wrong.any():
        values = np.unique(labels[wrong])
        shown = ", ".join(str(value) for value in values[:5]) + (", ..." if len(values) > 5 else "")
        ignored = "" if ignore_label is None else f" and {ignore_label} (ignore_label)"
        raise InputError(
            f"{where}: the annotation holds {shown}; allowed are 0 to {num_classes - 1}{ignored}. If these are the "
            "ids of objects, set `threshold` to true in the task: labels above its `threshold_value` are class 1"
        )
    return classes


def intensity_window(
    sample: np.ndarray, dtype: np.dtype, setting: Sequence[float] | Mapping[str, Sequence[float]] | None
) -> tuple[float, float]:
    """Return the grey levels that become 0 and 255.

    Parameters
    ----------
    sample : ndarray
        Voxels of the image, of any shape; used for percentiles only.
    dtype : dtype
        The image's type.
    setting : sequence, mapping or None
        [low, high]; {"percentiles": [low, high]}; or None for 0 to 255 if the image is uint8 and for the percentiles
        0.5 and 99.5 if it is of another integer type.

    Returns
    -------
    low, high : float
        The grey levels.

    Raises
    ------
    InputError
        If an image of floats, whose range is not known, has no setting; if the setting is malformed; or if both
        percentiles of the image are the same.
    """
    if dtype.kind not in "uif":
        raise InputError(f"the image holds {dtype}; images are uint8, uint16 or other numbers")
    if dtype.kind == "f" and setting is None:
        raise InputError(f"the image holds {dtype}, whose range is not known; give image_intensity as [low, high]")
    if setting is None and dtype == np.uint8:
        return 0.0, 255.0
    if setting is None:
        return _percentiles(sample, DEFAULT_PERCENTILES)
    if isinstance(setting, Mapping):
        if set(setting) != {"percentiles"}:
            raise InputError(
                f'image_intensity {dict(setting)} is neither [low, high] nor {{"percentiles": [low, high]}}'
            )
        low, high = _parse_pair(setting["percentiles"])
        if not 0 <= low < high <= 100:
            raise InputError(f"image_intensity: percentiles {[low, high]} are not two rising numbers from 0 to 100")
        return _percentiles(sample, (low, high))
    low, high = _parse_pair(setting)
    if not low < high:
        raise InputError(f"image_intensity {[low, high]}: the low value is not below the high one")
    return low, high


def _parse_pair(setting: Sequence[float]) -> tuple[float, float]:
    values = list(setting) if isinstance(setting, Sequence) else [setting]
    numbers = [float(value) for value in values if isinstance(value, (int, float)) and np.isfinite(value)]
    if len(values) != 2 or len(numbers) != 2:
        raise InputError(f"image_intensity {setting!r} is not two numbers [low, high]")
    return numbers[0], numbers[1]


def _percentiles(sample: np.ndarray, percentiles: tuple[float, float]) -> tuple[float, float]:
    sample = sample[~np.isnan(sample)] if sample.dtype.kind == "f" else sample
    if sample.size == 0:
        raise InputError("image_intensity: there are no voxels to take percentiles of")
    low, high = (float(value) for value in np.percentile(sample, percentiles))
    if low >= high:
        raise InputError(
            f"image_intensity: the percentiles {percentiles[0]} and {percentiles[1]} of the image are both {low:g}: "
            "the sample has no contrast; give image_intensity as [low, high]"
        )
    return low, high


def not_imaged(image: np.ndarray) -> np.ndarray | None:
    """Return where an image is nan: there is no tissue, or it was not imaged.

    Parameters
    ----------
    image : ndarray
        Of any shape and number type.

    Returns
    -------
    ndarray of bool, or None
        None if it is nan nowhere.
    """
    if image.dtype.kind != "f":
        return None
    missing = np.isnan(image)
    return missing if missing.any() else None


def to_uint8(image: np.ndarray, intensity: tuple[float, float]) -> np.ndarray:
    """Map grey levels linearly to 0..255, rounded and clipped.

    Parameters
    ----------
    image : ndarray
        Of any shape and number type.
    intensity : tuple of float
        The grey levels (low, high) that become 0 and 255.

    Returns
    -------
    ndarray
        uint8, the same shape; 0 where the image is nan, see `not_imaged`. A uint8 image with (0, 255) is returned
        itself, not copied.
    """
    low, high = intensity
    if image.dtype == np.uint8 and (low, high) == (0, 255):
        return image
    grey = np.empty(image.shape, np.uint8)
    source, target = np.ascontiguousarray(image).reshape(-1), grey.reshape(-1)
    for start in range(0, source.size, VOXELS_AT_ONCE):
        piece = np.subtract(source[start : start + VOXELS_AT_ONCE], low, dtype=np.float32)
        piece *= np.float32(255 / (high - low))
        np.rint(piece, out=piece)
        if image.dtype.kind == "f":
            np.nan_to_num(piece, copy=False, nan=0.0, posinf=255.0, neginf=0.0)
        target[start : start + VOXELS_AT_ONCE] = np.clip(piece, 0, 255, out=piece)
    return grey

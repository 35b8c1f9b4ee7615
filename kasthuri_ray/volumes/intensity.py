"""The grey levels of an image that become black and white: stated, those of its type, or percentiles of a sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from kasthuri_ray.errors import InputError

DEFAULT_PERCENTILES = (0.5, 99.5)  # of integers other than uint8


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
        raise InputError(
            f"the image holds {dtype}, whose range is not known; give the grey values of black and white: "
            "--set task.image_intensity=LOW,HIGH"
        )
    if setting is None:
        return _percentiles(sample, DEFAULT_PERCENTILES) if is_measured_range(setting, dtype) else (0.0, 255.0)
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


def is_measured_range(setting: Sequence[float] | Mapping[str, Sequence[float]] | None, dtype: np.dtype) -> bool:
    """Return whether the grey levels that become 0 and 255 follow from voxels of the image.

    Parameters
    ----------
    setting, dtype : sequence or mapping, dtype
        As of `intensity_window`.

    Returns
    -------
    bool
        True for percentiles, which are the default of integers other than uint8.
    """
    return isinstance(setting, Mapping) or (setting is None and dtype != np.uint8)


def _parse_pair(setting: Sequence[float]) -> tuple[float, float]:
    values = list(setting) if isinstance(setting, Sequence) else [setting]
    numbers = [float(value) for value in values if isinstance(value, (int, float)) and np.isfinite(value)]
    if len(values) != 2 or len(numbers) != 2:
        raise InputError(f"image_intensity {setting!r} is not two numbers [low, high]")
    return numbers[0], numbers[1]


def _percentiles(sample: np.ndarray, percentiles: tuple[float, float]) -> tuple[float, float]:
    sample = sample[np.isfinite(sample)] if sample.dtype.kind == "f" else sample
    if sample.size == 0:
        raise InputError("image_intensity: there are no voxels to take percentiles of")
    low, high = (float(value) for value in np.percentile(sample, percentiles))
    if low >= high:
        raise InputError(
            f"image_intensity: the percentiles {percentiles[0]} and {percentiles[1]} of the image are both {low:g}: "
            "the sample has no contrast; give the grey values of black and white: --set task.image_intensity=LOW,HIGH"
        )
    return low, high

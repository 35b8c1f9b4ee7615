"""How the values of an image file become voxels: white as 0, palettes, colours that are grey."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kasthuri_ray.errors import InputError

COLOURS = ("rgb", "ycbcr")


@dataclass(frozen=True)
class PixelFormat:
    """What a file says about its pixels.

    Parameters
    ----------
    photometric : str
        Meaning of the values, as TIFF calls it, in lower case: minisblack, miniswhite, rgb, ycbcr, palette.
    samples : int
        Values a pixel.
    dtype : np.dtype
        Type of a value.
    bits : int
        Bits of a value that are used.
    palette : np.ndarray or None
        Red, green and blue of each index, shape (3, n), of 8 or 16 bits.
    """

    photometric: str
    samples: int
    dtype: np.dtype
    bits: int
    palette: np.ndarray | None = None


@dataclass(frozen=True)
class GreyRule:
    """How stored values become voxels.

    Parameters
    ----------
    maximum : int or None
        A value becomes `maximum` - value, where white is stored as 0.
    palette : np.ndarray or None
        Grey level of each index.
    samples : int
        Values a pixel. With three or more, the first three are equal, or the pixel is refused.
    """

    maximum: int | None = None
    palette: np.ndarray | None = None
    samples: int = 1

    def dtype(self, stored: np.dtype | None) -> np.dtype:
        """Return the type of the voxels of stored values."""
        return np.dtype(stored if self.palette is None else self.palette.dtype)

    def apply(self, stored: np.ndarray) -> np.ndarray:
        """Return the voxels of stored values, whose last axis is that of the samples.

        Raises
        ------
        ValueError
            If a pixel has a colour.
        """
        grey = stored[..., 0]
        if self.samples >= 3 and not (np.array_equal(grey, stored[..., 1]) and np.array_equal(grey, stored[..., 2])):
            raise ValueError("it holds colours; an image is grey, with equal red, green and blue: convert it to grey")
        if self.maximum is not None:
            grey = ~grey if grey.dtype == bool else grey.dtype.type(self.maximum) - grey
        return grey if self.palette is None else self.palette[grey]


def choose_grey_rule(pixels: PixelFormat, labels: bool, name: str) -> tuple[GreyRule, str | None]:
    """Return how stored values become voxels, and a line about it where that is not plain.

    Parameters
    ----------
    pixels : PixelFormat
        What the file says.
    labels : bool
        Whether the voxels are labels, which keep their stored values, and not grey levels.
    name : str
        Name of the file, for messages.

    Returns
    -------
    GreyRule
        Rule for every pixel of the file.
    str or None
        Line for a person.

    Raises
    ------
    InputError
        If the file holds several channels, or a palette of colours that is not one of labels.
    """
    if pixels.photometric in COLOURS and pixels.samples >= 3:
        alpha = f"{name}: its transparency is ignored" if pixels.samples > 3 else None
        return GreyRule(samples=pixels.samples), alpha
    if pixels.samples > 2 or (pixels.samples == 2 and pixels.photometric not in ("minisblack", "miniswhite")):
        raise InputError(f"{name} has {pixels.samples} channels ({pixels.photometric}); a volume has one channel")
    if pixels.photometric == "palette" and pixels.palette is not None:
        return _palette_rule(pixels.palette, labels, name)
    note = f"{name}: its transparency is ignored" if pixels.samples == 2 else None
    if pixels.photometric != "miniswhite":
        return GreyRule(), note
    if labels:
        return (
            GreyRule(),
            f"{name}: white is stored as 0 (MINISWHITE); as labels the values are read as they are stored",
        )
    if pixels.dtype.kind not in "bu":
        return (
            GreyRule(),
            f"{name}: white is stored as 0 (MINISWHITE); {pixels.dtype} values are read as they are stored",
        )
    maximum = 2**pixels.bits - 1
    return GreyRule(maximum), f"{name}: white is stored as 0 (MINISWHITE); a value v is read as {maximum} - v"


def _palette_rule(palette: np.ndarray, labels: bool, name: str) -> tuple[GreyRule, str | None]:
    if labels:
        return GreyRule(), None
    if not (np.array_equal(palette[0], palette[1]) and np.array_equal(palette[0], palette[2])):
        raise InputError(
            f"{name} has a palette of colours; an image is grey. Save it in grey (in Fiji: Image > Lookup Tables > "
            "Grays). As an annotation it can be read: there the indices count"
        )
    grey = palette[0] >> 8 if palette[0].max(initial=0) > 255 else palette[0]
    is_plain = np.array_equal(grey, np.arange(len(grey)))
    note = None if is_plain else f"{name}: the grey levels of its palette are read, not the indices"
    return GreyRule(palette=grey.astype(np.uint8)), note

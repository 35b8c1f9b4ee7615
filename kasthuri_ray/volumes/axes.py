"""Which stored axes of an array are z, y and x: by their names, else by their lengths."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from kasthuri_ray.errors import InputError
from kasthuri_ray.geometry import AXES, Nm, Zyx, per_axis

CHANNELS = ("c", "channel", "s")
ABSENT = -1  # stands for the z of an image, which has no such axis


def choose_axes(
    shape: Sequence[int], uri: str, *, names: Sequence[str | None] | None = None, option: str | None = None
) -> Zyx:
    """Return which stored axes are z, y and x.

    Parameters
    ----------
    shape : sequence of int
        Lengths of the stored axes.
    uri : str
        Opens the message of an error.
    names : sequence of str or None
        Names of the stored axes in the file. Names without y and x, or of another number than the axes, do not count.
    option : str or None
        Names that a person gave, one letter an axis; they win over the file.

    Returns
    -------
    tuple of int
        Indices of z, y, x; `ABSENT` for the z of an image, which is a volume of one section.

    Raises
    ------
    InputError
        If the option does not fit, if there are several channels, or more than three axes that are longer than 1.

    Notes
    -----
    Without names, axes of length 1 are dropped until three axes are left, the last one first; three axes of which the
    last has length 1 are y, x and a channel. A named axis other than z that is the only long one beside y and x, such
    as t, is z, but for a channel.
    """
    if option is not None:
        return _axes_of_option(option, tuple(shape), uri)
    lower = [str(name).lower() for name in names or ()]
    if len(lower) != len(shape) or any(lower.count(axis) != 1 for axis in "yx"):
        lower = _names_by_length(shape, uri)
    y, x = lower.index("y"), lower.index("x")
    longer = [axis for axis in range(len(shape)) if axis not in (y, x) and shape[axis] > 1]
    channels = [shape[axis] for axis in longer if lower[axis] in CHANNELS]
    if channels or len(longer) > 1:
        what = f"{math.prod(channels)} channels" if channels else f"{len(longer) + 2} axes longer than 1"
        raise InputError(
            f"{uri} has {what}, shape {tuple(shape)}; a volume has one channel and three axes: z, y, x. If its axes "
            "are others, name them: ?axes=zyxc"
        )
    z = longer[0] if longer else lower.index("z") if "z" in lower else ABSENT
    return z, y, x


def _axes_of_option(option: str, shape: tuple[int, ...], uri: str) -> Zyx:
    if len(option) != len(shape):
        raise InputError(f"{uri}: axes={option} names {len(option)} axes, but the shape is {shape}")
    for name, length in zip(option, shape, strict=True):
        if name not in AXES and length != 1:
            raise InputError(
                f"{uri}: axes={option}: the axis {name!r} has the length {length} in the shape {shape}; a volume has "
                "one channel, and all axes but z, y, x have length 1"
            )
    return per_axis(option.find, AXES)


def _names_by_length(shape: Sequence[int], uri: str) -> list[str]:
    if len(shape) < 2:
        raise InputError(f"{uri} has {len(shape)} axes, shape {tuple(shape)}; a volume has three: z, y, x")
    kept = list(range(len(shape)))
    while len(kept) > 3 and (single := [axis for axis in kept if shape[axis] == 1]):
        kept.remove(single[-1] if single[-1] == kept[-1] else single[0])
    names = ["c"] * len(shape)
    spatial = "yx" if len(kept) == 2 or (len(kept) == 3 and shape[kept[-1]] == 1) else AXES
    for axis, name in zip(kept if spatial == "yx" else kept[-3:], spatial, strict=False):
        names[axis] = name
    return names


def axes_text(axes: Zyx, rank: int) -> str:
    """Return the stored axes in their order, such as `x,y,z,-`; `-` is one of length 1 that is dropped."""
    names = dict(zip(axes, AXES, strict=True))
    return ",".join(names.get(axis, "-") for axis in range(rank))


def lengths_along(axes: Zyx, lengths: Sequence[int]) -> Zyx:
    """Return the lengths of stored axes along z, y, x; 1 where an axis is absent."""
    return per_axis(lambda axis: 1 if axis == ABSENT else int(lengths[axis]), axes)


def turn_lengths(lengths: Nm, stated: Zyx, axes: Zyx) -> Nm:
    """Return lengths that were stated for some axes, for those that are read: each goes with its stored axis.

    Parameters
    ----------
    lengths : tuple of float
        Lengths of the axes that the file calls z, y, x.
    stated, axes : tuple of int
        Which stored axes the file calls z, y, x, and which are read as z, y, x. An axis that the file calls otherwise,
        such as t, keeps the length of the axis as which it is read.

    Returns
    -------
    tuple of float
        Lengths along z, y, x.
    """
    is_stated = {axis for axis in stated if axis != ABSENT}
    return per_axis(lambda axis, n: lengths[stated.index(axis)] if axis in is_stated else n, axes, lengths)


def stated_axes(shape: Sequence[int], names: Sequence[str | None] | None) -> Zyx | None:
    """Return which stored axes a file calls z, y, x (see `choose_axes`); None if it names no y and x."""
    lower = [str(name).lower() for name in names or ()]
    if len(lower) != len(shape) or any(lower.count(axis) != 1 for axis in "yx"):
        return None
    z = lower.index("z") if lower.count("z") == 1 else ABSENT
    return z, lower.index("y"), lower.index("x")


def read_zyx(stored: np.ndarray, axes: Zyx) -> np.ndarray:
    """Return an array with the axes z, y, x; all other axes have length 1."""
    kept = [axis for axis in axes if axis != ABSENT]
    turned = stored.transpose([*(axis for axis in range(stored.ndim) if axis not in kept), *kept])
    return turned.reshape((1,) * (3 - len(kept)) + turned.shape[-len(kept) :])

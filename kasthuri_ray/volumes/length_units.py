"""Units of length, as files write them, and lengths in nm."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

from kasthuri_ray.geometry import Nm, per_axis

NANOMETERS = {
    "pm": 1e-3,
    "å": 0.1,
    "angstrom": 0.1,
    "nm": 1.0,
    "um": 1e3,
    "\u03bcm": 1e3,  # the Greek letter; the micro sign becomes it
    "micron": 1e3,
    "mm": 1e6,
    "cm": 1e7,
    "in": 2.54e7,
    "inch": 2.54e7,
    "m": 1e9,
} | {
    prefix + ending: factor
    for prefix, factor in {
        "pico": 1e-3,
        "nano": 1.0,
        "micro": 1e3,
        "milli": 1e6,
        "centi": 1e7,
        "deci": 1e8,
        "": 1e9,
    }.items()
    for ending in ("meter", "metre")
}


def nanometers_per_unit(unit: object) -> float | None:
    """Return the length of a unit (singular, plural or symbol) in nm, or None if it is not a length."""
    if not isinstance(unit, str):
        return None
    name = unicodedata.normalize("NFKC", unit).strip()
    lower = name if name == "M" else name.lower()
    return NANOMETERS.get(lower, NANOMETERS.get(lower.removesuffix("s")))


def in_nanometers(sizes: Sequence[float], units: Sequence[object]) -> Nm | None:
    """Return three lengths in nm, or None if a unit is missing or not a length, or if a size is not positive."""
    factors = [factor for unit in units if (factor := nanometers_per_unit(unit)) is not None]
    if len(factors) < len(units) or len(sizes) != len(units) or not all(map(is_number, sizes)):
        return None
    return positive_sizes(size * factor for size, factor in zip(sizes, factors, strict=True))


def positive_sizes(sizes: Iterable[Any]) -> Nm | None:
    """Return three sizes, or None if there are not three or one is not a positive number."""
    values = list(sizes)
    if len(values) != 3 or not all(is_number(value) for value in values):
        return None
    rounded = [round(float(value), 9) for value in values]
    return per_axis(float, rounded) if min(rounded) > 0 else None


def is_number(value: object) -> bool:
    """Return whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max

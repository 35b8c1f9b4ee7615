"""Types of settings: bounded numbers, ranges of voxels, shapes, and numbers of workers."""

from __future__ import annotations

import json
import re
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from kasthuri_ray.errors import InputError


class SettingsSection(BaseModel):
    """A section of settings; an unknown key, a value of another type, infinity and NaN are errors.

    The docstring below a setting says what it means.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True)

    changeable: ClassVar[frozenset[str]] = frozenset()  # may differ when a run or a sweep is resumed


def _check_rising(limits: list[int]) -> list[int]:
    if limits[0] >= limits[1]:
        raise InputError("it holds no voxels; a range is [start, stop], stop not included")
    return limits


def _split_three(value: Any, example: str = "64,512,512") -> Any:
    """Return three numbers, which are text such as `64,512,512`, a tuple or a list, as a list."""
    parts = value.split(",") if isinstance(value, str) else value
    is_valid = isinstance(parts, list | tuple) and len(parts) == 3
    if isinstance(value, str):
        is_valid &= all(re.fullmatch(r"\s*(0|[1-9][0-9]*)(\.[0-9]+)?\s*", part) for part in parts)
    if not is_valid:
        raise InputError(f"expected three numbers z,y,x, none below 0, such as {example}")
    return [json.loads(part) if isinstance(value, str) else part for part in parts]


def _parse_thresholds(value: Any) -> Any:
    """Return a flag's text such as `0.5` as a number, `0.5,0.4` as a list, and any other value unchanged."""
    if not isinstance(value, str):
        return list(value) if isinstance(value, tuple) else value
    try:
        numbers = [float(part) for part in value.split(",")]
    except ValueError:
        raise InputError("expected a probability such as 0.5, or one for each class such as 0.5,0.4") from None
    return numbers if len(numbers) > 1 else numbers[0]


def _parse_sizes(value: Any) -> Any:
    """Return a flag's text such as `1000` as a number, `1000,500` as a list, and any other value unchanged."""
    if not isinstance(value, str):
        return list(value) if isinstance(value, tuple) else value
    try:
        numbers = [float(part) for part in value.split(",")]
    except ValueError:
        raise InputError("expected a size such as 200000, or one for each class such as 200000,50000") from None
    return numbers if len(numbers) > 1 else numbers[0]


def _as_list(value: Any) -> Any:
    """Return one name as a list."""
    return [value] if isinstance(value, str) else value


def _as_labels(value: Any) -> Any:
    """Return one label as a list."""
    return [value] if isinstance(value, int) and not isinstance(value, bool) else value


Count = Annotated[int, Field(ge=1)]
NotNegativeInt = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]

VoxelRange = Annotated[list[NotNegativeInt], Field(min_length=2, max_length=2), AfterValidator(_check_rising)]
ThreeCounts = Annotated[list[Count], Field(min_length=3, max_length=3), BeforeValidator(_split_three)]
ThreeNotNegative = Annotated[list[NotNegativeInt], Field(min_length=3, max_length=3), BeforeValidator(_split_three)]
ThreeLengths = Annotated[
    list[Positive], Field(min_length=3, max_length=3), BeforeValidator(partial(_split_three, example="30,6,6"))
]
Thresholds = Annotated[Share | Annotated[list[Share], Field(min_length=1)], BeforeValidator(_parse_thresholds)]
Sizes = Annotated[NotNegative | Annotated[list[NotNegative], Field(min_length=1)], BeforeValidator(_parse_sizes)]
Names = Annotated[list[str], Field(min_length=1), BeforeValidator(_as_list)]
Labels = Annotated[list[int], BeforeValidator(_as_labels)]

LossName = Literal["cross_entropy", "weighted_cross_entropy", "dice_ce", "focal", "tversky"]
MetricName = Literal["val.average_precision", "val.foreground_f1", "val.loss"]  # columns of history.csv
Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "float32", "bf16", "float16"]
AutoOnOff = Literal["auto", "on", "off"]


def check_number_range(value: Any) -> Any:
    """Return `N` as a number and `MIN-MAX` as it is written; raise an InputError for anything else but None."""
    low, dash, high = (str(value) if value is not None else "1").partition("-")
    whole = all(re.fullmatch("[0-9]+", part) for part in ([low, high] if dash else [low]))
    if not whole or not 1 <= int(low) <= int(high or low):
        raise InputError("expected N or MIN-MAX, such as 4 or 2-8")
    return value if value is None or dash else int(low)


def parse_number_range(value: int | str | None) -> tuple[int, int] | None:
    """Return the smallest and the largest number that `N` or `MIN-MAX` allows; None for None."""
    if value is None or isinstance(value, int):
        return None if value is None else (value, value)
    low, _, high = value.partition("-")
    return int(low), int(high)

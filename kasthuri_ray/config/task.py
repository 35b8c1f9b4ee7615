"""Every setting once: what a task, a network and a training run can be told, checked and with its default.

Where they come from, and which of two wins, is in `layers.py`.
"""

from __future__ import annotations

import itertools
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_serializer, model_serializer, model_validator

from kasthuri_ray.geometry import Box, Zyx, parse_box
from kasthuri_ray.storage.uris import redact_secrets

SPLITS = ("train", "val", "test")
RANGES = ("xrange_vol", "yrange_vol", "z_train", "z_val", "z_test")  # of a task that names no boxes


NotNegativeInt = Annotated[int, Field(ge=0)]


Share = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
NotNegative = Annotated[float, Field(ge=0)]
LOSSES = Literal["cross_entropy", "weighted_cross_entropy", "dice_ce", "focal", "tversky"]
METRICS = Literal["val.average_precision", "val.foreground_f1", "val.loss"]  # columns of history.csv


def _rising(limits: list[int]) -> list[int]:
    if limits[0] >= limits[1]:
        raise ValueError("it holds no voxels; a range is [start, stop], stop not included")
    return limits


Range = Annotated[list[NotNegativeInt], Field(min_length=2, max_length=2), AfterValidator(_rising)]


class SettingsSection(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Region(SettingsSection):
    """A box of one volume that a split trains or is judged on.

    What is left out is the task's own; `annotation: null` (or "") is a test box that has none.
    """

    image: str | None = None  # left out: the task's image_chan
    annotation: str | None = None  # left out: the task's annotation_chan
    box: str | Annotated[list[Range], Field(min_length=3, max_length=3)]

    def completed(self, image: str | None, annotation: str | None) -> Region:
        """This region with what was left out filled in."""
        own = self.annotation or None
        return Region(
            image=self.image or image,
            annotation=own if "annotation" in self.model_fields_set else annotation,
            box=self.box,
        )

    @model_serializer(mode="wrap")
    def _as_given(self, write: Any) -> dict[str, Any]:
        # An annotation that was left out and one that is null differ, also when read back.
        given = {key: value for key, value in write(self).items() if key in self.model_fields_set}
        return {key: redact_secrets(value) if isinstance(value, str) else value for key, value in given.items()}


class SplitBoxes(SettingsSection):
    """Regions of any volumes, instead of the four ranges of a task file."""

    train: Annotated[list[Region], Field(min_length=1)]
    val: Annotated[list[Region], Field(min_length=1)]
    test: list[Region] = []


class TaskSettings(SettingsSection):
    """What is to be found, in which volumes, and where each split lies. Ranges are half-open, in voxels."""

    name: str = "task"
    task_type: str = "membrane"
    image_chan: str | None = None
    annotation_chan: str | None = None
    xrange_vol: Range | None = None
    yrange_vol: Range | None = None
    z_train: Range | None = None
    z_val: Range | None = None
    z_test: Range | None = None  # None: no test
    boxes: SplitBoxes | None = None
    z_gap: NotNegativeInt = 0  # sections left out between the splits
    volume_z: Count = 1  # sections in a tile; 1 is 2D
    tile_size: Annotated[list[Count], Field(min_length=2, max_length=2)] = [256, 256]  # x, y
    threshold: bool = False
    threshold_value: float = 0.0  # annotation > value becomes 1
    ignore_label: int | None = None
    image_intensity: Annotated[list[float], Field(min_length=2, max_length=2)] | dict[str, list[float]] | None = None
    foreground_share: Share | None = None  # None: half for synapses, else none
    loss: LOSSES | None = None  # wins over the network file's

    @field_serializer("image_chan", "annotation_chan")
    def _shown(self, uri: str | None) -> str | None:
        return None if uri is None else redact_secrets(uri)

    @property
    def tile(self) -> Zyx:
        """The shape of a tile, z, y, x."""
        return (self.volume_z, self.tile_size[1], self.tile_size[0])

    @property
    def share_on_foreground(self) -> float:
        """The share of an epoch's tiles that are drawn so that they hold foreground."""
        if self.foreground_share is not None:
            return self.foreground_share
        return 0.5 if self.task_type == "synapse" else 0.0

    def regions(self, split: str) -> list[Region]:
        """The regions of a split; images named, annotations named or None where the test has none."""
        if self.boxes is not None:
            named = getattr(self.boxes, split)
        else:
            z = self._z_ranges()[split]
            named = [] if z is None else [Region(box=[z, self.yrange_vol, self.xrange_vol])]  # type: ignore[list-item]
        return [region.completed(self.image_chan, self.annotation_chan) for region in named]

    def keys_of(self, split: str, number: int = 0) -> tuple[str, str, str]:
        """The settings that say where region `number` of a split lies along z, y and x."""
        if self.boxes is not None:
            return (f"task.boxes.{split}.{number}.box",) * 3
        return f"task.z_{split}", "task.yrange_vol", "task.xrange_vol"

    def _z_ranges(self) -> dict[str, list[int] | None]:
        """The three z ranges, cut at the start where one follows another by less than `z_gap` sections."""
        given = {"train": self.z_train, "val": self.z_val, "test": self.z_test}
        ranges = {split: list(z) if z else None for split, z in given.items()}
        in_order = sorted(filter(None, ranges.values()))
        for (_, end), after in itertools.pairwise(in_order):
            # Ranges that overlap stay as they are, and are refused where they are opened.
            if after[0] >= end:
                after[0] = max(after[0], end + self.z_gap)
        return ranges

    @model_validator(mode="after")
    def _complete(self) -> TaskSettings:
        ranges = [key for key in RANGES if getattr(self, key) is not None]
        if self.boxes is not None and ranges:
            raise ValueError(f"boxes and {', '.join(ranges)} are both given; boxes stand instead of the ranges")
        missing = [key for key in RANGES if key not in (*ranges, "z_test")]
        if self.boxes is None and missing:
            raise ValueError(f"needs {', '.join(missing)} (or boxes)")
        self._check_gap()
        for split in SPLITS:
            for region in self.regions(split):
                if region.image is None or (region.annotation is None and split != "test"):
                    raise ValueError(f"needs image_chan and annotation_chan for {split} (or --image and --annotation)")
        return self

    def _check_gap(self) -> None:
        if self.boxes is not None:
            if self.z_gap:
                raise ValueError("z_gap goes with z_train, z_val and z_test; leave the gap between the boxes yourself")
            return
        for split, z in self._z_ranges().items():
            if z is not None and z[0] >= z[1]:
                raise ValueError(f"z_gap {self.z_gap} leaves nothing of z_{split} {getattr(self, f'z_{split}')}")


def region_box(region: Region, bounds: Box, what: str) -> Box:
    """The box that a region names, inside `bounds` of its image; `what` opens the message of the ValueError if not."""
    text = region.box if isinstance(region.box, str) else ",".join(f"{a}:{b}" for a, b in region.box)
    try:
        return parse_box(text, bounds)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from None

"""Settings of a task: what to find, in which volumes, and which voxels train, validate and test."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field, field_serializer, model_serializer, model_validator

from kasthuri_ray.config.field_types import Count, Labels, LossName, NotNegativeInt, SettingsSection, Share, VoxelRange
from kasthuri_ray.errors import InputError
from kasthuri_ray.geometry import Box, Zyx, parse_box
from kasthuri_ray.labels import classes_of_names
from kasthuri_ray.storage.uris import redact_secrets

SPLITS = ("train", "val", "test")
RANGES = ("xrange_vol", "yrange_vol", "z_train", "z_val", "z_test")  # of a task without `boxes`


class Region(SettingsSection):
    """A box of one volume, in the train, val or test split."""

    image: str | None = None
    """URI of the image volume; left out: the task's image_chan."""
    annotation: str | None = None
    """URI of the annotation volume; left out: the task's annotation_chan; null or "": no annotation (test only)."""
    box: str | Annotated[list[VoxelRange], Field(min_length=3, max_length=3)]
    """Three half-open ranges z, y, x in voxels: "0:100,1000:3000,:" (":" is a whole axis) or [[0, 100], ...]."""

    def with_defaults(self, image: str | None, annotation: str | None) -> Region:
        """Return the region with the task's image and annotation where it leaves its own out."""
        own = self.annotation or None
        return Region(
            image=self.image or image,
            annotation=own if "annotation" in self.model_fields_set else annotation,
            box=self.box,
        )

    def box_text(self) -> str:
        """Return the box as text, such as `0:100,1000:3000,:`."""
        return self.box if isinstance(self.box, str) else ",".join(f"{start}:{stop}" for start, stop in self.box)

    @model_serializer(mode="wrap")
    def _write_set_fields(self, write: Any) -> dict[str, Any]:
        # An annotation that was left out and one that is null differ, also after they are written and read again.
        fields = {key: value for key, value in write(self).items() if key in self.model_fields_set}
        return {key: redact_secrets(value) if isinstance(value, str) else value for key, value in fields.items()}


class SplitBoxes(SettingsSection):
    """Regions of one or several volumes, in place of the ranges of a task file."""

    train: Annotated[list[Region], Field(min_length=1)]
    """Regions that the weights are trained on."""
    val: Annotated[list[Region], Field(min_length=1)]
    """Regions that the best epoch is chosen on."""
    test: list[Region] = Field(default=[])
    """Regions that the final figures are measured on."""


class TaskSettings(SettingsSection):
    """What to find, in which volumes, and where each split is: the keys of a task file.

    Ranges are [start, stop] in voxels of the volume, without the voxel `stop`.
    """

    name: str = "task"
    """Name of the task in reports."""
    task_type: str = "membrane"
    """Type: synapse (half of the training tiles are drawn around a synapse), membrane, or any other word; for all but
    membrane an evaluation also matches objects."""
    image_chan: str | None = None
    """URI of the image volume."""
    annotation_chan: str | None = None
    """URI of the annotation volume, on the same voxels as the image."""
    xrange_vol: VoxelRange | None = None
    """Range along x of all splits; null: as far as the annotation goes."""
    yrange_vol: VoxelRange | None = None
    """Range along y of all splits; null: as far as the annotation goes."""
    z_train: VoxelRange | None = None
    """Sections that the weights are trained on; null, as z_val and z_test: the volume is split by itself, 70% to train,
    15% to val, 15% to test, along z if there are at least 10 sections, else along the longer of y and x."""
    z_val: VoxelRange | None = None
    """Sections that the best epoch is chosen on."""
    z_test: VoxelRange | None = None
    """Sections that the final figures are measured on; null: no test."""
    boxes: SplitBoxes | None = None
    """Regions of each split, in place of the five ranges: lists for train, val and test."""
    z_gap: NotNegativeInt = 0
    """Least number of sections between two splits; the start of the later one is moved."""
    volume_z: Count = 1
    """Sections in a tile, the piece that the network sees at once; 1 for 2D networks."""
    tile_size: Annotated[list[Count], Field(min_length=2, max_length=2)] = Field(default=[256, 256])
    """Size of a tile in voxels along x, y."""
    classes: Annotated[list[str], Field(min_length=2)] | None = None
    """Names of the classes 0, 1, ..., the background first; they set network.classes. null: named after the type."""
    labels: Annotated[dict[str, int], Field(min_length=2)] | None = None
    """Labels of the annotation by name, such as {"unlabelled": 0, "background": 1, "membrane": 2}: "unlabelled" and
    "ignore" are ignored, "background" is class 0, the others are classes in the order of their labels. It sets
    network.classes. classes, threshold, background and ignore_label are refused beside it."""
    threshold: bool = False
    """Meaning of the annotation; true: values above threshold_value are class 1; false: values are the classes 0, 1,
    ..."""
    threshold_value: float = 0.0
    """Value of the annotation above which a voxel is class 1, with threshold."""
    background: Labels | None = None
    """Label that means "no object", or a list of such labels: every other label is foreground, 0 included, and
    threshold does not count. null: found out in annotations of 32 and 64 bits, where the maximum of the type (-1 of a
    signed one) fills more than half of the training box; an empty list: no such label."""
    ignore_label: int | list[int] | None = None
    """Label whose voxels are not labelled, or a list of such labels: they are ignored in training and evaluation. null:
    no such label."""
    labelled_tiles: bool | None = None
    """Whether training draws only tiles that hold a labelled voxel; null: it does where labels are sparse, but not in a
    run that was begun without this setting."""
    image_intensity: Annotated[list[float], Field(min_length=2, max_length=2)] | dict[str, list[float]] | None = None
    """Gray values that become black and white: [low, high], or {"percentiles": [low, high]}. null: 0 and 255 for an
    image of uint8, percentiles 0.5 and 99.5 for other integers; an image of floats needs a value."""
    foreground_share: Share | None = None
    """Fraction of the training tiles that are drawn around foreground, 0 to 1. null: 0.5 for synapse, else 0."""
    loss: LossName | None = None
    """Loss that replaces that of the network file; null: the network's."""

    @field_serializer("image_chan", "annotation_chan")
    def _without_secrets(self, uri: str | None) -> str | None:
        return None if uri is None else redact_secrets(uri)

    def class_names(self, num_classes: int) -> list[str]:
        """Return the names of the foreground classes, see `class_names`."""
        return class_names(self.model_dump(include={"classes", "labels", "task_type"}), num_classes)

    @property
    def num_classes(self) -> int | None:
        """Number of classes that the task names, background included; None if it names none."""
        if self.classes is None and self.labels is None:
            return None
        return 1 + len(self.class_names(2))

    @property
    def tile(self) -> Zyx:
        """Shape of a tile in voxels, z, y, x."""
        return (self.volume_z, self.tile_size[1], self.tile_size[0])

    @property
    def needs_split(self) -> bool:
        """Whether ranges are missing, which follow from the volume; see `tiles.volume_split`."""
        return self.boxes is None and None in (self.xrange_vol, self.yrange_vol, self.z_train)

    @property
    def share_on_foreground(self) -> float:
        """Fraction of the training tiles that are drawn around foreground, 0 to 1."""
        if self.foreground_share is not None:
            return self.foreground_share
        return 0.5 if self.task_type == "synapse" else 0.0

    def regions(self, split: str) -> list[Region]:
        """Return the regions of a split, each with its image and annotation; a test region may have no annotation.

        Before the volume is split (`needs_split`) all of it is one region of train.
        """
        if self.boxes is not None:
            regions = getattr(self.boxes, split)
        elif self.needs_split:
            regions = [Region(box=":,:,:")] if split == "train" else []
        else:
            z = self._z_ranges()[split]
            regions = [] if z is None else [Region(box=[z, self.yrange_vol, self.xrange_vol])]  # type: ignore[list-item]
        return [region.with_defaults(self.image_chan, self.annotation_chan) for region in regions]

    def range_keys(self, split: str, number: int = 0) -> tuple[str, str, str]:
        """Return the names of the settings that place region `number` of a split along z, y and x."""
        if self.boxes is not None:
            return (f"task.boxes.{split}.{number}.box",) * 3
        return f"task.z_{split}", "task.yrange_vol", "task.xrange_vol"

    def volume_key(self, split: str, number: int, kind: str) -> str:
        """Return the setting that names the `image` or the `annotation` of region `number` of a split."""
        regions = getattr(self.boxes, split) if self.boxes is not None else []
        return "task.boxes" if regions and getattr(regions[number], kind) else f"task.{kind}_chan"

    def _z_ranges(self) -> dict[str, list[int] | None]:
        """Return the z range of each split.

        The start of a split is moved so that at least `z_gap` sections separate it from the previous one.
        """
        settings = {"train": self.z_train, "val": self.z_val, "test": self.z_test}
        ranges = {split: list(z) if z else None for split, z in settings.items()}
        in_order = sorted(filter(None, ranges.values()))
        for (_, end), after in itertools.pairwise(in_order):
            # Ranges that overlap stay as they are, and are refused when the volumes are opened.
            if after[0] >= end:
                after[0] = max(after[0], end + self.z_gap)
        return ranges

    @model_validator(mode="after")
    def _check_complete(self) -> TaskSettings:
        ranges = [key for key in RANGES if getattr(self, key) is not None]
        if self.boxes is not None and ranges:
            raise InputError(f"boxes and {', '.join(ranges)} are both set; boxes replace the ranges")
        missing = [key for key in ("z_train", "z_val") if key not in ranges]
        if any(key.startswith("z_") for key in ranges) and missing:
            given = ", ".join(key for key in ranges if key.startswith("z_"))
            raise InputError(f"{given} needs {', '.join(missing)} too (or boxes, or no ranges: then it is split)")
        self._check_gap()
        self._check_labels()
        for split in SPLITS:
            for region in self.regions(split):
                if region.image is None or (region.annotation is None and split != "test"):
                    raise InputError(f"needs image_chan and annotation_chan for {split} (or --image and --annotation)")
        return self

    def _check_labels(self) -> None:
        ignored = [self.ignore_label] if isinstance(self.ignore_label, int) else self.ignore_label or []
        if both := set(ignored) & set(self.background or ()):
            raise InputError(f"ignore_label and background are both {min(both)}: a label has one meaning")
        num_classes = 2 if self.classes is None else len(self.classes)
        if num_classes > 2 and self.threshold:
            raise InputError(f"threshold leaves two classes, but classes names {num_classes}: set threshold to false")
        if self.labels is None:
            return
        others = [
            name
            for name in ("classes", "threshold", "background", "ignore_label")
            if getattr(self, name) not in (None, []) and getattr(self, name) is not False  # the label 0 is given too
        ]
        if others:
            raise InputError(f"labels says what every label means: leave out {', '.join(others)}")
        if len(set(self.labels.values())) < len(self.labels):
            raise InputError("labels: two names have the same label")
        if not self.class_names(2):
            raise InputError("labels names no class but the background")

    def _check_gap(self) -> None:
        if self.boxes is not None:
            if self.z_gap:
                raise InputError(
                    "z_gap applies only to z_train, z_val and z_test; leave the gap between the boxes yourself"
                )
            return
        for split, z in self._z_ranges().items():
            if z is not None and z[0] >= z[1]:
                raise InputError(f"z_gap {self.z_gap} leaves nothing of z_{split} {getattr(self, f'z_{split}')}")


def class_names(task: Mapping[str, Any], num_classes: int) -> list[str]:
    """Return the names of the foreground classes of a task.

    Parameters
    ----------
    task : mapping
        Settings of the task by their keys; `classes` and `labels` may be missing.
    num_classes : int
        Number of classes, background included.

    Returns
    -------
    list of str
        Those of `labels` or `classes`, else the type of the task, numbered if there are several.
    """
    if task.get("labels"):
        classes, _ = classes_of_names(task["labels"])
        names = {label: name for name, label in task["labels"].items()}
        return [names[label] for label, number in sorted(classes.items(), key=lambda pair: pair[1]) if number]
    if task.get("classes"):
        return list(task["classes"][1:])
    if num_classes == 2:
        return [task["task_type"]]
    return [f"{task['task_type']}_{number}" for number in range(1, num_classes)]


def named_classes(task: Mapping[str, Any], stated: Sequence[int]) -> dict[str, int]:
    """Return the setting of the network that follows from the classes that a task names.

    Parameters
    ----------
    task : mapping
        Settings of the task by their keys, not validated.
    stated : sequence of int
        What the layers above the files say of network.classes, the lowest first.

    Returns
    -------
    dict
        `classes`, background included; empty if the task names none, or in a way that its validation refuses.

    Raises
    ------
    InputError
        If another number is stated.
    """
    names: Any = task.get("labels") or task.get("classes")
    if not isinstance(names, list | dict) or not all(isinstance(name, str) for name in names):
        return {}
    if isinstance(names, dict) and not all(isinstance(label, int) for label in names.values()):
        return {}
    number = len(names) if isinstance(names, list) else 1 + len(class_names(task, 2))
    if stated and stated[-1] != number:
        raise InputError(
            f"network.classes is {stated[-1]}, but the task names {number} classes, the background included; leave "
            "network.classes out"
        )
    return {"classes": number}


def class_thresholds(value: float | Sequence[float], names: Sequence[str], flag: str = "--threshold") -> list[float]:
    """Return a threshold for each class.

    Parameters
    ----------
    value : float or sequence of float
        One for all, or one for each.
    names : sequence of str
        Names of the foreground classes.
    flag : str
        The flag that sets it, for the message.

    Returns
    -------
    list of float
        As many as names.

    Raises
    ------
    InputError
        If there is another number of them.
    """
    if isinstance(value, int | float):
        return [float(value)] * len(names)
    if len(value) != len(names):
        raise InputError(
            f"{len(value)} {'thresholds' if flag == '--threshold' else 'values'} for {len(names)} "
            f"class{'es' * (len(names) > 1)}: give {flag} one number, or one for each of {', '.join(names)}"
        )
    return [float(each) for each in value]


def region_box(region: Region, bounds: Box, what: str, where: str) -> Box:
    """Return the box of a region.

    Parameters
    ----------
    region : Region
        Region of a split.
    bounds : Box
        Bounds of the region's image, z, y, x.
    what : str
        Name of the box, which begins the message of the error.
    where : str
        URI of the image, for the message.

    Returns
    -------
    Box
        Box in voxels of the image, z, y, x.

    Raises
    ------
    InputError
        If the box is malformed, empty or not inside `bounds`.
    """
    return parse_box(region.box_text(), bounds, what, where)

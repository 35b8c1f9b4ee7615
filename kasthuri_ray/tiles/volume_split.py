"""The split of a volume for which a task gives no ranges: 70% to train, 15% to val, 15% to test, with gaps between."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from typing import Any

from kasthuri_ray.config.settings import Settings
from kasthuri_ray.config.task import RANGES, SPLITS, SplitBoxes, TaskSettings
from kasthuri_ray.errors import InputError
from kasthuri_ray.geometry import Box, Zyx, ceil_div, check_inside
from kasthuri_ray.tiles.splits import SMALLER_TILES, open_region_volumes
from kasthuri_ray.volumes.opening import VolumeOpener

HELD_OUT_SHARE = 0.15  # of val, and of test
MIN_SECTIONS = 10  # from which a volume is split along z
GAP_SECTIONS = 1
TILES_PER_GAP = 4  # in the plane the gap is a tile over this: neighbouring voxels show the same membrane
SPLIT_TEXT = "no ranges for this volume, which is split by itself, with gaps between train, val and test"


def plan_split(box: Box, tile: Zyx, z_gap: int = GAP_SECTIONS) -> dict[str, Box] | None:
    """Divide a box into train, val and test, in this order along one axis.

    Parameters
    ----------
    box : Box
        Voxels that are annotated, z, y, x.
    tile : tuple of int
        Shape of a tile, z, y, x, which every part must hold.
    z_gap : int
        Sections between the parts.

    Returns
    -------
    dict of str to Box, or None
        The parts: along z where there are at least 10 sections, else along the longer of y and x. Where the parts would
        be smaller than a tile, they are made larger at the cost of train, or the next axis is taken. None if no axis is
        long enough.
    """
    in_plane = sorted((1, 2), key=lambda axis: -box.shape[axis])
    for axis in [0, *in_plane] if box.shape[0] >= MIN_SECTIONS else in_plane:
        gap = z_gap if axis == 0 else ceil_div(tile[axis], TILES_PER_GAP)
        lengths = _divide(box.shape[axis], tile[axis], gap)
        if lengths is not None:
            return _cut(box, axis, lengths, gap)
    return None


def _divide(length: int, tile: int, gap: int) -> tuple[int, int, int] | None:
    """Return the lengths of train, val and test; None if they do not fit."""
    usable = length - 2 * gap
    held_out = max(round(HELD_OUT_SHARE * usable), tile)
    train = usable - 2 * held_out
    return (train, held_out, held_out) if train >= held_out else None


def _cut(box: Box, axis: int, lengths: tuple[int, int, int], gap: int) -> dict[str, Box]:
    parts, at = dict[str, Box](), box.start[axis]
    for split, length in zip(SPLITS, lengths, strict=True):
        start, stop = list(box.start), list(box.stop)
        start[axis], stop[axis] = at, at + length
        parts[split] = Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))
        at += length + gap
    return parts


def split_volume(
    settings: Settings, add_note: Callable[[str], None], begun: Mapping[str, Any] | None = None
) -> Settings:
    """Return settings whose task has the ranges, or boxes, that it leaves out.

    Parameters
    ----------
    settings : Settings
        Settings of the run; they are returned themselves if no range is missing.
    add_note : callable
        Receives lines that a person should read: the split, as settings to type.
    begun : mapping, optional
        The task that is recorded for this run, if it was begun before: its split holds.

    Returns
    -------
    Settings
        A copy.

    Raises
    ------
    InputError
        If the volume is too small for three parts.
    InputNotFound, InputDenied, VolumeError
        If a volume cannot be opened.
    """
    if not settings.task.needs_split:
        return settings
    task = _with_recorded_split(settings.task, begun or {})
    if task.needs_split:
        task = _with_split(settings.task, annotated_box(settings))
    what = "no ranges of x and y: all that is annotated is used" if settings.task.z_train else SPLIT_TEXT
    typed = shlex.join(split_assignments(task))
    add_note(f"the task gives {what}. To type the same, or to change it: --set {typed}")
    return settings.model_copy(update={"task": task})


def split_assignments(task: TaskSettings) -> list[str]:
    """Return the values for `--set` that place the splits of a task.

    Parameters
    ----------
    task : TaskSettings
        A task whose volume is split.

    Returns
    -------
    list of str
        Such as `task.z_train=0,14`, not quoted for a shell.
    """
    if task.boxes is not None:
        return [f"task.boxes={json.dumps(task.boxes.model_dump(mode='json'), separators=(',', ':'))}"]
    ranges = {key: getattr(task, key) for key in RANGES}
    return [f"task.{key}={start_stop[0]},{start_stop[1]}" for key, start_stop in ranges.items() if start_stop]


def _with_recorded_split(task: TaskSettings, begun: Mapping[str, Any]) -> TaskSettings:
    """Return the task with the split of its record, where it leaves it out."""
    if begun.get("boxes"):
        return _with_boxes(task, begun["boxes"])
    missing = [key for key in RANGES if getattr(task, key) is None and begun.get(key) is not None]
    return task.model_copy(update={key: begun[key] for key in missing})


def _with_split(task: TaskSettings, box: Box) -> TaskSettings:
    """Return the task with ranges of z, or with boxes if it is split along another axis."""
    if task.z_train is not None:  # x or y alone is missing
        return task.model_copy(update={key: value for key, value in _plane(box).items() if getattr(task, key) is None})
    parts = plan_split(box, task.tile, max(GAP_SECTIONS, task.z_gap))
    if parts is None:
        raise InputError(_too_small_text(task, box))
    is_along_z = parts["train"].shape[0] < box.shape[0]
    if is_along_z and min(box.start) >= 0:
        sections = {f"z_{split}": [part.start[0], part.stop[0]] for split, part in parts.items()}
        return task.model_copy(update={**_plane(box), **sections})
    return _with_boxes(task, {split: [{"box": str(part)}] for split, part in parts.items()})


def _with_boxes(task: TaskSettings, boxes: Mapping[str, Any]) -> TaskSettings:
    ranges = dict.fromkeys(RANGES)
    return task.model_copy(update={**ranges, "z_gap": 0, "boxes": SplitBoxes.model_validate(boxes)})


def _plane(box: Box) -> dict[str, list[int]]:
    return {"xrange_vol": [box.start[2], box.stop[2]], "yrange_vol": [box.start[1], box.stop[1]]}


def annotated_box(settings: Settings) -> Box:
    """Return what a task without ranges covers.

    Parameters
    ----------
    settings : Settings
        Settings of the training.

    Returns
    -------
    Box
        The voxels of the image that the annotation covers, within the ranges of x and y that are given.

    Raises
    ------
    InputError
        If the two do not overlap, or the ranges lie outside.
    InputNotFound, InputDenied, VolumeError
        If a volume cannot be opened.
    """
    task, train = settings.task, settings.train
    opener = VolumeOpener(train.boss, train.cache, train.cache_size)
    (region,) = task.model_copy(update=dict.fromkeys(RANGES)).regions("train")
    names = (settings.name_of(f"task.{kind}_chan") for kind in ("image", "annotation"))
    volumes = open_region_volumes(opener, region, train, *names)
    covered = volumes.overlap
    y = task.yrange_vol or [covered.start[1], covered.stop[1]]
    x = task.xrange_vol or [covered.start[2], covered.stop[2]]
    box = Box((covered.start[0], y[0], x[0]), (covered.stop[0], y[1], x[1]))
    return check_inside(box, volumes.image.bounds, f"the part of {volumes.image.uri} that is split")


def _too_small_text(task: TaskSettings, box: Box) -> str:
    fitting = [size for size in SMALLER_TILES if plan_split(box, (task.volume_z, size, size)) is not None]
    smaller = f", or smaller tiles: --set task.tile_size={fitting[0]},{fitting[0]}" if fitting else ""
    return (
        f"no ranges are given, and {task.image_chan} is too small to be split by itself: {box} (z,y,x) does not hold "
        f"three parts of at least one tile, {','.join(map(str, task.tile))}, with gaps between. Give the ranges "
        f"task.xrange_vol, task.yrange_vol, task.z_train, task.z_val and task.z_test{smaller}"
    )

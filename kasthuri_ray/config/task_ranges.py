"""Whose image the ranges and boxes of a task are for: those of another image are not used in silence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kasthuri_ray.config.task import RANGES
from kasthuri_ray.errors import InputError
from kasthuri_ray.storage.uris import absolute_uri, redact_secrets

TASK_FOLDER = Path(__file__).parents[1] / "taskconfig"

NamedLayer = tuple[str, dict[str, dict[str, Any]]]  # as in loading.py


def drop_foreign_ranges(
    files: Sequence[NamedLayer], overrides: Sequence[NamedLayer]
) -> tuple[list[NamedLayer], list[NamedLayer], dict[str, str]]:
    """Drop the ranges, or the boxes, of a task whose image is replaced in a layer above, and note it.

    Parameters
    ----------
    files, overrides : sequence of (str, dict)
        Layers of settings with their names, the lowest first.

    Returns
    -------
    files, overrides : list of (str, dict)
        The layers, of which one may have lost its ranges.
    notes : dict of str to str
        A line by the key `task.ranges`, or none.

    Raises
    ------
    InputError
        For boxes of which some name their image and others do not.
    """
    layers, notes = [*files, *overrides], dict[str, str]()
    for number, (origin, layer) in enumerate(layers):
        above, task = layers[number + 1 :], layer.get("task", {})
        own, image = task.get("image_chan"), _highest(above, "image_chan")
        if not own or image is None or _is_same(own, image) or _highest(above, "boxes") is not None:
            continue
        used = [key for key in RANGES if task.get(key) is not None and _highest(above, key) is None]
        used += ["boxes"] if _uses_boxes(task, above, origin, image) else []
        if not used:
            continue
        layers[number] = origin, {**layer, "task": {key: task[key] for key in task if key not in used}}
        name = f"the task {Path(origin).stem}" if Path(origin).parent == TASK_FOLDER else origin
        notes["task.ranges"] = (
            f"{', '.join(used)} of {name} belong to {redact_secrets(str(own))}, not to {redact_secrets(str(image))}: "
            f"they are not used{_kept_annotation_note(task, above)}"
        )
    return layers[: len(files)], layers[len(files) :], notes


def _kept_annotation_note(task: Mapping[str, Any], above: Sequence[NamedLayer]) -> str:
    """Return that the annotation of a task stays although its image is replaced; "" if it is replaced too."""
    annotation = task.get("annotation_chan")
    if not annotation or _highest(above, "annotation_chan") is not None:
        return ""
    return f"; its annotation {redact_secrets(str(annotation))} is (--annotation names another)"


def _uses_boxes(task: Mapping[str, Any], above: Sequence[NamedLayer], origin: str, image: Any) -> bool:
    """Return whether a task has boxes of its own image; InputError if some of them are, and others of other images."""
    boxes = task.get("boxes")
    if not isinstance(boxes, Mapping) or any(_highest(above, key) is not None for key in RANGES):
        return False
    regions = [region for split in boxes.values() if isinstance(split, list) for region in split]
    have_own = [isinstance(region, Mapping) and bool(region.get("image")) for region in regions]
    if any(have_own) and not all(have_own):
        raise InputError(
            f"{origin}: {have_own.count(False)} of {len(regions)} regions in task.boxes name no image: they belong to "
            f"{redact_secrets(str(task['image_chan']))}, not to {redact_secrets(str(image))}. Give each region its "
            '"image", or leave the other image out'
        )
    return not any(have_own)


def _is_same(one: Any, other: Any) -> bool:
    return one == other or absolute_uri(str(one)) == absolute_uri(str(other))


def _highest(layers: Sequence[tuple[str, Mapping[str, Mapping[str, Any]]]], key: str) -> Any:
    """Return the value of a setting of the task in the highest layer that sets it; None if none does."""
    return next((layer["task"][key] for _, layer in reversed(layers) if key in layer.get("task", {})), None)

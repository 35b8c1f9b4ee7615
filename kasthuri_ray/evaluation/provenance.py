"""What a prediction records about itself: its task, threshold and position, and whether it is finished."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from kasthuri_ray.config.config_files import builtin_tasks
from kasthuri_ray.config.loading import GivenSettings, resolve_settings
from kasthuri_ray.config.task import RANGES, TaskSettings, class_names
from kasthuri_ray.errors import InputError
from kasthuri_ray.geometry import Box, Nm, Zyx, box_of_text, per_axis
from kasthuri_ray.labels import LabelRule
from kasthuri_ray.output.object_image import complete_object_image_path
from kasthuri_ray.output.ome_zarr import OmeZarrOutput
from kasthuri_ray.output.side_files import read_progress
from kasthuri_ray.progress import format_count
from kasthuri_ray.storage.folder import open_storage
from kasthuri_ray.volumes.learnt_from import LearntPart
from kasthuri_ray.volumes.opening import VolumeOpener
from kasthuri_ray.volumes.place import Place
from kasthuri_ray.volumes.recorded_image import map_box
from kasthuri_ray.volumes.uri_options import split_uri_options
from kasthuri_ray.volumes.volume import Volume

NO_VOLUME = "-"  # of a task that names no volumes of its own


@dataclass(frozen=True)
class AnnotationRule:
    """The part of a task that says what the labels of an annotation mean.

    Parameters
    ----------
    name : str
        Name of the task.
    task_type : str
        `membrane`, `synapse` or another; "" if unknown.
    labels : LabelRule
        What its labels mean.
    class_names : tuple of str
        Names of the foreground classes.
    image, annotation : str, optional
        URIs of the task's own volumes.
    """

    name: str
    task_type: str
    labels: LabelRule
    class_names: tuple[str, ...]
    image: str | None = None
    annotation: str | None = None

    @classmethod
    def of(cls, task: Mapping[str, Any], num_classes: int) -> AnnotationRule:
        return cls(
            name=task["name"],
            task_type=task["task_type"],
            labels=LabelRule.from_task(task, num_classes),
            class_names=tuple(class_names(task, num_classes)),
            image=task.get("image_chan"),
            annotation=task.get("annotation_chan"),
        )


def find_annotation_rule(
    task: str | Mapping[str, Any] | None,
    prediction: str,
    provenance: Mapping[str, Any],
    num_classes: int,
    changes: Mapping[str, Any] | None = None,
) -> AnnotationRule:
    """Return the rule of the task `task`, a name, file or content, else of the provenance's task.

    `changes` are settings that win over those of the task. Raise an InputError if there is no task.
    """
    changes = changes or {}
    if task is not None:
        values = _resolve_task(task, changes, {})
        named = {key: None if value == NO_VOLUME else value for key, value in values.items()}
        return AnnotationRule.of(named, num_classes)
    recorded = provenance.get("task")
    if recorded is None:
        raise InputError(
            f"{prediction} does not say which task it was made for: give --task, one of "
            f"{', '.join(builtin_tasks())} or a task file"
        )
    defaults = {
        name: TaskSettings.model_fields[name].default
        for name in ("name", "threshold", "threshold_value", "ignore_label")
    }
    valid = _resolve_task(None, changes, {key: [0, 1] for key in RANGES})
    changed = {key: value for key, value in valid.items() if key in changes}
    return AnnotationRule.of({**defaults, "task_type": "", **recorded, **changed}, num_classes)


def _resolve_task(
    task: str | Mapping[str, Any] | None, changes: Mapping[str, Any], base: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the valid settings of a task with changes; `base` are those that may be missing."""
    volumes = {"image_chan": NO_VOLUME, "annotation_chan": NO_VOLUME}
    given = GivenSettings(task, flags={"task": dict(changes)})
    return resolve_settings(given, ("the evaluation", {"task": {**volumes, **base}})).task.model_dump()


def read_provenance(uri: str) -> dict[str, Any]:
    """Return the provenance that jobs/segment.py left in its output.

    Parameters
    ----------
    uri : str
        URI of the output, or of one of its arrays.

    Returns
    -------
    dict
        Empty for any other volume.
    """
    return _find_provenance(uri)[1]


def output_group_path(uri: str) -> str | None:
    """Return the path of an output's group.

    Parameters
    ----------
    uri : str
        URI of the output, or of one of its arrays.

    Returns
    -------
    str or None
        The `storage_path` of any other URI.
    """
    return _find_provenance(uri)[0]


def _find_provenance(uri: str) -> tuple[str | None, dict[str, Any]]:
    path = storage_path(uri)
    if path is None:
        return None, {}
    for group in (path, path.rpartition("/")[0]):  # the URI is that of the group, or of one of its arrays
        try:
            document = json.loads(open_storage(group).read_bytes("zarr.json"))
            return group, dict(document["attributes"]["kasthuri_ray"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return path, {}


def storage_path(uri: str) -> str | None:
    """Return the local path or s3:// path that a URI names; None for a URI of another kind."""
    path = re.sub(r"#mip=\d+$", "", split_uri_options(uri)[0]).rstrip("/")
    is_path = "|" not in path and (path.startswith(("s3://", "file://")) or "://" not in path)
    return path if is_path and path else None


@dataclass(kw_only=True)
class ChannelVolume(Volume):
    """The probability of one of several classes of an output."""

    output: OmeZarrOutput
    channel: int

    def _read(self, box: Box) -> np.ndarray:
        return self.output.probabilities.read_channel(0, box, self.channel)


def open_predictions(uri: str, opener: VolumeOpener, num_classes: int) -> list[Volume]:
    """Return the probability of each foreground class as a volume of uint8, float or bool.

    Raise an InputError for other types.
    """
    path = storage_path(uri)
    if num_classes > 2 and path is not None:
        return _open_channels(path)
    volume = opener.open(uri, labels=True, name="--prediction")
    if volume.dtype not in (np.uint8, bool) and volume.dtype.kind != "f":
        raise InputError(
            f"{volume.uri} holds {volume.dtype}; a prediction holds probabilities (uint8 where 255 is 1, or floats "
            "from 0 to 1) or is a mask of bools"
        )
    return [volume]


def open_object_ids(uri: str, provenance: Mapping[str, Any], prediction: Volume, opener: VolumeOpener) -> Volume | None:
    """Return the label image of the objects of an output as a volume.

    None if there is none, if it is not complete, or if the prediction has another shape, as a coarser level has.
    """
    group = output_group_path(uri)
    if group is None or not provenance:
        return None
    path = complete_object_image_path(group, provenance["task"].get("task_type", ""))
    if path is None:
        return None
    ids = opener.open(path, labels=True)
    return ids if ids.bounds.shape == prediction.bounds.shape else None


def _open_channels(path: str) -> list[Volume]:
    output = OmeZarrOutput.open(path)
    level = output.spec.levels[0]
    has_size = output.spec.nanometers
    return [
        ChannelVolume(
            uri=output.path,
            bounds=level.box,
            dtype=np.dtype(np.uint8),
            voxel_size_nm=level.scale if has_size else None,
            chunk=output.spec.layout.chunk,
            chunk_origin=(0, 0, 0),
            output=output,
            channel=channel,
            place=Place(level.translation, "middle", "OME translation") if has_size else None,
        )
        for channel in range(len(output.spec.channels))
    ]


def prediction_start(provenance: Mapping[str, Any], prediction: Volume) -> Zyx | None:
    """Return the image voxel of the first voxel of a segmentation.

    None for other predictions, and for a coarser level of the output. Raise an InputError for a coarser level without a
    voxel size, whose voxels cannot be found in the annotation.
    """
    if not re.fullmatch(r"[-\d:,]+", str(provenance.get("box", ""))):
        return None
    box = box_of_text(provenance["box"])
    if box.shape != prediction.bounds.shape:
        if prediction.voxel_size_nm is not None:
            return None
        raise InputError(
            f"{prediction.uri} is a downsampled level, and without a voxel size it cannot be aligned with the "
            "annotation; give the group or level s0"
        )
    return box.start


def prediction_place(provenance: Mapping[str, Any], prediction: Volume, image: Volume | None) -> Place | None:
    """Return the place of a prediction.

    An output states the place of its image as OME's translation, whether that is the middle of a voxel or its corner.

    Parameters
    ----------
    provenance : mapping
        Of the prediction; empty for another tool's.
    prediction : Volume
        The prediction.
    image : Volume or None
        The image that was segmented, if it is known.

    Returns
    -------
    Place or None
        None if nothing states it.
    """
    place, size = prediction.place, prediction.voxel_size_nm
    if (
        "box" not in provenance
        or place is None
        or size is None
        or (image and image.place and image.place.anchor == "middle")
    ):
        return place
    finest = provenance.get("voxel_size_nm") or size  # a level's translation is the mean of that of its voxels
    return Place(per_axis(lambda t, n, m: t - (n - m) / 2, place.origin_nm, size, finest), "corner", place.source)


def level_factors(provenance: Mapping[str, Any], prediction: Volume) -> Nm:
    """Return how many voxels of the segmented image a voxel of a level of the output is long along z, y, x."""
    finest, size = provenance.get("voxel_size_nm"), prediction.voxel_size_nm
    return (1.0, 1.0, 1.0) if not finest or size is None else per_axis(lambda n, m: round(n / m), size, finest)


def read_learnt_part(provenance: Mapping[str, Any], factors: Nm, prediction: Volume, aligned: Volume) -> LearntPart:
    """Return what is known of the part of an annotation that the network of a prediction learnt from.

    Parameters
    ----------
    provenance : mapping
        That of the prediction; empty for another tool's.
    factors : tuple of float
        See `level_factors`.
    prediction, aligned : Volume
        The prediction on its own voxels, and on those of the annotation.

    Returns
    -------
    LearntPart
        In voxels of the annotation.
    """
    part = LearntPart.from_plain(provenance.get("learnt_from"))
    if not part.boxes:
        return part
    start, first = box_of_text(provenance["box"]).start, prediction.bounds.start

    def to_level(box: Box) -> Box:
        inside = box.relative_to(start)
        low = per_axis(lambda a, n: math.floor(a / n), inside.start, factors)
        return Box(low, per_axis(lambda b, n: math.ceil(b / n), inside.stop, factors)).shifted(first)

    return part.with_boxes(map_box(aligned, to_level(box)) for box in part.boxes)


def unfinished_warning(uri: str) -> str:
    """Return a warning for an unfinished segmentation, whose missing blocks are zeros; "" for any other volume."""
    path = output_group_path(uri)
    if path is None:
        return ""
    try:
        progress = read_progress(path)
        state, done, blocks = progress["state"], progress["done"], progress["blocks"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    if state == "done":
        return ""
    return (
        f"The segmentation is not finished ({state}: {done} of {format_count(blocks, 'block')}). Missing blocks count "
        "as background; finish it first, or give --box of a part that is done."
    )

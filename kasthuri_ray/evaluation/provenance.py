"""What a prediction says of itself: its task, its threshold, where it lies, how far it got."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from kasthuri_ray.config.loading import builtin_tasks, resolve_settings
from kasthuri_ray.config.task import TaskSettings
from kasthuri_ray.geometry import Box, Zyx
from kasthuri_ray.output.ome_zarr import OmeZarrOutput
from kasthuri_ray.progress import format_count
from kasthuri_ray.storage.folder import open_storage
from kasthuri_ray.volumes.opening import VolumeOpener
from kasthuri_ray.volumes.volume import Volume


@dataclass(frozen=True)
class AnnotationRule:
    """What of a task says what an annotation's labels mean, and what is looked for."""

    name: str
    task_type: str
    threshold_value: float | None
    ignore_label: int | None
    image: str | None = None
    annotation: str | None = None

    @classmethod
    def of(cls, task: Mapping[str, Any]) -> AnnotationRule:
        return cls(
            name=task["name"],
            task_type=task["task_type"],
            threshold_value=task["threshold_value"] if task["threshold"] else None,
            ignore_label=task["ignore_label"],
            image=task.get("image_chan"),
            annotation=task.get("annotation_chan"),
        )


def read_provenance(uri: str) -> dict[str, Any]:
    """The provenance that a segmentation of ours left in its group; empty for anything else."""
    return _find_provenance(uri)[1]


def output_group_path(uri: str) -> str | None:
    """The path of the group where one of its arrays is named, else that of the prediction; None as `group_path`."""
    return _find_provenance(uri)[0]


def _find_provenance(uri: str) -> tuple[str | None, dict[str, Any]]:
    path = group_path(uri)
    if path is None:
        return None, {}
    for place in (path, path.rpartition("/")[0]):  # of the group, or of one of its arrays
        try:
            document = json.loads(open_storage(place).read_bytes("zarr.json"))
            return place, dict(document["attributes"]["kasthuri_ray"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return path, {}


def group_path(uri: str) -> str | None:
    """The path or s3:// of a URI that is no more than that; None for other kinds."""
    path = re.sub(r"#mip=\d+$", "", uri).rstrip("/")
    plain = "|" not in path and (path.startswith(("s3://", "file://")) or "://" not in path)
    return path if plain and path else None


def annotation_rule(task: str | None, prediction: str, record: Mapping[str, Any]) -> AnnotationRule:
    """The task that was named, else the one of the provenance. ValueError where there is neither."""
    if task is not None:
        return AnnotationRule.of(resolve_settings(task, None).task.model_dump())
    known = record.get("task")
    if known is None:
        raise ValueError(
            f"{prediction} does not say which task it was made for: give --task, one of "
            f"{', '.join(builtin_tasks())} or a task file"
        )
    defaults = {
        name: TaskSettings.model_fields[name].default
        for name in ("name", "threshold", "threshold_value", "ignore_label")
    }
    return AnnotationRule.of({**defaults, "task_type": "", **known})


@dataclass(kw_only=True)
class ForegroundVolume(Volume):
    """The foreground of an output with several classes: their probabilities added up, at most 255."""

    output: OmeZarrOutput

    def _read(self, box: Box) -> np.ndarray:
        total = self.output.read(0, box).sum(axis=0, dtype=np.uint16)
        return np.minimum(total, 255).astype(np.uint8)


def open_prediction(uri: str, opener: VolumeOpener, classes: int) -> Volume:
    """The probability of foreground as a volume of uint8, floats or bools. ValueError for other types."""
    path = group_path(uri)
    if classes > 2 and path is not None:
        return _open_classes(path)
    volume = opener.open(uri)
    if volume.dtype not in (np.uint8, bool) and volume.dtype.kind != "f":
        raise ValueError(
            f"{volume.uri} holds {volume.dtype}; a prediction is probabilities, uint8 (255 is 1) or floats from 0 to "
            "1, or a mask of bools"
        )
    return volume


def _open_classes(path: str) -> Volume:
    output = OmeZarrOutput.open(path)
    level = output.spec.levels[0]
    known = output.spec.nanometers
    return ForegroundVolume(
        uri=output.path,
        bounds=level.box,
        dtype=np.dtype(np.uint8),
        voxel_size_nm=level.scale if known else None,
        chunk=output.spec.layout.chunk,
        chunk_origin=(0, 0, 0),
        output=output,
        translation_nm=level.translation if known else (0.0, 0.0, 0.0),
    )


def prediction_start(record: Mapping[str, Any], prediction: Volume) -> Zyx | None:
    """Where a prediction of ours begins in its image, which an OME-Zarr without a unit cannot say.

    Raises ValueError for a coarser level of one: nobody knows its voxels from those of the annotation.
    """
    if prediction.voxel_size_nm is not None or not re.fullmatch(r"[-\d:,]+", str(record.get("box", ""))):
        return None
    starts, stops = zip(*(map(int, part.split(":")) for part in record["box"].split(",")), strict=True)
    box = Box(starts, stops)  # type: ignore[arg-type]
    if box.shape != prediction.bounds.shape:
        raise ValueError(
            f"{prediction.uri} has {prediction.bounds.shape} voxels (z,y,x) and was made of {box.shape}: how large "
            "they are is not known, so a coarser level cannot be compared; give the whole group, or its s0"
        )
    return box.start


def unfinished_warning(uri: str) -> str:
    """What to tell of a segmentation that is not done and holds zeros where blocks are missing; empty for any other."""
    path = output_group_path(uri)
    if path is None:
        return ""
    folder, _, name = path.rpartition("/")
    try:
        progress = json.loads(open_storage(folder or ".").read_bytes(f"{name}.progress.json"))
        state, done, blocks = progress["state"], progress["done"], progress["blocks"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    if state == "done":
        return ""
    return (
        f"The segmentation is not finished ({state}: {done} of {format_count(blocks, 'block')}). What is missing counts as "
        "background here; run it to its end first, or give --box of a part that is done."
    )

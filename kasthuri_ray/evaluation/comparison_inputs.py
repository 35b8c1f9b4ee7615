"""From a command line to a comparison that can begin: all is opened, held against each other and checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from kasthuri_ray.config.settings import DEFAULT_THRESHOLD, EvaluateSettings
from kasthuri_ray.evaluation.comparison import Comparison
from kasthuri_ray.evaluation.provenance import (
    AnnotationRule,
    annotation_rule,
    open_prediction,
    prediction_start,
    read_provenance,
    unfinished_warning,
)
from kasthuri_ray.geometry import Box, Zyx, parse_box
from kasthuri_ray.volumes.alignment import VoxelGrid, overlap_box, voxel_shift
from kasthuri_ray.volumes.opening import VolumeOpener
from kasthuri_ray.volumes.volume import Volume


@dataclass(frozen=True)
class ComparisonInputs:
    """A comparison, and what its page shows beside it.

    record: the prediction's provenance, empty for another tool's. image: None where nobody can say which it is.
    image_shift: from the annotation's voxels to the image's.
    """

    comparison: Comparison
    truth: AnnotationRule
    record: Mapping[str, Any]
    image: Volume | None
    image_shift: Zyx
    notes: tuple[str, ...]


def prepare_comparison(options: EvaluateSettings) -> ComparisonInputs:
    """Open and check everything. Raises ValueError, FileNotFoundError, PermissionError or SourceError in words."""
    notes: list[str] = []
    _check_threshold(options.threshold)
    opener = VolumeOpener(options.boss, options.cache, options.cache_size)
    record = read_provenance(options.prediction)
    classes = int(record.get("network", {}).get("classes", 2))
    prediction = open_prediction(options.prediction, opener, classes)
    truth = annotation_rule(options.task, options.prediction, record)
    annotation = opener.open(options.annotation)
    _check_annotation(annotation, truth)
    start = prediction_start(record, prediction)
    own, grid = VoxelGrid.of(prediction, start), VoxelGrid.of(annotation)
    shift = voxel_shift(grid, own)
    box = _box(options.box, grid, overlap_box(grid, own, shift), notes.append)
    _note_sizes(own, grid, notes.append)
    if words := unfinished_warning(options.prediction):
        notes.append(words)
    threshold = options.threshold if options.threshold is not None else record.get("threshold", DEFAULT_THRESHOLD)
    comparison = Comparison(
        prediction=prediction,
        annotation=annotation,
        box=box,
        shift=shift,
        threshold=float(threshold),
        threshold_value=truth.threshold_value,
        num_classes=classes,
        ignore_label=truth.ignore_label,
        instances=_open_instances(options, opener, annotation, truth),
        objects=truth.task_type != "membrane",
    )
    image, image_shift = _open_image(record, truth, annotation, opener, notes.append)
    return ComparisonInputs(comparison, truth, record, image, image_shift, tuple(notes))


def _check_threshold(threshold: float | None) -> None:
    if threshold is not None and not 0 <= threshold <= 1:
        raise ValueError(f"--threshold {threshold} is no probability; it lies between 0 and 1")


def _check_annotation(annotation: Volume, truth: AnnotationRule) -> None:
    if annotation.dtype.kind not in "bui" and truth.threshold_value is None:
        raise ValueError(
            f"{annotation.uri} holds {annotation.dtype}; an annotation holds integers, or the task {truth.name} sets "
            "`threshold` to true, to take the voxels above its `threshold_value`"
        )


def _box(text: str | None, grid: VoxelGrid, shared: Box, say: Callable[[str], None]) -> Box:
    """What is compared: of the overlap what `--box` asks for."""
    if text is None:
        return shared
    asked = parse_box(text, grid.bounds)
    box = asked.intersect(shared)
    if box.num_voxels == 0:
        raise ValueError(f"--box {asked} is not where the prediction lies: the two overlap in {shared} (z,y,x)")
    if box != asked:
        say(f"Of the box {asked} the prediction holds {box}, and that is what is compared.")
    return box


def _note_sizes(prediction: VoxelGrid, annotation: VoxelGrid, say: Callable[[str], None]) -> None:
    unknown = [grid.name for grid in (prediction, annotation) if grid.size_nm is None]
    if len(unknown) == 2:
        say(f"Neither {unknown[0]} nor {unknown[1]} says how large its voxels are: they are compared by their index.")
    elif unknown:
        say(f"{unknown[0]} does not say how large its voxels are: they are taken to be as large as the other's.")


def _open_instances(
    options: EvaluateSettings, opener: VolumeOpener, annotation: Volume, truth: AnnotationRule
) -> Volume | None:
    if options.instances is None:
        return None
    if truth.task_type != "membrane":
        raise ValueError(
            f"--instances are the cells that membranes enclose; the task {truth.name} is {truth.task_type}"
        )
    instances = opener.open(options.instances)
    if instances.bounds != annotation.bounds:
        raise ValueError(
            f"instances and annotation have different shapes: {instances.uri} is {instances.bounds}, "
            f"{annotation.uri} is {annotation.bounds} (z,y,x)"
        )
    voxel_shift(VoxelGrid.of(instances), VoxelGrid.of(annotation))
    if instances.dtype.kind not in "ui":
        raise ValueError(f"{instances.uri} holds {instances.dtype}; instances are integers, one for each cell")
    return instances


def _open_image(
    record: Mapping[str, Any],
    truth: AnnotationRule,
    annotation: Volume,
    opener: VolumeOpener,
    say: Callable[[str], None],
) -> tuple[Volume | None, Zyx]:
    """The image that was segmented, to be shown: the provenance's, else that of the task's own annotation."""
    uri = record.get("image")
    if uri is None and annotation.uri == truth.annotation:
        uri = truth.image
    if uri is None:
        return None, (0, 0, 0)
    try:
        image = opener.open(uri)
        return image, voxel_shift(VoxelGrid.of(annotation), VoxelGrid.of(image))
    except (OSError, ValueError) as error:
        say(f"The image is not shown: {error}")
        return None, (0, 0, 0)

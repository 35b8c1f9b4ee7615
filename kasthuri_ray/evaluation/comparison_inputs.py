"""Opens and checks everything that a comparison needs, before any work."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from kasthuri_ray.config.settings import DEFAULT_THRESHOLD, EvaluateSettings
from kasthuri_ray.errors import InputError
from kasthuri_ray.evaluation.comparison import Comparison
from kasthuri_ray.evaluation.provenance import (
    AnnotationRule,
    find_annotation_rule,
    open_prediction,
    prediction_start,
    read_provenance,
    unfinished_warning,
)
from kasthuri_ray.geometry import Box, Zyx, parse_box
from kasthuri_ray.volumes.alignment import VoxelGrid, overlap_box, voxel_shift
from kasthuri_ray.volumes.opening import VolumeOpener
from kasthuri_ray.volumes.volume import Volume

AddNote = Callable[[str], None]


@dataclass(frozen=True)
class ComparisonInputs:
    """A comparison, and what its page shows with it.

    Parameters
    ----------
    comparison : Comparison
        What is compared.
    rule : AnnotationRule
        What the annotation's labels mean.
    provenance : mapping
        The prediction's provenance; empty for another tool's prediction.
    image : Volume, optional
        The image that was segmented, if known.
    image_shift : tuple of int
        What to add to a voxel of the annotation to get that of the image, z, y, x.
    notes : tuple of str
        Notes for the user.
    """

    comparison: Comparison
    rule: AnnotationRule
    provenance: Mapping[str, Any]
    image: Volume | None
    image_shift: Zyx
    notes: tuple[str, ...]


def prepare_comparison(settings: EvaluateSettings) -> ComparisonInputs:
    """Open and check everything.

    Raise InputError or VolumeError, with what was wrong.
    """
    notes: list[str] = []
    _check_threshold(settings.threshold)
    opener = VolumeOpener(settings.boss, settings.cache, settings.cache_size)
    provenance = read_provenance(settings.prediction)
    num_classes = int(provenance.get("network", {}).get("classes", 2))
    prediction = open_prediction(settings.prediction, opener, num_classes)
    rule = find_annotation_rule(settings.task, settings.prediction, provenance)
    annotation = opener.open(settings.annotation)
    _check_annotation(annotation, rule)
    prediction_grid = VoxelGrid.of(prediction, prediction_start(provenance, prediction))
    annotation_grid = VoxelGrid.of(annotation)
    shift = voxel_shift(annotation_grid, prediction_grid)
    overlap = overlap_box(annotation_grid, prediction_grid, shift)
    box = _choose_box(settings.box, annotation_grid, overlap, notes.append)
    _note_unknown_sizes(prediction_grid, annotation_grid, notes.append)
    if warning := unfinished_warning(settings.prediction):
        notes.append(warning)
    threshold = settings.threshold
    comparison = Comparison(
        prediction=prediction,
        annotation=annotation,
        box=box,
        shift=shift,
        threshold=float(provenance.get("threshold", DEFAULT_THRESHOLD) if threshold is None else threshold),
        threshold_value=rule.threshold_value,
        num_classes=num_classes,
        ignore_label=rule.ignore_label,
        instances=_open_instances(settings, opener, annotation, rule),
        has_objects=rule.task_type != "membrane",
    )
    image, image_shift = _open_image(provenance, rule, annotation, opener, notes.append)
    return ComparisonInputs(comparison, rule, provenance, image, image_shift, tuple(notes))


def _check_threshold(threshold: float | None) -> None:
    if threshold is not None and not 0 <= threshold <= 1:
        raise InputError(f"--threshold {threshold} is not a probability; expected a number from 0 to 1")


def _check_annotation(annotation: Volume, rule: AnnotationRule) -> None:
    if annotation.dtype.kind not in "bui" and rule.threshold_value is None:
        raise InputError(
            f"{annotation.uri} holds {annotation.dtype}; an annotation holds integers, or the task {rule.name} sets "
            "`threshold` to true, to take the voxels above its `threshold_value`"
        )


def _choose_box(text: str | None, annotation: VoxelGrid, overlap: Box, add_note: AddNote) -> Box:
    """Return the overlap of prediction and annotation, cut to `--box`."""
    if text is None:
        return overlap
    requested = parse_box(text, annotation.bounds)
    box = requested.intersect(overlap)
    if box.num_voxels == 0:
        raise InputError(
            f"--box {requested} is outside the prediction: prediction and annotation overlap in {overlap} (z,y,x)"
        )
    if box != requested:
        add_note(f"The prediction covers only {box} of the box {requested}: only that part is compared.")
    return box


def _note_unknown_sizes(prediction: VoxelGrid, annotation: VoxelGrid, add_note: AddNote) -> None:
    unknown = [grid.name for grid in (prediction, annotation) if grid.size_nm is None]
    if len(unknown) == 2:
        add_note(f"Neither {unknown[0]} nor {unknown[1]} states its voxel size: voxels are compared by their index.")
    elif unknown:
        add_note(f"{unknown[0]} does not state its voxel size: assuming the voxel size of the other volume.")


def _open_instances(
    settings: EvaluateSettings, opener: VolumeOpener, annotation: Volume, rule: AnnotationRule
) -> Volume | None:
    if settings.instances is None:
        return None
    if rule.task_type != "membrane":
        raise InputError(
            "--instances are the cells that membranes enclose and need a membrane task; "
            f"the task {rule.name} is {rule.task_type}"
        )
    instances = opener.open(settings.instances)
    if instances.bounds != annotation.bounds:
        raise InputError(
            f"instances and annotation have different shapes: {instances.uri} is {instances.bounds}, "
            f"{annotation.uri} is {annotation.bounds} (z,y,x)"
        )
    voxel_shift(VoxelGrid.of(instances), VoxelGrid.of(annotation))  # raises if the voxel sizes differ
    if instances.dtype.kind not in "ui":
        raise InputError(f"{instances.uri} holds {instances.dtype}; instances are integers, one for each cell")
    return instances


def _open_image(
    provenance: Mapping[str, Any],
    rule: AnnotationRule,
    annotation: Volume,
    opener: VolumeOpener,
    add_note: AddNote,
) -> tuple[Volume | None, Zyx]:
    """Return the image to show, and its shift: that of the provenance, else that of the task's own annotation."""
    uri = provenance.get("image")
    if uri is None and annotation.uri == rule.annotation:
        uri = rule.image
    if uri is None:
        return None, (0, 0, 0)
    try:
        image = opener.open(uri)
        return image, voxel_shift(VoxelGrid.of(annotation), VoxelGrid.of(image))
    except (OSError, ValueError) as error:
        add_note(f"The image is not shown: {error}")
        return None, (0, 0, 0)

"""Open and check everything that a comparison needs, before any work."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from kasthuri_ray.config import defaults
from kasthuri_ray.config.settings import EvaluateSettings
from kasthuri_ray.config.task import class_thresholds
from kasthuri_ray.errors import InputError
from kasthuri_ray.evaluation.comparison import Comparison
from kasthuri_ray.evaluation.prediction_alignment import Align, align_prediction
from kasthuri_ray.evaluation.provenance import (
    AnnotationRule,
    find_annotation_rule,
    level_factors,
    open_object_ids,
    open_predictions,
    prediction_place,
    prediction_start,
    read_learnt_part,
    read_provenance,
    unfinished_warning,
)
from kasthuri_ray.geometry import Box, Nm, Zyx, parse_box, per_axis
from kasthuri_ray.labels import LabelRule
from kasthuri_ray.metrics.object_settings import ObjectSettings
from kasthuri_ray.volumes.alignment import Alignment, align_volumes
from kasthuri_ray.volumes.background_labels import find_background, merged_classes_note
from kasthuri_ray.volumes.learnt_from import LearntPart
from kasthuri_ray.volumes.opening import VolumeOpener
from kasthuri_ray.volumes.place import Place
from kasthuri_ray.volumes.resampled_volume import Resampling, resample_image
from kasthuri_ray.volumes.volume import Volume
from kasthuri_ray.volumes.voxel_grid import has_same_voxel_size

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
        The image that was segmented, if known, on the voxels of the annotation.
    notes : tuple of str
        Notes for the user.
    """

    comparison: Comparison
    rule: AnnotationRule
    provenance: Mapping[str, Any]
    image: Volume | None
    notes: tuple[str, ...]


def prepare_comparison(settings: EvaluateSettings, task_changes: Mapping[str, Any] | None = None) -> ComparisonInputs:
    """Open and check everything; `task_changes` are settings that win over those of the task.

    Raise InputError or VolumeError, with what was wrong.
    """
    notes: list[str] = []
    opener = VolumeOpener(settings.boss, settings.cache, settings.cache_size)
    opened = _open_volumes(settings, task_changes, opener, notes)
    aligned = _align_predictions(opened, opener, settings.resample, notes)
    rule, annotation = opened.rule, aligned.annotation
    box = _choose_box(settings.box, annotation, aligned.overlap, notes.append)
    if warning := unfinished_warning(settings.prediction):
        notes.append(warning)
    labels = _find_label_rule(rule, annotation, box, notes)
    instances = _open_instances(settings, opener, annotation, rule, box, notes)
    object_ids = _open_aligned_object_ids(settings.prediction, opened, aligned, opener, notes)
    comparison = Comparison(
        predictions=aligned.predictions,
        annotation=annotation,
        box=box,
        object_settings=_choose_object_settings(opened, has_ids=object_ids is not None),
        thresholds=_choose_thresholds(settings.threshold, opened),
        labels=labels,
        instances=instances,
        no_instance=() if instances is None else _find_no_instance(instances, box, notes),
        class_names=rule.class_names,
        is_complete=bool(opened.provenance),
        learnt=aligned.learnt.within(box),
        centroid_radius_nm=settings.centroid_radius_nm,
        object_ids=object_ids,
    )
    image = None if opened.image is None else _align_image(opened.image, comparison, aligned.grid, notes)
    notes += [note for note in opener.notes if note not in notes]
    return ComparisonInputs(comparison, rule, opened.provenance, image, tuple(notes))


@dataclass(frozen=True)
class _OpenedVolumes:
    """A prediction, its annotation and the image that was segmented, each on its own voxels."""

    predictions: tuple[Volume, ...]  # one for each foreground class
    annotation: Volume
    image: Volume | None
    rule: AnnotationRule
    provenance: Mapping[str, Any]
    factors: Nm  # see `level_factors`
    start: Zyx | None  # see `prediction_start`


def _open_volumes(
    settings: EvaluateSettings, task_changes: Mapping[str, Any] | None, opener: VolumeOpener, notes: list[str]
) -> _OpenedVolumes:
    provenance = read_provenance(settings.prediction)
    num_classes = int(provenance.get("network", {}).get("classes", 2))
    predictions = open_predictions(settings.prediction, opener, num_classes)
    rule = find_annotation_rule(settings.task, settings.prediction, provenance, num_classes, task_changes)
    if len(predictions) != len(rule.class_names):
        raise InputError(
            f"{settings.prediction} holds {len(predictions)} class, and the task {rule.name} names "
            f"{len(rule.class_names)}: {', '.join(rule.class_names)}; give a task of one class (--task)"
        )
    factors = level_factors(provenance, predictions[0])  # by the voxel size that the output states
    size = per_axis(float, settings.voxel_size) if settings.voxel_size else None
    annotation = opener.open(settings.annotation, voxel_size_nm=size, labels=True, name="--annotation")
    if size is not None:
        predictions = [replace(each, voxel_size_nm=size) for each in predictions]
    _check_annotation(annotation, rule)
    start = prediction_start(provenance, predictions[0])
    image = _open_image(provenance, rule, annotation, opener, notes)
    return _OpenedVolumes(tuple(predictions), annotation, image, rule, provenance, factors, start)


def _check_annotation(annotation: Volume, rule: AnnotationRule) -> None:
    rule.labels.check_type(annotation.dtype, annotation.uri)
    if annotation.dtype.kind not in "bui" and rule.labels.threshold_value is None and not rule.labels.background:
        raise InputError(
            f"{annotation.uri} holds {annotation.dtype}; an annotation holds integers, or the task {rule.name} sets "
            "`threshold` to true, to take the voxels above its `threshold_value`"
        )


@dataclass(frozen=True)
class _PredictionGrid:
    """The voxels of the prediction, and how what lies on them comes onto the voxels of the annotation."""

    place: Place | None
    voxel_size_nm: Nm | None
    start: Zyx | None  # None also if voxel sizes differ: with --resample they are aligned by their places
    image: Volume | None
    align: Align

    @classmethod
    def of(cls, opened: _OpenedVolumes, opener: VolumeOpener, resample: bool) -> _PredictionGrid:
        prediction = opened.predictions[0]
        return cls(
            place=prediction_place(opened.provenance, prediction, opened.image),
            voxel_size_nm=prediction.voxel_size_nm,
            start=opened.start if has_same_voxel_size(opened.annotation, prediction) else None,
            image=opened.image,
            align=partial(align_volumes, open_mip=opener.open, resample="mean" if resample else None),
        )

    def align_with(self, annotation: Volume, volume: Volume) -> Alignment:
        """Return a volume on these voxels, aligned with the annotation."""
        placed = replace(volume, place=self.place, voxel_size_nm=self.voxel_size_nm)
        return align_prediction(annotation, placed, self.start, self.image, self.align)


@dataclass(frozen=True)
class _AlignedVolumes:
    """A prediction and its annotation on the voxels of the annotation."""

    predictions: tuple[Volume, ...]
    annotation: Volume
    overlap: Box
    learnt: LearntPart
    grid: _PredictionGrid


def _align_predictions(
    opened: _OpenedVolumes, opener: VolumeOpener, resample: bool, notes: list[str]
) -> _AlignedVolumes:
    grid = _PredictionGrid.of(opened, opener, resample)
    alignments = [grid.align_with(opened.annotation, each) for each in opened.predictions]
    first = alignments[0]
    prediction, annotation = first.moving, first.fixed
    learnt = read_learnt_part(opened.provenance, opened.factors, opened.predictions[0], prediction)
    notes += first.notes
    if annotation.voxel_size_nm is None:
        notes.append(
            f"Neither {prediction.uri} nor {annotation.uri} states its voxel size: voxels are compared by their index."
        )
    return _AlignedVolumes(tuple(each.moving for each in alignments), annotation, first.overlap, learnt, grid)


def _choose_box(text: str | None, annotation: Volume, overlap: Box, add_note: AddNote) -> Box:
    """Return the overlap of prediction and annotation, cut to `--box`."""
    if text is None:
        return overlap
    requested = parse_box(text, annotation.bounds, "--box", annotation.uri)
    box = requested.intersect(overlap)
    if box.num_voxels == 0:
        raise InputError(
            f"--box {requested} is outside the prediction: prediction and annotation overlap in {overlap} (z,y,x)"
        )
    if box != requested:
        add_note(f"The prediction covers only {box} of the box {requested}: only that part is compared.")
    return box


def _find_label_rule(rule: AnnotationRule, annotation: Volume, box: Box, notes: list[str]) -> LabelRule:
    """Return what the annotation's labels mean, with the background labels that its voxels show."""
    labels, found = find_background(rule.labels, [(annotation, [box])])
    notes += [*found, *filter(None, [merged_classes_note(labels, (annotation, [box]))])]
    return labels


def _open_instances(
    settings: EvaluateSettings,
    opener: VolumeOpener,
    annotation: Volume,
    rule: AnnotationRule,
    box: Box,
    notes: list[str],
) -> Volume | None:
    if settings.instances is None:
        return None
    if rule.task_type != "membrane":
        raise InputError(
            "--instances are the cells that membranes enclose and need a membrane task; "
            f"the task {rule.name} is {rule.task_type}"
        )
    resample: Resampling | None = "nearest" if settings.resample else None
    opened = opener.open(settings.instances, labels=True, name="--instances")
    aligned = align_volumes(annotation, opened, opener.open, resample=resample)
    instances = aligned.moving
    if not instances.bounds.contains(box):
        raise InputError(
            f"{instances.uri} covers only {instances.bounds.intersect(box)} of what is compared, {box} of "
            f"{annotation.uri} (z,y,x): give that as --box"
        )
    if instances.dtype.kind not in "ui":
        raise InputError(f"{instances.uri} holds {instances.dtype}; instances are integers, one for each cell")
    notes += aligned.notes
    return instances


def _find_no_instance(instances: Volume, box: Box, notes: list[str]) -> tuple[int, ...]:
    """Return the ids that mean "no cell", as 0 does: those that annotations have for "no object"."""
    rule, found = find_background(LabelRule(), [(instances, [box])])
    notes += found
    return (*(rule.background or ()), *rule.ignored_labels(instances.dtype))


def _open_aligned_object_ids(
    prediction: str,
    opened: _OpenedVolumes,
    aligned: _AlignedVolumes,
    opener: VolumeOpener,
    notes: list[str],
) -> Volume | None:
    """Return the label image of the prediction's objects on the voxels of the annotation; None without one."""
    object_ids = open_object_ids(prediction, opened.provenance, aligned.predictions[0], opener)
    if object_ids is None:
        return None
    grid = replace(aligned.grid, align=partial(aligned.grid.align, resample="nearest"))  # ids have no mean
    object_ids = grid.align_with(aligned.annotation, object_ids).moving
    notes.append(f"Objects are those of the label image {object_ids.uri}, whatever the threshold.")
    return object_ids


def _choose_object_settings(opened: _OpenedVolumes, *, has_ids: bool) -> ObjectSettings | None:
    """Return the recorded settings; for the label image of an output without some, those of its thresholds."""
    provenance = opened.provenance
    recorded = ObjectSettings.from_plain(provenance.get("objects"))
    if not has_ids:
        return recorded
    thresholds = class_thresholds(provenance["threshold"], opened.rule.class_names)
    return recorded or ObjectSettings.of_thresholds(thresholds)


def _choose_thresholds(given: float | Sequence[float] | None, opened: _OpenedVolumes) -> tuple[float, ...]:
    """Return the thresholds that are given, else the recorded ones, else the default."""
    known = (given, opened.provenance.get("threshold"), defaults.THRESHOLD)
    return tuple(class_thresholds(next(value for value in known if value is not None), opened.rule.class_names))


def _open_image(
    provenance: Mapping[str, Any], rule: AnnotationRule, annotation: Volume, opener: VolumeOpener, notes: list[str]
) -> Volume | None:
    """Return the image that was segmented: that of the provenance, else that of the task's own annotation."""
    uri = provenance.get("image")
    if uri is None and annotation.uri == rule.annotation:
        uri = rule.image
    try:
        image = None if uri is None else opener.open(uri)
        if image is not None and image.voxel_size_nm and provenance.get("resample"):
            return resample_image(image, per_axis(float, provenance["voxel_size_nm"]))
        return image
    except (OSError, ValueError) as error:
        notes.append(f"The image is not shown: {error}")
        return None


def _align_image(image: Volume, comparison: Comparison, grid: _PredictionGrid, notes: list[str]) -> Volume | None:
    """Return the image on the voxels of the annotation; None with a note if it cannot be aligned."""
    try:
        start = grid.start
        shift = None if start is None else per_axis(operator.sub, comparison.prediction.bounds.start, start)
        return grid.align(comparison.annotation, image, shift=shift).moving
    except InputError as error:
        notes.append(f"The image is not shown: {error}")
        return None

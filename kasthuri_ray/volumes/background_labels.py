"""What labels of an annotation may mean, found out from its boxes before any work: "no object", or several classes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from kasthuri_ray.errors import InputError
from kasthuri_ray.geometry import Box
from kasthuri_ray.labels import FEW_CLASSES, IGNORE_LABEL, LabelRule, is_any_of, none_label, to_classes
from kasthuri_ray.volumes.cutout_sample import sample_boxes
from kasthuri_ray.volumes.volume import Volume

MAX_CLASSES = 8  # of one annotation; more small labels are ids of objects
MIN_SHARE = 0.5  # of a sample that a label fills if it means "no object"
SMALL_TYPE_BYTES = 2  # of types whose maximum may well be an ordinary label
MAX_COUNTED_VOXELS = 1 << 24  # of boxes whose labels are all counted for a message, if they are not remote
MAX_SYNAPSE_SHARE = 0.5  # of a box that is foreground; more is hardly an annotation of synapses

Annotation = tuple[Volume, Sequence[Box]]  # and the boxes of it that count


def find_background(
    rule: LabelRule, annotations: Sequence[Annotation], others: Sequence[Annotation] = ()
) -> tuple[LabelRule, list[str]]:
    """Find out whether annotations mark the background by the maximum of their type, signed ones by -1.

    Parameters
    ----------
    rule : LabelRule
        What is known about their labels.
    annotations : sequence of (Volume, boxes)
        Annotations from which it is found out.
    others : sequence of (Volume, boxes)
        Annotations that are read by the same rule.

    Returns
    -------
    rule : LabelRule
        With the background, if it was not stated and in one of them it fills more than half of a sample.
    notes : list of str
        A line about each annotation in which it was found.

    Raises
    ------
    InputError
        If some annotations have such a background, and others none; or if a threshold would make the maximum of a type
        of 8 or 16 bits foreground, which fills more than half of a sample.
    """
    if rule.background is not None or rule.num_classes > 2:
        return rule, []
    shares = [_none_share(rule, annotation) for annotation in annotations]
    if max(shares, default=0.0) <= MIN_SHARE:
        for annotation in (*annotations, *others):
            _check_extreme(rule, annotation)
        return rule, []
    shares += [_none_share(rule, annotation) for annotation in others]
    everyone = [*annotations, *others]
    found, _ = everyone[int(np.argmax(shares))]
    for (volume, _), share in zip(everyone, shares, strict=True):
        if not share:
            raise InputError(
                f"in {found.uri} the label {none_label(found.dtype)} means background, and a sample of {volume.uri} "
                "holds none: give the labels that mean background in any of them, --set task.background=LABEL,LABEL"
            )
    labels = {none_label(volume.dtype) for volume, _ in everyone}
    notes = [
        _found_note(volume, share) for (volume, _), share in zip(annotations, shares, strict=False) if share > MIN_SHARE
    ]
    return replace(rule, background=tuple(sorted(label for label in labels if label is not None))), notes


def _none_share(rule: LabelRule, annotation: Annotation) -> float:
    """Return the share of the label that means "no object" in a sample, without the voxels that are ignored."""
    volume, boxes = annotation
    label = none_label(volume.dtype)
    if label is None or label in rule.ignored:
        return 0.0
    labels = sample_boxes(volume, boxes)
    ignored = replace(rule, background=(label,)).ignored_labels(volume.dtype)
    counted = labels[~is_any_of(labels, ignored)] if ignored else labels
    return float((counted == label).mean()) if counted.size else 0.0


def _check_extreme(rule: LabelRule, annotation: Annotation) -> None:
    """Raise an InputError if the maximum of a small type fills most of a sample, and counts as foreground unasked."""
    volume, boxes = annotation
    if rule.threshold_value is None:
        return
    if volume.dtype.kind not in "iu" or volume.dtype.itemsize > SMALL_TYPE_BYTES:
        return
    extreme = int(np.iinfo(volume.dtype).max)
    if extreme in rule.ignored or extreme <= rule.threshold_value:
        return
    labels, counted = _read_labels(annotation)
    share = float((labels == extreme).mean())
    if share <= MIN_SHARE:
        return
    unlabelled = f"Not labelled: --set task.ignore_label={extreme}."
    background = f"Background: --set task.background={extreme}, and every other label, 0 included, is foreground."
    # Without the extreme both foreground and background must be left, else it is one of the two.
    has_both = len(np.unique(labels[labels != extreme] > rule.threshold_value)) == 2
    likeliest = [unlabelled, background] if has_both else [background, unlabelled]
    raise InputError(
        f"{volume.uri} {boxes[0]}: the label {extreme} fills {share:.1%} of {counted}, and with task.threshold it "
        f"would be foreground. What does it mean? {' '.join(likeliest)} Labels with names: task.labels, with "
        "task.threshold=false. Foreground all the same: --set task.background=[]."
    )


def _read_labels(annotation: Annotation) -> tuple[np.ndarray, str]:
    """Return all labels of the boxes, in one row, where that is cheap, else a sample of them; and the name of those."""
    volume, boxes = annotation
    if not volume.remote and sum(box.num_voxels for box in boxes) <= MAX_COUNTED_VOXELS:
        labels = np.concatenate([volume.read(box).ravel() for box in boxes])
        return labels, f"the {labels.size:,} voxels"
    labels = sample_boxes(volume, boxes)
    return labels, f"a sample of {labels.size:,} voxels"


def merged_classes_note(rule: LabelRule, annotation: Annotation) -> str:
    """Return a note about an annotation whose labels may be classes, and of which a threshold makes one foreground.

    Parameters
    ----------
    rule : LabelRule
        What its labels mean.
    annotation : (Volume, boxes)
        The annotation.

    Returns
    -------
    str
        A sentence, or "" for a single label above the threshold, and for many or large ones, which are ids.
    """
    volume, boxes = annotation
    if rule.threshold_value is None or rule.background or volume.dtype.kind not in "iu":
        return ""
    labels, counted = _read_labels(annotation)
    above = np.unique(labels[labels > rule.threshold_value])
    values = [int(label) for label in above if label not in rule.ignored]
    if not 2 <= len(values) <= MAX_CLASSES or max(values) >= FEW_CLASSES:
        return ""
    listed, others = ", ".join(map(str, values)), [0, *values[1:]]
    return (
        f"{volume.uri} {boxes[0]} holds the labels {listed} in {counted}: all of them count as foreground, by "
        "task.threshold. That is right for ids of objects. If they are classes, name them with task.labels, or choose "
        f"one: --set task.background={json.dumps(others, separators=(',', ':'))} leaves the label {values[0]} alone."
    )


def _found_note(volume: Volume, share: float) -> str:
    ignored = ", 2^64-2 and 2^64-3 are ignored" if volume.dtype == np.uint64 else ""
    return (
        f"{volume.uri}: the label {none_label(volume.dtype)} fills {share:.0%} of a sample and counts as background; "
        f"every other label, 0 included, is foreground{ignored} (`background` of the task says otherwise)"
    )


def foreground_share(rule: LabelRule, annotation: Annotation) -> float:
    """Return the share of foreground in a sample of an annotation.

    Parameters
    ----------
    rule : LabelRule
        What its labels mean.
    annotation : (Volume, boxes)
        The annotation.

    Returns
    -------
    float
        Of the voxels that are not ignored; 0 if there are none.

    Raises
    ------
    InputError
        If the sample holds a label that is no class.
    """
    volume, boxes = annotation
    where = f"{volume.uri} {boxes[0]}"
    try:
        classes = to_classes(sample_boxes(volume, boxes), rule, where)
    except InputError:
        to_classes(_read_labels(annotation)[0], rule, where)  # raises the same, with shares of all that can be counted
        raise
    counted = classes[classes != IGNORE_LABEL]
    return float((counted > 0).mean()) if counted.size else 0.0

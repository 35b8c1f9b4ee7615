"""Annotations as classes, and images as grey levels of one byte, converted as they are read. Needs numpy alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kasthuri_ray.errors import InputError

IGNORE_LABEL = 255  # the class of a voxel that counts neither in training nor in evaluation
CREMI_IGNORED = (2**64 - 2, 2**64 - 3)  # labels of CREMI's annotations: invalid, outside
MAX_LISTED, FEW_CLASSES = 5, 32  # labels in a message; labels below this may well be classes
IDS_ADVICE = "Ids of objects, or 0 and 255: --set task.threshold=true: labels above task.threshold_value are class 1."
IGNORED_NAMES = ("unlabelled", "unlabeled", "ignore")  # of labels, in lower case, as ilastik and napari have them
BACKGROUND_NAME = "background"
VOXELS_AT_ONCE = 1 << 20  # a float32 copy of a whole cutout is never made


@dataclass(frozen=True)
class LabelRule:
    """What the values of an annotation mean.

    Parameters
    ----------
    threshold_value : float or None
        A label above it is class 1, any other class 0. None takes the values 0..num_classes-1 as they are.
    num_classes : int
        Number of classes.
    ignored : tuple of int
        The labels whose voxels become IGNORE_LABEL, whatever else holds.
    background : tuple of int or None
        The labels that are class 0; every other label is class 1, and the threshold does not count. Then CREMI's labels
        for "invalid" and "outside" are ignored too. None is not stated; empty says that there is no such label.
    classes : tuple of (int, int) or None
        Label and class of each label that may occur and is not ignored, see `classes_of_names`; None if labels have no
        names.

    Raises
    ------
    InputError
        If there are background labels or a threshold, and more than two classes.
    """

    threshold_value: float | None = None
    num_classes: int = 2
    ignored: tuple[int, ...] = ()
    background: tuple[int, ...] | None = None
    classes: tuple[tuple[int, int], ...] | None = None

    def __post_init__(self) -> None:
        if self.background and self.num_classes > 2:
            raise InputError(
                f"task.background leaves two classes, background and all other labels, but network.classes is "
                f"{self.num_classes}: leave task.background out, or set network.classes to 2"
            )
        if self.threshold_value is not None and self.num_classes > 2:
            raise InputError(
                "task.threshold leaves two classes, but network.classes is "
                f"{self.num_classes}: set task.threshold to false, or network.classes to 2"
            )

    @classmethod
    def from_task(cls, task: Mapping[str, Any], num_classes: int) -> LabelRule:
        """Return the rule of a task's settings, by their keys; `background` and `labels` may be missing."""
        if task.get("labels"):
            classes, ignored = classes_of_names(task["labels"])
            return cls(num_classes=num_classes, ignored=ignored, background=(), classes=tuple(classes.items()))
        background, ignored = task.get("background"), task["ignore_label"]
        return cls(
            threshold_value=task["threshold_value"] if task["threshold"] else None,
            num_classes=num_classes,
            ignored=() if ignored is None else (ignored,) if isinstance(ignored, int) else tuple(ignored),
            background=None if background is None else tuple(background),
        )

    def ignored_labels(self, dtype: np.dtype) -> tuple[int, ...]:
        """Return the labels of an annotation of this type whose voxels are ignored."""
        if not self.background or dtype != np.uint64:
            return self.ignored
        return self.ignored + tuple(label for label in CREMI_IGNORED if label not in self.background)

    def check_type(self, dtype: np.dtype, where: str) -> None:
        """Raise an InputError if an annotation of this type can hold none of the background labels."""
        if not self.background or dtype.kind not in "biu":
            return
        low, high = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
        if not any(low <= label <= high for label in self.background):
            raise InputError(
                f"{where} holds {dtype}, which cannot hold the background {_list_labels(self.background)} of the task: "
                "all of it would be foreground. Give the task that says what these labels mean (--task), with "
                "`background` as the labels that mean none here"
            )


def to_classes(labels: np.ndarray, rule: LabelRule, where: str, num_voxels: np.ndarray | None = None) -> np.ndarray:
    """Convert an annotation to the class of every voxel.

    Parameters
    ----------
    labels : ndarray
        Any integer type or bool; floats only with a threshold or background labels.
    rule : LabelRule
        What the values mean.
    where : str
        Names the annotation in messages.
    num_voxels : ndarray of int, optional
        How many voxels each of `labels` stands for, in messages; by default one.

    Returns
    -------
    ndarray
        uint8, the shape of `labels`.

    Raises
    ------
    InputError
        If a label is not a class; the message shows the values, and what is allowed.
    """
    is_binary = bool(rule.background) or rule.threshold_value is not None
    if labels.dtype.kind not in "buif":
        raise InputError(f"{where}: an annotation holds integers, this one holds {labels.dtype}")
    if labels.dtype.kind == "f" and not is_binary:
        raise InputError(
            f"{where}: an annotation holds integers, this one holds {labels.dtype}; set `threshold` to true in the "
            "task to take the voxels above its `threshold_value` as class 1, or convert it, such as by .astype('uint8')"
        )
    if labels.dtype.kind == "f" and np.isnan(labels).any():
        raise InputError(f"{where}: the annotation holds nan, which is neither foreground nor background")
    if labels.dtype == bool:
        labels = labels.view(np.uint8)
    if rule.background:
        classes = (~is_any_of(labels, rule.background)).view(np.uint8)
    elif rule.classes is not None:
        classes = _named_classes(labels, rule, where, num_voxels)
    elif rule.threshold_value is not None:
        classes = (labels > _exact_threshold(labels.dtype, rule.threshold_value)).view(np.uint8)
    else:
        classes = _check_classes(labels, rule, where, num_voxels)
    ignored = rule.ignored_labels(labels.dtype)
    if ignored:
        classes[is_any_of(labels, ignored)] = IGNORE_LABEL
    return classes


def is_any_of(labels: np.ndarray, values: Sequence[int]) -> np.ndarray:
    """Return where labels are one of a few values, of which the type may be unable to hold some.

    Parameters
    ----------
    labels : ndarray
        Of any shape and number type.
    values : sequence of int
        At least one.

    Returns
    -------
    ndarray of bool
        The shape of `labels`.
    """
    found = labels == values[0]
    for value in values[1:]:
        found |= labels == value
    return found


def none_label(dtype: np.dtype) -> int | None:
    """Return the label that programs write where there is no object.

    Parameters
    ----------
    dtype : dtype
        Type of an annotation.

    Returns
    -------
    int or None
        The maximum of an unsigned type, -1 of a signed one. None for types of 8 and 16 bits, where such a label may
        as well mean something else, and for floats.
    """
    if dtype.kind not in "iu" or dtype.itemsize < 4:
        return None
    return -1 if dtype.kind == "i" else int(np.iinfo(dtype).max)


def _exact_threshold(dtype: np.dtype, threshold: float) -> Any:
    """Return the threshold in a type that compares exactly: floats cannot hold uint64 labels above 2**53."""
    if dtype.kind == "f":
        return threshold
    return int(np.floor(threshold))  # for integers, label > 0.5 is label > 0


def _check_classes(labels: np.ndarray, rule: LabelRule, where: str, num_voxels: np.ndarray | None) -> np.ndarray:
    """Return `labels` as uint8; raise an InputError if one is neither a class nor the ignored label."""
    classes = labels.astype(np.uint8)
    wrong = (labels < 0) | (labels >= rule.num_classes)
    if rule.ignored:
        wrong &= ~is_any_of(labels, rule.ignored)
    if wrong.any():
        joined = "without" if set(rule.ignored) & set(range(rule.num_classes)) else "and"
        ignored = f" {joined} {_list_labels(rule.ignored)} (ignore_label)" if rule.ignored else ""
        found, others = (_LabelCounts.of(labels, chosen, num_voxels) for chosen in (wrong, ~wrong))
        beside = f", beside {others.shares()}" if len(others.values) <= MAX_LISTED else ""
        raise InputError(
            f"{where}: the annotation holds {found.describe()}{beside}; allowed are 0 to {rule.num_classes - 1}"
            f"{ignored}. What do these labels mean? {' '.join(_remedies(labels, found, rule))}"
        )
    return classes


@dataclass(frozen=True)
class _LabelCounts:
    """Labels that are not allowed, the voxels of each, and how many voxels were read in all."""

    values: np.ndarray
    counts: np.ndarray
    num_read: int

    @classmethod
    def of(cls, labels: np.ndarray, chosen: np.ndarray, num_voxels: np.ndarray | None) -> _LabelCounts:
        if num_voxels is not None:
            return cls(labels[chosen], num_voxels[chosen], int(num_voxels.sum()))
        return cls(*np.unique(labels[chosen], return_counts=True), labels.size)

    def describe(self) -> str:
        """Return the labels with their shares, and of how many voxels these are shares."""
        return f"{self.shares()} among the {self.num_read:,} voxels that were read"

    def shares(self) -> str:
        """Return the labels with their shares."""
        pairs = zip(self.values, self.counts, strict=True)
        return _list_labels([f"{label} ({count / self.num_read:.2%})" for label, count in pairs])


def _remedies(labels: np.ndarray, found: _LabelCounts, rule: LabelRule) -> list[str]:
    """Return what to do about labels that are no classes, the likeliest first."""
    values, counts = found.values, found.counts
    ignored = IGNORE_LABEL if IGNORE_LABEL in values else int(values[counts.argmax()])
    is_unlabelled = counts.max() > found.num_read / 2 or (ignored == IGNORE_LABEL and (labels == 1).any())
    are_ids = len(values) > MAX_LISTED and not is_unlabelled  # none of them stands out
    is_class = len(values) <= MAX_LISTED and int(values.min()) >= 0 and int(values.max()) < FEW_CLASSES
    all_ignored = ",".join(map(str, sorted({*rule.ignored, ignored})))
    value = f"[{all_ignored}]" if rule.ignored else all_ignored
    classes = " in place of task.ignore_label" if rule.ignored else ""
    if is_class and 0 not in rule.ignored:
        classes += f", or train with --set network.classes={int(values.max()) + 1}, if 0 is background"
    texts = [  # whether it is likely, and what to type
        (is_unlabelled, "" if are_ids else f"Not labelled: --set task.ignore_label={value}."),
        (is_class, f"Classes, also of ilastik (0 is unlabelled): name all labels with task.labels{classes}."),
        (True, IDS_ADVICE),
    ][: 3 if rule.num_classes == 2 and 0 not in rule.ignored else 2]
    none = none_label(labels.dtype)
    first = [f"No object: --set task.background={none}."] if none is not None and none in values else []
    return [*first, *(text for likely, text in sorted(texts, key=lambda pair: not pair[0]) if text)]


def _named_classes(labels: np.ndarray, rule: LabelRule, where: str, num_voxels: np.ndarray | None) -> np.ndarray:
    """Return the classes of labels that have names; raise an InputError for a label that has none."""
    assert rule.classes is not None
    classes, known = np.zeros(labels.shape, np.uint8), np.zeros(labels.shape, bool)
    for label, number in rule.classes:
        found = labels == label
        classes[found] = number
        known |= found
    if rule.ignored:
        known |= is_any_of(labels, rule.ignored)
    if not known.all():
        listed = sorted({*(label for label, _ in rule.classes), *rule.ignored})
        raise InputError(
            f"{where}: the annotation holds {_LabelCounts.of(labels, ~known, num_voxels).describe()}, and task.labels "
            f"lists {_list_labels(listed)}; add the others with their names (unlabelled and ignore: they do not count)"
        )
    return classes


def classes_of_names(labels: Mapping[str, int]) -> tuple[dict[int, int], tuple[int, ...]]:
    """Return what labels mean by their names.

    Parameters
    ----------
    labels : mapping
        Label of each name. `unlabelled`, `unlabeled` and `ignore` are ignored, `background` is class 0, in any case;
        the others are classes 1, 2, ... in the order of their labels.

    Returns
    -------
    classes : dict
        Class of each label that is not ignored.
    ignored : tuple of int
        The other labels.
    """
    ignored = tuple(label for name, label in labels.items() if name.lower() in IGNORED_NAMES)
    background = {label: 0 for name, label in labels.items() if name.lower() == BACKGROUND_NAME}
    others = sorted(set(labels.values()) - set(ignored) - set(background))
    return background | {label: number for number, label in enumerate(others, start=1)}, ignored


def _list_labels(labels: Sequence[object] | np.ndarray) -> str:
    return ", ".join(str(label) for label in labels[:MAX_LISTED]) + (", ..." if len(labels) > MAX_LISTED else "")


def find_not_imaged(image: np.ndarray) -> np.ndarray | None:
    """Return where an image is nan: there is no tissue, or it was not imaged.

    Parameters
    ----------
    image : ndarray
        Of any shape and number type.

    Returns
    -------
    ndarray of bool, or None
        None if it is nan nowhere.
    """
    if image.dtype.kind != "f":
        return None
    missing = np.isnan(image)
    return missing if missing.any() else None


def to_uint8(image: np.ndarray, intensity: tuple[float, float]) -> np.ndarray:
    """Map grey levels linearly to 0..255, rounded and clipped.

    Parameters
    ----------
    image : ndarray
        Of any shape and number type.
    intensity : tuple of float
        The grey levels (low, high) that become 0 and 255.

    Returns
    -------
    ndarray
        uint8, the same shape; 0 where the image is nan, see `find_not_imaged`. A uint8 image with (0, 255) is returned
        itself, not copied.
    """
    low, high = intensity
    if image.dtype == np.uint8 and (low, high) == (0, 255):
        return image
    grey = np.empty(image.shape, np.uint8)
    source, target = np.ascontiguousarray(image).reshape(-1), grey.reshape(-1)
    for start in range(0, source.size, VOXELS_AT_ONCE):
        piece = np.subtract(source[start : start + VOXELS_AT_ONCE], low, dtype=np.float32)
        piece *= np.float32(255 / (high - low))
        np.rint(piece, out=piece)
        if image.dtype.kind == "f":
            np.nan_to_num(piece, copy=False, nan=0.0, posinf=255.0, neginf=0.0)
        target[start : start + VOXELS_AT_ONCE] = np.clip(piece, 0, 255, out=piece)
    return grey

"""Which objects the page of an evaluation shows, and the part of a section around each of them."""

from __future__ import annotations

from collections.abc import Mapping

import cc3d
import numpy as np

from kasthuri_ray.evaluation.block_comparison import PartTotals
from kasthuri_ray.evaluation.comparison import Comparison
from kasthuri_ray.evaluation.comparison_inputs import ComparisonInputs
from kasthuri_ray.evaluation.image_sections import read_image_section
from kasthuri_ray.evaluation.object_list import FOUND, MISSED, WRONG, ListedObject, list_objects
from kasthuri_ray.geometry import Box, Zyx, per_axis
from kasthuri_ray.labels import IGNORE_LABEL
from kasthuri_ray.metrics.class_map import classes_at
from kasthuri_ray.metrics.components import key_voxel
from kasthuri_ray.metrics.object_comparison import ClassObjects
from kasthuri_ray.metrics.object_outcomes import RANKED_BY
from kasthuri_ray.reports.object_gallery import ObjectCrop

# How many objects of each verdict are shown; what one does not need, the next ones may use.
MAX_SHOWN = {WRONG: 16, MISSED: 16, FOUND: 8}
MAX_READ: Zyx = (128, 1024, 1024)  # voxels that are read to find the section in which an object is largest
CROP, MARGIN, MAX_CROP = 128, 24, 768  # voxels along y and x: least, around the object, most


def choose_objects(
    objects: Mapping[int, ClassObjects], max_shown: Mapping[str, int] = MAX_SHOWN
) -> dict[str, list[ListedObject]]:
    """Return the objects to show: the most confident mistakes first.

    Parameters
    ----------
    objects : mapping of int to ClassObjects
        The objects of each class, by its number.
    max_shown : mapping of str to int
        How many of each verdict.

    Returns
    -------
    dict
        Wrong objects by falling score, missed ones by rising mean probability, and found ones, which are those of the
        prediction, by falling score. Verdicts are those by overlap.
    """
    ranked = {verdict: _rank(objects, verdict) for verdict in (WRONG, MISSED, FOUND)}
    chosen, left = {}, 0
    for verdict, candidates in ranked.items():
        number = min(len(candidates), max_shown[verdict] + left)
        left += max_shown[verdict] - number
        chosen[verdict] = [
            next(list_objects(objects[class_number], class_number, verdict == MISSED, np.array([row])))
            for _, class_number, row in candidates[:number]
        ]
    return chosen


def count_verdicts(objects: Mapping[int, ClassObjects]) -> dict[str, int]:
    """Return the number of wrong, missed and found objects of all classes."""
    return {verdict: len(_rank(objects, verdict)) for verdict in (WRONG, MISSED, FOUND)}


def _rank(objects: Mapping[int, ClassObjects], verdict: str) -> list[tuple[float, int, int]]:
    """Return (minus the confidence, class, row) of the objects with a verdict, the most confident first."""
    ranked = []
    for number, each in objects.items():
        is_right = each.outcomes.is_right(RANKED_BY)
        if verdict == MISSED:
            rows = np.flatnonzero(~each.outcomes.is_found(RANKED_BY))
            confidence = 1 - each.true.mean_probability[rows]
        else:
            rows = np.flatnonzero(is_right if verdict == FOUND else ~is_right)
            confidence = each.outcomes.scores[rows]
        ranked += [(-value, number, row) for value, row in zip(confidence.tolist(), rows.tolist(), strict=True)]
    return sorted(ranked)


def read_object_crop(inputs: ComparisonInputs, part: PartTotals, listed: ListedObject, verdict: str) -> ObjectCrop:
    """Return the section in which an object is largest, around the object.

    Parameters
    ----------
    inputs : ComparisonInputs
        What is compared, and the image.
    part : PartTotals
        The objects are those of this part.
    listed : ListedObject
        The object.
    verdict : str
        For the caption.

    Returns
    -------
    ObjectCrop
        Image and masks of annotation and prediction.
    """
    comparison = inputs.comparison
    section, own = _largest_section(comparison, part, listed)
    box = crop_box(section, comparison.box)
    truth, predicted = (_mask(comparison, part, box, listed.class_number, is_true) for is_true in (True, False))
    shown = np.zeros(box.shape, bool)
    both = box.intersect(section)
    shown[both.slices(box.start)] = own[None][both.slices(section.start)]
    return ObjectCrop(
        verdict=verdict,
        number=listed.number,
        partner=listed.partners[RANKED_BY],
        class_name=comparison.class_names[listed.class_number - 1] if len(comparison.class_names) > 1 else "",
        position=tuple(round(value) for value in listed.centroid),
        z=box.start[0],
        size_voxels=listed.size_voxels,
        score=listed.score,
        image=read_image_section(box, inputs.image, inputs.provenance.get("intensity")),
        truth=truth[0],
        predicted=predicted[0],
        own=shown[0],
        is_cut=listed.is_cut,
    )


def _largest_section(comparison: Comparison, part: PartTotals, listed: ListedObject) -> tuple[Box, np.ndarray]:
    """Return the box of an object's largest section, one section deep, and its voxels there, bool, y, x.

    Of an object beyond MAX_READ a part around its centroid is read.
    """
    box = listed.box
    if any(size > most for size, most in zip(box.shape, MAX_READ, strict=True)):
        middle = per_axis(round, listed.centroid)
        half = per_axis(lambda most: most // 2, MAX_READ)
        around = Box(
            per_axis(lambda at, size: at - size, middle, half), per_axis(lambda at, size: at + size, middle, half)
        )
        box = around.intersect(box)
    mask = _mask(comparison, part, box, listed.class_number, listed.is_true)
    labels = cc3d.connected_components(mask, connectivity=26)
    first = key_voxel(listed.first_voxel)
    inside = Box.at(first, (1, 1, 1)).intersect(box).num_voxels > 0
    number = labels[per_axis(lambda at, start: at - start, first, box.start)] if inside else 0
    own = labels == number if number else mask
    z = int(own.sum((1, 2)).argmax())
    start, stop = box.start, box.stop
    return Box((start[0] + z, *start[1:]), (start[0] + z + 1, *stop[1:])), own[z]


def _mask(comparison: Comparison, part: PartTotals, box: Box, class_number: int, is_true: bool) -> np.ndarray:
    """Return the voxels of a class in a box, bool, z, y, x, without those that do not count.

    Those of the prediction are those that can belong to objects, which may reach further than the threshold.
    """
    classes = comparison.read_classes(box)
    if part.hidden:
        classes = comparison.hide_learnt(classes, box)
    if is_true:
        return classes == class_number
    predicted = classes_at(comparison.read_probability(box), comparison.found_by.extent)
    return (predicted == class_number) & (classes != IGNORE_LABEL)


def crop_box(section: Box, bounds: Box) -> Box:
    """Return what to show of an object: a square around its section, inside of the bounds.

    Parameters
    ----------
    section : Box
        Around the object, one section deep.
    bounds : Box
        What is compared.

    Returns
    -------
    Box
        From CROP to MAX_CROP voxels along y and x, where the bounds are as large.
    """
    side = min(max(CROP, 2 * MARGIN + max(section.shape[1:])), MAX_CROP)
    shape = per_axis(min, (1, side, side), bounds.shape)
    start = per_axis(
        lambda low, high, size, first, end: min(max((low + high - size) // 2, first), end - size),
        section.start,
        section.stop,
        shape,
        bounds.start,
        bounds.stop,
    )
    return Box.at(start, shape)

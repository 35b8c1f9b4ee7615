"""The objects of prediction and annotation in one block, and what they share; `ObjectComparison` joins the blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import maximum_filter

from kasthuri_ray.geometry import Box
from kasthuri_ray.labels import IGNORE_LABEL
from kasthuri_ray.metrics.components import Components, label_block_components, label_block_ids
from kasthuri_ray.metrics.matching import LabelPairs, count_label_pairs


@dataclass(frozen=True, eq=False)
class BlockObjects:
    """The objects of a block, as far as they are in it.

    Parameters
    ----------
    true, predicted : Components
        Of the annotation and of the prediction.
    pairs : LabelPairs
        Voxels that each true and each predicted component of one class share.
    true_is_cut, predicted_is_cut : ndarray of bool, (components,)
        Whether a component continues in voxels that do not count.
    ids : ndarray of int, optional
        The id of each predicted component, by which those of several blocks are one object.
    """

    true: Components
    predicted: Components
    pairs: LabelPairs
    true_is_cut: np.ndarray
    predicted_is_cut: np.ndarray
    ids: np.ndarray | None = None


def find_labelled_objects(
    ids: np.ndarray,
    predicted: np.ndarray,
    truth: np.ndarray,
    own: Box,
    numbers: Sequence[int],
    of_predicted: np.ndarray | None = None,
    of_true: np.ndarray | None = None,
    known_truth: np.ndarray | None = None,
) -> BlockObjects:
    """Find the objects of a block of a prediction whose objects have ids.

    Parameters
    ----------
    ids : ndarray of int, (z, y, x)
        Id of the predicted object of each voxel, 0 for none.
    predicted, truth : ndarray of uint8, (z, y, x)
        As for `find_block_objects`; `ids` is of the same voxels.
    own : Box
        The block.
    numbers : sequence of int
        Classes that have objects.
    of_predicted, of_true, known_truth : ndarray of uint8, (z, y, x), optional
        As for `find_block_objects`.

    Returns
    -------
    BlockObjects
        With ids.
    """
    inside = own.slices(own.start)
    true, true_ids, true_is_cut = _label_true_objects(truth, own, numbers, of_true, known_truth)
    classes, labels = predicted[inside], truth[inside]
    of_objects = np.where(np.isin(classes, numbers), ids[inside], 0)
    values = None if of_predicted is None else of_predicted[inside]
    is_hidden = labels == IGNORE_LABEL
    found, found_labels, known = label_block_ids(of_objects, is_hidden, classes, own, values)
    pairs = count_label_pairs(true_ids[inside] * (classes == labels), found_labels)
    return BlockObjects(true, found, pairs, true_is_cut, np.isin(known, of_objects[is_hidden]), known)


def find_block_objects(
    predicted: np.ndarray,
    truth: np.ndarray,
    own: Box,
    numbers: Sequence[int],
    of_predicted: np.ndarray | None = None,
    of_true: np.ndarray | None = None,
    bridged: np.ndarray | None = None,
    known_truth: np.ndarray | None = None,
) -> BlockObjects:
    """Find the objects of a block.

    Parameters
    ----------
    predicted, truth : ndarray of uint8, (z, y, x)
        Class of each voxel of `own` and its shell, see `components.label_block_components`; IGNORE_LABEL in `truth`
        for voxels that do not count.
    own : Box
        The block.
    numbers : sequence of int
        Classes that have objects.
    of_predicted, of_true : ndarray of uint8, (z, y, x), optional
        Probability of the predicted and of the true class of each voxel, see `class_bytes`. The mean over a predicted
        object is its score; all scores are 0 without them.
    bridged : ndarray of uint8, (z, y, x), optional
        Of the prediction, as of `components.label_block_components`.
    known_truth : ndarray of uint8, (z, y, x), optional
        `truth` with the classes of voxels that are annotated but do not count.

    Returns
    -------
    BlockObjects
        Ignored voxels belong to no object; an object that continues in them is cut.
    """
    inside, is_hidden = own.slices(own.start), truth == IGNORE_LABEL
    true, true_ids, true_is_cut = _label_true_objects(truth, own, numbers, of_true, known_truth)
    marked, connected = (
        np.where(np.isin(classes, numbers), classes, 0)
        for classes in (predicted, predicted if bridged is None else bridged)
    )
    found, predicted_ids = label_block_components(
        np.where(is_hidden, 0, marked),
        own,
        of_predicted,
        None if bridged is None else np.where(is_hidden, 0, connected),
    )
    pairs = count_label_pairs(true_ids[inside] * (predicted == truth)[inside], predicted_ids[inside])
    is_cut = _touches_hidden(predicted_ids, connected, is_hidden, len(found.stats))
    return BlockObjects(true, found, pairs, true_is_cut, is_cut)


def _label_true_objects(
    truth: np.ndarray,
    own: Box,
    numbers: Sequence[int],
    of_true: np.ndarray | None,
    known_truth: np.ndarray | None,
) -> tuple[Components, np.ndarray, np.ndarray]:
    """Return the objects of the annotation in a block, the label of each voxel, and which of them are cut."""
    true, labels = label_block_components(np.where(np.isin(truth, numbers), truth, 0), own, of_true)
    if known_truth is None:
        return true, labels, np.zeros(len(true.stats), bool)
    classes = np.where(np.isin(known_truth, numbers), known_truth, 0)
    return true, labels, _touches_hidden(labels, classes, truth == IGNORE_LABEL, len(true.stats))


def _touches_hidden(labels: np.ndarray, classes: np.ndarray, is_hidden: np.ndarray, num_labels: int) -> np.ndarray:
    """Return which components have a hidden voxel of their class among the 26 neighbours of a voxel."""
    beyond = np.where(is_hidden, classes, 0)
    is_cut = np.zeros(num_labels + 1, bool)
    for number in np.unique(beyond[beyond > 0]):
        near = maximum_filter(beyond == number, 3, mode="constant")
        is_cut[labels[near & (classes == number)]] = True
    return is_cut[1:]


def class_bytes(probability: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Return the probability of the class of each voxel.

    Parameters
    ----------
    probability : ndarray of uint8 or float, (classes - 1, z, y, x)
        Probability of class 1, 2, ...; uint8 255 is 1.
    classes : ndarray of uint8, (z, y, x)
        A class of each voxel.

    Returns
    -------
    ndarray of uint8, (z, y, x)
        255 is 1. Meaningless where the class is the background or is ignored.
    """
    if len(probability) == 1:
        return _to_bytes(probability[0])
    chosen = np.zeros(classes.shape, np.uint8)
    for number, of_class in enumerate(probability, start=1):
        chosen[classes == number] = _to_bytes(of_class[classes == number])
    return chosen


def _to_bytes(probability: np.ndarray) -> np.ndarray:
    return probability if probability.dtype == np.uint8 else np.rint(255 * probability).astype(np.uint8)

"""Objects of a prediction compared with those of the annotation, found block by block and joined exactly.

`find_block_objects` labels one block, `ObjectComparison` joins the blocks and matches; see `object_criteria` for the
rules.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy.ndimage import maximum_filter

from kasthuri_ray.geometry import Box
from kasthuri_ray.labels import IGNORE_LABEL
from kasthuri_ray.metrics.cleft_distances import CleftDistances
from kasthuri_ray.metrics.components import (
    NUM_COLUMNS,
    Components,
    UnionFind,
    label_block_components,
    label_block_ids,
)
from kasthuri_ray.metrics.matching import LabelPairs, count_label_pairs, merge_label_pairs
from kasthuri_ray.metrics.object_criteria import ObjectCriteria
from kasthuri_ray.metrics.object_outcomes import ObjectOutcomes, object_metrics, pool_outcomes
from kasthuri_ray.metrics.objects import ObjectTable, keep_objects, tabulate_objects

SHEETS = ("membrane",)  # classes without objects: all membranes of a volume are one sheet


def object_classes(class_names: Sequence[str]) -> list[int]:
    """Return the numbers of the classes that have objects: all but membranes.

    Parameters
    ----------
    class_names : sequence of str
        Names of the classes 1, 2, ...

    Returns
    -------
    list of int
        In rising order.
    """
    return [number for number, name in enumerate(class_names, start=1) if name not in SHEETS]


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


@dataclass(eq=False)
class _JoinedObjects:
    """The objects of annotation or prediction, joined over the blocks so far."""

    union_find: UnionFind = field(default_factory=UnionFind)
    stats: list[np.ndarray] = field(default_factory=list)
    is_cut: list[np.ndarray] = field(default_factory=list)
    ids: list[np.ndarray] = field(default_factory=list)

    def add(self, components: Components, is_cut: np.ndarray, ids: np.ndarray | None = None) -> int:
        """Add a block's components, with their ids if they have some, and return the number of the first one."""
        self.stats.append(components.stats)
        self.is_cut.append(is_cut)
        if ids is not None:
            self.ids.append(ids)
        return self.union_find.add(components.borders)

    def table(self) -> ObjectTable:
        stats = np.concatenate([np.zeros((0, NUM_COLUMNS), np.int64), *self.stats])
        if self.ids:
            _, first, which = np.unique(np.concatenate(self.ids), return_index=True, return_inverse=True)
        table = tabulate_objects(stats, first[which] if self.ids else self.union_find.roots())
        is_hidden_beyond = np.zeros(len(table) + 1, bool)
        is_hidden_beyond[table.object_ids[np.concatenate([np.zeros(0, bool), *self.is_cut])]] = True
        return replace(table, is_hidden_beyond=is_hidden_beyond[1:])


@dataclass(frozen=True, eq=False)
class ComparedObjects:
    """The objects of annotation and prediction of a box, and what they share.

    Parameters
    ----------
    true, predicted : ObjectTable
        Objects of all classes.
    pairs : LabelPairs
        Voxels that each true and each predicted object share, by their ids.
    """

    true: ObjectTable
    predicted: ObjectTable
    pairs: LabelPairs

    def of_class(self, number: int) -> ComparedObjects:
        """Return the objects of one class."""
        is_true, is_predicted = (table.class_numbers == number for table in (self.true, self.predicted))
        return self.kept(is_true, is_predicted)

    def kept(self, true: np.ndarray, predicted: np.ndarray) -> ComparedObjects:
        """Return the objects that two arrays of bool select."""
        new_true, new_predicted = np.cumsum(true), np.cumsum(predicted)
        true_ids, predicted_ids, voxels = self.pairs
        both = true[true_ids - 1] & predicted[predicted_ids - 1] if len(true_ids) else np.zeros(0, bool)
        pairs = (new_true[true_ids[both] - 1], new_predicted[predicted_ids[both] - 1], voxels[both])
        return ComparedObjects(keep_objects(self.true, true), keep_objects(self.predicted, predicted), pairs)


@dataclass(frozen=True, eq=False)
class ClassObjects:
    """The objects of one class in a box, and what became of them.

    Parameters
    ----------
    true, predicted : ObjectTable
        The objects.
    true_ids, predicted_ids : ndarray of int64
        Their numbers among the objects of all classes, from 1.
    outcomes : ObjectOutcomes
        Their partners.
    """

    true: ObjectTable
    predicted: ObjectTable
    true_ids: np.ndarray
    predicted_ids: np.ndarray
    outcomes: ObjectOutcomes


class ObjectComparison:
    """The objects of a box, joined over its blocks, which are added in their order, z slowest.

    Parameters
    ----------
    select : callable, optional
        Keeps the objects of the prediction that count, see `object_detection.select_objects`; all by default.
    """

    def __init__(self, select: Callable[[ObjectTable], ObjectTable] | None = None) -> None:
        self._select = select
        self._true, self._predicted = _JoinedObjects(), _JoinedObjects()
        self._pairs: list[LabelPairs] = []

    def add(self, block: BlockObjects) -> None:
        """Add the next block."""
        true_base = self._true.add(block.true, block.true_is_cut)
        predicted_base = self._predicted.add(block.predicted, block.predicted_is_cut, block.ids)
        true, predicted, voxels = block.pairs  # components are numbered from 1 in a block, from 0 in all
        self._pairs.append(
            (true.astype(np.int64) + true_base - 1, predicted.astype(np.int64) + predicted_base - 1, voxels)
        )

    def match(self, numbers: Sequence[int], criteria: ObjectCriteria) -> dict[int, ClassObjects]:
        """Match true and predicted objects of each class, by each criterion.

        Parameters
        ----------
        numbers : sequence of int
            Classes that have objects.
        criteria : ObjectCriteria
            What decides which objects are partners.

        Returns
        -------
        dict
            The objects by number of the class.
        """
        joined = self.joined()
        return {number: _match_class(number, joined, criteria) for number in numbers}

    def joined(self) -> ComparedObjects:
        """Return the objects of the blocks so far."""
        true, predicted = self._true.table(), self._predicted.table()
        if self._select is not None:
            predicted = self._select(predicted)
        pairs: LabelPairs = (np.zeros(0, int),) * 3
        if self._pairs:
            pairs = merge_label_pairs(
                (true.object_ids[t], predicted.object_ids[p], voxels) for t, p, voxels in self._pairs
            )
        counts = pairs[1] > 0  # of the others the predicted object does not count
        return ComparedObjects(true, predicted, (pairs[0][counts], pairs[1][counts], pairs[2][counts]))


def _match_class(number: int, joined: ComparedObjects, criteria: ObjectCriteria) -> ClassObjects:
    """Match the objects of a class."""
    of_class = joined.of_class(number)
    true_ids, predicted_ids = (
        np.flatnonzero(table.class_numbers == number) + 1 for table in (joined.true, joined.predicted)
    )
    outcomes = criteria.judge(of_class.true, of_class.predicted, of_class.pairs)
    return ClassObjects(of_class.true, of_class.predicted, true_ids, predicted_ids, outcomes)


def add_object_scores(
    metrics: Mapping[str, Any],
    objects: Mapping[int, ObjectOutcomes],
    class_names: Sequence[str],
    distances: Mapping[int, CleftDistances],
) -> dict[str, Any]:
    """Return scores of voxels with those of objects added.

    Parameters
    ----------
    metrics : mapping
        Scores, with an entry `classes` if there are several.
    objects : mapping
        Outcomes of the objects of each class by its number.
    class_names : sequence of str
        Names of the classes 1, 2, ...
    distances : mapping
        CREMI's distances of each of these classes; empty without a voxel size.

    Returns
    -------
    dict
        The scores with `objects` and `cleft_distances`, those of all classes together, and with both in each of several
        classes; as they were if no class has objects. `cleft_distances` is None without a voxel size.
    """
    if not objects:
        return dict(metrics)
    added: dict[str, Any] = {**metrics, **_object_entries(objects.values(), distances.values())}
    if "classes" in metrics:
        of_class = {
            class_names[number - 1]: _object_entries([each], [distances[number]] if distances else [])
            for number, each in objects.items()
        }
        added["classes"] = {name: {**row, **of_class.get(name, {})} for name, row in metrics["classes"].items()}
    return added


def _object_entries(objects: Iterable[ObjectOutcomes], distances: Iterable[CleftDistances]) -> dict[str, Any]:
    measured = list(distances)
    return {
        "objects": object_metrics(pool_outcomes(objects)),
        "cleft_distances": functools.reduce(operator.add, measured).metrics() if measured else None,
    }

"""Objects of a prediction compared with those of the annotation, found block by block and joined exactly.

`find_block_objects` labels one block, `ObjectComparison` joins the blocks and matches; see `object_criteria` for the
rules.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kasthuri_ray.geometry import Box
from kasthuri_ray.labels import IGNORE_LABEL
from kasthuri_ray.metrics.cleft_distances import CleftDistances
from kasthuri_ray.metrics.components import CLASS, NUM_COLUMNS, Components, UnionFind, label_block_components
from kasthuri_ray.metrics.matching import LabelPairs, count_label_pairs, merge_label_pairs
from kasthuri_ray.metrics.object_criteria import ObjectCriteria
from kasthuri_ray.metrics.object_outcomes import ObjectOutcomes, object_metrics, pool_outcomes
from kasthuri_ray.metrics.objects import ObjectTable, tabulate_objects

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
    """

    true: Components
    predicted: Components
    pairs: LabelPairs


def find_block_objects(
    predicted: np.ndarray,
    truth: np.ndarray,
    own: Box,
    numbers: Sequence[int],
    of_predicted: np.ndarray | None = None,
    of_true: np.ndarray | None = None,
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

    Returns
    -------
    BlockObjects
        Ignored voxels belong to no object.
    """
    inside = own.slices(own.start)
    marked = np.isin(predicted, numbers) & (truth != IGNORE_LABEL)
    true, true_ids = label_block_components(np.where(np.isin(truth, numbers), truth, 0), own, of_true)
    found, predicted_ids = label_block_components(np.where(marked, predicted, 0), own, of_predicted)
    same = (predicted == truth)[inside]
    return BlockObjects(true, found, count_label_pairs(true_ids[inside] * same, predicted_ids[inside]))


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

    def add(self, components: Components) -> int:
        """Add a block's components and return the number of the first one."""
        self.stats.append(components.stats)
        return self.union_find.add(components.borders)

    def table(self) -> ObjectTable:
        stats = np.concatenate([np.zeros((0, NUM_COLUMNS), np.int64), *self.stats])
        return tabulate_objects(stats, self.union_find.roots())


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
    """The objects of a box, joined over its blocks, which are added in their order, z slowest."""

    def __init__(self) -> None:
        self._true, self._predicted = _JoinedObjects(), _JoinedObjects()
        self._pairs: list[LabelPairs] = []

    def add(self, block: BlockObjects) -> None:
        """Add the next block."""
        true_base, predicted_base = self._true.add(block.true), self._predicted.add(block.predicted)
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
        true, predicted = self._true.table(), self._predicted.table()
        pairs: LabelPairs = (np.zeros(0, int),) * 3
        if self._pairs:
            pairs = merge_label_pairs(
                (true.object_ids[t], predicted.object_ids[p], voxels) for t, p, voxels in self._pairs
            )
        return {number: _match_class(number, pairs, true, predicted, criteria) for number in numbers}


def _match_class(
    number: int, pairs: LabelPairs, true: ObjectTable, predicted: ObjectTable, criteria: ObjectCriteria
) -> ClassObjects:
    """Match the objects of a class, whose pairs are among those of all classes."""
    true_ids, predicted_ids, voxels = pairs
    is_true, is_predicted = (table.stats[:, CLASS] == number for table in (true, predicted))
    of_class = is_true[true_ids - 1] if len(true_ids) else np.zeros(0, bool)
    new_true, new_predicted = np.cumsum(is_true), np.cumsum(is_predicted)  # numbers among those of the class
    own = (new_true[true_ids[of_class] - 1], new_predicted[predicted_ids[of_class] - 1], voxels[of_class])
    true_of_class, predicted_of_class = (
        ObjectTable(table.stats[chosen], np.zeros(0, np.int64))
        for table, chosen in ((true, is_true), (predicted, is_predicted))
    )
    return ClassObjects(
        true_of_class,
        predicted_of_class,
        np.flatnonzero(is_true) + 1,
        np.flatnonzero(is_predicted) + 1,
        criteria.judge(true_of_class, predicted_of_class, own),
    )


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

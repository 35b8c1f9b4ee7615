"""Objects of a prediction compared with those of the annotation, found block by block and joined exactly.

`block_objects` finds those of one block, `ObjectComparison` joins the blocks and matches; see `object_criteria` for the
rules.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from kasthuri_ray.metrics.block_objects import BlockObjects
from kasthuri_ray.metrics.cleft_distances import CleftDistances
from kasthuri_ray.metrics.components import NUM_COLUMNS, Components, UnionFind
from kasthuri_ray.metrics.matching import LabelPairs, merge_label_pairs
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
        continues_hidden = np.zeros(len(table) + 1, bool)
        continues_hidden[table.object_ids[np.concatenate([np.zeros(0, bool), *self.is_cut])]] = True
        return replace(table, continues_hidden=continues_hidden[1:])


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

"""Every true and every predicted object of an evaluation, with its verdict and its partner: the rows of matches.csv."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kasthuri_ray.geometry import Box
from kasthuri_ray.metrics.components import FIRST_VOXEL, SIZE, START_Z, STOP_Z
from kasthuri_ray.metrics.object_columns import csv_line
from kasthuri_ray.metrics.object_comparison import ClassObjects
from kasthuri_ray.metrics.object_outcomes import CRITERIA, RANKED_BY
from kasthuri_ray.metrics.one_to_one import FREE

FOUND, MISSED, RIGHT, WRONG = "found", "missed", "right", "wrong"
BOX_COLUMNS = tuple(f"{axis}_{end}" for axis in "zyx" for end in ("start", "stop"))


@dataclass(frozen=True)
class ListedObject:
    """A true or a predicted object.

    Parameters
    ----------
    is_true : bool
        Whether it is one of the annotation.
    number : int
        Its number among the true or the predicted objects, from 1.
    class_number : int
        Its class.
    partners : mapping of str to int
        By criterion the number of its partner, 0 for none.
    centroid : tuple of float
        Mean z, y, x of its voxels, in voxels of the annotation.
    size_voxels : int
        Number of its voxels.
    score : float
        Mean predicted probability of its class in it.
    is_cut : bool
        Whether it touches a face of the box.
    box : Box
        The smallest box around it.
    first_voxel : int
        See `components.voxel_key`.
    """

    is_true: bool
    number: int
    class_number: int
    partners: Mapping[str, int]
    centroid: tuple[float, float, float]
    size_voxels: int
    score: float
    is_cut: bool
    box: Box
    first_voxel: int

    def verdict(self, criterion: str = RANKED_BY) -> str:
        """Return found or missed for a true object, right or wrong for a predicted one; "" if that is not known."""
        if criterion not in self.partners:
            return ""
        return ((MISSED, FOUND) if self.is_true else (WRONG, RIGHT))[self.partners[criterion] > 0]


def list_objects(
    objects: ClassObjects, class_number: int, is_true: bool, rows: np.ndarray | None = None
) -> Iterator[ListedObject]:
    """Yield the true or the predicted objects of a class.

    Parameters
    ----------
    objects : ClassObjects
        The class.
    class_number : int
        Its number.
    is_true : bool
        Whether true or predicted objects are asked for.
    rows : ndarray of int, optional
        Which of them, from 0; all by default.

    Yields
    ------
    ListedObject
        In the order of `rows`.
    """
    outcomes = objects.outcomes
    table, ids, other_ids, cut = (
        (objects.true, objects.true_ids, objects.predicted_ids, outcomes.true_is_cut)
        if is_true
        else (objects.predicted, objects.predicted_ids, objects.true_ids, outcomes.predicted_is_cut)
    )
    partners = {
        name: outcomes.partners[name] if is_true else outcomes.true_partners(name) for name in outcomes.partners
    }
    numbers = {name: np.where(row == FREE, 0, np.append(other_ids, 0)[row]) for name, row in partners.items()}
    scores, centroids = table.mean_probability, table.centroid
    for row in range(len(table)) if rows is None else rows.tolist():
        stats = table.stats[row].tolist()
        z, y, x = centroids[row].tolist()
        yield ListedObject(
            is_true,
            int(ids[row]),
            class_number,
            {name: int(of[row]) for name, of in numbers.items()},
            (z, y, x),
            stats[SIZE],
            float(scores[row]),
            bool(cut[row]),
            Box(tuple(stats[START_Z : START_Z + 3]), tuple(stats[STOP_Z : STOP_Z + 3])),
            stats[FIRST_VOXEL],
        )


def matches_csv(
    objects: Mapping[int, ClassObjects],
    class_names: Sequence[str],
    voxel_size_nm: Sequence[float] | None,
    translation_nm: Sequence[float] = (0.0, 0.0, 0.0),
) -> Iterator[str]:
    """Yield matches.csv line by line, header first.

    Parameters
    ----------
    objects : mapping of int to ClassObjects
        The objects of each class, by its number.
    class_names : sequence of str
        Names of the classes 1, 2, ...; with several there is a column for the class.
    voxel_size_nm : sequence of float or None
        Size of a voxel, z, y, x; without it centroids are in voxels.
    translation_nm : sequence of float
        Position of voxel 0, 0, 0.

    Yields
    ------
    str
        `verdict` and `partner` are those by overlap; a partner that does not exist is empty.
    """
    unit, is_several = "voxels" if voxel_size_nm is None else "nm", len(class_names) > 1
    others = [name for name in CRITERIA if name != RANKED_BY]
    yield csv_line(
        [
            *("kind", "id", *(["class"] if is_several else []), "verdict", "partner"),
            *(f"{column}_{name}" for name in others for column in ("verdict", "partner")),
            *(f"centroid_{axis}_{unit}" for axis in "zyx"),
            *("size_voxels", "score", "cut", *BOX_COLUMNS),
        ]
    )
    scale = np.array(voxel_size_nm or (1.0, 1.0, 1.0))
    origin = np.array(translation_nm) if voxel_size_nm is not None else np.zeros(3)
    for class_number, of_class in objects.items():
        for is_true in (True, False):
            for each in list_objects(of_class, class_number, is_true):
                position = np.array(each.centroid) * scale + origin
                yield csv_line(
                    [
                        *("true" if is_true else "predicted", str(each.number)),
                        *([class_names[class_number - 1]] if is_several else []),
                        *(cell for name in (RANKED_BY, *others) for cell in _verdict_cells(each, name)),
                        *(f"{value:.3f}" for value in position.tolist()),
                        *(str(each.size_voxels), f"{each.score:.6f}", str(int(each.is_cut))),
                        *(str(corner[axis]) for axis in range(3) for corner in (each.box.start, each.box.stop)),
                    ]
                )


def _verdict_cells(each: ListedObject, criterion: str) -> tuple[str, str]:
    return each.verdict(criterion), str(each.partners.get(criterion) or "")

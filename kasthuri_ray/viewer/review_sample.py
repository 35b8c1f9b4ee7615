"""Which objects are reviewed: drawn at random within strata of score and size. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kasthuri_ray.errors import InputError
from kasthuri_ray.output.reviewed_file import ReviewedObject
from kasthuri_ray.viewer.segment_properties import SCORE

SIZE = "size_voxels"
MIN_PER_STRATUM = 7
SEED = 0


def draw_objects(rows: Sequence[Mapping[str, Any]], number: int, seed: int = SEED) -> list[ReviewedObject]:
    """Draw objects of a table.

    Parameters
    ----------
    rows : sequence of mapping
        Rows of the table of objects.
    number : int
        How many; all if there are fewer.
    seed : int
        Of the draw.

    Returns
    -------
    list of ReviewedObject
        In random order, so that any first part of them is a fair sample too.
    """
    rng = np.random.default_rng(seed)
    number = min(number, len(rows))
    names = assign_strata(rows, number)
    strata = {name: np.flatnonzero(names == name) for name in np.unique(names)}
    drawn = []
    for name, size in zip(strata, share_out(number, [len(members) for members in strata.values()]), strict=True):
        drawn += [(row, name) for row in rng.choice(strata[name], size, replace=False).tolist()]
    order = rng.permutation(len(drawn))
    return [_undecided(rows[drawn[at][0]], str(drawn[at][1]), len(strata[drawn[at][1]])) for at in order]


def assign_strata(rows: Sequence[Mapping[str, Any]], number: int) -> np.ndarray:
    """Return the name of each object's stratum: thirds of the scores, each divided into thirds of the sizes.

    Few objects are drawn from fewer strata, so that each has at least seven of them.
    """
    parts = next(parts for parts in (3, 2, 1) if parts == 1 or number >= MIN_PER_STRATUM * parts**2)
    scores = ranked_parts(np.array([float(row[SCORE]) for row in rows]), parts)
    sizes = np.array([float(row[SIZE]) for row in rows])
    within = np.zeros(len(rows), int)
    for part in range(parts):
        within[scores == part] = ranked_parts(sizes[scores == part], parts)
    return np.array([f"score {a + 1} of {parts}; size {b + 1} of {parts}" for a, b in zip(scores, within, strict=True)])


def ranked_parts(values: np.ndarray, parts: int) -> np.ndarray:
    """Return for each value the part, 0 to parts - 1, of the sorted values in which it is; parts are equally large."""
    ranks = np.empty(len(values), int)
    ranks[np.argsort(values, kind="stable")] = np.arange(len(values))
    return ranks * parts // max(1, len(values))


def share_out(number: int, sizes: Sequence[int]) -> list[int]:
    """Return how many are drawn from strata of these sizes: equally many, as far as there are as many."""
    shares = [0] * len(sizes)
    while number > 0:
        open_ones = [index for index, size in enumerate(sizes) if shares[index] < size]
        if not open_ones:
            break
        each = max(1, number // len(open_ones))
        for index in open_ones[:number]:
            more = min(each, sizes[index] - shares[index], number)
            shares[index] += more
            number -= more
    return shares


def _undecided(row: Mapping[str, Any], stratum: str, size: int) -> ReviewedObject:
    return ReviewedObject(int(row["id"]), "", stratum, size, float(row[SCORE]), int(row[SIZE]))


def chosen_object(row: Mapping[str, Any]) -> ReviewedObject:
    """Return an object that a person chose, without a verdict."""
    return _undecided(row, "", 0)


def check_sample(objects: Sequence[ReviewedObject], rows: Sequence[Mapping[str, Any]], path: str) -> None:
    """Raise an InputError if objects of a file are not those of the table.

    Parameters
    ----------
    objects : sequence of ReviewedObject
        Objects of the file.
    rows : sequence of mapping
        Rows of the table.
    path : str
        Path of the file, for the message.
    """
    sizes = {int(row["id"]): int(row[SIZE]) for row in rows}
    for each in objects:
        if sizes.get(each.id) != each.size_voxels:
            raise InputError(
                f"{path} is not of this output: its object {each.id} has {each.size_voxels} voxels, the table says "
                f"{sizes.get(each.id, 'that there is none')}. Move the file away to begin anew"
            )

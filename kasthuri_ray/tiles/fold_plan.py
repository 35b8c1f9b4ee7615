"""The boxes of a training by folds: which part of a volume each fold tests, validates on and trains on. Pure."""

from __future__ import annotations

import itertools

from kasthuri_ray.errors import InputError
from kasthuri_ray.geometry import Box

QUADRANTS = 4
MIN_FOLDS = 3  # one to test, one to validate, one to train


def plan_folds(box: Box, num_folds: int, axes: str) -> list[dict[str, list[Box]]]:
    """Divide a box into folds.

    Parameters
    ----------
    box : Box
        What is annotated.
    num_folds : int
        Number of folds.
    axes : {"yx", "z"}
        `yx`: four quadrants over all sections, clockwise from y and x 0; `z`: parts along z.

    Returns
    -------
    list of dict
        For each fold the boxes of train, val and test. Fold k tests part k, and validates on the next one; the others
        train.

    Raises
    ------
    InputError
        If the box cannot be divided so.
    """
    if num_folds < MIN_FOLDS:
        raise InputError(f"--folds {num_folds}: a fold needs parts to train, to validate and to test; give 3 or more")
    if axes == "yx" and num_folds != QUADRANTS:
        raise InputError(f"--folds {num_folds}: y and x are divided into 4 quadrants; give --folds 4, or --fold-axes z")
    if axes == "z" and box.shape[0] < num_folds:
        raise InputError(f"--folds {num_folds}: the volume has {box.shape[0]} sections, {box} (z,y,x); give fewer")
    parts = _quadrants(box) if axes == "yx" else _slabs(box, num_folds)
    folds = []
    for test in range(num_folds):
        val = (test + 1) % num_folds
        train_parts = [part for number, part in enumerate(parts) if number not in (test, val)]
        folds.append({"train": train_parts, "val": [parts[val]], "test": [parts[test]]})
    return folds


def _quadrants(box: Box) -> list[Box]:
    (z, y, x), (z_stop, y_stop, x_stop) = box.start, box.stop
    y_middle, x_middle = (y + y_stop) // 2, (x + x_stop) // 2
    low, high = (y, y_middle), (y_middle, y_stop)
    left, right = (x, x_middle), (x_middle, x_stop)
    clockwise = [(low, left), (low, right), (high, right), (high, left)]
    return [Box((z, rows[0], columns[0]), (z_stop, rows[1], columns[1])) for rows, columns in clockwise]


def _slabs(box: Box, number: int) -> list[Box]:
    edges = [box.start[0] + box.shape[0] * part // number for part in range(number + 1)]
    return [Box((a, *box.start[1:]), (b, *box.stop[1:])) for a, b in itertools.pairwise(edges)]

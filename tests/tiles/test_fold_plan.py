"""Folds test every part of a volume once."""

import re

import numpy as np
import pytest

from kasthuri_ray.errors import InputError
from kasthuri_ray.geometry import Box
from kasthuri_ray.tiles.fold_plan import plan_folds

BOX = Box((2, 10, -20), (22, 75, 81))


def mark(boxes, box=BOX):
    """Return how often each voxel of a box is in one of the boxes."""
    counts = np.zeros(box.shape, int)
    for each in boxes:
        counts[each.slices(box.start)] += 1
    return counts


@pytest.mark.parametrize(("num_folds", "axes"), [(4, "yx"), (3, "z"), (4, "z"), (7, "z")])
def test_every_voxel_is_tested_once_and_in_each_fold_in_one_split(num_folds, axes):
    folds = plan_folds(BOX, num_folds, axes)
    assert len(folds) == num_folds
    assert (mark([box for fold in folds for box in fold["test"]]) == 1).all()
    for fold in folds:
        assert (mark([box for split in fold.values() for box in split]) == 1).all()


def test_quadrants_hold_all_sections_and_the_next_one_clockwise_validates():
    folds = plan_folds(Box((0, 0, 0), (20, 1024, 1024)), 4, "yx")
    corners = [fold["test"][0].start[1:] for fold in folds]
    assert corners == [(0, 0), (0, 512), (512, 512), (512, 0)]
    assert all(fold["test"][0].shape == (20, 512, 512) for fold in folds)
    assert [fold["val"] for fold in folds] == [folds[(k + 1) % 4]["test"] for k in range(4)]


@pytest.mark.parametrize(
    ("num_folds", "axes", "text"),
    [(2, "z", "give 3 or more"), (5, "yx", "give --folds 4, or --fold-axes z"), (21, "z", "has 20 sections")],
)
def test_folds_that_cannot_be_are_refused(num_folds, axes, text):
    with pytest.raises(InputError, match=re.escape(text)):
        plan_folds(BOX, num_folds, axes)

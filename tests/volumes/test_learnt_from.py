"""The record of what a network learnt from."""

import numpy as np
import pytest

from kasthuri_ray.geometry import Box
from kasthuri_ray.volumes.learnt_from import LearntFrom, LearntPart, LearntRun
from kasthuri_ray.volumes.recorded_image import record_image

BOXES = [Box((0, 0, 0), (4, 16, 16)), Box((2, 0, 0), (6, 16, 8)), Box((0, 8, 8), (2, 30, 30))]


def test_the_share_of_a_box_counts_each_voxel_once():
    within, covered = Box((1, 2, 0), (8, 16, 16)), np.zeros((8, 30, 30), bool)
    for box in BOXES:
        covered[box.slices()] = True
    part = LearntPart(tuple(BOXES))
    assert part.share_of(within) == covered[within.slices()].mean()
    assert part.within(within).share_of(within) == part.share_of(within)
    assert LearntPart().share_of(within) == 0


@pytest.mark.parametrize("record", [None, {}, {"runs": [{"run": "a"}], "complete": True}, "text"])
def test_nothing_is_known_from_no_record_or_a_malformed_one(record):
    assert LearntFrom.from_plain(record) == LearntFrom()
    assert LearntPart.from_plain(record) == LearntPart()
    assert not LearntFrom().is_complete


def test_the_boxes_of_all_runs_are_found_and_other_images_named(array_volume):
    images = [
        array_volume(np.random.default_rng(seed).integers(0, 255, (8, 32, 32), np.uint8), uri=f"array://{seed}")
        for seed in range(3)
    ]
    runs = [LearntRun("second", (record_image(images[0], {"train": [BOXES[0]]}),))]
    runs += [
        LearntRun("first", (record_image(images[0], {"train": [BOXES[1]]}), record_image(images[1], {"val": BOXES})))
    ]
    learnt = LearntFrom.from_plain(LearntFrom(tuple(runs), is_complete=True).to_plain())
    part = learnt.find_in(images[0])
    assert LearntPart.from_plain(part.to_plain()) == part
    assert (part.boxes, part.is_known, part.is_same_image) == ((BOXES[0], BOXES[1]), True, True)
    other = learnt.find_in(images[2])
    assert (other.boxes, other.is_same_image, other.images) == ((), False, ("array://0", "array://1"))

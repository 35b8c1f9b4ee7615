"""Crops of objects show the outlines of annotation and prediction."""

import numpy as np

from kasthuri_ray.reports.object_gallery import (
    PREDICTION_COLOUR,
    TRUTH_COLOUR,
    ObjectCrop,
    draw_crop,
    grow,
    make_object_groups,
)


def make_crop(side=160, verdict="wrong"):
    truth, predicted = np.zeros((2, side, side), bool)
    truth[20:40, 20:40], predicted[22:42, 20:40] = True, True
    predicted[100:110, 100:110] = True  # another object
    own = predicted.copy()
    own[90:] = False
    return ObjectCrop(
        verdict, 1, 2, "", (3, 30, 30), 3, 400, 0.9, np.full((side, side), 100, np.uint8), truth, predicted, own
    )


def test_both_outlines_are_drawn_and_the_inside_stays_visible():
    crop = make_crop()
    picture = draw_crop(crop)
    assert picture.shape == (320, 320, 3)
    assert (picture == TRUTH_COLOUR).all(-1).any()
    assert (picture == PREDICTION_COLOUR).all(-1).any()
    assert (picture[60:64, 60:64] == 100).all()
    inside_truth = crop.truth.repeat(2, 0).repeat(2, 1)
    assert not (picture == TRUTH_COLOUR).all(-1)[inside_truth].any()


def test_outlines_of_other_objects_are_paler():
    picture = draw_crop(make_crop()).astype(int)
    own, other = picture[44, 60], picture[200, 210]
    assert own.tolist() == list(PREDICTION_COLOUR)
    assert abs(other - 100).max() < abs(own - 100).max() / 2
    assert (other != 100).any()


def test_pictures_stay_small():
    noise = np.random.default_rng(0).integers(60, 200, (160, 160)).astype(np.uint8)
    crops = [ObjectCrop(**{**vars(make_crop()), "image": noise})] * 40
    groups = make_object_groups(crops, {"wrong": 50, "missed": 3}, (6.0, 6.0))
    assert [group.verdict for group in groups] == ["wrong"]
    assert sum(len(picture.source) for picture in groups[0].pictures) < 4_000_000


def test_a_mask_grows_along_both_axes():
    mask = np.zeros((7, 7), bool)
    mask[3, 3] = True
    assert grow(mask, 1).sum() == 5
    assert grow(mask, 2).sum() == 13

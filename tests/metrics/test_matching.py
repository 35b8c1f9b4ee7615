"""Objects are matched one to one by their intersection over union."""

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from kasthuri_ray.metrics.matching import count_label_pairs, match_objects, merge_label_pairs


def match_labels(true, predicted):
    """Return the scores of two arrays that hold all the labels 0, 1, 2, ... up to the highest."""
    true, predicted = np.array(true), np.array(predicted)
    return match_objects(count_label_pairs(true, predicted), np.bincount(true)[1:], np.bincount(predicted)[1:])


def precision_and_recall(true, predicted):
    scores = match_labels(true, predicted)
    return scores["precision"], scores["recall"]


def test_a_prediction_is_right_if_its_iou_is_more_than_a_half():
    assert match_labels([1, 1, 1, 1, 0, 2, 2], [0, 1, 1, 1, 1, 0, 0]) == {
        "precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3), "num_true": 2, "num_predicted": 1,
        "num_small": 1, "matching_iou": 0.5,
    }  # fmt: skip
    assert precision_and_recall([1, 1, 1, 0], [0, 0, 1, 1]) == (0, 0)  # one voxel of four
    assert precision_and_recall([1] * 5, [0, 0, 1, 1, 1]) == (1, 1)
    assert precision_and_recall([1] * 6, [0, 0, 0, 1, 1, 1]) == (0, 0)


def test_one_object_over_the_whole_volume_matches_nothing():
    assert precision_and_recall([1, 1, 1, 0, 2, 2, 2, 0, 3, 3, 3, 0], [1] * 12) == (0, 0)
    assert precision_and_recall([1, 1, 1, 0, 2, 2, 2, 0, 3, 3, 3, 0], [1, 1, 1, 0, 2, 2, 2, 0, 3, 3, 3, 3]) == (1, 1)


def test_a_prediction_that_spans_two_objects_matches_at_most_one():
    assert precision_and_recall([1, 1, 1, 0, 2, 2, 2], [1] * 7) == (0, 0)
    assert precision_and_recall([1, 1, 2, 2], [1] * 4) == (0, 0)  # each is a half of it
    assert precision_and_recall([1, 1, 1, 1, 1, 0, 2], [1] * 7) == (1, 0.5)


def test_of_the_pieces_of_a_split_object_at_most_one_is_right():
    assert precision_and_recall([1] * 7, [1, 1, 1, 0, 2, 2, 2]) == (0, 0)
    assert precision_and_recall([1] * 4, [1, 1, 2, 2]) == (0, 0)
    assert precision_and_recall([1] * 7, [1, 1, 1, 1, 1, 0, 2]) == (0.5, 1)


def test_matches_equal_the_best_one_to_one_assignment():
    rng = np.random.default_rng(0)
    for _ in range(20):
        true = rng.integers(0, 5, 60).repeat(4)
        predicted = np.where(rng.random(240) < 0.8, np.roll(true, rng.integers(0, 3)), rng.integers(0, 5, 240))
        iou = np.array(
            [[((true == a) & (predicted == b)).sum() / ((true == a) | (predicted == b)).sum() for b in range(1, 5)]
             for a in range(1, 5)]
        )  # fmt: skip
        matches = iou > 0.5
        best = matches[linear_sum_assignment(1 - matches)].sum()
        assert precision_and_recall(true, predicted) == (best / 4, best / 4)


def test_scores_are_zero_without_objects():
    zeros = {"precision": 0.0, "recall": 0.0, "f1": 0.0, "num_true": 0, "num_predicted": 0, "num_small": 0}
    assert match_labels([0, 0], [0, 0]) == zeros | {"matching_iou": 0.5}
    assert match_labels([1, 0], [0, 0])["f1"] == 0.0


def test_label_pairs_are_counted_and_add_up():
    rng = np.random.default_rng(0)
    one = rng.choice(np.array([0, 3, 2**63 + 5], np.uint64), 1000)
    other = rng.integers(-2, 3, 1000)
    whole = count_label_pairs(one, other)
    for a, b, voxels in zip(*whole, strict=True):
        assert voxels == ((one == a) & (other == b)).sum() > 0
    assert whole[2].sum() == ((one != 0) & (other != 0)).sum()
    halves = merge_label_pairs([count_label_pairs(one[:300], other[:300]), count_label_pairs(one[300:], other[300:])])
    for expected, found in zip(whole, halves, strict=True):
        np.testing.assert_array_equal(found, expected)

"""Objects are matched one-to-one, the largest overlaps first."""

import numpy as np
import pytest

from kasthuri_ray.evaluation.matching import count_pairs, match_objects, merge_pairs


def matched(true, predicted):
    true, predicted = np.array(true), np.array(predicted)
    return match_objects(count_pairs(true, predicted), len(set(true) - {0}), len(set(predicted) - {0}))


def test_one_voxel_shared_makes_a_prediction_right():
    assert matched([1, 1, 1, 0, 2, 2], [0, 0, 1, 1, 0, 0]) == {
        "precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3), "num_true": 2, "num_predicted": 1,
    }  # fmt: skip


def test_a_prediction_that_spans_two_finds_one_and_pieces_are_wrong():
    spanning = matched([1, 1, 0, 2, 2], [1, 1, 1, 1, 1])
    assert (spanning["precision"], spanning["recall"]) == (1.0, 0.5)
    pieces = matched([1, 1, 1, 1, 1], [1, 1, 0, 2, 2])
    assert (pieces["precision"], pieces["recall"]) == (0.5, 1.0)


def test_the_largest_overlap_is_taken_first():
    # Predicted 1 shares two voxels with true 1 and three with true 2; predicted 2 shares one with true 1.
    found = matched([1, 1, 2, 2, 2, 1], [1, 1, 1, 1, 1, 2])
    assert (found["precision"], found["recall"], found["f1"]) == (1.0, 1.0, 1.0)
    # Predicted 1 goes to true 1, which shares more; nothing is left for true 2.
    found = matched([1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 1, 2])
    assert (found["precision"], found["recall"]) == (0.5, 0.5)


def test_nothing_to_divide_by_gives_zero():
    nothing = matched([0, 0], [0, 0])
    assert nothing == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "num_true": 0, "num_predicted": 0}
    assert matched([1, 0], [0, 0])["f1"] == 0.0


def test_pairs_are_counted_and_add_up():
    rng = np.random.default_rng(0)
    one = rng.choice(np.array([0, 3, 2**63 + 5], np.uint64), 1000)
    other = rng.integers(-2, 3, 1000)
    whole = count_pairs(one, other)
    for a, b, voxels in zip(*whole, strict=True):
        assert voxels == ((one == a) & (other == b)).sum() > 0
    assert whole[2].sum() == ((one != 0) & (other != 0)).sum()
    halves = merge_pairs([count_pairs(one[:300], other[:300]), count_pairs(one[300:], other[300:])])
    for expected, found in zip(whole, halves, strict=True):
        np.testing.assert_array_equal(found, expected)

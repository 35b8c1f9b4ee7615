"""Voxels of pairs of labels are counted, and add up."""

import numpy as np
import pytest

from kasthuri_ray.metrics.matching import count_label_pairs, label_pair_iou, merge_label_pairs


def test_the_iou_of_pairs_is_that_of_their_voxels():
    true, predicted = np.array([1, 1, 1, 1, 0, 2, 2]), np.array([0, 1, 1, 1, 1, 2, 0])
    pairs = count_label_pairs(true, predicted)
    assert label_pair_iou(pairs, np.array([4, 2]), np.array([4, 1])).tolist() == pytest.approx([3 / 5, 1 / 2])


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

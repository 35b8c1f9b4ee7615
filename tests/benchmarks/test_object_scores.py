"""Scores of objects that are compared: the values of each object, what a ranking is worth, and merged objects."""

import numpy as np
import pytest

from kasthuri_ray.benchmarks.object_scores import merged_objects, object_scores, ranked_average_precision
from kasthuri_ray.metrics.matching import count_label_pairs


def test_each_score_is_that_of_the_voxels_of_an_object() -> None:
    rng = np.random.default_rng(0)
    labels, probability = rng.integers(0, 5, (3, 20, 20)), rng.integers(0, 256, (3, 20, 20)).astype(np.uint8)
    found = object_scores(labels, probability)
    for number in range(1, 5):
        values = probability[labels == number] / 255
        expected = {"mean": values.mean(), "median": np.median(values), "highest": values.max(), "sum": values.sum()}
        expected |= {"90th percentile": np.percentile(values, 90)}
        assert {name: each[number - 1] for name, each in found.items()} == pytest.approx(expected)
    assert all(len(each) == 0 for each in object_scores(labels * 0, probability).values())


def test_a_score_that_ranks_wrong_objects_first_has_a_lower_average_precision() -> None:
    true, predicted = np.array([1, 1, 0, 0, 2, 2, 0]), np.array([1, 1, 0, 2, 3, 3, 0])
    pairs = count_label_pairs(true, predicted)
    assert ranked_average_precision(pairs, np.array([0.9, 0.1, 0.8]), 2) == 1
    assert ranked_average_precision(pairs, np.array([0.5, 0.9, 0.8]), 2) == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert ranked_average_precision(pairs, np.array([0.5, 0.4, 0.8]), 3) == pytest.approx(2 / 3), "one is missed"


def test_objects_under_one_piece_count_as_merged_each_once() -> None:
    true, predicted = np.array([1, 1, 0, 2, 2, 3, 4, 4]), np.array([1, 1, 1, 1, 2, 2, 0, 3])
    assert merged_objects(count_label_pairs(true, predicted)) == 3
    assert merged_objects(count_label_pairs(true, true)) == 0

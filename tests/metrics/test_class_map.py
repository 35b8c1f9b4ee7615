"""The class of a voxel is the most probable one that reaches its threshold."""

import numpy as np

from kasthuri_ray.metrics.class_map import classes_at, lowest_value


def test_a_threshold_of_bytes_selects_the_same_voxels_as_one_of_probabilities():
    for threshold in (0.0, 0.2, 0.3, 100 / 255, 0.5, 0.75, 1.0):
        values = np.arange(256, dtype=np.uint8)
        np.testing.assert_array_equal(values >= lowest_value(threshold), values / 255 >= threshold)
        np.testing.assert_array_equal(
            classes_at(values[None], [threshold]), classes_at(values[None] / 255, [threshold])
        )
    assert lowest_value(1.5) == 256


def test_of_several_classes_that_reach_their_thresholds_the_most_probable_is_taken():
    probability = np.array(
        #  none, first, second, both, both, equal, second alone, though less probable
        [[0.1, 0.6, 0.1, 0.55, 0.52, 0.5, 0.49],
         [0.1, 0.1, 0.4, 0.40, 0.54, 0.5, 0.45],
         [0.8, 0.0, 0.0, 0.00, 0.00, 0.0, 0.00]]
    )  # fmt: skip
    thresholds = [0.5, 0.3, 0.9]
    assert classes_at(probability, thresholds).tolist() == [0, 1, 2, 1, 2, 1, 2]
    stored = np.rint(probability * 255).astype(np.uint8)
    assert classes_at(stored, thresholds).tolist() == [0, 1, 2, 1, 2, 1, 2]


def test_at_threshold_0_every_voxel_has_a_class():
    assert classes_at(np.zeros((2, 3), np.uint8), [1.0, 0.0]).tolist() == [2, 2, 2]

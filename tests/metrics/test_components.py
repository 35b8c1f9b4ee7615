import numpy as np
import pytest

from kasthuri_ray.geometry import Box
from kasthuri_ray.metrics.components import label_block_components, lowest_foreground_value


def test_a_threshold_of_bytes_selects_the_same_voxels_as_one_of_probabilities():
    for threshold in (0.0, 0.2, 0.3, 100 / 255, 0.5, 0.75, 1.0):
        values = np.arange(256, dtype=np.uint8)
        np.testing.assert_array_equal(values >= lowest_foreground_value(threshold), values / 255 >= threshold)
    assert lowest_foreground_value(1.5) == 256


def test_arrays_that_do_not_fit_a_block_are_refused():
    with pytest.raises(ValueError, match="must be uint8, got float32"):
        label_block_components(np.zeros((1, 1, 1), np.float32), Box.at((0, 0, 0), (1, 1, 1)), 0.5)
    with pytest.raises(ValueError, match=r"block of \(1, 1, 1\) and its shell cannot have \(3, 1, 1\) voxels"):
        label_block_components(np.zeros((3, 1, 1), np.uint8), Box.at((0, 0, 0), (1, 1, 1)), 0.5)
    with pytest.raises(ValueError, match="from -1048576 to 1048576, got x 2000000"):
        label_block_components(np.full((1, 1, 1), 255, np.uint8), Box.at((0, 0, 2_000_000), (1, 1, 1)), 0.5)

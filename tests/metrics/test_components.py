import numpy as np
import pytest

from kasthuri_ray.geometry import Box
from kasthuri_ray.metrics.components import label_block_components


def test_arrays_that_do_not_fit_a_block_are_refused():
    with pytest.raises(ValueError, match=r"block of \(1, 1, 1\) and its shell cannot have \(3, 1, 1\) voxels"):
        label_block_components(np.zeros((3, 1, 1), bool), Box.at((0, 0, 0), (1, 1, 1)))
    with pytest.raises(ValueError, match="from -1048576 to 1048576, got x 2000000"):
        label_block_components(np.ones((1, 1, 1), bool), Box.at((0, 0, 2_000_000), (1, 1, 1)))

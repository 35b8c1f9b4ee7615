"""What every volume can do."""

import numpy as np
import pytest

from kasthuri_ray.errors import InputError


def test_slices_read_the_voxels_of_a_volume_with_its_own_offset(array_volume):
    voxels = np.arange(4 * 5 * 6, dtype=np.uint8).reshape(4, 5, 6)
    volume = array_volume(voxels, offset=(-2, 0, 10))
    assert volume.shape == (4, 5, 6)
    np.testing.assert_array_equal(volume[-1:1, 2:3], voxels[1:3, 2:3])
    np.testing.assert_array_equal(volume[:], voxels)
    for index in (0, (slice(0, 1, 2),), (slice(None),) * 4):
        with pytest.raises(InputError, match="up to three slices without steps"):
            volume[index]
    with pytest.raises(InputError, match="outside the volume"):
        volume[:, :9]

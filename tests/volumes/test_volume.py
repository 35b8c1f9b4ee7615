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
    for index in ((slice(0, 1, 2),), (slice(None),) * 4, (..., ...), "0:1", True, None, 1.0):
        with pytest.raises(InputError, match="up to three slices without steps"):
            volume[index]
    with pytest.raises(InputError, match="outside the volume"):
        volume[:, :9]


def test_numbers_dots_and_whole_arrays_read_as_numpy_does_but_by_the_volumes_own_indices(array_volume):
    voxels = np.arange(4 * 5 * 6, dtype=np.uint8).reshape(4, 5, 6)
    volume = array_volume(voxels, offset=(-2, 0, 10))
    assert volume.ndim == 3
    np.testing.assert_array_equal(volume[-2], voxels[0])
    np.testing.assert_array_equal(volume[np.int64(1), ..., 10:12], voxels[3, :, 0:2])
    np.testing.assert_array_equal(volume[..., 4, 15], voxels[:, 4, 5])
    assert volume[1, 4, 15] == voxels[3, 4, 5]
    np.testing.assert_array_equal(volume[...], voxels)
    np.testing.assert_array_equal(np.asarray(volume), voxels)
    assert np.asarray(volume, dtype=float).dtype == float
    np.testing.assert_array_equal(list(volume), voxels)
    with pytest.raises(InputError, match="outside the volume"):
        volume[2]


def test_a_volume_is_shown_in_a_line(array_volume):
    volume = array_volume(np.zeros((4, 5, 6), np.uint8), offset=(-2, 0, 10))
    assert repr(volume) == f"<Volume {volume.uri}: -2:2,0:5,10:16 (z,y,x), uint8, voxel size 30,6,6 nm>"

"""Alignment of volumes: masks, grids and boxes in nm."""

import numpy as np
import pytest

from kasthuri_ray.geometry import Box
from kasthuri_ray.volumes.alignment import VoxelGrid, box_nm, mask_box, overlap_box, voxel_shift


def test_a_mask_is_aligned_with_the_image_by_nanometers(array_volume):
    image = array_volume(np.zeros((4, 64, 64), np.uint8), voxel_size_nm=(30.0, 4.0, 4.0), offset=(2, 8, 8))
    mask = array_volume(np.zeros((3, 20, 20), bool), voxel_size_nm=(60.0, 16.0, 16.0))
    assert mask_box(Box((2, 8, 8), (3, 9, 9)), mask, image) == Box((1, 2, 2), (2, 3, 3))
    assert mask_box(Box((3, 11, 8), (5, 13, 24)), mask, image) == Box((1, 2, 2), (3, 4, 6))
    assert mask_box(Box((2, 80, 8), (3, 90, 9)), mask, image).num_voxels == 0


def test_a_mask_without_a_voxel_size_has_the_voxels_of_the_image(array_volume):
    image = array_volume(np.zeros((4, 64, 64), np.uint8), voxel_size_nm=(30.0, 4.0, 4.0))
    mask = array_volume(np.zeros((4, 64, 64), bool), voxel_size_nm=None)
    assert mask_box(Box((1, 60, 60), (2, 70, 70)), mask, image) == Box((1, 60, 60), (2, 64, 64))


def test_a_mask_of_the_same_shape_with_another_translation_is_shifted(array_volume):
    def volume(y_nm):
        zeros = np.zeros((1, 8, 8), np.uint8)
        return array_volume(zeros, voxel_size_nm=(30.0, 4.0, 4.0), translation_nm=(0.0, y_nm, 0.0), chunk=(1, 8, 8))

    assert mask_box(Box((0, 0, 0), (1, 2, 2)), volume(16.0), volume(32.0)) == Box((0, 4, 0), (1, 6, 2))


def test_a_translation_is_the_position_of_the_middle_of_the_first_voxel(array_volume):
    size = (30.0, 4.0, 4.0)
    volume = array_volume(np.zeros((4, 8, 8), np.uint8), voxel_size_nm=size, translation_nm=(15.0, 2.0, 102.0))
    assert box_nm(volume, Box((0, 0, 0), (1, 8, 2))) == [(0.0, 30.0), (0.0, 32.0), (100.0, 108.0)]
    # The first voxel of the next coarser level covers four of these, from corner to corner.
    coarse_size, middle = (30.0, 8.0, 8.0), (15.0, 4.0, 104.0)
    coarse = array_volume(np.zeros((4, 4, 4), np.uint8), voxel_size_nm=coarse_size, translation_nm=middle)
    assert box_nm(coarse, Box((0, 0, 0), (1, 4, 1))) == box_nm(volume, Box((0, 0, 0), (1, 8, 2)))
    assert mask_box(Box((0, 0, 0), (1, 2, 2)), coarse, volume) == Box((0, 0, 0), (1, 1, 1))


def test_grids_are_shifted_by_whole_voxels_of_their_translations(array_volume):
    zeros = np.zeros((4, 8, 8), np.uint8)
    one, other = (
        VoxelGrid.of(array_volume(zeros, voxel_size_nm=(30.0, 4.0, 4.0), translation_nm=translation))
        for translation in ((60.0, 8.4, -4.0), (0.0, 0.0, 0.0))
    )
    shift = voxel_shift(one, other)
    assert shift == (2, 2, -1)
    assert voxel_shift(other, one) == (-2, -2, 1)
    assert overlap_box(one, other, shift) == Box((0, 0, 1), (2, 6, 8))


def test_a_grid_without_a_voxel_size_is_placed_by_its_first_voxel(array_volume):
    zeros = np.zeros((4, 8, 8), np.uint8)
    known = VoxelGrid.of(array_volume(zeros, voxel_size_nm=(30.0, 4.0, 4.0)))
    unknown = VoxelGrid.of(array_volume(zeros, voxel_size_nm=None), start=(1, 0, 5))
    shift = voxel_shift(known, unknown)
    assert shift == (-1, 0, -5)
    assert overlap_box(known, unknown, shift) == Box((1, 0, 5), (4, 8, 8))


def test_grids_of_different_voxel_sizes_are_refused_and_rounded_sizes_are_not(array_volume):
    zeros = np.zeros((1, 8, 8), np.uint8)
    one, close, other = (
        VoxelGrid.of(array_volume(zeros, voxel_size_nm=(30.0, size, size), uri=f"array://{size}"))
        for size in (4.6, 4.63, 4.7)
    )
    assert voxel_shift(one, close) == (0, 0, 0)
    with pytest.raises(
        ValueError, match=r"array://4.6 has 30 x 4.6 x 4.6 nm, array://4.7 has 30 x 4.7 x 4.7 nm \(z,y,x\)"
    ):
        voxel_shift(one, other)


def test_volumes_that_do_not_overlap_are_refused_with_the_positions_of_both(array_volume):
    zeros = np.zeros((1, 8, 8), np.uint8)
    one, other = (
        VoxelGrid.of(array_volume(zeros, voxel_size_nm=(30.0, 4.0, 4.0), translation_nm=(z_nm, 0.0, 0.0)))
        for z_nm in (0.0, 90.0)
    )
    expected = r"do not overlap. The first covers 0:30,0:32,0:32 nm, the second 90:120,0:32,0:32 nm \(z,y,x\)"
    with pytest.raises(ValueError, match=expected):
        overlap_box(one, other, voxel_shift(one, other))

"""An image is recognised by its name, its pyramid or its voxels, and its boxes are found in it again."""

from dataclasses import replace

import numpy as np
import pytest

from kasthuri_ray.geometry import Box
from kasthuri_ray.volumes.alignment import AlignedVolume
from kasthuri_ray.volumes.place import Place
from kasthuri_ray.volumes.recorded_image import RecordedImage, map_box, record_image
from kasthuri_ray.volumes.resampled_volume import resample_image

TRAIN, VAL = Box((0, 0, 0), (6, 48, 48)), Box((6, 0, 0), (8, 48, 48))


@pytest.fixture(scope="module")
def voxels():
    return np.random.default_rng(0).integers(0, 255, (12, 48, 48), np.uint8)


@pytest.fixture
def em(array_volume, voxels):
    return array_volume(voxels, uri="array://em", voxel_size_nm=(30.0, 6.0, 6.0))


@pytest.fixture
def record(em):
    recorded = record_image(em, {"train": [TRAIN], "val": [VAL]})
    return RecordedImage.from_plain(recorded.to_plain())  # as it is read from a checkpoint


def test_a_record_states_boxes_in_voxels_and_in_nm(em):
    plain = record_image(em, {"train": [TRAIN], "val": []}).to_plain()
    assert plain["boxes"] == {"train": ["0:6,0:48,0:48"]}
    assert plain["boxes_nm"] == {"train": ["0:180,0:288,0:288"]}


def test_the_boxes_are_found_in_the_same_volume_and_in_its_other_resolution(record, em, array_volume):
    assert record.find_in(em) == [TRAIN, VAL]
    assert record.find_in(replace(em, voxel_size_nm=(1.0, 1.0, 1.0))) == [TRAIN, VAL]  # --voxel-size
    fine = replace(em, pyramid="em", place=Place((0.0, 0.0, 0.0), "corner", "offset"))
    coarse = array_volume(np.zeros((6, 24, 24), np.uint8), uri="array://em/1", voxel_size_nm=(60.0, 12.0, 12.0))
    coarse = replace(coarse, pyramid="em", place=fine.place)
    found = record_image(fine, {"train": [TRAIN]}).find_in(coarse)
    assert found == [Box((0, 0, 0), (3, 24, 24))]


@pytest.mark.parametrize(
    ("part", "offset", "shift"),
    [
        (np.s_[:], (0, 0, 0), (0, 0, 0)),
        (np.s_[:], (5, 0, 0), (5, 0, 0)),  # a copy whose first voxel has another index
        (np.s_[3:], (0, 0, 0), (-3, 0, 0)),  # a crop that states no place
        (np.s_[2:, 7:40, 5:], (0, 0, 0), (-2, -7, -5)),
    ],
)
def test_a_copy_and_a_crop_under_another_name_are_recognised_by_their_voxels(
    record, voxels, array_volume, part, offset, shift
):
    for dtype in (np.uint8, np.float32):
        copy = array_volume(voxels[part].astype(dtype), uri="array://copy", offset=offset)
        assert record.find_in(copy) == [TRAIN.shifted(shift), VAL.shifted(shift)]


def test_other_images_are_not_recognised(record, voxels, array_volume):
    assert record.find_in(array_volume(255 - voxels, uri="array://other")) is None
    assert record.find_in(array_volume(np.zeros_like(voxels), uri="array://blank")) is None


def test_the_boxes_are_found_in_an_image_that_is_moved_or_resampled(record, em):
    assert record.find_in(AlignedVolume.of(em, (4, 0, -8))) == [TRAIN.shifted((4, 0, -8)), VAL.shifted((4, 0, -8))]
    assert record.find_in(resample_image(em, (30.0, 12.0, 12.0)))[0] == Box((0, 0, 0), (6, 24, 24))
    assert map_box(resample_image(em, (30.0, 4.0, 4.0)), Box((1, 3, 3), (2, 5, 5))) == Box((1, 4, 4), (2, 8, 8))

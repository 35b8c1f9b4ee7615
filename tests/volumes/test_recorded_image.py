"""An image is recognised by its name, its pyramid or its voxels, and its boxes are found in it again."""

from dataclasses import replace

import numpy as np
import pytest

from kasthuri_ray.geometry import Box
from kasthuri_ray.volumes.alignment import AlignedVolume
from kasthuri_ray.volumes.opening import open_volume
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
    other = np.random.default_rng(1).integers(0, 255, voxels.shape, np.uint8)
    assert record.find_in(array_volume(other, uri="array://other")) is None
    assert record.find_in(array_volume(np.zeros_like(voxels), uri="array://blank")) is None
    assert record.find_in(array_volume(voxels[:, :, ::-1].copy(), uri="array://mirrored")) is None


@pytest.fixture(scope="module")
def tissue():
    """Return 10 sections of the synthetic cortex."""
    volume = open_volume("phantom://em?shape=10,160,160&seed=3")
    return volume.read(volume.bounds)


@pytest.fixture
def tissue_record(array_volume, tissue):
    em = array_volume(tissue, uri="array://tissue", voxel_size_nm=(30.0, 6.0, 6.0))
    recorded = record_image(em, {"train": [Box((0, 0, 0), (6, 160, 160))], "val": [Box((6, 0, 0), (8, 160, 160))]})
    return RecordedImage.from_plain(recorded.to_plain())


def local_contrast(voxels):
    """Return sections whose grey levels are stretched tile by tile, as programs for local contrast do."""
    changed = voxels.astype(np.float32)
    for tile in Box((0, 0, 0), voxels.shape).cells((1, 80, 80)):
        part = changed[tile.slices()]
        low, high = np.percentile(part, (2, 98))
        part[:] = np.clip((part - low) / (high - low) * 255, 0, 255)
    return changed.astype(np.uint8)


CHANGES = {
    "inverted": lambda v: 255 - v,
    "as uint16": lambda v: v.astype(np.uint16) * 200 + 1000,
    "as floats": lambda v: (v / 255).astype(np.float32),
    "gamma": lambda v: np.rint(255 * (v / 255) ** 0.5).astype(np.uint8),
    "clipped": lambda v: np.clip(v.astype(int) * 2 - 120, 0, 255).astype(np.uint8),
    "local contrast": local_contrast,
    "noise": lambda v: np.clip(v + np.random.default_rng(0).normal(0, 6, v.shape), 0, 255).astype(np.uint8),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_copy_with_other_grey_levels_is_recognised_in_place(tissue_record, tissue, array_volume, name):
    for offset in ((0, 0, 0), (4, 7, 0)):
        copy = array_volume(CHANGES[name](tissue), uri="array://copy", offset=offset)
        shown = [box.shifted(offset) for box in tissue_record.all_boxes]
        assert tissue_record.find_in(copy) == shown
    old = replace(tissue_record, patches=())  # of a run before there were patches
    assert old.find_in(copy) is None


@pytest.mark.parametrize("name", ["inverted", "as uint16", "as floats", "gamma"])
def test_a_crop_with_other_grey_levels_that_keep_their_order_is_recognised_anywhere(
    tissue_record, tissue, array_volume, name
):
    crop = array_volume(CHANGES[name](tissue[1:9, 20:, 9:]), uri="array://crop")
    assert tissue_record.find_in(crop) == [box.shifted((-1, -20, -9)) for box in tissue_record.all_boxes]


@pytest.mark.parametrize("factors", [(1, 2, 2), (2, 2, 2), (1, 4, 4)])
def test_another_resolution_of_a_copy_is_recognised(tissue_record, tissue, array_volume, factors):
    (z, y, x), (fz, fy, fx) = tissue.shape, factors
    coarse = tissue.reshape(z // fz, fz, y // fy, fy, x // fx, fx).mean((1, 3, 5)).astype(np.uint8)
    size = (30.0 * fz, 6.0 * fy, 6.0 * fx)
    copy = array_volume(coarse, uri="array://copy/1", voxel_size_nm=size)
    assert tissue_record.find_in(copy)[0] == Box((0, 0, 0), (6 // fz, 160 // fy, 160 // fx))
    record = record_image(copy, {"train": [Box((0, 0, 0), (4 // fz, 160 // fy, 160 // fx))]})
    fine = array_volume(255 - tissue, uri="array://fine", voxel_size_nm=(30.0, 6.0, 6.0))
    found = record.find_in(fine)
    assert found == [Box((0, 0, 0), (4, 160, 160))] if fz == 1 else found is None or found[0].shape[0] == 4


@pytest.mark.parametrize("seed", [1, 2, 4])
def test_other_tissue_and_the_next_sections_of_the_same_are_not_taken_for_it(tissue_record, tissue, array_volume, seed):
    other = open_volume(f"phantom://em?shape=10,160,160&seed={seed}")
    assert tissue_record.find_in(array_volume(other.read(other.bounds), uri="array://other")) is None
    thin = np.repeat(tissue, 3, axis=0)  # sections that are nearly equal to the next
    thin = (thin + np.random.default_rng(seed).normal(0, 2, thin.shape)).clip(0, 255).astype(np.uint8)
    record = record_image(array_volume(thin, uri="array://thin"), {"train": [Box((0, 0, 0), (20, 160, 160))]})
    for shift in (1, 2):
        found = record.find_in(array_volume(255 - thin[shift:], uri="array://part"))
        assert found is None or found == [Box((-shift, 0, 0), (20 - shift, 160, 160))]


def test_the_boxes_are_found_in_an_image_that_is_moved_or_resampled(record, em):
    assert record.find_in(AlignedVolume.of(em, (4, 0, -8))) == [TRAIN.shifted((4, 0, -8)), VAL.shifted((4, 0, -8))]
    assert record.find_in(resample_image(em, (30.0, 12.0, 12.0)))[0] == Box((0, 0, 0), (6, 24, 24))
    assert map_box(resample_image(em, (30.0, 4.0, 4.0)), Box((1, 3, 3), (2, 5, 5))) == Box((1, 4, 4), (2, 8, 8))

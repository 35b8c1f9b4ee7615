"""The image of a segmentation: its resolution, its grey levels, and its mask."""

import json

import numpy as np
import pytest
import torch

from kasthuri_ray.geometry import Box
from kasthuri_ray.segmentation.source_image import is_outside_mask, nearest_mip

RANGES = ("xrange_vol", "yrange_vol", "z_train", "z_val", "z_test")
SIZES_NM = {0: (30.0, 3.0, 3.0), 1: (30.0, 6.0, 6.0), 2: (30.0, 12.0, 12.0)}


@pytest.fixture(scope="module")
def image(stores):
    return stores.image((4, 100, 140))


@pytest.fixture(scope="module")
def pyramid(tmp_path_factory, stores):
    """Write an image at three resolutions; return its path."""
    image = stores.image((2, 128, 128))
    levels = {f"s{n}": (np.ascontiguousarray(image[:, :: 2**n, :: 2**n]), SIZES_NM[n]) for n in SIZES_NM}
    return stores.pyramid(tmp_path_factory.mktemp("pyramid") / "em.zarr", levels)


# resolution


@pytest.mark.parametrize(
    ("training_size", "mip"),
    [((30, 3, 3), 0), ((30, 3.5, 3.5), 0), ((30, 5, 5), 1), ((30, 6, 6), 1), ((30, 12.5, 12.5), 2)],
)
def test_the_resolution_is_the_one_nearest_to_the_training(write_run, pyramid, prepare, tmp_path, training_size, mip):
    run = write_run(tmp_path / "run", extra={"voxel_size_nm": list(training_size)})
    assert prepare(run, image=pyramid).image.voxel_size_nm == SIZES_NM[mip]


@pytest.mark.parametrize(
    ("training_size", "fits"), [(2.51, True), (2.49, False), (15.0, True), (15.1, False), (8.5, False)]
)
def test_a_voxel_size_more_than_a_fifth_off_is_refused_unless_a_mip_is_requested(
    write_run, pyramid, prepare, tmp_path, training_size, fits
):
    run = write_run(tmp_path / "run", extra={"voxel_size_nm": [30, training_size, training_size]})
    if fits:
        prepare(run, image=pyramid)
        return
    with pytest.raises(ValueError, match=r"a difference above 20%.*--mip N"):
        prepare(run, image=pyramid)
    assert prepare(run, image=pyramid, mip=2).image.voxel_size_nm == SIZES_NM[2]


def test_a_resolution_that_the_uri_or_the_flag_names_is_used(write_run, pyramid, prepare, tmp_path):
    run = write_run(tmp_path / "run", extra={"voxel_size_nm": [30, 3, 3]})
    assert prepare(run, image=pyramid, mip=1).image.voxel_size_nm == SIZES_NM[1]
    with pytest.raises(ValueError, match=r"12 x 12 nm.* 30 x 3 x 3 nm"):
        prepare(run, image=f"{pyramid}#mip=2")
    with pytest.raises(ValueError, match="3 resolutions, mip 0 to 2; mip 7"):
        prepare(run, image=pyramid, mip=7)


def test_no_more_resolutions_are_opened_than_needed(array_volume):
    sizes = [3.0, 6.0, 12.0, 24.0]
    volumes = [array_volume(np.zeros((1, 8, 8), np.uint8), voxel_size_nm=(30.0, s, s)) for s in sizes]
    opened = []

    def open_mip(mip):
        opened.append(mip)
        return volumes[mip]

    assert nearest_mip(volumes[0], (30.0, 3.0, 3.0), open_mip) is volumes[0]
    assert opened == []
    assert nearest_mip(volumes[0], (30.0, 6.0, 6.0), open_mip) is volumes[1]
    assert opened == [1]


def test_an_image_without_voxel_size_is_reported_unless_a_flag_gives_it(run, stores, prepare, tmp_path):
    bare = stores.zarr(tmp_path / "bare.zarr", stores.image((2, 64, 64)), voxel_size_nm=None)
    lines = []
    inputs = prepare(run, lines, image=bare)
    assert lines == [f"{bare} has no voxel size (--voxel-size z,y,x): lengths in the output are in voxels"]
    assert inputs.levels[0].scale == (1, 1, 1)
    assert prepare(run, image=bare, voxel_size=[30.0, 6.0, 6.0]).levels[0].scale == (30, 6, 6)
    with pytest.raises(ValueError, match="a difference above 20%"):
        prepare(run, image=bare, voxel_size=[30.0, 9.0, 9.0])


def test_if_the_task_names_several_images_one_must_be_chosen(write_run, em, prepare, tmp_path):
    regions = {
        split: [{"image": f"{split}.zarr", "annotation": "a.zarr", "box": "0:4,:,:"}] for split in ("train", "val")
    }
    run = write_run(tmp_path / "run", task={"boxes": regions, **dict.fromkeys(RANGES)})
    with pytest.raises(ValueError, match="names 2 images; choose one with --image"):
        prepare(run)
    prepare(run, image=em)


# grey levels


def test_grey_levels_are_those_of_the_run_or_percentiles_of_the_whole_image(
    run, write_run, stores, prepare, tiny_network, tmp_path
):
    wide = 1000 + 200 * stores.image((4, 100, 140)).astype(np.uint16)
    em = stores.zarr(tmp_path / "em.zarr", wide)
    trained = write_run(tmp_path / "run", extra={"image_intensity": [900.0, 40000.0]})
    assert prepare(trained, image=em).intensity == (900, 40000)
    assert prepare(trained, image=em, assignments=["task.image_intensity=[5,6000]"]).intensity == (5, 6000)
    with pytest.raises(ValueError, match=r"holds uint16, and the network was trained on uint8"):
        prepare(run, image=em)
    torch.save(tiny_network().state_dict(), tmp_path / "bare.pt")
    (tmp_path / "net.json").write_text(json.dumps({"n_blocks": 2, "start_filters": 4}))
    bare = {"task": "membrane", "network": str(tmp_path / "net.json"), "image": em}
    low, high = prepare(tmp_path / "bare.pt", **bare).intensity
    assert np.allclose([low, high], np.percentile(wide, [0.5, 99.5]), rtol=0.1)
    assert prepare(tmp_path / "bare.pt", box="0:1,0:20,0:20", **bare).intensity == (low, high)


@pytest.mark.parametrize(
    ("dtype", "intensity", "message"),
    [
        (np.float32, [0.0, 255.0], "holds float32, and the network was trained on uint8"),
        (np.uint8, [1000.0, 40000.0], "holds uint8, and the network was trained on grey levels 1000 to 40000"),
        (bool, [0.0, 255.0], "holds bool"),
    ],
)
def test_an_image_whose_type_cannot_hold_the_grey_levels_is_refused(
    write_run, stores, prepare, tmp_path, dtype, intensity, message
):
    em = stores.zarr(tmp_path / "em.zarr", np.ones((2, 64, 64), dtype))
    run = write_run(tmp_path / "run", extra={"image_intensity": intensity})
    with pytest.raises(ValueError, match=message):
        prepare(run, image=em)


# mask


def test_a_block_is_outside_if_the_mask_is_0_in_it_or_does_not_cover_it(array_volume):
    image = array_volume(np.zeros((4, 64, 64), np.uint8), voxel_size_nm=(30.0, 4.0, 4.0), offset=(2, 8, 8))
    mask = array_volume(np.zeros((3, 20, 20), bool), voxel_size_nm=(60.0, 16.0, 16.0))
    assert is_outside_mask(Box((2, 80, 8), (3, 90, 9)), mask, image)
    mask.array[2, 3, 5] = True
    assert not is_outside_mask(Box((3, 11, 8), (5, 13, 24)), mask, image)
    assert is_outside_mask(Box((3, 11, 8), (4, 13, 24)), mask, image)


def test_masks_that_cannot_be_aligned_with_the_image_are_refused(run, em, stores, prepare, tmp_path):
    floats = stores.zarr(tmp_path / "floats.zarr", np.ones((4, 100, 140), np.float32))
    with pytest.raises(ValueError, match=r"holds float32; a mask holds integers"):
        prepare(run, image=em, mask=floats)
    other = stores.zarr(tmp_path / "other.zarr", np.ones((4, 50, 70), np.uint8), voxel_size_nm=None)
    with pytest.raises(ValueError, match="both must have a voxel size"):
        prepare(run, image=em, mask=other)
    elsewhere = stores.precomputed(tmp_path / "elsewhere", np.ones((4, 50, 70), np.uint8), offset=(0, 0, 500))
    with pytest.raises(ValueError, match=r"covers nothing of what is to be segmented, 0:4,0:100,0:140 of .*voxel size"):
        prepare(run, image=em, mask=elsewhere)
    corner = stores.zarr(tmp_path / "corner.zarr", np.ones((4, 50, 70), np.uint8))
    prepare(run, image=em, mask=corner)
    with pytest.raises(ValueError, match="covers nothing"):
        prepare(run, image=em, mask=corner, box=":,50:100,:")

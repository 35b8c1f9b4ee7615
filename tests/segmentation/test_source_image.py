"""The image of a segmentation: its resolution, its grey levels, and its mask."""

import json

import numpy as np
import pytest
import torch

from kasthuri_ray.errors import InputError
from kasthuri_ray.geometry import Box
from kasthuri_ray.inference.inference_settings import InferenceSettings
from kasthuri_ray.output.ledger import Ledger
from kasthuri_ray.segmentation.source_image import is_outside_mask, nearest_mip
from kasthuri_ray.volumes.place import Place

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
    advice = "--voxel-size 30,6,6, that of the training"
    assert lines == [f"{bare} has no voxel size ({advice}): lengths in the output are in voxels"]
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
    write_run, stores, prepare, tiny_network, tmp_path
):
    wide = 1000 + 200 * stores.image((4, 100, 140)).astype(np.uint16)
    em = stores.zarr(tmp_path / "em.zarr", wide)
    trained = write_run(tmp_path / "run", extra={"image_intensity": [900.0, 40000.0]})
    assert prepare(trained, image=em).intensity == (900, 40000)
    assert prepare(trained, image=em, assignments=["task.image_intensity=[5,6000]"]).intensity == (5, 6000)
    torch.save(tiny_network().state_dict(), tmp_path / "bare.pt")
    (tmp_path / "net.json").write_text(json.dumps({"n_blocks": 2, "start_filters": 4}))
    bare = {"task": "membrane", "network": str(tmp_path / "net.json"), "image": em}
    low, high = prepare(tmp_path / "bare.pt", **bare).intensity
    assert np.allclose([low, high], np.percentile(wide, [0.5, 99.5]), rtol=0.1)
    assert prepare(tmp_path / "bare.pt", box="0:1,0:20,0:20", **bare).intensity == (low, high)


def write_levels(stores, folder, dtype, factor=1.0) -> str:
    return stores.zarr(folder / "em.zarr", (stores.image((4, 100, 140)) * np.float64(factor)).astype(dtype))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32])
def test_the_values_decide_and_not_the_type_whether_an_image_fits_its_network(run, stores, prepare, tmp_path, dtype):
    """The run was trained on uint8."""
    lines = []
    em = write_levels(stores, tmp_path, dtype)
    assert prepare(run, lines, image=em).intensity == (0, 255)
    assert lines == []


@pytest.mark.parametrize(
    ("dtype", "factor", "trained_on", "message"),
    [
        (np.float32, 1 / 255, [0, 255], "span 0.[0-9]% of the grey levels 0 to 255 that the network was trained on: t"),
        (np.uint16, 200, [0, 255], "100% of its voxels lie outside the grey levels 0 to 255 that the network was"),
        (np.float32, 1, [0, 1], "100% of its voxels lie outside the grey levels 0 to 1 that the network was trained"),
        (
            np.uint8,
            1,
            [0, 1],
            r"they hold [0-9]+ to 2[0-9]{2} \(percentiles 1 and 99 .*--set task.image_intensity=LOW,H",
        ),
        (np.uint8, 1, [1000, 40000], "outside the grey levels 1000 to 40000 that the network was trained on"),
        (np.uint8, 1, [0, 65535], "of the grey levels 0 to 65535 that the network was trained on"),
    ],
)
def test_an_image_that_would_be_black_or_white_is_refused_unless_the_command_line_gives_a_range(
    write_run, stores, prepare, tmp_path, dtype, factor, trained_on, message
):
    em = write_levels(stores, tmp_path, dtype, factor)
    run = write_run(tmp_path / "run", extra={"image_intensity": trained_on})
    with pytest.raises(InputError, match=message):
        prepare(run, image=em)
    fits, lines = [0, 255 * factor], []
    assert prepare(run, lines, image=em, assignments=[f"task.image_intensity={fits}"]).intensity == tuple(fits)
    assert lines == []
    prepare(run, lines, image=em, assignments=[f"task.image_intensity={trained_on}"])
    assert "grey levels" in lines[0]


def test_a_range_in_the_run_s_own_task_can_be_given_again(write_run, stores, prepare, tmp_path):
    em = write_levels(stores, tmp_path, np.uint8)
    run = write_run(tmp_path / "run", task={"image_intensity": [0, 1]}, extra={"image_intensity": [0, 1]})
    with pytest.raises(InputError, match="lie outside the grey levels 0 to 1"):
        prepare(run, image=em)
    assert prepare(run, image=em, assignments=["task.image_intensity=0,1"]).intensity == (0, 1)


def test_bare_weights_are_compared_with_the_range_of_their_task(stores, prepare, tiny_network, tmp_path):
    torch.save(tiny_network().state_dict(), tmp_path / "bare.pt")
    ranges = {name: [0, 4] for name in RANGES[:3]} | {"z_val": [4, 5], "z_test": None}
    task = {"image_chan": "a", "annotation_chan": "b", "image_intensity": [0, 1], **ranges}
    bare = {"network": {"n_blocks": 2, "start_filters": 4}, "image": write_levels(stores, tmp_path, np.uint8)}
    with pytest.raises(InputError, match=r"outside the grey levels 0 to 1 that task\.image_intensity states"):
        prepare(tmp_path / "bare.pt", task=task, **bare)
    prepare(tmp_path / "bare.pt", task={**task, "image_intensity": None}, **bare)


def test_only_the_box_counts_and_a_blank_one_is_a_line(run, stores, prepare, tmp_path):
    voxels = stores.image((4, 100, 140)).astype(np.float32)
    voxels[2], voxels[3] = np.nan, voxels[3] / 255
    lines, em = [], stores.zarr(tmp_path / "em.zarr", voxels)
    prepare(run, lines, image=em, box="0:2,:,:")
    prepare(run, lines, image=em)  # a quarter of the voxels is nearly black
    assert lines == []
    with pytest.raises(InputError, match=r"em.zarr 3:4,0:100,0:140: its voxels span 0\.[0-9]%"):
        prepare(run, image=em, box="3:4,:,:")
    prepare(run, lines, image=em, box="2:3,:,:")
    assert lines == [f"{em} 2:3,0:100,0:140 is blank, or nearly so, in a sample: its grey levels are not checked"]


def test_a_segmentation_that_was_begun_is_not_refused(write_run, stores, prepare, tmp_path):
    em = write_levels(stores, tmp_path, np.uint8)
    run, output = write_run(tmp_path / "run", extra={"image_intensity": [0, 1]}), str(tmp_path / "out.zarr")
    with pytest.raises(InputError, match="lie outside"):
        prepare(run, image=em, output=output)
    Ledger.beside(output).start({})
    assert prepare(run, image=em, output=output).intensity == (0, 1)
    with pytest.raises(InputError, match="lie outside"):
        prepare(run, image=em, output=output, overwrite=True)


def test_an_image_of_bools_is_refused(run, stores, prepare, tmp_path):
    em = stores.zarr(tmp_path / "em.zarr", np.ones((2, 64, 64), bool))
    with pytest.raises(InputError, match=r"em\.zarr holds bool, and the network was trained on grey levels"):
        prepare(run, image=em)


# mask


def test_a_block_is_outside_if_the_mask_is_0_in_it_or_does_not_cover_it(array_volume):
    place = Place((0.0, 0.0, 0.0), "corner", "offset")
    zeros = np.zeros((4, 64, 64), np.uint8)
    image = array_volume(zeros, voxel_size_nm=(30.0, 4.0, 4.0), offset=(2, 8, 8), place=place)
    mask = array_volume(np.zeros((3, 20, 20), bool), voxel_size_nm=(60.0, 16.0, 16.0), place=place)
    assert is_outside_mask(Box((2, 80, 8), (3, 90, 9)), mask, image)
    mask.array[2, 3, 5] = True
    assert not is_outside_mask(Box((3, 11, 8), (5, 13, 24)), mask, image)
    assert is_outside_mask(Box((3, 11, 8), (4, 13, 24)), mask, image)


def test_masks_that_cannot_be_aligned_with_the_image_are_refused(run, em, stores, prepare, tmp_path):
    floats = stores.zarr(tmp_path / "floats.zarr", np.ones((4, 100, 140), np.float32))
    with pytest.raises(ValueError, match=r"holds float32; a mask holds integers"):
        prepare(run, image=em, mask=floats)
    other = stores.zarr(tmp_path / "other.zarr", np.ones((4, 50, 70), np.uint8), voxel_size_nm=None)
    with pytest.raises(ValueError, match=r"--mask: different shapes: .*states a place in nm.*\?offset_nm=0,0,0"):
        prepare(run, image=em, mask=other)
    em = f"{em}?offset_nm=0,0,0"
    elsewhere = stores.precomputed(tmp_path / "elsewhere", np.ones((4, 50, 70), np.uint8), offset=(0, 0, 500))
    with pytest.raises(ValueError, match=r"--mask: .* do not overlap. The first covers 0:120,0:600,0:840 nm in voxels"):
        prepare(run, image=em, mask=elsewhere)
    corner = f"{stores.zarr(tmp_path / 'corner.zarr', np.ones((4, 50, 70), np.uint8))}?offset_nm=0,0,0"
    prepare(run, image=em, mask=corner)
    with pytest.raises(ValueError, match="covers nothing"):
        prepare(run, image=em, mask=corner, box=":,50:100,:")


def test_a_mask_that_lies_elsewhere_is_read_at_its_place(run, em, stores, prepare, tmp_path):
    voxels = np.zeros((4, 40, 40), np.uint8)
    voxels[1, 5, 6] = 1
    mask = stores.precomputed(tmp_path / "mask", voxels, offset=(1, 20, 30))
    inputs = prepare(run, image=f"{em}?offset_nm=0,60,120", mask=mask)  # the image starts at voxel 0,10,20 of its frame
    assert inputs.mask.read(Box((2, 15, 16), (3, 16, 17))).all()
    inside = Box((2, 8, 8), (3, 16, 24))
    assert not is_outside_mask(inside, inputs.mask, inputs.image)
    assert is_outside_mask(inside.shifted((1, 0, 0)), inputs.mask, inputs.image)
    assert is_outside_mask(Box((0, 60, 60), (1, 70, 70)), inputs.mask, inputs.image)


def make_record(inputs):
    return inputs.make_record(InferenceSettings("cpu", "float32", False, 1, (1, 64, 64), 1))


def test_an_image_of_another_voxel_size_is_resampled_if_that_is_wanted(run, stores, prepare, tmp_path):
    voxels = stores.image((2, 80, 120))
    fine = stores.precomputed(tmp_path / "fine", voxels, offset=(1, 20, 40), voxel_size_nm=(30, 3, 3))
    with pytest.raises(ValueError, match="read it at that size with --resample"):
        prepare(run, image=fine)
    lines = []
    inputs = prepare(run, lines, image=fine, resample=True, box=":,20:50,20:80")
    assert "is resampled from 30 x 3 x 3 nm to 30 x 6 x 6 nm (z,y,x)" in lines[0]
    assert inputs.image.bounds == Box((1, 10, 20), (3, 50, 80))
    expected = np.rint(voxels.reshape(2, 40, 2, 60, 2).mean((2, 4)))
    np.testing.assert_array_equal(inputs.image.read(inputs.image.bounds), expected)
    assert (inputs.levels[0].scale, inputs.levels[0].translation) == ((30, 6, 6), (30, 120, 120))
    assert make_record(inputs)["resample"] is True
    same = stores.zarr(tmp_path / "same.zarr", voxels)
    assert "resample" not in make_record(prepare(run, image=same, resample=True))
    bare = stores.zarr(tmp_path / "bare.zarr", voxels, voxel_size_nm=None)
    with pytest.raises(ValueError, match=r"--resample needs the voxel size of .*bare.zarr"):
        prepare(run, image=bare, resample=True)


def test_an_output_inherits_the_place_of_its_image_as_it_is_stated(run, stores, prepare, tmp_path):
    em = stores.zarr(tmp_path / "em.zarr", stores.image((2, 64, 64)))
    inputs = prepare(run, image=f"{em}?offset_nm=-30,60,120", box="1:2,:,10:64")
    assert inputs.levels[0].translation == (0, 60, 180)

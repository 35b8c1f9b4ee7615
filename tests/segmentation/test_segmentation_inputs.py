"""From settings to a segmentation that can begin: which image, which grey levels, which blocks; what does not fit."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from kasthuri_ray.geometry import Box
from kasthuri_ray.segmentation.source_image import is_outside_mask, nearest_mip
from kasthuri_ray.volumes.alignment import mask_box


@pytest.fixture(scope="module")
def run(tmp_path_factory, write_run):
    return write_run(tmp_path_factory.mktemp("run") / "run")


@pytest.fixture(scope="module")
def em(tmp_path_factory, stores):
    return stores.zarr(tmp_path_factory.mktemp("em") / "em.zarr", stores.image((4, 100, 140)))


def record_of(prepared, **more):
    from kasthuri_ray.inference.memory import InferenceSettings

    return prepared.record(InferenceSettings("cpu", "float32", False, 1, (1, 64, 64), 1))


def test_a_run_says_network_task_threshold_and_image(write_run, em, prepared_for, tmp_path):
    run = write_run(tmp_path / "run", task={"image_chan": em})
    said = []
    prepared = prepared_for(run, said)
    assert prepared.image.uri == em
    assert prepared.box == Box((0, 0, 0), (4, 100, 140))
    assert prepared.threshold == 0.4
    assert prepared.settings.task.task_type == "synapse"
    assert said == []
    assert prepared_for(run, threshold=0.0).threshold == 0.0


def test_a_relative_image_is_recorded_by_its_whole_path(run, em, prepared_for, monkeypatch):
    folder, _, name = em.rpartition("/")
    monkeypatch.chdir(folder)
    prepared = prepared_for(run, image=name, mask=name)
    assert (prepared.image.uri, prepared.mask.uri) == (em, em)
    assert record_of(prepared) == record_of(prepared_for(run, image=em, mask=em))


def test_bare_weights_take_network_and_task_from_flags_and_half_as_threshold(em, prepared_for, tiny_network, tmp_path):
    torch.save(tiny_network().state_dict(), tmp_path / "bare.pt")
    (tmp_path / "net.json").write_text(json.dumps({"n_blocks": 2, "start_filters": 4}))
    said = []
    prepared = prepared_for(tmp_path / "bare.pt", said, task="membrane", network=str(tmp_path / "net.json"), image=em)
    assert prepared.threshold == 0.5
    assert said == [
        "the weights do not say on what voxel size they were trained, so it is not compared with the image's"
    ]


def test_weights_of_another_network_or_task_are_refused(run, em, prepared_for):
    with pytest.raises(ValueError, match=r"best\.pt"):
        prepared_for(run, image=em, network="UNet_2D_depth")
    with pytest.raises(ValueError, match=r"for membrane, but .* was trained for synapse \(tiny_task\)"):
        prepared_for(run, image=em, task="membrane")


SIZES = {0: (30.0, 3.0, 3.0), 1: (30.0, 6.0, 6.0), 2: (30.0, 12.0, 12.0)}


@pytest.fixture(scope="module")
def pyramid(tmp_path_factory, stores):
    image = stores.image((2, 128, 128))
    levels = {f"s{n}": (np.ascontiguousarray(image[:, :: 2**n, :: 2**n]), SIZES[n]) for n in SIZES}
    return stores.pyramid(tmp_path_factory.mktemp("pyramid") / "em.zarr", levels)


@pytest.mark.parametrize(
    ("learnt", "level"), [((30, 3, 3), 0), ((30, 3.5, 3.5), 0), ((30, 5, 5), 1), ((30, 6, 6), 1), ((30, 12.5, 12.5), 2)]
)
def test_the_resolution_is_the_one_nearest_to_the_trainings(write_run, pyramid, prepared_for, tmp_path, learnt, level):
    run = write_run(tmp_path / "run", about={"voxel_size_nm": list(learnt)})
    assert prepared_for(run, image=pyramid).image.voxel_size_nm == SIZES[level]


@pytest.mark.parametrize(("learnt", "fits"), [(2.51, True), (2.49, False), (15.0, True), (15.1, False), (8.5, False)])
def test_more_than_a_fifth_away_is_refused_unless_the_resolution_is_named(
    write_run, pyramid, prepared_for, tmp_path, learnt, fits
):
    run = write_run(tmp_path / "run", about={"voxel_size_nm": [30, learnt, learnt]})
    if fits:
        prepared_for(run, image=pyramid)
        return
    with pytest.raises(ValueError, match=r"more than 20% off.*--mip N"):
        prepared_for(run, image=pyramid)
    assert prepared_for(run, image=pyramid, mip=2).image.voxel_size_nm == SIZES[2]


def test_a_resolution_that_the_image_or_the_flag_names_is_kept(write_run, pyramid, prepared_for, tmp_path):
    run = write_run(tmp_path / "run", about={"voxel_size_nm": [30, 3, 3]})
    assert prepared_for(run, image=pyramid, mip=1).image.voxel_size_nm == SIZES[1]
    with pytest.raises(ValueError, match=r"12 x 12 nm.* 30 x 3 x 3 nm"):
        prepared_for(run, image=f"{pyramid}#mip=2")
    with pytest.raises(ValueError, match="3 resolutions, mip 0 to 2; mip 7"):
        prepared_for(run, image=pyramid, mip=7)


def test_no_more_resolutions_are_opened_than_needed(array_volume):
    sizes = [3.0, 6.0, 12.0, 24.0]
    volumes = [array_volume(np.zeros((1, 8, 8), np.uint8), voxel_size_nm=(30.0, s, s)) for s in sizes]
    opened = []

    def at_mip(mip):
        opened.append(mip)
        return volumes[mip]

    assert nearest_mip(volumes[0], (30.0, 3.0, 3.0), at_mip) is volumes[0]
    assert opened == []
    assert nearest_mip(volumes[0], (30.0, 6.0, 6.0), at_mip) is volumes[1]
    assert opened == [1]


def test_a_voxel_size_is_given_or_missed_in_a_line(run, stores, prepared_for, tmp_path):
    bare = stores.zarr(tmp_path / "bare.zarr", stores.image((2, 64, 64)), voxel_size=None)
    said = []
    prepared = prepared_for(run, said, image=bare)
    assert said == [f"{bare} does not say how large its voxels are (--voxel-size z,y,x): the output counts in voxels"]
    assert prepared.levels[0].scale == (1, 1, 1)
    assert prepared_for(run, image=bare, voxel_size=[30.0, 6.0, 6.0]).levels[0].scale == (30, 6, 6)
    with pytest.raises(ValueError, match="more than 20% off"):
        prepared_for(run, image=bare, voxel_size=[30.0, 9.0, 9.0])


def test_levels_lie_where_the_image_says(run, stores, prepared_for, tmp_path):
    em = stores.precomputed(tmp_path / "em", stores.image((2, 600, 80)), offset=(3, 10, 20))
    prepared = prepared_for(run, image=em, box="4:5,:,30:100")
    first, second = prepared.levels
    assert first.translation == (4 * 30, 10 * 6, 30 * 6)
    assert second.scale == (30, 12, 12)
    assert second.translation == (4 * 30, 10 * 6 + 3, 30 * 6 + 3)


def test_grey_levels_are_the_runs_or_of_the_whole_image(run, write_run, stores, prepared_for, tiny_network, tmp_path):
    wide = 1000 + 200 * stores.image((4, 100, 140)).astype(np.uint16)
    em = stores.zarr(tmp_path / "em.zarr", wide)
    trained = write_run(tmp_path / "run", about={"image_intensity": [900.0, 40000.0]})
    assert prepared_for(trained, image=em).intensity == (900, 40000)
    told = prepared_for(trained, image=em, assignments=["task.image_intensity=[5,6000]"])
    assert told.intensity == (5, 6000)
    with pytest.raises(ValueError, match=r"holds uint16, and the network was trained on uint8"):
        prepared_for(run, image=em)
    torch.save(tiny_network().state_dict(), tmp_path / "bare.pt")
    (tmp_path / "net.json").write_text(json.dumps({"n_blocks": 2, "start_filters": 4}))
    bare = {"task": "membrane", "network": str(tmp_path / "net.json"), "image": em}
    low, high = prepared_for(tmp_path / "bare.pt", **bare).intensity
    assert np.allclose([low, high], np.percentile(wide, [0.5, 99.5]), rtol=0.1)
    assert prepared_for(tmp_path / "bare.pt", box="0:1,0:20,0:20", **bare).intensity == (low, high)


@pytest.mark.parametrize(
    ("dtype", "intensity", "words"),
    [
        (np.float32, [0.0, 255.0], "holds float32, and the network was trained on uint8"),
        (np.uint8, [1000.0, 40000.0], "holds uint8, and the network was trained on grey levels 1000 to 40000"),
        (bool, [0.0, 255.0], "holds bool"),
    ],
)
def test_an_image_of_other_numbers_is_refused(write_run, stores, prepared_for, tmp_path, dtype, intensity, words):
    em = stores.zarr(tmp_path / "em.zarr", np.ones((2, 64, 64), dtype))
    run = write_run(tmp_path / "run", about={"image_intensity": intensity})
    with pytest.raises(ValueError, match=words):
        prepared_for(run, image=em)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"box": "0:5,:,:"}, r"box '0:5,:,:' is outside the volume: .* is not within 0:4,0:100,0:140"),
        ({"box": "-1:2,:,:"}, "negative indices are refused"),
        ({"box": "2:2,:,:"}, "holds no voxels"),
        ({"shard": [2, 32, 32], "block": [2, 32, 40]}, r"block \(2, 32, 40\) is not a multiple .* use 32 or 64"),
        ({"shard": [2, 40, 40], "chunk": [2, 16, 16]}, r"not a multiple of the chunk .* use 32 or 48"),
        ({"halo": [0, 7, 8]}, r"--halo 0,7,8 is not a multiple of the network's pooling, 2, along y; use 6 or 8"),
        ({"halo": "20"}, 'segment.halo is "20": expected three numbers z,y,x, none below 0, such as 64,512,512'),
        ({"tile": "1,64,-64"}, 'segment.tile is "1,64,-64": expected three numbers z,y,x'),
        ({"block": "1,064,64"}, 'segment.block is "1,064,64": expected three numbers z,y,x'),
        ({"voxel_size": "30,6.,6"}, 'segment.voxel_size is "30,6.,6": expected three numbers z,y,x'),
        ({"image": "nowhere.zarr"}, "nowhere.zarr"),
        ({"mask": "nowhere.zarr"}, "nowhere.zarr"),
        ({"boss": "none.json"}, "--boss none.json"),
    ],
    ids=lambda value: "" if isinstance(value, str) else ",".join(value),
)
def test_what_does_not_fit_is_said(run, em, prepared_for, flags, words):
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        prepared_for(run, **{"image": em} | flags)


def test_several_images_of_a_task_need_one_named(write_run, em, prepared_for, tmp_path):
    regions = {
        split: [{"image": f"{split}.zarr", "annotation": "a.zarr", "box": "0:4,:,:"}] for split in ("train", "val")
    }
    run = write_run(tmp_path / "run", task={"boxes": regions, **dict.fromkeys(RANGES)})
    with pytest.raises(ValueError, match="names 2 images; say which with --image"):
        prepared_for(run)
    prepared_for(run, image=em)


RANGES = ("xrange_vol", "yrange_vol", "z_train", "z_val", "z_test")


def test_a_smaller_halo_is_taken_and_said_and_a_larger_one_is_the_networks(run, em, prepared_for):
    said = []
    whole = prepared_for(run, image=em).halo
    less = prepared_for(run, said, image=em, halo=[0, 2, whole[2]])
    assert less.halo == (0, 2, whole[2])
    assert f"smaller than the network sees, {whole}" in said[0]
    more = prepared_for(run, said, image=em, halo=[0, 64, 64])
    assert more.halo == whole
    assert "no farther" in said[1]


def test_the_record_tells_what_changes_a_byte_and_nothing_else(run, em, prepared_for):
    record = record_of(prepared_for(run, image=em))
    assert record == json.loads(json.dumps(record))
    same = ({"actors": 3}, {"cache_size": "1GB"}, {"verbose": True}, {"device": "cpu"}, {"objects": True})
    for flags in (*same, {"precomputed": "/x"}, {"price_per_hour": 3.0}, {"wait_for_resources": 5.0}):
        assert record_of(prepared_for(run, image=em, **flags)) == record
    other = ({"box": "0:2,:,:"}, {"shard": [2, 32, 32]}, {"chunk": [4, 50, 70]}, {"halo": [0, 2, 2]})
    for flags in (*other, {"threshold": 0.9}, {"save_mask": True}, {"skip_blank": False}, {"mask": em}):
        assert record_of(prepared_for(run, image=em, **flags)) != record


def test_a_mask_is_laid_over_the_image_by_nanometers(array_volume):
    image = array_volume(np.zeros((4, 64, 64), np.uint8), voxel_size_nm=(30.0, 4.0, 4.0), offset=(2, 8, 8))
    mask = array_volume(np.zeros((3, 20, 20), bool), voxel_size_nm=(60.0, 16.0, 16.0))
    assert mask_box(Box((2, 8, 8), (3, 9, 9)), mask, image) == Box((1, 2, 2), (2, 3, 3))
    assert mask_box(Box((3, 11, 8), (5, 13, 24)), mask, image) == Box((1, 2, 2), (3, 4, 6))
    assert mask_box(Box((2, 80, 8), (3, 90, 9)), mask, image).num_voxels == 0
    assert is_outside_mask(Box((2, 80, 8), (3, 90, 9)), mask, image)
    mask.array[2, 3, 5] = True
    assert not is_outside_mask(Box((3, 11, 8), (5, 13, 24)), mask, image)
    assert is_outside_mask(Box((3, 11, 8), (4, 13, 24)), mask, image)


def test_a_mask_of_the_same_shape_elsewhere_is_not_taken_for_the_same_place(array_volume):
    @dataclasses.dataclass(kw_only=True)
    class Placed(type(array_volume(np.zeros((1, 1, 1), np.uint8)))):
        translation_nm: tuple = (0.0, 0.0, 0.0)

    def placed(y):
        box = Box.at((0, 0, 0), (1, 8, 8))
        zeros = np.zeros((1, 8, 8), np.uint8)
        more = {"chunk": (1, 8, 8), "chunk_origin": (0, 0, 0), "translation_nm": (0.0, y, 0.0)}
        return Placed(uri="x", bounds=box, dtype=zeros.dtype, voxel_size_nm=(30.0, 4.0, 4.0), array=zeros, **more)

    assert mask_box(Box((0, 0, 0), (1, 2, 2)), placed(16.0), placed(32.0)) == Box((0, 4, 0), (1, 6, 2))


def test_masks_that_cannot_be_laid_over_it_are_refused(run, em, stores, prepared_for, tmp_path):
    floats = stores.zarr(tmp_path / "floats.zarr", np.ones((4, 100, 140), np.float32))
    with pytest.raises(ValueError, match=r"holds float32; a mask holds whole numbers"):
        prepared_for(run, image=em, mask=floats)
    other = stores.zarr(tmp_path / "other.zarr", np.ones((4, 50, 70), np.uint8), voxel_size=None)
    with pytest.raises(ValueError, match="both must say how large their voxels are"):
        prepared_for(run, image=em, mask=other)
    elsewhere = stores.precomputed(tmp_path / "elsewhere", np.ones((4, 50, 70), np.uint8), offset=(0, 0, 500))
    with pytest.raises(ValueError, match=r"covers nothing of what is to be segmented, 0:4,0:100,0:140 of .*voxel size"):
        prepared_for(run, image=em, mask=elsewhere)
    corner = stores.zarr(tmp_path / "corner.zarr", np.ones((4, 50, 70), np.uint8))
    prepared_for(run, image=em, mask=corner)
    with pytest.raises(ValueError, match="covers nothing"):
        prepared_for(run, image=em, mask=corner, box=":,50:100,:")

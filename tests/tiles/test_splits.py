"""The volumes of a task become tiles: what is checked before any work, and the messages about what does not fit."""

import json
from pathlib import Path

import numpy as np
import pytest
import zarr

from kasthuri_ray.config.loading import GivenSettings, resolve_settings
from kasthuri_ray.config.task import RANGES
from kasthuri_ray.tiles import splits
from kasthuri_ray.tiles.sampling import read_tile
from kasthuri_ray.tiles.splits import open_task_tiles
from kasthuri_ray.volumes import opening

SHAPE = (12, 40, 64)
TASK = {
    "image_chan": "v.zarr/em",
    "annotation_chan": "v.zarr/labels",
    **{"xrange_vol": [0, 64], "yrange_vol": [8, 40], "z_train": [0, 6], "z_val": [6, 9], "z_test": [9, 12]},
    "tile_size": [32, 16],
    "task_type": "membrane",
    "threshold": True,
}


def write(name: str, voxels: np.ndarray, voxel_size_nm=(30, 6, 6)) -> str:
    array = zarr.create_array(name, data=voxels, chunks=(2, 16, 32), overwrite=True)
    if voxel_size_nm:
        array.attrs["voxel_size_nm_zyx"] = list(voxel_size_nm)
    return name


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The current folder, with a uint8 image and an annotation of 64-bit ids."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    write("v.zarr/em", rng.integers(1, 256, SHAPE, dtype=np.uint8))
    write("v.zarr/labels", (rng.random(SHAPE) < 0.2).astype(np.uint64) * np.uint64(2**40))
    return tmp_path


def settings(*assignments: str, **task):
    base = {key: value for key, value in TASK.items() if "boxes" not in task or key not in RANGES}
    Path("task.json").write_text(json.dumps({**base, **task}))
    return resolve_settings(
        GivenSettings("task.json", assignments=["train.cache=none", "network.batch_size=8", *assignments])
    )


def open_tiles(*assignments: str, **task):
    """Return the tiles and the notes."""
    notes: list[str] = []
    return open_task_tiles(settings(*assignments, **task), notes.append), notes


def error_of(*assignments: str, **task) -> str:
    """Return the message of the error that opening the task raises."""
    with pytest.raises(ValueError, match=r".") as caught:
        open_tiles(*assignments, **task)
    return str(caught.value)


def test_a_task_becomes_tiles_of_its_three_splits(folder):
    tiles, notes = open_tiles()
    assert notes == []
    assert tiles.train.tile == (1, 16, 32)
    assert (len(tiles.val), len(tiles.test)) == (3 * 2 * 2, 3 * 2 * 2)
    assert [str(t.sources[0].box) for t in (tiles.train, tiles.val, tiles.test)] == [
        "0:6,8:40,0:64",
        "6:9,8:40,0:64",
        "9:12,8:40,0:64",
    ]
    image, labels, blank_chunks = read_tile(tiles.val.sources, tiles.val.address(0))
    assert (image == zarr.open_array("v.zarr/em")[6:7, 8:24, :32]).all()
    assert (labels == (zarr.open_array("v.zarr/labels")[6:7, 8:24, :32] > 0)).all()
    assert blank_chunks == []


def test_an_epoch_has_as_many_tiles_as_the_grid_unless_the_number_is_set(folder, monkeypatch):
    def num_tiles(*assignments: str, batch_size: int = 8) -> int:
        return open_tiles(*assignments)[0].train.in_whole_batches(batch_size).tiles_per_epoch

    assert num_tiles() == 6 * 2 * 2
    assert num_tiles(batch_size=5) == 25
    assert num_tiles("network.tiles_per_epoch=8", batch_size=5) == 10
    monkeypatch.setattr(splits, "MAX_TILES_PER_EPOCH", 16)
    assert num_tiles() == 16
    assert num_tiles("network.tiles_per_epoch=32") == 32


def test_each_volume_is_opened_once(folder, monkeypatch):
    uris, real = [], opening.open_volume
    monkeypatch.setattr(opening, "open_volume", lambda uri, **more: uris.append(uri) or real(uri, **more))
    open_tiles()
    assert uris == ["v.zarr/em", "v.zarr/labels"]


@pytest.mark.parametrize(
    ("task", "text"),
    [
        ({"z_val": [5, 9]}, "train and val share voxels: 0:6,8:40,0:64 and 5:9,8:40,0:64 of v.zarr/em overlap in 5:6,"),
        ({"z_val": [5, 9], "z_gap": 1}, "train and val share voxels"),
        ({"z_test": [0, 1]}, "train and test share voxels"),
        ({"z_test": [9, 13]}, "the test box 9:13,8:40,0:64 is outside the volume v.zarr/em, "),
        ({"z_test": [9, 13]}, "v.zarr/em, 0:12,0:40,0:64 (z,y,x)"),
        ({"z_test": [9, 13]}, "task.z_test of task.json: the test box"),
        ({"xrange_vol": [0, 99]}, "task.xrange_vol of task.json: the train box 0:6,8:40,0:99"),
        (
            {"z_train": [0, 6], "yrange_vol": [8, 48], "xrange_vol": [0, 99]},
            "task.yrange_vol of task.json, task.xrange_vol of task.json: the train box",
        ),
        (
            {"z_val": [5, 9]},
            "must not be evaluated on voxels that it was trained on: change task.z_train or task.z_val",
        ),
        (
            {"tile_size": [65, 16]},
            "train: box 0:6,8:40,0:64 is smaller than a tile along x: it has 64 voxels, the tile 65",
        ),
        ({"volume_z": 4}, "val: box 6:9,8:40,0:64 is smaller than a tile along z: it has 3 voxels, the tile 4"),
        ({"tile_size": [65, 16]}, "the tile 65; change task.tile_size or task.xrange_vol"),
        ({"volume_z": 4}, "the tile 4; change task.volume_z or task.z_val"),
        ({"threshold": False}, "v.zarr/labels 0:"),
        ({"threshold": False}, "%); allowed are 0 to 1. What do these labels mean? Ids"),
    ],
)
def test_a_task_that_does_not_fit_is_refused_with_the_numbers_and_the_settings_to_change(folder, task, text):
    assert text in error_of(**task)


def test_splits_may_be_adjacent(folder):
    assert open_tiles(z_val=[6, 9])[0].val.sources[0].box.start[0] == 6
    assert open_tiles(z_val=[6, 9], z_gap=1)[0].val.sources[0].box.start[0] == 7


@pytest.mark.parametrize("spelling", ["./v.zarr/em", "{}/v.zarr/em", "file://{}/v.zarr/|zarr3:em", "v.zarr/em/"])
def test_an_overlap_is_found_under_any_spelling_of_the_uri(folder, spelling):
    boxes = {
        "train": [{"box": "0:6,:,:"}],
        "val": [{"image": spelling.format(folder), "box": "5:8,:,:"}],
    }
    assert "train and val share voxels: 0:6,0:40,0:64 and 5:8,0:40,0:64" in error_of(boxes=boxes)


def test_a_split_can_have_boxes_of_several_volumes(folder):
    rng = np.random.default_rng(1)
    write("w.zarr/em", rng.integers(1, 256, (4, 32, 64), dtype=np.uint8))
    write("w.zarr/labels", (rng.random((4, 32, 64)) < 0.2).astype(np.uint8))
    other = {"image": "w.zarr/em", "annotation": "w.zarr/labels"}
    boxes = {
        "train": [{"box": [[0, 6], [0, 40], [0, 64]]}, {**other, "box": "0:2,:,:"}],
        "val": [{**other, "box": "2:4,:,:"}, {"box": "6:8,:,:"}],
        "test": [{"box": "8:12,:,:"}],
    }
    tiles, _ = open_tiles(boxes=boxes)
    assert [source.image.uri for source in tiles.train.sources] == ["v.zarr/em", "w.zarr/em"]
    assert tiles.train.tiles_per_epoch == 6 * 3 * 2 + 2 * 2 * 2
    assert len(tiles.val) == 2 * 2 * 2 + 2 * 3 * 2
    assert {tiles.train.address(0, index).source for index in range(40)} == {0, 1}


@pytest.mark.parametrize(
    ("shape", "voxel_size_nm", "text"),
    [
        (
            (12, 40, 65),
            (30, 6, 6),
            "different shapes: v.zarr/em is 0:12,0:40,0:64, o.zarr/labels is 0:12,0:40,0:65 (z,y,x)",
        ),
        (
            SHAPE,
            (30, 12, 12),
            "voxel sizes differ: v.zarr/em has 30 x 6 x 6 nm, o.zarr/labels has 30 x 12 x 12 nm (z,y,x)",
        ),
        (SHAPE, (30, 6.001, 6), None),
        (SHAPE, None, None),
    ],
)
def test_image_and_annotation_must_be_on_one_voxel_grid(folder, shape, voxel_size_nm, text):
    write("o.zarr/labels", np.ones(shape, np.uint8), voxel_size_nm)
    if text is None:
        open_tiles(annotation_chan="o.zarr/labels")
    else:
        assert text in error_of(annotation_chan="o.zarr/labels")


@pytest.mark.parametrize("task_type", ["membrane", "synapse"])
def test_an_annotation_without_foreground_is_refused(folder, task_type):
    labels = np.zeros(SHAPE, np.uint8)
    labels[6:] = 1
    write("empty.zarr/labels", labels)
    message = error_of(annotation_chan="empty.zarr/labels", task_type=task_type)
    start = "task.annotation_chan of task.json: annotation without foreground: none was found for training in "
    assert message.startswith(f"{start}empty.zarr/labels 0:6,8:40,0:64")
    assert "check the boxes and task.threshold_value" in message


def test_a_task_without_a_test_annotation_is_opened_with_a_note(folder):
    tiles, notes = open_tiles(z_test=None)
    assert tiles.test is None
    assert notes == [
        "there is no annotation for test: the metrics will be those of the validation box, which also selects the best "
        "epoch"
    ]
    boxes = {"train": [{"box": "0:6,:,:"}], "val": [{"box": "6:9,:,:"}]}
    test = {"box": "9:12,:,:", "annotation": None}
    tiles, same_notes = open_tiles(boxes={**boxes, "test": [test]})
    assert same_notes == notes
    assert tiles.test.sources[0].annotation is None
    assert (read_tile(tiles.test.sources, tiles.test.address(0))[1] == 255).all()


def test_a_volume_of_unknown_voxel_size_is_opened_with_a_note(folder):
    write("u.zarr/em", zarr.open_array("v.zarr/em")[:], None)
    write("u.zarr/labels", np.ones(SHAPE, np.uint8), None)
    _, notes = open_tiles(image_chan="u.zarr/em", annotation_chan="u.zarr/labels")
    assert notes == [
        "u.zarr/em does not state its voxel size; lengths are in voxels",
        "No voxel of train is background: a network cannot learn that.",
    ]
    tiles, notes = open_tiles(image_chan="u.zarr/em")
    assert notes == ["u.zarr/em does not state its voxel size: it is taken to be that of v.zarr/labels, 30 x 6 x 6 nm"]
    assert tiles.train.sources[0].image.voxel_size_nm == (30, 6, 6)


def test_the_range_of_grey_levels_comes_from_the_training_box_alone(folder):
    rng = np.random.default_rng(2)
    wide = rng.normal(3000, 100, SHAPE).astype(np.uint16)
    wide[6:] = 60_000
    write("wide.zarr/em", wide)

    def levels(*assignments: str, image="wide.zarr/em", **task) -> tuple[float, float]:
        tiles, _ = open_tiles(*assignments, image_chan=image, **task)
        assert {source.intensity for split in (tiles.train, tiles.val, tiles.test) for source in split.sources} == {
            tiles.train.sources[0].intensity
        }
        return tiles.train.sources[0].intensity

    low, high = levels()
    assert (low, high) == pytest.approx(np.percentile(wide[:6], (0.5, 99.5)), abs=25)
    assert levels() == (low, high)
    narrow = levels(image_intensity={"percentiles": [25, 75]})
    assert narrow == pytest.approx(np.percentile(wide[:6], (25, 75)), abs=10)
    assert levels(image_intensity=[0, 4095]) == (0, 4095)
    assert levels(image="v.zarr/em") == (0, 255)
    assert levels(image="v.zarr/em", image_intensity=[10, 200]) == (10, 200)


def test_images_of_several_data_types_need_a_range_of_grey_levels(folder):
    write("wide.zarr/em", zarr.open_array("v.zarr/em")[:].astype(np.uint16) * 15)
    boxes = {
        "train": [{"box": "0:6,:,:"}, {"image": "wide.zarr/em", "box": "0:6,:,:"}],
        "val": [{"box": "6:9,:,:"}],
    }
    message = error_of(boxes=boxes)
    assert "v.zarr/em uint8, wide.zarr/em uint16; give task.image_intensity as [low, high]" in message
    open_tiles(boxes=boxes, image_intensity=[0, 4000])


def test_two_boxes_of_one_split_that_share_voxels_are_refused(folder):
    box = {"image": "v.zarr/em", "annotation": "v.zarr/labels"}
    boxes = {"train": [{**box, "box": "0:4,:,:"}], "val": [{**box, "box": "6:8,:,:"}], "test": []}
    for split in ("val", "test"):
        twice = {**boxes, split: [{**box, "box": "8:11,:,:"}, {**box, "box": "10:12,:,:"}]}
        assert f"two boxes of {split} share voxels" in error_of(boxes=twice)


def test_a_box_outside_its_volume_is_named_by_its_number(folder):
    boxes = {"train": [{"box": "0:4,:,:"}, {"box": "4:99,:,:"}], "val": [{"box": "6:8,:,:"}], "test": []}
    assert error_of(boxes=boxes).startswith(
        "task.boxes.train.1.box: the box 4:99,:,: is outside the volume v.zarr/em, 0:"
    )
    boxes["train"][1]["box"] = [[4, 99], [0, 40], [0, 64]]
    assert error_of(boxes=boxes).startswith("task.boxes.train.1.box: the box 4:99,0:40,0:64 is outside")
    boxes["train"][1]["box"] = "4:7,:,:"
    assert "change task.boxes.train.1.box or task.boxes.val.0.box" in error_of(boxes=boxes)


def write_pyramid(name: str, placed: bool) -> None:
    """Write `v.zarr/em` and its half in y and x as an OME-Zarr, with or (not `placed`) without the positions."""
    em = zarr.open_array("v.zarr/em")[:]
    datasets = []
    for level, factor in enumerate((1, 2)):
        changes = [{"type": "scale", "scale": [30, 6 * factor, 6 * factor]}]
        if placed:
            changes.append({"type": "translation", "translation": [0, 3 * (factor - 1), 3 * (factor - 1)]})
        datasets.append({"path": f"s{level}", "coordinateTransformations": changes})
    axes = [{"name": axis, "type": "space", "unit": "nanometer"} for axis in "zyx"]
    attributes = {"ome": {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}}
    group = zarr.create_group(name, attributes=attributes)
    group.create_array("s0", data=em, chunks=(2, 16, 32))
    group.create_array("s1", data=em[:, ::2, ::2], chunks=(2, 16, 32))


@pytest.mark.parametrize("placed", [True, False])
def test_boxes_of_two_resolutions_of_one_volume_are_compared_in_nm(folder, placed):
    write_pyramid("p.zarr", placed)
    write("half.zarr/labels", zarr.open_array("v.zarr/labels")[:, ::2, ::2], (30, 12, 12))
    fine = {"image": "p.zarr"}
    coarse = {"image": "p.zarr/s1", "annotation": "half.zarr/labels"}

    def boxes(box: str, train: str = "0:12,0:40,0:32") -> dict:
        return {"train": [{**fine, "box": train}], "val": [{**coarse, "box": box}], "test": []}

    shared = error_of(boxes=boxes("4:8,0:20,8:32"), tile_size=[16, 16])
    assert shared.startswith(
        "train and val share voxels: 0:12,0:40,0:32 of p.zarr and 4:8,0:20,8:32 of p.zarr/s1, two "
    )
    assert "two resolutions of one volume, overlap in 105:225," in shared
    assert "change task.boxes.train.0.box or task.boxes.val.0.box" in shared
    open_tiles(boxes=boxes("4:8,0:20,16:32"), tile_size=[16, 16])  # side by side
    twice = {"train": [{**fine, "box": "0:4,:,:"}], "val": [{**fine, "box": "4:8,:,:"}, {**coarse, "box": "7:9,:,:"}]}
    assert "two boxes of val share voxels, which would count twice" in error_of(boxes=twice, tile_size=[16, 16])


def write_placed(name: str, voxels: np.ndarray, offset=None, voxel_size_nm=(30, 6, 6)) -> str:
    """Write a zarr as gunpowder does."""
    array = zarr.create_array(name, data=voxels, chunks=(2, 16, 32), zarr_format=2, overwrite=True)
    array.attrs.update({"resolution": list(voxel_size_nm)} | ({} if offset is None else {"offset": list(offset)}))
    return name


def test_an_annotation_that_lies_elsewhere_is_paired_by_its_place(folder):
    em, labels = zarr.open_array("v.zarr/em")[:], zarr.open_array("v.zarr/labels")[:]
    boxes = {split: [{"box": box}] for split, box in (("train", "3:6,8:40,4:64"), ("val", "6:8,8:40,4:64"))}
    write_placed("placed.zarr/em", em, (300, 0, 0))
    write_placed("placed.zarr/labels", labels[2:9, 5:, 3:], (300 + 2 * 30, 5 * 6, 3 * 6))
    volumes = {"image_chan": "placed.zarr/em", "annotation_chan": "placed.zarr/labels"}
    tiles, notes = open_tiles(boxes=boxes, **volumes)
    assert notes[0].startswith("there is no annotation for test")
    for number in range(len(tiles.val)):
        address = tiles.val.address(number)
        image, classes, _ = read_tile(tiles.val.sources, address)
        np.testing.assert_array_equal(image, em[address.box.slices()])
        own = address.own.slices(address.box.start)
        np.testing.assert_array_equal(classes[own], labels[address.own.slices()] > 0)
    for index in range(20):
        image, classes, _ = read_tile(tiles.train.sources, address := tiles.train.address(0, index))
        np.testing.assert_array_equal(image, em[address.box.slices()])
        np.testing.assert_array_equal(classes, labels[address.box.slices()] > 0)


def test_a_box_that_the_annotation_covers_only_in_part_is_refused(folder):
    write_placed("placed.zarr/em", zarr.open_array("v.zarr/em")[:], (0, 0, 0))
    write_placed("placed.zarr/labels", np.ones((7, 40, 64), np.uint8), (0, 0, 0))
    message = error_of(image_chan="placed.zarr/em", annotation_chan="placed.zarr/labels")
    assert "placed.zarr/labels covers only 6:7,8:40,0:64 of the val box 6:9,8:40,0:64 of placed.zarr/em" in message
    assert "it covers 0:7,0:40,0:64 of the image (z,y,x): change task.z_val" in message
    write_placed("placed.zarr/labels", np.ones((7, 40, 64), np.uint8), (0, 6000, 0))
    message = error_of(image_chan="placed.zarr/em", annotation_chan="placed.zarr/labels")
    assert "placed.zarr/em and placed.zarr/labels do not overlap. The first covers 0:360,0:240,0:384 nm" in message


def test_an_annotation_of_another_voxel_size_is_resampled_if_that_is_wanted(folder):
    em, labels = zarr.open_array("v.zarr/em")[:], zarr.open_array("v.zarr/labels")[:]
    write_placed("placed.zarr/em", em)
    write_placed("placed.zarr/labels", labels[:, ::2, ::2], voxel_size_nm=(30, 12, 12))
    volumes = {"image_chan": "placed.zarr/em", "annotation_chan": "placed.zarr/labels"}
    assert "voxel sizes differ" in error_of(**volumes)
    tiles, _ = open_tiles("train.resample=true", **volumes)
    expected = np.repeat(np.repeat(labels[:, ::2, ::2], 2, 1), 2, 2) > 0
    address = tiles.val.address(0)
    np.testing.assert_array_equal(read_tile(tiles.val.sources, address)[1], expected[address.box.slices()])


def test_a_voxel_size_that_is_given_is_that_of_the_image_and_of_an_annotation_without_one(folder):
    write("u.zarr/em", zarr.open_array("v.zarr/em")[:], None)
    write("u.zarr/labels", np.ones(SHAPE, np.uint8), None)
    volumes = {"image_chan": "u.zarr/em", "annotation_chan": "u.zarr/labels"}
    tiles, _ = open_tiles("train.voxel_size=30,4,4", **volumes)
    assert tiles.train.sources[0].image.voxel_size_nm == (30, 4, 4)
    assert "voxel sizes differ" in error_of("train.voxel_size=30,4,4", image_chan="u.zarr/em")


def test_an_image_of_which_nothing_is_stored_in_a_box_is_refused(folder):
    image = zarr.create_array("sparse.zarr/em", data=zarr.open_array("v.zarr/em")[:], chunks=(3, 40, 64), zarr_format=2)
    image.attrs["voxel_size_nm_zyx"] = [30, 6, 6]
    for name in ("2.0.0", "0.0.0"):
        Path("sparse.zarr/em", name).unlink()
    message = error_of(image_chan="sparse.zarr/em")
    assert "nothing of sparse.zarr/em is stored in the val box, 6:9,8:40,0:64 (z,y,x)" in message
    assert "--allow-empty" in message
    tiles, notes = open_tiles("train.allow_empty=true", image_chan="sparse.zarr/em")
    assert notes == [
        "train: 1 of 2 chunks absent in sparse.zarr/em: their voxels count as its fill value",
        "val: 1 of 1 chunks absent in sparse.zarr/em: their voxels count as its fill value",
    ]
    assert tiles.absent_chunks["image"] == (2, 4)
    assert tiles.absent_chunks["annotation"][0] == 0


def test_absent_chunks_of_an_annotation_are_background_and_counted(folder):
    labels = (zarr.open_array("v.zarr/labels")[:] > 0).astype(np.uint8)
    zarr.create_array("sparse.zarr/labels", data=labels, chunks=(3, 40, 64), zarr_format=2)
    Path("sparse.zarr/labels/2.0.0").unlink()
    tiles, notes = open_tiles(annotation_chan="sparse.zarr/labels")
    assert "val: 1 of 1 chunks absent in sparse.zarr/labels: their voxels count as the label 0" in notes
    assert tiles.absent_chunks["annotation"] == (1, 4)
    assert not read_tile(tiles.val.sources, tiles.val.address(0))[1].any()


def test_voxels_of_nan_are_not_learnt_from(folder):
    em = zarr.open_array("v.zarr/em")[:].astype(np.float32)
    em[7, :20] = np.nan
    write("nan.zarr/em", em)
    tiles, _ = open_tiles(image_chan="nan.zarr/em", image_intensity=[0, 255])
    for number in range(len(tiles.val)):
        address = tiles.val.address(number)
        image, labels, _ = read_tile(tiles.val.sources, address)
        missing = np.isnan(em[address.box.slices()])
        assert (labels[missing] == 255).all()
        assert not image[missing].any()
        own = ~missing[address.own.slices(address.box.start)]
        assert (labels[address.own.slices(address.box.start)][own] < 2).all()

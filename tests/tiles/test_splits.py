"""The splits of a task become tiles: which boxes are refused before any work, and where grey levels come from."""

from pathlib import Path

import numpy as np
import pytest
import zarr

from kasthuri_ray.tiles import splits
from kasthuri_ray.tiles.sampling import read_tile
from kasthuri_ray.volumes import opening

SHAPE = (12, 40, 64)


def test_a_task_becomes_tiles_of_its_three_splits(task_folder, open_tiles):
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


def test_an_epoch_has_as_many_tiles_as_the_grid_unless_the_number_is_set(task_folder, monkeypatch, open_tiles):
    def num_tiles(*assignments: str, batch_size: int = 8) -> int:
        return open_tiles(*assignments)[0].train.in_whole_batches(batch_size).tiles_per_epoch

    assert num_tiles() == 6 * 2 * 2
    assert num_tiles(batch_size=5) == 25
    assert num_tiles("network.tiles_per_epoch=8", batch_size=5) == 10
    monkeypatch.setattr(splits, "MAX_TILES_PER_EPOCH", 16)
    assert num_tiles() == 16
    assert num_tiles("network.tiles_per_epoch=32") == 32


def test_each_volume_is_opened_once(task_folder, monkeypatch, open_tiles):
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
        (
            {"tile_size": [65, 16]},
            "the tile 65; change task.tile_size (--set task.tile_size=32,32 fits) or task.xrange_vol",
        ),
        ({"volume_z": 4}, "the tile 4; change task.volume_z or task.z_val"),
        ({"threshold": False}, "v.zarr/labels 0:"),
        ({"threshold": False}, "; allowed are 0 to 1. What do these labels mean? Ids"),
    ],
)
def test_a_task_that_does_not_fit_is_refused_with_the_numbers_and_the_settings_to_change(
    task_folder, task, text, error_of
):
    assert text in error_of(**task)


def test_splits_may_be_adjacent(task_folder, open_tiles):
    assert open_tiles(z_val=[6, 9])[0].val.sources[0].box.start[0] == 6
    assert open_tiles(z_val=[6, 9], z_gap=1)[0].val.sources[0].box.start[0] == 7


@pytest.mark.parametrize("spelling", ["./v.zarr/em", "{}/v.zarr/em", "file://{}/v.zarr/|zarr3:em", "v.zarr/em/"])
def test_an_overlap_is_found_under_any_spelling_of_the_uri(task_folder, spelling, error_of):
    boxes = {
        "train": [{"box": "0:6,:,:"}],
        "val": [{"image": spelling.format(task_folder), "box": "5:8,:,:"}],
    }
    assert "train and val share voxels: 0:6,0:40,0:64 and 5:8,0:40,0:64" in error_of(boxes=boxes)


def test_a_split_can_have_boxes_of_several_volumes(task_folder, open_tiles, write_array):
    rng = np.random.default_rng(1)
    write_array("w.zarr/em", rng.integers(1, 256, (4, 32, 64), dtype=np.uint8))
    write_array("w.zarr/labels", (rng.random((4, 32, 64)) < 0.2).astype(np.uint8))
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


def test_the_range_of_grey_levels_comes_from_the_training_box_alone(task_folder, open_tiles, write_array):
    rng = np.random.default_rng(2)
    wide = rng.normal(3000, 100, SHAPE).astype(np.uint16)
    wide[6:] = 60_000
    write_array("wide.zarr/em", wide)

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


def test_images_of_several_data_types_need_a_range_of_grey_levels(task_folder, open_tiles, error_of, write_array):
    write_array("wide.zarr/em", zarr.open_array("v.zarr/em")[:].astype(np.uint16) * 15)
    boxes = {
        "train": [{"box": "0:6,:,:"}, {"image": "wide.zarr/em", "box": "0:6,:,:"}],
        "val": [{"box": "6:9,:,:"}],
    }
    message = error_of(boxes=boxes)
    assert "v.zarr/em uint8, wide.zarr/em uint16; give task.image_intensity as [low, high]" in message
    open_tiles(boxes=boxes, image_intensity=[0, 4000])


def test_two_boxes_of_one_split_that_share_voxels_are_refused(task_folder, error_of):
    box = {"image": "v.zarr/em", "annotation": "v.zarr/labels"}
    boxes = {"train": [{**box, "box": "0:4,:,:"}], "val": [{**box, "box": "6:8,:,:"}], "test": []}
    for split in ("val", "test"):
        twice = {**boxes, split: [{**box, "box": "8:11,:,:"}, {**box, "box": "10:12,:,:"}]}
        assert f"two boxes of {split} share voxels" in error_of(boxes=twice)


def test_a_box_outside_its_volume_is_named_by_its_number(task_folder, error_of):
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
def test_boxes_of_two_resolutions_of_one_volume_are_compared_in_nm(
    task_folder, placed, open_tiles, error_of, write_array
):
    write_pyramid("p.zarr", placed)
    write_array("half.zarr/labels", zarr.open_array("v.zarr/labels")[:, ::2, ::2], (30, 12, 12))
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


def test_an_image_of_which_nothing_is_stored_in_a_box_is_refused(task_folder, open_tiles, error_of):
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


def test_voxels_of_nan_are_not_learnt_from(task_folder, open_tiles, write_array):
    em = zarr.open_array("v.zarr/em")[:].astype(np.float32)
    em[7, :20] = np.nan
    write_array("nan.zarr/em", em)
    tiles, _ = open_tiles(image_chan="nan.zarr/em", image_intensity=[0, 255])
    for number in range(len(tiles.val)):
        address = tiles.val.address(number)
        image, labels, _ = read_tile(tiles.val.sources, address)
        missing = np.isnan(em[address.box.slices()])
        assert (labels[missing] == 255).all()
        assert not image[missing].any()
        own = ~missing[address.own.slices(address.box.start)]
        assert (labels[address.own.slices(address.box.start)][own] < 2).all()

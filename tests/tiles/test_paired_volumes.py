"""Image and annotation of a task: their grids, places and voxel sizes, and an annotation that is missing in part."""

from pathlib import Path

import numpy as np
import pytest
import zarr

from kasthuri_ray.tiles.sampling import read_tile

SHAPE = (12, 40, 64)


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
def test_image_and_annotation_must_be_on_one_voxel_grid(
    task_folder, shape, voxel_size_nm, text, open_tiles, error_of, write_array
):
    write_array("o.zarr/labels", np.ones(shape, np.uint8), voxel_size_nm)
    if text is None:
        open_tiles(annotation_chan="o.zarr/labels")
    else:
        assert text in error_of(annotation_chan="o.zarr/labels")


@pytest.mark.parametrize("task_type", ["membrane", "synapse"])
def test_an_annotation_without_foreground_is_refused(task_folder, task_type, error_of, write_array):
    labels = np.zeros(SHAPE, np.uint8)
    labels[6:] = 1
    write_array("empty.zarr/labels", labels)
    message = error_of(annotation_chan="empty.zarr/labels", task_type=task_type)
    start = "task.annotation_chan of task.json: annotation without foreground: none was found for training in "
    assert message.startswith(f"{start}empty.zarr/labels 0:6,8:40,0:64")
    assert message.endswith("check the boxes and task.threshold_value")


def test_an_annotation_whose_foreground_is_ignored_names_what_ignores_it(task_folder, error_of, write_array):
    labels = np.zeros(SHAPE, np.uint8)
    labels[:, 20:30] = 1
    write_array("ignored.zarr/labels", labels)
    message = error_of(annotation_chan="ignored.zarr/labels", threshold=False, ignore_label=1)
    assert message.endswith("check the boxes and task.ignore_label (1)")


def test_a_task_without_a_test_annotation_is_opened_with_a_note(task_folder, open_tiles):
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


def test_a_volume_of_unknown_voxel_size_is_opened_with_a_note(task_folder, open_tiles, write_array):
    write_array("u.zarr/em", zarr.open_array("v.zarr/em")[:], None)
    write_array("u.zarr/labels", np.ones(SHAPE, np.uint8), None)
    _, notes = open_tiles(image_chan="u.zarr/em", annotation_chan="u.zarr/labels")
    assert notes == [
        "u.zarr/em does not state its voxel size; lengths are in voxels",
        "No voxel of train is background: a network cannot learn that.",
    ]
    tiles, notes = open_tiles(image_chan="u.zarr/em")
    assert notes == ["u.zarr/em does not state its voxel size: it is taken to be that of v.zarr/labels, 30 x 6 x 6 nm"]
    assert tiles.train.sources[0].image.voxel_size_nm == (30, 6, 6)


def write_placed(name: str, voxels: np.ndarray, offset=None, voxel_size_nm=(30, 6, 6)) -> str:
    """Write a zarr as gunpowder does."""
    array = zarr.create_array(name, data=voxels, chunks=(2, 16, 32), zarr_format=2, overwrite=True)
    array.attrs.update({"resolution": list(voxel_size_nm)} | ({} if offset is None else {"offset": list(offset)}))
    return name


def test_an_annotation_that_lies_elsewhere_is_paired_by_its_place(task_folder, open_tiles):
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


def test_a_box_that_the_annotation_covers_only_in_part_is_refused(task_folder, error_of):
    write_placed("placed.zarr/em", zarr.open_array("v.zarr/em")[:], (0, 0, 0))
    write_placed("placed.zarr/labels", np.ones((7, 40, 64), np.uint8), (0, 0, 0))
    message = error_of(image_chan="placed.zarr/em", annotation_chan="placed.zarr/labels")
    assert "placed.zarr/labels covers only 6:7,8:40,0:64 of the val box 6:9,8:40,0:64 of placed.zarr/em" in message
    assert "it covers 0:7,0:40,0:64 of the image (z,y,x): change task.z_val" in message
    write_placed("placed.zarr/labels", np.ones((7, 40, 64), np.uint8), (0, 6000, 0))
    message = error_of(image_chan="placed.zarr/em", annotation_chan="placed.zarr/labels")
    assert "placed.zarr/em and placed.zarr/labels do not overlap. The first covers 0:360,0:240,0:384 nm" in message


def test_an_annotation_of_another_voxel_size_is_resampled_if_that_is_wanted(task_folder, open_tiles, error_of):
    em, labels = zarr.open_array("v.zarr/em")[:], zarr.open_array("v.zarr/labels")[:]
    write_placed("placed.zarr/em", em)
    write_placed("placed.zarr/labels", labels[:, ::2, ::2], voxel_size_nm=(30, 12, 12))
    volumes = {"image_chan": "placed.zarr/em", "annotation_chan": "placed.zarr/labels"}
    assert "voxel sizes differ" in error_of(**volumes)
    tiles, _ = open_tiles("train.resample=true", **volumes)
    expected = np.repeat(np.repeat(labels[:, ::2, ::2], 2, 1), 2, 2) > 0
    address = tiles.val.address(0)
    np.testing.assert_array_equal(read_tile(tiles.val.sources, address)[1], expected[address.box.slices()])


def test_a_voxel_size_that_is_given_is_that_of_the_image_and_of_an_annotation_without_one(
    task_folder, open_tiles, error_of, write_array
):
    write_array("u.zarr/em", zarr.open_array("v.zarr/em")[:], None)
    write_array("u.zarr/labels", np.ones(SHAPE, np.uint8), None)
    volumes = {"image_chan": "u.zarr/em", "annotation_chan": "u.zarr/labels"}
    tiles, _ = open_tiles("train.voxel_size=30,4,4", **volumes)
    assert tiles.train.sources[0].image.voxel_size_nm == (30, 4, 4)
    assert "voxel sizes differ" in error_of("train.voxel_size=30,4,4", image_chan="u.zarr/em")


def test_absent_chunks_of_an_annotation_are_background_and_counted(task_folder, open_tiles):
    labels = (zarr.open_array("v.zarr/labels")[:] > 0).astype(np.uint8)
    zarr.create_array("sparse.zarr/labels", data=labels, chunks=(3, 40, 64), zarr_format=2)
    Path("sparse.zarr/labels/2.0.0").unlink()
    tiles, notes = open_tiles(annotation_chan="sparse.zarr/labels")
    assert "val: 1 of 1 chunks absent in sparse.zarr/labels: their voxels count as the label 0" in notes
    assert tiles.absent_chunks["annotation"] == (1, 4)
    assert not read_tile(tiles.val.sources, tiles.val.address(0))[1].any()

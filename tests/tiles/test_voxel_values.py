"""What labels and grey levels of a task mean, in volumes written as their users write them."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr

from kasthuri_ray.config.loading import GivenSettings, resolve_settings
from kasthuri_ray.errors import InputError
from kasthuri_ray.geometry import Box
from kasthuri_ray.labels import IGNORE_LABEL
from kasthuri_ray.tiles.dataset import TileDataset
from kasthuri_ray.tiles.sampling import read_tile
from kasthuri_ray.tiles.splits import open_task_tiles

SHAPE = (12, 96, 128)
SIZE_NM = (40.0, 4.0, 4.0)
NONE, INVALID, OUTSIDE = 2**64 - 1, 2**64 - 2, 2**64 - 3  # of CREMI
TASK = {
    "image_chan": "sample_A.hdf:volumes/raw", "annotation_chan": "sample_A.hdf:volumes/labels/clefts",
    **{"xrange_vol": [0, 128], "yrange_vol": [0, 96], "z_train": [0, 6], "z_val": [6, 9], "z_test": [9, 12]},
    **{"tile_size": [32, 32], "task_type": "synapse", "threshold": True},
}  # fmt: skip


def draw_clefts() -> np.ndarray:
    """Return clefts as CREMI stores them: few, the first with the id 0, and a padded border."""
    clefts = np.full(SHAPE, NONE, np.uint64)
    for number, (y, x) in enumerate([(20, 30), (50, 70), (70, 100)]):
        clefts[:, y : y + 4, x : x + 12] = number
    clefts[:, :3], clefts[:, 3:5] = OUTSIDE, INVALID
    return clefts


def expected_classes(clefts: np.ndarray) -> np.ndarray:
    classes = (clefts != NONE).astype(np.uint8)
    classes[(clefts == OUTSIDE) | (clefts == INVALID)] = IGNORE_LABEL
    return classes


@pytest.fixture(scope="module")
def em() -> np.ndarray:
    return np.random.default_rng(0).integers(10, 250, SHAPE, np.uint8)


@pytest.fixture
def cremi(tmp_path, monkeypatch, em) -> np.ndarray:
    """Write a sample of CREMI into the current folder; return its clefts."""
    monkeypatch.chdir(tmp_path)
    clefts = draw_clefts()
    with h5py.File("sample_A.hdf", "w") as file:
        for name, voxels in (("volumes/raw", em), ("volumes/labels/clefts", clefts)):
            dataset = file.create_dataset(name, data=voxels, chunks=(1, 32, 32), compression="gzip")
            dataset.attrs["resolution"], dataset.attrs["offset"] = SIZE_NM, (0.0, 0.0, 0.0)
    return clefts


def write(name: str, voxels: np.ndarray, size_nm=SIZE_NM) -> str:
    """Write a zarr as funlib does."""
    whole = {"write_empty_chunks": True}
    array = zarr.create_array(name, data=voxels, chunks=(2, 32, 32), zarr_format=2, config=whole)
    array.attrs.update({"resolution": list(size_nm), "offset": [0, 0, 0]})
    return name


def open_tiles(*assignments: str, is_new=True, **task):
    """Return the tiles of a task, and the notes."""
    values = {key: value for key, value in {**TASK, **task}.items() if value is not None}
    Path("task.json").write_text(json.dumps(values))
    notes: list[str] = []
    settings = resolve_settings(GivenSettings("task.json", assignments=["train.cache=none", *assignments]))
    tiles = open_task_tiles(settings, notes.append, is_new=is_new)
    return tiles, [note for note in notes if not note.startswith("train: 69,888 of 73,728 voxels are labelled")]


def check_classes(tiles, expected: np.ndarray) -> None:
    """Compare the classes of all tiles of val and test, and of some of training, with those of the whole volume."""
    for split in (tiles.val, tiles.test):
        for number in range(len(split)):
            address = split.address(number)
            own = address.own.slices(address.box.start)
            classes = read_tile(split.sources, address)[1]
            np.testing.assert_array_equal(classes[own], expected[address.own.slices()])
    for index in range(8):
        address = tiles.train.address(0, index)
        np.testing.assert_array_equal(read_tile(tiles.train.sources, address)[1], expected[address.box.slices()])


# labels


@pytest.mark.parametrize("threshold", [True, False])
def test_clefts_of_cremi_are_read_with_a_line(cremi, threshold):
    tiles, (note,) = open_tiles(threshold=threshold)
    check_classes(tiles, expected_classes(cremi))
    assert note.startswith(f"sample_A.hdf:volumes/labels/clefts: the label {NONE} fills 99% of a sample and counts as")


def test_half_of_the_training_tiles_are_drawn_around_a_cleft(cremi):
    tiles, _ = open_tiles()
    drawn = [read_tile(tiles.train.sources, tiles.train.address(0, index))[1] for index in range(20)]
    assert sum((classes == 1).any() for classes in drawn) >= 10


def test_a_dataset_of_tiles_has_the_same_classes_and_the_line(cremi):
    dataset = TileDataset(TASK, "val", augment=False)
    assert any(f"the label {NONE} fills" in note for note in dataset.notes)
    labels = [dataset[number][1].numpy() for number in range(len(dataset))]
    expected = expected_classes(cremi)[6:9]
    assert sum((label == 1).sum() for label in labels) == (expected == 1).sum()
    assert sum((label == 0).sum() for label in labels) == (expected == 0).sum()


def test_a_resampled_annotation_has_the_same_background(cremi):
    fine = {"annotation_chan": write("clefts.zarr", cremi[:, ::2, ::2], (40, 8, 8))}
    tiles, notes = open_tiles("train.resample=true", **fine)
    assert any(f"the label {NONE} fills" in note for note in notes)
    check_classes(tiles, expected_classes(cremi[:, ::2, ::2].repeat(2, 1).repeat(2, 2)))


def test_background_that_the_task_states_is_not_searched_and_wins_over_the_threshold(cremi):
    tiles, notes = open_tiles(background=[1, NONE])
    assert notes == []
    check_classes(tiles, np.where(cremi == 1, 0, expected_classes(cremi)))
    of_0 = (cremi % 3 == 1).astype(np.uint8)
    tiles, notes = open_tiles("task.background=1", annotation_chan=write("few.zarr", of_0), task_type="membrane")
    check_classes(tiles, of_0 == 0)
    assert notes == []


@pytest.mark.parametrize("is_new", [True, False])
def test_without_a_background_the_threshold_counts_as_before(cremi, is_new):
    tiles, notes = open_tiles(*(["task.background=[]"] if is_new else []), is_new=is_new)
    check_classes(tiles, cremi > 0)
    assert [note for note in notes if "the label" in note] == []


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_in_8_and_16_bits_nothing_is_guessed(cremi, dtype):
    extreme = np.iinfo(dtype).max
    labels = np.where(cremi < 3, cremi + 1, extreme).astype(dtype)
    with pytest.raises(
        InputError, match=rf"the label {extreme} fills 98.8% of the .* voxels, .*task.ignore_label={extreme}"
    ):
        open_tiles(annotation_chan=write("labels.zarr", labels))
    tiles, notes = open_tiles(annotation_chan="labels.zarr", background=[])
    check_classes(tiles, labels > 0)
    assert all("the label" not in note for note in notes)


def test_an_annotation_of_synapses_that_is_mostly_foreground_is_a_line_for_each_split(cremi):
    labels = np.ones(SHAPE, np.uint8)
    labels[:, :40] = 0
    labels[6:9, :60] = 0
    tiles, notes = open_tiles(annotation_chan=write("labels.zarr", labels))
    assert [note.split(" of a sample")[0] for note in notes] == ["train: 58%", "test: 58%"]
    assert "labels.zarr 0:6,0:96,0:128 is foreground, much for synapses: check task.background and task" in notes[0]
    assert open_tiles(annotation_chan="labels.zarr", task_type="membrane")[1] == []
    check_classes(tiles, labels)


def test_annotations_that_differ_in_their_background_are_refused(cremi):
    ids = write("ids.zarr", (cremi < 3).astype(np.uint64))
    boxes = {
        "train": [{"box": "0:6,:,:"}],
        "val": [{"box": "6:9,:,:"}],
        "test": [{"box": "9:12,:,:", "annotation": ids}],
    }
    without = dict.fromkeys(("xrange_vol", "yrange_vol", "z_train", "z_val", "z_test"))
    with pytest.raises(InputError, match=rf"clefts the label {NONE} means background, and a sample of ids.zarr holds"):
        open_tiles(boxes=boxes, **without)
    tiles, _ = open_tiles(f"task.background=0,{NONE}", boxes=boxes, **without)
    assert (read_tile(tiles.test.sources, tiles.test.address(4))[1] == (cremi[9:10, 32:64, 32:64] < 3)).all()


def test_an_annotation_of_two_images_is_read_at_the_place_of_each(cremi, em):
    """The second image begins six sections later."""
    later = {"image": f"{write('em.zarr', em)}?offset_nm=240,0,0"}
    boxes = {"train": [{**later, "box": "0:4,:,:"}, {"box": "6:12,:,:"}], "val": [{"box": "0:3,:,:"}]}
    without = dict.fromkeys(("xrange_vol", "yrange_vol", "z_train", "z_val", "z_test"))
    tiles, notes = open_tiles(boxes=boxes, **without)
    assert any(f"the label {NONE} fills" in note for note in notes)
    classes = tiles.train.sources[0].read_labels(Box((0, 0, 0), (4, 96, 128)))
    np.testing.assert_array_equal(classes, expected_classes(cremi[6:10]))


def test_a_background_that_an_annotation_cannot_hold_is_refused(cremi):
    bytes_ = write("bytes.zarr", (cremi < 3).astype(np.uint8))
    with pytest.raises(InputError, match=rf"bytes.zarr holds uint8, which cannot hold the background {NONE}"):
        open_tiles(f"task.background={NONE}", annotation_chan=bytes_)
    with pytest.raises(InputError, match=r"task.background leaves two classes"):
        open_tiles("network.classes=3", "task.background=0", annotation_chan=bytes_)


# grey levels


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_an_image_of_any_type_trains_in_the_range_that_fits_its_values(cremi, em, dtype):
    image = write("em.zarr", em.astype(dtype))
    tiles, notes = open_tiles(image_chan=image, image_intensity=[0, 255])
    assert len(notes) == 1
    address = tiles.train.address(0, 0)
    np.testing.assert_array_equal(read_tile(tiles.train.sources, address)[0], em[address.box.slices()])


@pytest.mark.parametrize(
    ("factor", "dtype", "task", "message"),
    [
        (
            1,
            np.uint8,
            {"image_intensity": [0, 1]},
            "100% of its voxels lie outside the grey levels 0 to 1 that task.im",
        ),
        (
            1 / 255,
            np.float32,
            {"image_intensity": [0, 255]},
            "span 0.4% of the grey levels 0 to 255 that task.image_in",
        ),
        (1 / 64, np.uint8, {}, "its voxels span 0.8% of the grey levels 0 to 255 of uint8: they hold 1 to 3"),
    ],
)
def test_a_training_box_that_does_not_fit_its_range_is_refused_unless_it_is_typed(
    cremi, em, factor, dtype, task, message
):
    image = write("em.zarr", (em * factor).astype(dtype))
    with pytest.raises(InputError, match=message):
        open_tiles(image_chan=image, **task)
    assert open_tiles(image_chan=image, is_new=False, **task)[1] == []
    stated = ",".join(map(str, task.get("image_intensity", (0, 255))))
    _, notes = open_tiles(f"task.image_intensity={stated}", image_chan=image, **task)
    assert notes[0].startswith("train: em.zarr 0:6,0:96,0:128: ")
    open_tiles(image_chan=image, image_intensity={"percentiles": [1, 99]})


def test_a_training_box_that_is_blank_is_a_line(cremi, em):
    _, notes = open_tiles(image_chan=write("em.zarr", np.zeros_like(em)))
    line = "train: em.zarr 0:6,0:96,0:128 is blank, or nearly so, in a sample: its grey levels are not checked"
    assert line in notes


def test_only_the_training_boxes_count_for_the_range(cremi, em):
    dark = em.copy()
    dark[6:] = 1
    open_tiles(image_chan=write("em.zarr", dark))

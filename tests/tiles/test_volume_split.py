"""The split of a volume for which a task gives no ranges."""

import itertools
import json
import shlex

import numpy as np
import pytest
import zarr

from kasthuri_ray.config.loading import GivenSettings, resolve_settings
from kasthuri_ray.errors import InputError
from kasthuri_ray.geometry import Box
from kasthuri_ray.tiles.splits import open_task_tiles
from kasthuri_ray.tiles.volume_split import plan_split, split_volume

TASK = {"task_type": "membrane", "tile_size": [32, 32]}


@pytest.mark.parametrize(
    ("shape", "tile", "parts"),
    [
        ((20, 64, 64), (1, 32, 32), ("5:17,0:64,0:64", "18:21,0:64,0:64", "22:25,0:64,0:64")),
        ((10, 64, 64), (1, 32, 32), ("5:11,0:64,0:64", "12:13,0:64,0:64", "14:15,0:64,0:64")),
        ((100, 64, 64), (1, 32, 32), ("5:73,0:64,0:64", "74:89,0:64,0:64", "90:105,0:64,0:64")),
        # Val and test hold a tile of a 3D network, at the cost of train; if too little is left, another axis is cut.
        ((40, 64, 64), (8, 32, 32), ("5:27,0:64,0:64", "28:36,0:64,0:64", "37:45,0:64,0:64")),
        ((20, 64, 300), (8, 32, 32), ("5:25,0:64,0:198", "5:25,0:64,206:249", "5:25,0:64,257:300")),
        # Fewer than ten sections: the longer of y and x, with a quarter of a tile between.
        ((9, 64, 200), (1, 32, 32), ("5:14,0:64,0:120", "5:14,0:64,128:160", "5:14,0:64,168:200")),
        ((1, 1000, 200), (1, 32, 32), ("5:6,0:688,0:200", "5:6,696:844,0:200", "5:6,852:1000,0:200")),
    ],
)
def test_a_box_is_divided_along_z_or_along_the_longer_side(shape, tile, parts):
    box = Box.at((5, 0, 0), shape)
    assert tuple(str(part) for part in plan_split(box, tile).values()) == parts


@pytest.mark.parametrize("shape", list(itertools.product((3, 10, 11, 17, 250), (96, 333), (97, 1024))))
def test_parts_hold_tiles_share_no_voxel_and_are_near_their_shares(shape):
    box, tile = Box.at((0, 0, 0), shape), (1, 16, 24)
    parts = list(plan_split(box, tile).values())
    for part in parts:
        assert box.contains(part)
        assert all(n >= t for n, t in zip(part.shape, tile, strict=True))
    assert not any(a.overlaps(b) for a, b in itertools.combinations(parts, 2))
    total = sum(part.num_voxels for part in parts)
    assert 0.4 < parts[0].num_voxels / total < 0.8
    assert parts[1].shape == parts[2].shape
    assert parts[2].stop == box.stop


def test_a_box_that_holds_no_three_tiles_is_not_split():
    assert plan_split(Box((0, 0, 0), (9, 100, 90)), (1, 32, 32)) is None


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with an image of 24 sections and an annotation of 16 of them, which states its place."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    image, labels = rng.integers(1, 256, (24, 64, 160), np.uint8), rng.integers(0, 2, (24, 64, 160), np.uint8)
    part = slice(6, 22), slice(0, 64), slice(20, 140)
    for name, voxels in (("em", image), ("all", labels), ("part", labels[part])):
        array = zarr.create_array(f"{name}.zarr", data=voxels, chunks=(2, 32, 32))
        array.attrs["voxel_size_nm_zyx"] = [30, 5, 5]
    return tmp_path


def settings_of(annotation, *assignments, **task):
    flags = {
        "task": {"image_chan": "em.zarr?offset_nm=0,0,0", "annotation_chan": annotation},
        "train": {"cache": "none"},
    }
    return resolve_settings(GivenSettings({**TASK, **task}, assignments=assignments, flags=flags))


def typed(note: str) -> list[str]:
    words = shlex.split(note[note.index("--set") :])
    assert words.count("--set") == 1
    return words[1:]


PART = "part.zarr?offset_nm=180,0,100"


@pytest.mark.parametrize(("annotation", "tile"), [("all.zarr", 32), (PART, 32)])
@pytest.mark.parametrize("sections", [16, 5])
def test_the_split_that_is_printed_gives_the_same_tiles_when_it_is_typed(folder, annotation, tile, sections):
    more = {"tile_size": [tile, tile]} if sections > 10 else {"tile_size": [tile, tile], "volume_z": 9}
    notes: list[str] = []
    filled = split_volume(settings_of(annotation, **more), notes.append)
    (note,) = notes
    tiles = open_task_tiles(filled, notes.append)
    again = settings_of(annotation, *typed(note), **more)
    assert not again.task.needs_split
    assert split_volume(again, notes.append) is again
    other = open_task_tiles(again, notes.append)
    for split in ("train", "val", "test"):
        boxes = [source.box for source in getattr(tiles, split).sources]
        assert boxes == [source.box for source in getattr(other, split).sources]
    assert again.training_record()["task"] == filled.training_record()["task"]


def test_the_part_that_is_annotated_is_split(folder):
    task = split_volume(settings_of(PART), lambda note: None).task
    assert (task.xrange_vol, task.yrange_vol) == ([20, 140], [0, 64])
    assert (task.z_train, task.z_val, task.z_test) == ([6, 16], [17, 19], [20, 22])


def test_ranges_of_the_plane_hold_and_a_range_that_is_missing_is_that_of_the_annotation(folder):
    task = split_volume(settings_of("all.zarr", "task.xrange_vol=10,90"), lambda note: None).task
    assert (task.xrange_vol, task.yrange_vol, task.z_train) == ([10, 90], [0, 64], [0, 16])
    notes: list[str] = []
    given = settings_of(PART, "task.z_train=6,12", "task.z_val=13,15")
    task = split_volume(given, notes.append).task
    assert (task.xrange_vol, task.z_train, task.z_test) == ([20, 140], [6, 12], None)
    assert notes[0].startswith("the task gives no ranges of x and y: all that is annotated is used.")
    with pytest.raises(
        InputError, match=r"the part of em.zarr.* that is split is outside the volume: .*0:24,0:64,0:160"
    ):
        split_volume(settings_of("all.zarr", "task.xrange_vol=10,190"), lambda note: None)


def test_a_run_that_was_begun_keeps_its_split(folder):
    record = {"z_train": [0, 5], "z_val": [6, 8], "z_test": None, "xrange_vol": [0, 64], "yrange_vol": [0, 64]}
    notes: list[str] = []
    task = split_volume(settings_of("all.zarr"), notes.append, record).task
    assert {key: getattr(task, key) for key in record} == record
    assert typed(notes[0])[2] == "task.z_train=0,5"
    boxes = {"train": [{"box": "0:5,0:64,0:32"}], "val": [{"box": "6:9,0:64,0:32"}], "test": []}
    task = split_volume(settings_of("all.zarr"), notes.append, {"boxes": boxes}).task
    assert task.boxes.model_dump(mode="json") == boxes
    assert json.loads(typed(notes[1])[0].removeprefix("task.boxes=")) == boxes


def test_a_volume_that_is_too_small_is_refused_with_what_to_type(folder):
    with pytest.raises(InputError, match=r"no ranges are given, and em.zarr.* is too small .* task.tile_size=32,32"):
        split_volume(settings_of("all.zarr", volume_z=20, tile_size=[128, 128]), lambda note: None)

"""Ranges of a task file whose image is replaced: not used in silence."""

import json

import pytest

from kasthuri_ray.config.loading import GivenSettings, resolve_settings
from kasthuri_ray.config.task import RANGES

OWN = {"image_chan": "a.zarr", "annotation_chan": "b.zarr"}
MINE = OWN | dict(zip(RANGES, ([0, 64], [8, 64], [0, 10], [10, 14], [14, 20]), strict=True))


def resolved(task, *assignments, **volumes):
    settings = resolve_settings(GivenSettings(task, assignments=assignments, flags={"task": volumes}))
    return settings.task, settings.notes.get("task.ranges", "")


def test_the_ranges_of_a_built_in_task_are_not_used_for_another_image():
    task, note = resolved("membrane", image_chan="c.tif", annotation_chan="d.tif")
    assert task.needs_split
    assert [getattr(task, key) for key in RANGES] == [None] * 5
    assert task.task_type == "membrane"
    assert note.startswith("xrange_vol, yrange_vol, z_train, z_val, z_test of the task membrane_task belong to bossdb:")
    assert note.endswith("not to c.tif: they are not used")


@pytest.mark.parametrize("volumes", [{}, {"annotation_chan": "d.tif"}, {"image_chan": "bossdb://Kasthuri/ac4/em"}])
def test_the_ranges_of_a_built_in_task_are_used_for_its_own_image(volumes):
    task, note = resolved("membrane", **volumes)
    assert (task.z_train, task.z_test, note) == ([0, 80], [90, 100], "")


def test_ranges_of_the_command_line_replace_those_of_a_built_in_task():
    task, note = resolved("membrane", "task.z_train=0,5", "task.z_val=6,9", "task.z_test=9,12", image_chan="c.tif")
    assert (task.z_train, task.z_test, task.xrange_vol) == ([0, 5], [9, 12], None)
    assert note.startswith("xrange_vol, yrange_vol of the task")


def test_the_ranges_of_ones_own_file_are_not_used_for_another_image(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(MINE))
    task, note = resolved(str(file), image_chan="https://h/c.zarr?key=secret")
    assert task.needs_split
    assert f"z_test of {file} belong to a.zarr, not to https://h/c.zarr: they are not used" in note
    for same in ("a.zarr", str(tmp_path / "a.zarr")):
        assert resolved(str(file), image_chan=same)[1] == ""
    boxes = {"train": [{"box": "0:4,:,:"}], "val": [{"box": "4:6,:,:"}]}
    assert resolved(str(file), f"task.boxes={json.dumps(boxes)}", image_chan="c.zarr")[1] == ""
    file.write_text(json.dumps({key: value for key, value in MINE.items() if key not in OWN}))
    assert resolved(str(file), image_chan="c.zarr", annotation_chan="d.zarr")[1] == ""


BOXES = {"train": [{"box": "0:4,:,:"}], "val": [{"box": "4:6,:,:"}]}


@pytest.mark.parametrize("image", ["c.zarr", "https://h/c.zarr"])
def test_the_boxes_of_ones_own_file_are_not_used_for_another_image(tmp_path, image):
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(OWN | {"boxes": BOXES}))
    task, note = resolved(str(file), image_chan=image)
    assert (task.boxes, task.needs_split) == (None, True)
    kept = "; its annotation b.zarr is (--annotation names another)"
    assert note == f"boxes of {file} belong to a.zarr, not to {image}: they are not used{kept}"
    assert not resolved(str(file), image_chan=image, annotation_chan="d.zarr")[1].endswith(kept)
    assert resolved(str(file), image_chan="a.zarr")[0].boxes is not None
    file.write_text(json.dumps({"boxes": BOXES}))
    task, note = resolved(str(file), image_chan=image, annotation_chan="d.zarr")
    assert (task.regions("val")[0].image, note) == (image, "")


def test_the_ranges_of_a_config_file_are_not_used_for_another_image(tmp_path):
    file = tmp_path / "settings.json"
    for own, name in ((MINE, "xrange_vol"), (OWN | {"boxes": BOXES}, "boxes")):
        file.write_text(json.dumps({"task": own}))
        settings = resolve_settings(GivenSettings(config=str(file), flags={"task": {"image_chan": "c.tif"}}))
        assert settings.task.needs_split
        assert f"{name}" in settings.notes["task.ranges"]
        assert f"of {file} belong to a.zarr, not to c.tif: they are not used" in settings.notes["task.ranges"]
        assert not resolve_settings(GivenSettings(config=str(file))).task.needs_split

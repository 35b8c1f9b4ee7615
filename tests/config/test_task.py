"""Settings of a task: ranges, boxes and splits, and the messages about wrong ones."""

import json

import pytest

from kasthuri_ray.config.loading import GivenSettings, resolve_settings
from kasthuri_ray.config.task import RANGES, SPLITS, TaskSettings, region_box
from kasthuri_ray.errors import InputError
from kasthuri_ray.geometry import Box

NO_RANGES = {"image_chan": "phantom://em?shape=20,64,64", "annotation_chan": "phantom://synapse?shape=20,64,64"}
TASK = NO_RANGES | dict(zip(RANGES, ([0, 64], [8, 64], [0, 10], [10, 14], [14, 20]), strict=True))


def refused(tmp_path, **changes) -> str:
    """Return the message about a task file with these changes."""
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({**(NO_RANGES if "boxes" in changes else TASK), **changes}))
    with pytest.raises(ValueError, match=r".") as caught:
        resolve_settings(GivenSettings(str(file)))
    return str(caught.value).replace(str(file), "FILE")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"z_train": [5, 5]}, "FILE: task.z_train is [5, 5]: it holds no voxels; a range is [start, stop]"),
        ({"z_train": [5]}, "FILE: task.z_train is [5]: List should have at least 2 items, not 1"),
        ({"xrange_vol": [-1, 5]}, "FILE: task.xrange_vol.0 is -1: expected greater than or equal to 0"),
        ({"threshold": 1}, "FILE: task.threshold is 1: expected true or false"),
        ({"threshold_value": float("inf")}, "FILE: task.threshold_value is Infinity: expected a finite number"),
        ({"threshold_value": float("nan")}, "FILE: task.threshold_value is NaN: expected a finite number"),
        ({"image_intensity": [0, float("inf")]}, "task.image_intensity.1 is Infinity: expected a finite number"),
        ({"background": "none"}, 'FILE: task.background is "none": expected a list'),
        ({"background": True}, "FILE: task.background is true: expected a list"),
        ({"background": [0, 1.5]}, "FILE: task.background.1 is 1.5: expected a whole number"),
        ({"background": [0, 5], "ignore_label": 5}, "FILE: task: ignore_label and background are both 5: a label has"),
        ({"background": 7, "ignore_label": [0, 7]}, "FILE: task: ignore_label and background are both 7: a label has"),
        ({"labels": {"ignore": 0, "background": 1}}, "FILE: task: labels names no class but the background"),
        ({"labels": {"background": 0, "a": 1, "b": 1}}, "FILE: task: labels: two names have the same label"),
        ({"labels": {"background": 0, "a": 1}, "ignore_label": 255}, "FILE: task: labels says what every label means:"),
        (
            {"classes": ["background", "a", "b"], "threshold": True},
            "FILE: task: threshold leaves two classes, but classes",
        ),
        ({"foreground_share": 1.5}, "FILE: task.foreground_share is 1.5: expected less than or equal to 1"),
        (
            {"loss": "dice"},
            "FILE: task.loss is \"dice\": expected 'cross_entropy', 'weighted_cross_entropy', 'dice_ce'",
        ),
        ({"tile_size": [256, 0]}, "FILE: task.tile_size.1 is 0: expected greater than or equal to 1"),
        ({"z_tain": [0, 1]}, "FILE: no setting task.z_tain; did you mean task.z_train?"),
        ({"labels": {"background": 0, "a": 1}, "ignore_label": 0}, "FILE: task: labels says what every label means:"),
        ({"z_val": None}, "FILE: task: z_train, z_test needs z_val too (or boxes, or no ranges: then it is split)"),
        ({"z_train": None, "xrange_vol": None}, "FILE: task: z_val, z_test needs z_train too (or boxes"),
        (
            {"image_chan": None},
            "FILE: task: needs image_chan and annotation_chan for train (or --image and --annotation)",
        ),
        (
            {"image_intensity": "all"},
            'task.image_intensity is "all": expected a list, such as [VALUE,VALUE], or an object',
        ),
        (
            {"image_intensity": {"percentiles": 1}},
            "FILE: task.image_intensity.percentiles is 1: expected a list",
        ),
        ({"boxes": {"train": [{"box": ":,:,:"}]}}, "FILE: task.boxes.val is"),
        (
            {"boxes": {"train": [{"bax": ":,:,:"}], "val": [{"box": ":,:,:"}]}},
            'FILE: task.boxes.train.0.bax is ":,:,:": there is no such setting',
        ),
        (
            {"boxes": {"train": [{"box": [[0, 1], [3, 2], [0, 1]]}], "val": [{"box": ":,:,:"}]}},
            "FILE: task.boxes.train.0.box.1 is [3, 2]: it holds no voxels",
        ),
        (
            {"boxes": {"train": [{"box": ":,:,:", "annotation": None}], "val": [{"box": ":,:,:"}]}},
            "needs image_chan and annotation_chan for train",
        ),
        ({"z_gap": 4}, "FILE: task: z_gap 4 leaves nothing of z_val [10, 14]"),
        (
            {"z_gap": 1, "boxes": {"train": [{"box": ":,:,:"}], "val": [{"box": ":,:,:"}]}},
            "z_gap applies only to z_train",
        ),
    ],
)
def test_a_wrong_task_is_refused_with_file_key_value_and_what_is_allowed(tmp_path, changes, message):
    error = refused(tmp_path, **changes)
    assert message in error
    assert "pydantic" not in error


def test_all_errors_of_a_file_are_reported_together(tmp_path):
    errors = refused(tmp_path, z_train=[1, 0], threshold="yes").splitlines()
    assert [line.split(" is ")[0] for line in errors] == ["FILE: task.z_train", "FILE: task.threshold"]


def test_the_ranges_of_a_task_become_boxes_in_z_y_x_order():
    (region,) = TaskSettings(**TASK).regions("val")
    assert region_box(region, Box((0, 0, 0), (20, 64, 64)), "", "") == Box((10, 8, 0), (14, 64, 64))
    assert (region.image, region.annotation) == (TASK["image_chan"], TASK["annotation_chan"])
    assert TaskSettings(**TASK, tile_size=[48, 32], volume_z=3).tile == (3, 32, 48)


def test_a_box_outside_the_image_is_refused_with_its_split_and_the_bounds():
    (region,) = TaskSettings(**TASK).regions("test")
    with pytest.raises(ValueError, match=r"the test box 14:20,8:64,0:64 is outside the volume em.zarr, 0:18,0:64,0:64"):
        region_box(region, Box((0, 0, 0), (18, 64, 64)), "the test box", "em.zarr")


def test_before_its_volume_is_split_a_task_without_ranges_is_one_region():
    task = TaskSettings(**NO_RANGES)
    assert task.needs_split
    assert [region.box for split in SPLITS for region in task.regions(split)] == [":,:,:"]
    assert not TaskSettings(**TASK).needs_split
    assert not TaskSettings(**{**TASK, "z_test": None}).needs_split
    assert TaskSettings(**{**TASK, "xrange_vol": None}).needs_split


def test_a_z_gap_leaves_out_sections_between_the_splits():
    def ranges(**changes):
        task = TaskSettings(**{**TASK, **changes})
        return [region.box[0] for split in ("train", "val", "test") for region in task.regions(split)]

    assert ranges() == [[0, 10], [10, 14], [14, 20]]
    assert ranges(z_gap=2) == [[0, 10], [12, 14], [16, 20]]
    assert ranges(z_gap=2, z_val=[11, 14]) == [[0, 10], [12, 14], [16, 20]]
    assert ranges(z_gap=2, z_val=[13, 14], z_test=None) == [[0, 10], [13, 14]]
    # The split that comes first in z stays whole.
    assert ranges(z_gap=1, z_train=[10, 20], z_val=[0, 5], z_test=[5, 10]) == [[11, 20], [0, 5], [6, 10]]
    # The gap does not hide an overlap.
    assert ranges(z_gap=1, z_val=[9, 14]) == [[0, 10], [9, 14], [15, 20]]


def test_a_test_region_may_have_no_annotation():
    splits = {"train": [{"box": "0:4,:,:"}], "val": [{"box": "4:6,:,:"}]}
    for none in ({"annotation": None}, {"annotation": ""}):
        task = TaskSettings(**NO_RANGES, boxes={**splits, "test": [{"box": "6:8,:,:", **none}]})
        assert [region.annotation for region in task.regions("test")] == [None]
        assert task.regions("train")[0].annotation == TASK["annotation_chan"]
    assert TaskSettings(**{**TASK, "z_test": None}).regions("test") == []
    assert TaskSettings(**NO_RANGES, boxes=splits).regions("test") == []


def test_boxes_and_ranges_together_are_refused(tmp_path):
    boxes = {"train": [{"box": "0:4,:,:"}], "val": [{"box": "4:6,:,:"}]}
    error = refused(tmp_path, boxes=boxes, z_train=[0, 4])
    assert error == "FILE: task: boxes and z_train are both set; boxes replace the ranges"
    # Boxes of --set replace the ranges of the file; ranges of --set do not replace its boxes.
    ranges, boxed = tmp_path / "ranges.json", tmp_path / "boxed.json"
    ranges.write_text(json.dumps(TASK))
    boxed.write_text(json.dumps({**NO_RANGES, "boxes": boxes}))
    task = resolve_settings(GivenSettings(str(ranges), assignments=[f"task.boxes={json.dumps(boxes)}"])).task
    assert task.z_train is None
    assert [region.box for region in task.regions("train")] == ["0:4,:,:"]
    with pytest.raises(ValueError, match=r"boxes and z_train are both set"):
        resolve_settings(GivenSettings(str(boxed), assignments=["task.z_train=0,4"]))


def test_boxes_are_written_and_read_without_change():
    regions = [{"box": ":,:,:"}, {"box": [[0, 1], [0, 2], [0, 3]], "image": "a.zarr", "annotation": None}]
    boxes = {"train": regions[:1], "val": regions[:1], "test": regions}
    written = TaskSettings(**NO_RANGES, boxes=boxes).model_dump(mode="json")
    assert written["boxes"] == boxes
    assert TaskSettings(**written).model_dump(mode="json") == written


def test_half_of_the_tiles_of_a_synapse_task_are_drawn_around_synapses_by_default():
    assert TaskSettings(**TASK, task_type="synapse").share_on_foreground == 0.5
    assert TaskSettings(**TASK, task_type="membrane").share_on_foreground == 0.0
    assert TaskSettings(**TASK, task_type="synapse", foreground_share=0.0).share_on_foreground == 0.0


@pytest.mark.parametrize(
    ("text", "labels"),
    [("18446744073709551615", [2**64 - 1]), ("-1", [-1]), ("0,18446744073709551615", [0, 2**64 - 1]), ("[]", [])],
)
def test_background_is_a_label_or_several_of_any_size(tmp_path, text, labels):
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(TASK))
    settings = resolve_settings(GivenSettings(str(file), assignments=[f"task.background={text}"]))
    assert settings.task.background == labels
    assert json.loads(json.dumps(settings.training_record()))["task"]["background"] == labels


LABELS = 'task.labels={"unlabelled":0,"background":1,"membrane":2}'
CLASSES = 'task.classes=["background","membrane"]'


@pytest.mark.parametrize("assignments", [[LABELS, CLASSES], [CLASSES, LABELS]])
def test_labels_and_classes_on_one_command_line_are_refused_in_either_order(assignments):
    with pytest.raises(InputError, match="labels says what every label means: leave out classes"):
        resolve_settings(GivenSettings(TASK, assignments=assignments))


def test_labels_on_the_command_line_replace_the_classes_of_a_file():
    settings = resolve_settings(GivenSettings({**TASK, "classes": ["background", "a", "b"]}, assignments=[LABELS]))
    assert (settings.task.classes, settings.network.classes) == (None, 2)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({}, ["membrane"]),
        ({"classes": ["background", "membrane", "synapse"]}, ["membrane", "synapse"]),
        ({"labels": {"synapse": 9, "Background": 1, "unlabelled": 0, "membrane": 2}}, ["membrane", "synapse"]),
        ({"labels": {"cell": 2, "nucleus": 1}}, ["nucleus", "cell"]),
    ],
)
def test_named_classes_set_the_number_of_classes_of_the_network(changes, names):
    settings = resolve_settings(GivenSettings({**TASK, **changes}))
    assert settings.class_names == names
    assert settings.network.classes == len(names) + 1
    again = resolve_settings(GivenSettings({**TASK, **settings.task.model_dump(mode="json", exclude_none=True)}))
    assert again.task == settings.task


def test_another_number_of_classes_on_the_command_line_is_refused():
    given = GivenSettings({**TASK, "classes": ["background", "a", "b"]}, assignments=["network.classes=2"])
    with pytest.raises(InputError, match=r"network.classes is 2, but the task names 3 classes"):
        resolve_settings(given)

"""What settings allow, and how what they do not allow is said."""

import json

import pytest

from kasthuri_ray.config.loading import resolve_settings
from kasthuri_ray.config.settings import NetworkSettings, TrainSettings
from kasthuri_ray.config.task import RANGES, TaskSettings, region_box
from kasthuri_ray.geometry import Box

TASK = {
    "image_chan": "phantom://em?shape=20,64,64",
    "annotation_chan": "phantom://synapse?shape=20,64,64",
    "xrange_vol": [0, 64],
    "yrange_vol": [8, 64],
    "z_train": [0, 10],
    "z_val": [10, 14],
    "z_test": [14, 20],
}


NO_RANGES = {key: value for key, value in TASK.items() if key not in RANGES}


def refused(tmp_path, **changes) -> str:
    """What is said of a task file with these changes."""
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({**(NO_RANGES if "boxes" in changes else TASK), **changes}))
    with pytest.raises(ValueError, match=r".") as caught:
        resolve_settings(str(file), None)
    return str(caught.value).replace(str(file), "FILE")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"z_train": [5, 5]}, "FILE: task.z_train is [5, 5]: it holds no voxels; a range is [start, stop]"),
        ({"z_train": [5]}, "FILE: task.z_train is [5]: List should have at least 2 items, not 1"),
        ({"xrange_vol": [-1, 5]}, "FILE: task.xrange_vol.0 is -1: expected greater than or equal to 0"),
        ({"threshold": 1}, "FILE: task.threshold is 1: expected a valid boolean"),
        ({"threshold_value": float("inf")}, "FILE: task.threshold_value is Infinity: expected a finite number"),
        ({"threshold_value": float("nan")}, "FILE: task.threshold_value is NaN: expected a finite number"),
        ({"image_intensity": [0, float("inf")]}, "task.image_intensity.1 is Infinity: expected a finite number"),
        ({"foreground_share": 1.5}, "FILE: task.foreground_share is 1.5: expected less than or equal to 1"),
        (
            {"loss": "dice"},
            "FILE: task.loss is \"dice\": expected 'cross_entropy', 'weighted_cross_entropy', 'dice_ce'",
        ),
        ({"tile_size": [256, 0]}, "FILE: task.tile_size.1 is 0: expected greater than or equal to 1"),
        ({"z_tain": [0, 1]}, "FILE: no setting task.z_tain; did you mean z_train?"),
        ({"z_val": None}, "FILE: task: needs z_val (or boxes)"),
        (
            {"image_chan": None},
            "FILE: task: needs image_chan and annotation_chan for train (or --image and --annotation)",
        ),
        (
            {"image_intensity": "all"},
            'task.image_intensity is "all": expected a valid list, or expected a valid dictionary',
        ),
        (
            {"image_intensity": {"percentiles": 1}},
            "FILE: task.image_intensity.percentiles is 1: expected a valid list",
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
        ({"z_gap": 1, "boxes": {"train": [{"box": ":,:,:"}], "val": [{"box": ":,:,:"}]}}, "z_gap goes with z_train"),
    ],
)
def test_a_wrong_task_is_refused_by_file_key_and_what_is_allowed(tmp_path, changes, words):
    said = refused(tmp_path, **changes)
    assert words in said
    assert "pydantic" not in said


def test_every_mistake_is_named_at_once(tmp_path):
    said = refused(tmp_path, z_train=[1, 0], threshold="yes").splitlines()
    assert [line.split(" is ")[0] for line in said] == ["FILE: task.z_train", "FILE: task.threshold"]


def test_the_ranges_become_boxes_in_z_y_x():
    (region,) = TaskSettings(**TASK).regions("val")
    assert region_box(region, Box((0, 0, 0), (20, 64, 64)), "") == Box((10, 8, 0), (14, 64, 64))
    assert (region.image, region.annotation) == (TASK["image_chan"], TASK["annotation_chan"])
    assert TaskSettings(**TASK, tile_size=[48, 32], volume_z=3).tile == (3, 32, 48)


def test_a_box_outside_names_its_split_and_the_bounds():
    (region,) = TaskSettings(**TASK).regions("test")
    with pytest.raises(
        ValueError, match=r"the test box: box '14:20,8:64,0:64' is outside the volume: .* 0:18,0:64,0:64"
    ):
        region_box(region, Box((0, 0, 0), (18, 64, 64)), "the test box")


def test_sections_are_left_out_between_the_splits():
    def ranges(**changes):
        task = TaskSettings(**{**TASK, **changes})
        return [region.box[0] for split in ("train", "val", "test") for region in task.regions(split)]

    assert ranges() == [[0, 10], [10, 14], [14, 20]]
    assert ranges(z_gap=2) == [[0, 10], [12, 14], [16, 20]]
    assert ranges(z_gap=2, z_val=[11, 14]) == [[0, 10], [12, 14], [16, 20]]
    assert ranges(z_gap=2, z_val=[13, 14], z_test=None) == [[0, 10], [13, 14]]
    # Whichever comes first in z stays whole.
    assert ranges(z_gap=1, z_train=[10, 20], z_val=[0, 5], z_test=[5, 10]) == [[11, 20], [0, 5], [6, 10]]
    # What overlaps is not hidden by the gap.
    assert ranges(z_gap=1, z_val=[9, 14]) == [[0, 10], [9, 14], [15, 20]]


def test_a_test_box_may_have_no_annotation():
    splits = {"train": [{"box": "0:4,:,:"}], "val": [{"box": "4:6,:,:"}]}
    for none in ({"annotation": None}, {"annotation": ""}):
        task = TaskSettings(**NO_RANGES, boxes={**splits, "test": [{"box": "6:8,:,:", **none}]})
        assert [region.annotation for region in task.regions("test")] == [None]
        assert task.regions("train")[0].annotation == TASK["annotation_chan"]
    assert TaskSettings(**{**TASK, "z_test": None}).regions("test") == []
    assert TaskSettings(**NO_RANGES, boxes=splits).regions("test") == []


def test_no_secret_of_a_url_is_written():
    train = TrainSettings(weights="https://host/w.pt?X-Amz-Signature=abc", mlflow="https://me:secret@host/mlflow")
    assert train.weights.endswith("Signature=abc")
    written = train.model_dump(mode="json")
    assert (written["weights"], written["mlflow"]) == ("https://host/w.pt", "https://host/mlflow")
    assert TrainSettings(weights="runs/a@b/best.pt").model_dump(mode="json")["weights"] == "runs/a@b/best.pt"


def test_boxes_and_ranges_are_not_both_taken(tmp_path):
    boxes = {"train": [{"box": "0:4,:,:"}], "val": [{"box": "4:6,:,:"}]}
    said = refused(tmp_path, boxes=boxes, z_train=[0, 4])
    assert said == "FILE: task: boxes and z_train are both given; boxes stand instead of the ranges"
    # Boxes from above stand instead of the file's ranges; ranges from above say that boxes are in their way.
    ranges, boxed = tmp_path / "ranges.json", tmp_path / "boxed.json"
    ranges.write_text(json.dumps(TASK))
    boxed.write_text(json.dumps({**NO_RANGES, "boxes": boxes}))
    task = resolve_settings(str(ranges), None, assignments=[f"task.boxes={json.dumps(boxes)}"]).task
    assert task.z_train is None
    assert [region.box for region in task.regions("train")] == ["0:4,:,:"]
    with pytest.raises(ValueError, match=r"boxes and z_train are both given"):
        resolve_settings(str(boxed), None, assignments=["task.z_train=0,4"])


def test_boxes_read_back_as_they_were_given():
    regions = [{"box": ":,:,:"}, {"box": [[0, 1], [0, 2], [0, 3]], "image": "a.zarr", "annotation": None}]
    given = {"train": regions[:1], "val": regions[:1], "test": regions}
    written = TaskSettings(**NO_RANGES, boxes=given).model_dump(mode="json")
    assert written["boxes"] == given
    assert TaskSettings(**written).model_dump(mode="json") == written


def test_half_of_the_tiles_hold_synapses_unless_the_task_says_otherwise():
    assert TaskSettings(**TASK, task_type="synapse").share_on_foreground == 0.5
    assert TaskSettings(**TASK, task_type="membrane").share_on_foreground == 0.0
    assert TaskSettings(**TASK, task_type="synapse", foreground_share=0.0).share_on_foreground == 0.0


@pytest.mark.parametrize(
    ("given", "workers"), [(None, None), (3, (3, 3)), ("4", (4, 4)), ("2-8", (2, 8)), ("2-2", (2, 2))]
)
def test_workers_are_a_number_or_a_range(given, workers):
    assert TrainSettings(num_workers=given).workers == workers


@pytest.mark.parametrize("given", ["0", 0, -1, "x", "4-2", "2-", "-2", "0-2", 1.5, True, "", "²", "2-³", "٣", "2-4-8"])
def test_other_workers_are_refused(given):
    with pytest.raises(ValueError, match="expected N or MIN-MAX, such as 4 or 2-8"):
        TrainSettings(num_workers=given)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("learning_rate", "Infinity", "is Infinity: expected a finite number"),
        ("learning_rate", "1e999", "is Infinity: expected a finite number"),
        ("weight_decay", "NaN", "is NaN: expected a finite number"),
        ("beta1", "1", "is 1: expected less than 1"),
        ("beta2", "1.0", "is 1.0: expected less than 1"),
        ("start_filters", "1000000000", "is 1000000000: expected less than or equal to 65536"),
    ],
)
def test_numbers_that_no_run_could_use_are_refused_with_what_is_allowed(key, value, words):
    with pytest.raises(ValueError, match=r".") as caught:
        resolve_settings("synapse", None, assignments=[f"network.{key}={value}"])
    assert str(caught.value) == f"--set network.{key}={value}: network.{key} {words}"


def test_the_challenges_zero_augments_as_it_did():
    assert NetworkSettings(augmentations=0).augmentations == "basic"
    assert NetworkSettings(augmentations="none").augmentations == "none"
    with pytest.raises(ValueError, match="'none', 'basic' or 'em'"):
        NetworkSettings(augmentations=False)


def test_class_weights_are_one_a_class():
    assert NetworkSettings(class_weights=[1, 2.5]).class_weights == [1, 2.5]
    with pytest.raises(ValueError, match="class_weights has 3 values for 2 classes"):
        NetworkSettings(class_weights=[1, 2, 3])


def test_no_secret_of_a_volumes_address_is_written():
    from kasthuri_ray.config.loading import resolve_settings

    signed = "https://me:pw@lab.org/em.zarr?token=secret"
    boxes = {name: [{"image": signed, "box": f"{n}:{n + 2},:,:"}] for n, name in enumerate(("train", "val"))}
    for task in ({"image_chan": signed, "annotation_chan": signed}, {"boxes": boxes, "annotation_chan": signed}):
        settings = resolve_settings("membrane", "UNet_2D", flags={"task": task, "train": {"weights": signed}})
        assert settings.task.annotation_chan == signed
        written = json.dumps(settings.of_training())
        assert "secret" not in written
        assert "pw@" not in written
        assert "https://lab.org/em.zarr" in written

"""Messages about settings: notes about likely mistakes, and errors that name the flag or file to change."""

import json

import pytest

from kasthuri_ray.config.loading import GivenSettings, resolve_settings

REGION = {"image": "a.zarr", "annotation": "b.zarr", "box": ":,:,:"}


def test_a_note_lists_what_a_config_file_changes_in_the_named_files(files):
    network = files("net.json", {"learning_rate": 0.1, "epochs": 2, "seed": 2})
    changes = {"learning_rate": 0.5, "epochs": 2, "loss": "dice_ce", "seed": 3, "optimizer": "SGD", "momentum": 0.5}
    config = files("best.json", {"network": {**changes, "start_filters": 8}})
    notes = resolve_settings(GivenSettings("synapse", network, config=config, assignments=["network.seed=7"])).notes
    assert notes == {
        "network": "best.json overrides --network net.json: network.start_filters is 8, not 32; network.optimizer "
        "is SGD, not Adam; network.learning_rate is 0.5, not 0.1; network.momentum is 0.5, not 0.9; and 1 more (--set "
        "overrides both)"
    }
    assert resolve_settings(GivenSettings("synapse", config=config)).notes == {}
    assert (
        resolve_settings(GivenSettings("synapse", network, config=files("same.json", {"network": {"epochs": 2}}))).notes
        == {}
    )
    lacking = files("lacking.json", {"name": "a"})
    whole = resolve_settings(GivenSettings("synapse")).task.model_dump(mode="json")
    assert resolve_settings(GivenSettings(lacking, config=files("whole.json", {"task": whole}))).notes == {}


def test_a_note_says_that_a_config_file_sets_where_the_run_is_stored(files):
    config = files("settings.json", {"train": {"name": "first", "storage": "s3://lab/runs", "compile": "off"}})
    assert resolve_settings(GivenSettings("synapse", config=config)).notes == {
        "train": "settings.json sets where the run is stored: train.storage is s3://lab/runs, not outputs; train.name "
        "is first, not none (--name and --storage override it)"
    }
    typed = {"train": {"name": "second", "storage": "runs"}}
    assert resolve_settings(GivenSettings("synapse", config=config, flags=typed)).notes == {}


def test_notes_are_not_written_with_the_settings(files):
    config = files("settings.json", {"train": {"name": "first"}})
    settings = resolve_settings(GivenSettings("synapse", config=config))
    assert settings.notes
    assert "notes" not in settings.model_dump()
    assert "first (" not in json.dumps(settings.training_record())


@pytest.mark.parametrize(
    ("task_type", "meant"),
    [
        ("synapes", "synapse"),
        ("Synapse", "synapse"),
        ("membranes", "membrane"),
        ("synapse", None),
        ("membrane", None),
        ("mitochondria", None),
        ("axon", None),
        ("", None),
    ],
)
def test_a_task_type_that_is_nearly_a_known_one_is_accepted_with_a_note(task_type, meant):
    settings = resolve_settings(GivenSettings("synapse", assignments=[f"task.task_type={task_type}"]))
    assert settings.task.task_type == task_type
    expected = f"task.task_type '{task_type}' is a type of its own, without the defaults of '{meant}'; did you mean"
    assert list(settings.notes) == ([] if meant is None else ["task.task_type"])
    assert meant is None or settings.notes["task.task_type"].startswith(expected)


def task_with_boxes(files, image="x.zarr", **left_out) -> str:
    """Write a task whose regions name image and annotation, except for one key of a split; return its name."""
    regions = {split: [{**REGION}] for split in ("train", "val", "test")}
    for split, key in left_out.items():
        del regions[split][0][key]
    return files("boxed.json", {"image_chan": image, "annotation_chan": "y.zarr", "boxes": regions})


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"flags": {"task": {"image_chan": "c.zarr"}}}, '--image has no effect: .* "image" from the regions'),
        ({"flags": {"task": {"annotation_chan": "c.zarr"}}}, "--annotation has no effect"),
        ({"assignments": ["task.image_chan=c.zarr"]}, "--set task.image_chan=c.zarr has no effect"),
    ],
)
def test_an_image_that_no_region_would_use_is_refused(files, overrides, message):
    with pytest.raises(ValueError, match=message):
        resolve_settings(GivenSettings(task_with_boxes(files), **overrides))


def test_an_image_is_accepted_if_one_region_uses_it_and_belongs_to_no_other(files):
    flags = {"task": {"image_chan": "c.zarr"}}
    with pytest.raises(
        ValueError, match=r"1 of 3 regions in task\.boxes name no image: they belong to x\.zarr, not to"
    ):
        resolve_settings(GivenSettings(task_with_boxes(files, val="image"), flags=flags))
    task = resolve_settings(GivenSettings(task_with_boxes(files, "c.zarr", val="image"), flags=flags)).task
    assert [task.regions(split)[0].image for split in ("train", "val")] == ["a.zarr", "c.zarr"]
    with pytest.raises(ValueError, match=r"every region in task\.boxes sets its own annotation"):
        resolve_settings(
            GivenSettings(task_with_boxes(files, val="image"), flags={"task": {"annotation_chan": "c.zarr"}})
        )
    resolve_settings(GivenSettings(task_with_boxes(files)))


def test_an_error_about_two_settings_names_the_flag_that_set_one_of_them(files):
    def refused(*assignments):
        with pytest.raises(ValueError, match=r".") as caught:
            resolve_settings(GivenSettings("synapse", assignments=assignments))
        return str(caught.value)

    assert refused("task.z_gap=50").startswith("--set task.z_gap=50: task: z_gap 50 leaves nothing of z_val")
    assert refused("network.class_weights=1,2,3").startswith(
        "--set network.class_weights=1,2,3: network: class_weights"
    )
    assert refused("network.classes=3", "network.class_weights=1,2").startswith("--set network.class_weights=1,2: ")
    assert refused("task.image_chan=null").startswith("--set task.image_chan=null: task: needs image_chan")

"""Differences between the settings that something was started with and the current ones."""

import json

from kasthuri_ray.config.differences import record_differences, setting_differences
from kasthuri_ray.config.loading import GivenSettings, resolve_settings


def test_records_are_compared_by_key_and_tuples_equal_lists():
    before = {"tile": [1, 2, 3], "network": {"depth": 4}}
    assert record_differences(before, {"network": {"depth": 4}, "tile": (1, 2, 3)}) == []
    assert record_differences(before, {"tile": (1, 2, 4), "network": {"depth": 5, "new": None}}) == [
        "network.depth: 4 -> 5",
        "network.new: missing -> null",
        "tile: [1, 2, 3] -> [1, 2, 4]",
    ]


def test_only_settings_that_change_the_result_are_differences():
    def settings(*assignments: str) -> dict:
        resolved = resolve_settings(GivenSettings("synapse", assignments=["network.epochs=30", *assignments]))
        return resolved.model_dump(mode="json")

    before = settings()
    free = ["name=b", "storage=s3://x", "num_workers=4", "device=cpu", "cache=none", "cache_size=1GB", "verbose=true"]
    free += ["mlflow=file", "wandb=w", "boss=b.json", "wait_for_resources=3"]
    after = settings(*(f"train.{assignment}" for assignment in free))
    assert setting_differences({**before, "versions": {}, "seed": 0}, after) == []
    assert setting_differences(before, settings("network.epochs=40", "task.z_train=0,70", "train.compile=off")) == [
        "task.z_train: [0, 80] -> [0, 70]",
        "network.epochs: 30 -> 40",
        'train.compile: "auto" -> "off"',
    ]
    assert setting_differences(before, settings('train.weights="a.pt"')) == ['train.weights: null -> "a.pt"']


def test_a_setting_that_is_newer_than_a_record_counts_as_its_default():
    now = resolve_settings(GivenSettings("synapse")).model_dump(mode="json")
    older = json.loads(json.dumps(now))
    del older["network"]["metric"], older["task"]["z_gap"], older["train"]["weights"]
    assert setting_differences(older, now) == []
    other = resolve_settings(GivenSettings("synapse", assignments=["network.metric=val.loss"])).model_dump(mode="json")
    assert setting_differences(older, other) == ['network.metric: "val.average_precision" -> "val.loss"']


def test_an_empty_section_differs_from_a_filled_one():
    assert record_differences({"a": {"b": (1, 2)}, "c": {}}, {"a": {"b": [1, 2]}, "c": {}}) == []
    assert record_differences({"a": {}}, {"a": {"b": 1}}) == ["a: {} -> missing", "a.b: missing -> 1"]

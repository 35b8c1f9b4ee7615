"""The files of a run, and what may differ when it goes on."""

import csv
import io
import json

import pytest
import torch

from kasthuri_ray.config.differences import setting_differences
from kasthuri_ray.config.loading import resolve_settings
from kasthuri_ray.models.checkpoints import Checkpoint
from kasthuri_ray.storage.folder import open_storage
from kasthuri_ray.training.run_folder import HISTORY_COLUMNS, RunFolder, tensorboard_events

ROWS = [
    {**dict.fromkeys(HISTORY_COLUMNS, 0.5), "epoch": epoch, "train.loss": 1 / epoch, "training_seconds": 3.0}
    for epoch in (1, 2)
]


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    return RunFolder(open_storage(str(tmp_path / "runs" / "a")))


def test_an_empty_folder_holds_no_run(folder):
    assert folder.read_settings() is None
    assert folder.read_metrics() is None
    assert folder.read_checkpoint("last") is None


def test_what_is_written_is_read_again(folder):
    settings = {"task": {"name": "a"}, "network": {"epochs": 3}, "train": {}}
    folder.write_settings(settings)
    folder.write_metrics({"epochs": 3, "test": None})
    folder.write_checkpoint("best", Checkpoint({"w": torch.arange(3.0)}, {"task": {}}, {"best": {"epoch": 2}}))
    folder.write("test_outputs/slice_0.png", b"png")
    folder.write("report.rpt", "µm")
    assert folder.read_settings() == settings
    assert folder.read_metrics() == {"epochs": 3, "test": None}
    found = folder.read_checkpoint("best")
    assert torch.equal(found.weights["w"], torch.arange(3.0))
    assert (found.settings, found.about) == ({"task": {}}, {"best": {"epoch": 2}})
    assert folder.storage.read_bytes("report.rpt").decode() == "µm"
    assert folder.storage.exists("test_outputs/slice_0.png")


def test_settings_that_were_cut_off_are_named(folder):
    folder.write("settings.json", '{"network":')
    with pytest.raises(ValueError, match=r"runs/a/settings\.json is not JSON .* give another --name"):
        folder.read_settings()


def test_the_history_is_written_whole(folder):
    for rows in (ROWS, ROWS[:1], ROWS):
        folder.write_history(rows)
    text = folder.storage.read_bytes("history.csv").decode()
    header = "epoch,train.loss,val.loss,val.foreground_f1,val.average_precision,learning_rate,seconds,tiles_per_second"
    assert text.splitlines()[0] == header
    assert [(row["epoch"], row["train.loss"]) for row in csv.DictReader(io.StringIO(text))] == [
        ("1", "1.0"),
        ("2", "0.5"),
    ]


def test_tensorboard_reads_the_history(tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    data, events = tensorboard_events(ROWS), []
    while data:
        # A record is its length, a checksum, the event, a checksum.
        length = int.from_bytes(data[:8], "little")
        events.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    found = [(e.step, value.tag, value.simple_value) for e in events for value in e.summary.value]
    assert (1, "train.loss", 1.0) in found
    assert (2, "train.loss", 0.5) in found
    assert {tag for _, tag, _ in found} == set(HISTORY_COLUMNS) - {"epoch"}


def test_only_what_changes_the_result_is_a_difference():
    def written(*assignments: str) -> dict:
        return resolve_settings("synapse", None, assignments=["network.epochs=30", *assignments]).model_dump(
            mode="json"
        )

    before = written()
    free = ["name=b", "storage=s3://x", "num_workers=4", "device=cpu", "cache=none", "cache_size=1GB", "verbose=true"]
    free += ["mlflow=file", "wandb=w", "boss=b.json", "wait_for_resources=3"]
    assert (
        setting_differences({**before, "versions": {}, "seed": 0}, written(*(f"train.{text}" for text in free))) == []
    )
    assert setting_differences(before, written("network.epochs=40", "task.z_train=0,70", "train.compile=off")) == [
        "task.z_train: [0, 80] -> [0, 70]",
        "network.epochs: 30 -> 40",
        'train.compile: "auto" -> "off"',
    ]
    assert setting_differences(before, written('train.weights="a.pt"')) == ['train.weights: null -> "a.pt"']


def test_a_setting_that_is_newer_than_the_run_had_its_default():
    now = resolve_settings("synapse", None).model_dump(mode="json")
    older = json.loads(json.dumps(now))
    del older["network"]["metric"], older["task"]["z_gap"], older["train"]["weights"]
    assert setting_differences(older, now) == []
    other = resolve_settings("synapse", None, assignments=["network.metric=val.loss"]).model_dump(mode="json")
    assert setting_differences(older, other) == ['network.metric: "val.average_precision" -> "val.loss"']

"""The files of a run: what is written is read again, and what is not a run's is refused."""

import csv
import io

import pytest
import torch

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
    folder.write_checkpoint("best", Checkpoint({"w": torch.arange(3.0)}, {"task": {}}, {"epoch": 2}))
    folder.write("test_outputs/slice_0.png", b"png")
    folder.write("report.rpt", "µm")
    assert folder.read_settings() == settings
    assert folder.read_metrics() == {"epochs": 3, "test": None}
    checkpoint = folder.read_checkpoint("best")
    assert torch.equal(checkpoint.weights["w"], torch.arange(3.0))
    assert (checkpoint.settings, checkpoint.best) == ({"task": {}}, {"epoch": 2})
    assert folder.storage.read_bytes("report.rpt").decode() == "µm"
    assert folder.storage.exists("test_outputs/slice_0.png")


def test_truncated_settings_are_refused_with_the_name_of_the_file(folder):
    folder.write("settings.json", '{"network":')
    with pytest.raises(ValueError, match=r"runs/a/settings\.json is not JSON .* give another --name"):
        folder.read_settings()


def test_settings_of_another_program_are_not_those_of_a_run(folder):
    folder.write("settings.json", '{"editor.fontSize": 12}')
    with pytest.raises(ValueError, match="is not that of a training run; give another --name"):
        folder.read_settings()


def test_the_history_is_always_written_as_a_whole(folder):
    for rows in (ROWS, ROWS[:1], ROWS):
        folder.write_history(rows)
    text = folder.storage.read_bytes("history.csv").decode()
    header = "epoch,train.loss,val.loss,val.foreground_f1,val.average_precision,learning_rate,seconds,tiles_per_second"
    assert text.splitlines()[0] == header
    assert [(row["epoch"], row["train.loss"]) for row in csv.DictReader(io.StringIO(text))] == [
        ("1", "1.0"),
        ("2", "0.5"),
    ]


def test_tensorboard_reads_the_history():
    from tensorboardX.proto.event_pb2 import Event

    data, events = tensorboard_events(ROWS), []
    while data:
        # A record is its length, a checksum, the event, a checksum.
        length = int.from_bytes(data[:8], "little")
        events.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    values = [(event.step, value.tag, value.simple_value) for event in events for value in event.summary.value]
    assert (1, "train.loss", 1.0) in values
    assert (2, "train.loss", 0.5) in values
    assert {tag for _, tag, _ in values} == set(HISTORY_COLUMNS) - {"epoch"}

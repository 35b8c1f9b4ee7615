from __future__ import annotations

import io
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from kasthuri_ray.models.checkpoints import (
    Checkpoint,
    checkpoint_bytes,
    find_weights_file,
    read_checkpoint,
)
from kasthuri_ray.models.unet import UNet, load_weights

SEED = Path(__file__).parent / "seed_unet"


class Payload:
    """An object whose unpickling creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def torch_save_bytes(content: object, **options: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("position", ["the whole file", "a weight", "beside the weights"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_pickle_is_refused_and_does_not_run(tmp_path, zipped, position):
    payload = Payload(tmp_path / "payload_ran")
    content = {
        "the whole file": payload,
        "a weight": {"conv.weight": payload},
        "beside the weights": {"weights": {"w": torch.ones(1)}, "settings": payload},
    }
    data = torch_save_bytes(content[position], _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"weights.pt holds more than weights \(\S+\) and is refused") as raised:
        read_checkpoint(data, "weights.pt")
    assert not payload.path.exists()
    assert "weights_only" not in str(raised.value)  # torch's own message advises to disable the check
    torch.load(io.BytesIO(data), weights_only=False)
    assert payload.path.exists()  # the payload works


def test_a_bare_malicious_pickle_is_refused(tmp_path):
    payload = Payload(tmp_path / "payload_ran")
    with pytest.raises(ValueError, match=r"is not a file that torch\.save wrote"):
        read_checkpoint(pickle.dumps({"weights": payload}), "weights.pt")
    assert not payload.path.exists()


def test_published_weights_are_read_and_loaded():
    path = SEED / "UNet_2D.pt"
    load_weights(UNet(start_filters=4), read_checkpoint(path.read_bytes(), str(path)).weights)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_bare_state_dict_is_a_checkpoint_without_settings(zipped):
    state = nn.Linear(2, 3).state_dict()
    checkpoint = read_checkpoint(torch_save_bytes(state, _use_new_zipfile_serialization=zipped), "w.pt")
    assert (checkpoint.settings, checkpoint.threshold, checkpoint.resume) == (None, None, None)
    assert all(torch.equal(checkpoint.weights[key], value) for key, value in state.items())


@pytest.mark.parametrize("key", ["weights", "state_dict", "model_state_dict", "model"])
def test_weights_in_checkpoints_of_other_programs_are_found(key):
    state = nn.Linear(2, 3).state_dict()
    data = torch_save_bytes({"epoch": 3, "best": 0.5, key: state})
    assert list(read_checkpoint(data, "w.pt").weights) == ["weight", "bias"]


def test_what_other_programs_store_beside_their_weights_is_ignored():
    data = torch_save_bytes({"state_dict": nn.Linear(2, 3).state_dict(), "best": 0.5, "settings": [1]})
    checkpoint = read_checkpoint(data, "w.pt")
    assert (checkpoint.settings, checkpoint.best, checkpoint.threshold) == (None, None, None)


def test_a_checkpoint_is_read_as_it_was_written():
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.rand(2, 1, 8, 8)).mean().backward()
    optimizer.step()
    settings = {"network": {"dim": 2, "learning_rate": 3e-4, "scheduler": None, "layers": [1, 2]}}
    resume = {"optimizer": optimizer.state_dict(), "random": torch.get_rng_state(), "epoch": 3, "shape": (1, 2)}
    written = Checkpoint(network.state_dict(), settings, {"threshold": 0.25}, [0.0, 255.0], None, resume)
    read = read_checkpoint(checkpoint_bytes(written), "last.pt")
    assert read.settings == settings
    assert (read.threshold, read.image_intensity, read.voxel_size_nm) == (0.25, [0.0, 255.0], None)
    assert (read.resume["epoch"], read.resume["shape"]) == (3, (1, 2))
    assert torch.equal(read.resume["random"], torch.get_rng_state())
    torch.testing.assert_close(read.resume["optimizer"], optimizer.state_dict(), rtol=0, atol=0)
    load_weights(network, read.weights)
    optimizer.load_state_dict(read.resume["optimizer"])
    assert checkpoint_bytes(read) == checkpoint_bytes(written)


def test_the_entries_of_the_files_of_a_run_keep_their_names_and_order():
    best = Checkpoint({"w": torch.ones(2)}, {"a": None}, {"epoch": 3, "f1": [0.5, True]}, [0.0, 255.0], None)
    names = ["weights", "settings", "best", "image_intensity", "voxel_size_nm"]
    content = torch.load(io.BytesIO(checkpoint_bytes(best)), weights_only=True)
    assert (list(content), content["best"], content["voxel_size_nm"]) == (names, best.best, None)
    last = torch.load(io.BytesIO(checkpoint_bytes(replace(best, resume={}))), weights_only=True)
    assert list(last) == [*names, "resume"]


def test_torch_loads_the_written_weights():
    network = nn.Linear(2, 3)
    other = nn.Linear(2, 3)
    other.load_state_dict(torch.load(io.BytesIO(checkpoint_bytes(network.state_dict())), weights_only=True))
    assert torch.equal(network.weight, other.weight)


def test_a_view_is_written_without_the_rest_of_its_storage():
    assert len(checkpoint_bytes({"w": torch.zeros(1_000_000)[:3]})) < 10_000


def test_the_memory_format_of_a_weight_is_kept():
    weight = torch.zeros(4, 3, 2, 2).to(memory_format=torch.channels_last)
    read = read_checkpoint(checkpoint_bytes({"w": weight}), "w").weights["w"]
    assert read.is_contiguous(memory_format=torch.channels_last)


def damaged(data: bytes) -> bytes:
    return data[:1500] + bytes([data[1500] ^ 255]) + data[1501:]


LARGE = torch_save_bytes({"w": torch.ones(1000)})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "w.pt is empty"),
        (b"\n<!DOCTYPE html><html>Sign in", "is a web page or an XML document.*Sign in"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code>', "web page or an XML document"),
        (
            b"version https://git-lfs.github.com/spec/v1",
            "not a file that torch.save wrote; it starts with b'version https",
        ),
        (LARGE[:2000], r"truncated or damaged \(2000 bytes\).*Fetch it again"),
        (LARGE[:-1], "truncated or damaged"),
        (damaged(LARGE), "is damaged: the checksum of .*data/0 is wrong"),
        (
            torch_save_bytes({"w": torch.ones(1000)}, _use_new_zipfile_serialization=False)[:3000],
            "cannot be read as weights",
        ),
        (torch_save_bytes([1, 2]), "holds a list instead of a state dict"),
        (torch_save_bytes({}), "holds an empty dict instead of weights"),
        (torch_save_bytes({"w": torch.ones(1), "epoch": 3}), "not a state dict: 'epoch' is an int, not a tensor"),
        (torch_save_bytes({"model": {}}), "holds an empty dict instead of weights"),
        (
            torch_save_bytes({"weights": None, "settings": {}}),
            "not a state dict: 'weights' is a NoneType, not a tensor",
        ),
        (
            torch_save_bytes(nn.Linear(1, 1)),
            r"more than weights \(torch.nn.modules.linear.Linear\).*network.state_dict\(\)",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "data",
)
def test_a_file_without_weights_is_refused_with_its_name_and_the_reason(data, message):
    with pytest.raises(ValueError, match=message) as raised:
        read_checkpoint(data, "w.pt")
    assert str(raised.value).startswith("w.pt ")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"w": np.ones(2)}, "w is a numpy.ndarray"),
        (Checkpoint({}, {"train": {"lr": np.float64(1)}}), "settings.train.lr is a numpy.float64"),
        (Checkpoint({}, {}, {"files": [Path()]}), r"best\.files\[0\] is a pathlib.* cannot hold; make it a tensor"),
    ],
)
def test_a_value_that_could_not_be_read_safely_is_not_written(content, message):
    with pytest.raises(ValueError, match=message):
        checkpoint_bytes(content)


def test_weights_are_a_file_or_the_best_checkpoint_of_a_run(tmp_path):
    run = tmp_path / "run"
    (run / "checkpoint").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=rf"^--weights: there is no {run}/checkpoint/best.pt, so {run} is not"):
        find_weights_file(str(run))
    (run / "checkpoint/best.pt").touch()
    assert find_weights_file(str(run)) == f"{run}/checkpoint/best.pt"
    assert find_weights_file(f"{run}/") == f"{run}/checkpoint/best.pt"
    assert find_weights_file("s3://bucket/runs/a/") == "s3://bucket/runs/a/checkpoint/best.pt"
    for file in ("s3://bucket/UNet_2D_synapse.pt", "s3://bucket/a.pth", "https://host/a.pt", "a.pt"):
        assert find_weights_file(file) == file


@pytest.mark.parametrize("name", ["best", "run-2"])
def test_a_folder_of_runs_is_no_run_and_one_in_it_is_named(tmp_path, name):
    (tmp_path / name / "checkpoint").mkdir(parents=True)
    (tmp_path / name / "checkpoint/best.pt").touch()
    with pytest.raises(FileNotFoundError, match=rf"is not the folder of a run; did you mean {tmp_path}/{name}\?$"):
        find_weights_file(str(tmp_path))

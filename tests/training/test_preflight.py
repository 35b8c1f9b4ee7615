"""What is checked and decided before a run starts: workers and batches, names and paths, network and weights."""

import json
import sys
import types

import numpy as np
import pytest
import torch
import zarr
from torch import nn

from kasthuri_ray import process_resources
from kasthuri_ray.config.loading import GivenSettings, resolve_settings
from kasthuri_ray.errors import AlreadyFinished, InputError
from kasthuri_ray.labels import LabelRule
from kasthuri_ray.models.checkpoints import Checkpoint, checkpoint_bytes, read_checkpoint
from kasthuri_ray.models.unet import build_network
from kasthuri_ray.storage.folder import open_storage
from kasthuri_ray.training import initial_weights, preflight
from kasthuri_ray.training.run_folder import RunFolder, run_description


def membrane_settings(**given):
    """Return the settings of the membrane task with these assignments and flags."""
    return resolve_settings(GivenSettings("membrane", "UNet_2D", **given))


def synapse_settings(*assignments: str):
    """Return the settings of a small network for the synapse task."""
    return resolve_settings(GivenSettings("synapse", assignments=["network.start_filters=2", *assignments]))


def test_a_run_that_resumes_by_its_name_does_not_need_its_first_weights_again(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    train = {"weights": str(tmp_path / "gone.pt"), "storage": str(tmp_path / "runs")}
    named = membrane_settings(flags={"train": {**train, "name": "run"}})
    for settings in (membrane_settings(flags={"train": train}), named):
        with pytest.raises(FileNotFoundError, match=r"gone\.pt"):
            preflight.read_weights_unless_resumed(settings)
    open_storage(str(tmp_path / "runs/run")).write_bytes("checkpoint/last.pt", b"a checkpoint")
    assert preflight.read_weights_unless_resumed(named) is None


@pytest.fixture
def finished_run(tmp_path) -> RunFolder:
    """A run of the membrane task that has ended after three epochs."""
    folder = RunFolder(open_storage(str(tmp_path / "runs/a")))
    folder.write_settings(membrane_settings(assignments=["network.epochs=3"]).training_record())
    folder.write_metrics({"epochs": 3})
    return folder


def test_a_finished_run_can_only_be_extended_by_more_epochs(finished_run):
    preflight.check_run_resumable(finished_run, membrane_settings(assignments=["network.epochs=5"]))
    for assignments, text in (
        (["network.epochs=3"], r"a is finished, after 3 epochs: .*add --set network\.epochs=6"),
        (["network.epochs=2"], r"started with other settings:\n  network\.epochs: 3 -> 2"),
        (["network.epochs=5", "network.learning_rate=0.5"], r"network\.learning_rate: 0\.002 -> 0\.5"),
    ):
        with pytest.raises(ValueError, match=text):
            preflight.check_run_resumable(finished_run, membrane_settings(assignments=assignments))


def test_a_finished_run_has_a_result_for_its_own_settings_alone(finished_run, monkeypatch):
    path = finished_run.storage.path
    for stopped_early in (False, True):
        monkeypatch.setattr(preflight, "_stopped_early", lambda *_, early=stopped_early: early)
        with pytest.raises(AlreadyFinished) as same:
            preflight.check_run_resumable(finished_run, membrane_settings(assignments=["network.epochs=3"]))
        assert same.value.path == path
        with pytest.raises(InputError, match="other settings") as fewer:
            preflight.check_run_resumable(finished_run, membrane_settings(assignments=["network.epochs=2"]))
        assert not isinstance(fewer.value, AlreadyFinished)
    with pytest.raises(InputError, match=f"To train further, start another run with --weights {path}") as more:
        preflight.check_run_resumable(finished_run, membrane_settings(assignments=["network.epochs=5"]))
    assert not isinstance(more.value, AlreadyFinished)


def test_an_extension_that_was_interrupted_can_be_resumed(finished_run):
    longer = membrane_settings(assignments=["network.epochs=5"])
    finished_run.write_settings(longer.training_record())
    preflight.check_run_resumable(finished_run, longer)


def test_a_run_of_one_epoch_is_finished_after_1_epoch(tmp_path):
    folder = RunFolder(open_storage(str(tmp_path / "runs/a")))
    settings = membrane_settings(assignments=["network.epochs=1"])
    folder.write_settings(settings.training_record())
    folder.write_metrics({"epochs": 1})
    with pytest.raises(ValueError, match="is finished, after 1 epoch: "):
        preflight.check_run_resumable(folder, settings)


@pytest.mark.parametrize("key", ["task.name", "task.task_type", "network.outweightfilename"])
@pytest.mark.parametrize("value", ["../x", "a/b", "a\nb", ""])
def test_a_name_that_is_not_a_file_name_is_refused(key, value):
    section, name = key.split(".")
    with pytest.raises(ValueError, match=key):
        preflight.check_run_location(membrane_settings(flags={section: {name: value}}))


def test_paths_of_local_volumes_become_absolute_outside_of_ray_jobs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    flags = {"task": {"image_chan": "em.zarr", "annotation_chan": "phantom://membrane?shape=4,64,64"}}
    task = preflight.absolute_volume_paths(membrane_settings(flags=flags)).task
    assert task.image_chan == f"{tmp_path}/em.zarr"
    assert task.annotation_chan == "phantom://membrane?shape=4,64,64"
    boxes = {name: [{"image": "em.zarr", "box": f"{n}:{n + 2},:,:"}] for n, name in enumerate(("train", "val"))}
    flags = {"task": {"boxes": boxes, "annotation_chan": "labels.h5:classes"}}
    task = preflight.absolute_volume_paths(membrane_settings(flags=flags)).task
    assert [region.image for region in task.regions("val")] == [f"{tmp_path}/em.zarr"]
    assert task.annotation_chan == f"{tmp_path}/labels.h5:classes"
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    task = preflight.absolute_volume_paths(membrane_settings(flags=flags)).task
    assert task.annotation_chan == "labels.h5:classes"


@pytest.mark.parametrize(
    "assignments",
    [
        [],
        ["task.tile_size=64,40"],
        ["network.dim=3", "task.volume_z=8", "task.tile_size=64,64"],
        ["network.dim=3", "network.pool_z=2", "task.volume_z=6", "task.tile_size=64,64"],
    ],
)
def test_tiles_that_the_network_can_halve_are_accepted(assignments):
    preflight.build_checked_network(synapse_settings(*assignments))


@pytest.mark.parametrize(
    ("assignments", "text"),
    [
        (["task.volume_z=3"], "a 2D network (network.dim 2) takes single sections: task.volume_z is 3, use 1"),
        (["task.tile_size=100,64"], "(64, 96) or (64, 104) would work"),
        (
            ["network.model_type=depth", "network.n_blocks=null", "task.tile_size=64,40"],
            "multiples of (16, 16); (32, 64) or (48, 64) would work",
        ),
        (
            ["network.dim=3", "task.volume_z=12"],
            "network.n_blocks 4, task.volume_z 12, task.tile_size [256, 256]: a tile of z, y, x = (12, 2",
        ),
        (["network.dim=3", "task.volume_z=12"], "(8, 256, 256) or (16, 256, 256) would work"),
        (["network.dim=3", "task.volume_z=1"], "(8, 256, 256) would work"),
        (["network.model=no.such.Net"], "no.such"),
    ],
)
def test_tiles_that_the_network_cannot_halve_are_refused_with_sizes_that_work(assignments, text):
    with pytest.raises(ValueError, match=r".") as caught:
        preflight.build_checked_network(synapse_settings(*assignments))
    assert text in str(caught.value)


class Built(Exception):
    """The network was built in memory."""


def build_without_memory(settings, shape=None):
    if torch.empty(1).device.type != "meta":
        raise Built
    return build_network(settings, shape)


def test_a_network_that_does_not_fit_into_memory_is_refused_with_the_numbers(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(process_resources, "total_memory_bytes", lambda: 8 << 30)
    monkeypatch.setattr(preflight, "build_network", build_without_memory)
    with pytest.raises(ValueError, match=r"network\.start_filters 8192 with network\.n_blocks 4 makes") as caught:
        preflight.build_checked_network(synapse_settings("network.start_filters=8192"))
    assert "million parameters" in str(caught.value)
    assert "GiB, and this machine has 8 GiB. Use fewer filters" in str(caught.value)
    # Enough for the weights alone, which is all that a training on another machine needs here.
    monkeypatch.setattr(process_resources, "total_memory_bytes", lambda: 3 << 29)
    with pytest.raises(ValueError, match="with gradients and the optimizer's state they take"):
        preflight.build_checked_network(synapse_settings("network.start_filters=256"))
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    with pytest.raises(Built):
        preflight.build_checked_network(synapse_settings("network.start_filters=256"))


class WithoutParameters(nn.Module):
    def forward(self, x):
        return torch.cat([x, -x], 1)


class Frozen(nn.Conv2d):
    def __init__(self):
        super().__init__(1, 2, 3, padding=1)
        self.requires_grad_(False)


@pytest.mark.parametrize("network", [WithoutParameters, Frozen])
def test_a_network_without_trainable_parameters_is_refused(monkeypatch, network):
    module = types.ModuleType("frozen_networks")
    setattr(module, network.__name__, network)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    name = f"frozen_networks.{network.__name__}"
    with pytest.raises(ValueError, match=f"network.model {name} has no trainable parameters"):
        preflight.build_checked_network(synapse_settings(f"network.model={name}"))


@pytest.mark.parametrize(
    ("normalization", "layer"), [("instance", "instance norm"), ("group", "group norm"), ("batch", "")]
)
def test_a_network_whose_normalization_depends_on_the_tile_causes_a_warning(normalization, layer):
    network = preflight.build_checked_network(synapse_settings(f"network.normalization={normalization}"))
    warning = preflight.normalization_warning(network)
    assert layer in warning
    assert bool(warning) == bool(layer)


def test_initial_weights_must_be_those_of_the_network(tmp_path):
    network = build_network(synapse_settings().network.model_dump())
    file = tmp_path / "run" / "checkpoint" / "best.pt"
    file.parent.mkdir(parents=True)
    torch.save(network.state_dict(), file)
    assert initial_weights.read_initial_weights(synapse_settings()) is None
    for path in (file, tmp_path / "run"):
        weights = initial_weights.read_initial_weights(synapse_settings(f"train.weights={path}")).weights
        assert all(torch.equal(weights[name], value) for name, value in network.state_dict().items())
    with pytest.raises(ValueError, match=r"--weights .*best\.pt: these are weights of another network: ") as caught:
        initial_weights.read_initial_weights(synapse_settings(f"train.weights={file}", "network.start_filters=4"))
    assert "down_blocks.0.conv1.weight (2, 1, 3, 3), expected (4, 1, 3, 3)" in str(caught.value)
    with pytest.raises(FileNotFoundError, match=r"none\.pt"):
        initial_weights.read_initial_weights(synapse_settings("train.weights=none.pt"))


def test_a_prepared_training_has_tiles_weights_and_notes(tiny_task):
    network = {"n_blocks": 2, "start_filters": 4, "normalization": "group", "outputdir": "x"}
    prepared = preflight.prepare_training(resolve_settings(GivenSettings({**tiny_task, "z_test": None}, network)))
    assert prepared.weights is None
    assert prepared.num_parameters == sum(weight.numel() for weight in build_network(network).parameters())
    assert prepared.notes[0] == "unused keys of the task and network files: outputdir"
    assert prepared.notes[1].startswith("network: the network uses group normalization")
    assert prepared.notes[2].startswith("there is no annotation for test")
    settings = membrane_settings(assignments=["network.batch_size=3"])
    job = prepared.make_job(settings, "/runs/a")
    assert (job.path, job.settings, job.tiles.val) == ("/runs/a", settings, prepared.tiles.val)
    assert (prepared.tiles.train.tiles_per_epoch, job.tiles.train.tiles_per_epoch) == (32, 33)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_initial_weights_that_are_not_finite_are_refused(tmp_path, value):
    state = build_network(synapse_settings().network.model_dump()).state_dict()
    state["conv_final.bias"][0] = value
    torch.save(state, tmp_path / "broken.pt")
    settings = synapse_settings(f"train.weights={tmp_path / 'broken.pt'}")
    with pytest.raises(
        ValueError, match=r"broken\.pt holds weights that are not finite .*, in conv_final\.bias: their"
    ):
        initial_weights.read_initial_weights(settings)


# labels and grey levels


NONE = 2**64 - 1  # of CREMI's clefts


@pytest.fixture
def clefts(tmp_path, tiny_task) -> dict:
    """Return a task whose annotation marks the background as CREMI does; its first cleft has the id 0."""
    labels = np.full((16, 128, 128), NONE, np.uint64)
    labels[:, 40:60, 30:80] = 0
    zarr.create_array(tmp_path / "clefts.zarr", data=labels, chunks=(1, 64, 64))
    return {**tiny_task, "annotation_chan": f"{tmp_path}/clefts.zarr", "threshold": True}


def resolve(task, *assignments, **train):
    network = {"n_blocks": 2, "start_filters": 4, "batch_size": 8}
    flags = {"train": {"cache": "none", **train}}
    return resolve_settings(GivenSettings(task, network, assignments=assignments, flags=flags))


def begin_run(prepared, path) -> RunFolder:
    """Write the settings of a run that starts."""
    folder = RunFolder(open_storage(str(path)))
    folder.write_settings(json.loads(json.dumps(run_description(prepared.settings))))
    return folder


def test_the_background_that_is_found_is_recorded_and_a_resumed_run_keeps_it(clefts, tmp_path):
    named = resolve(clefts, storage=str(tmp_path), name="run")
    prepared = preflight.prepare_training(named)
    assert prepared.settings.task.background == [NONE]
    assert [note for note in prepared.notes if f"the label {NONE} fills" in note]
    folder = begin_run(prepared, tmp_path / "run")
    assert folder.read_settings()["task"]["background"] == [NONE]
    zarr.open_array(tmp_path / "clefts.zarr")[:, 60:] = 0  # now less than half is background
    again = preflight.prepare_training(named)
    assert again.tiles.label_rule == prepared.tiles.label_rule
    preflight.check_run_resumable(folder, again.settings)
    other = preflight.prepare_training(resolve(clefts, storage=str(tmp_path), name="other"))
    assert other.settings.task.background is None
    stated = preflight.prepare_training(resolve(clefts, "task.background=3", storage=str(tmp_path), name="run"))
    with pytest.raises(ValueError, match=rf"other settings:\n  task.background: \[{NONE}\] -> \[3\]"):
        preflight.check_run_resumable(folder, stated.settings)


@pytest.mark.parametrize("kind", ["run", "sweep"])
def test_a_run_or_a_sweep_that_was_begun_before_keeps_its_labels_and_is_not_refused_for_its_grey_levels(
    clefts, tmp_path, kind
):
    white = {**clefts, "image_intensity": [0, 1]}
    named = resolve(white, storage=str(tmp_path), name="older")
    with pytest.raises(InputError, match="lie outside the grey levels 0 to 1"):
        preflight.prepare_training(named)
    record = named.training_record()
    del record["task"]["background"]
    if kind == "sweep":
        del record["network"]
    open_storage(str(tmp_path / "older")).write_bytes("settings.json", json.dumps(record).encode())
    prepared = preflight.prepare_training(named)
    assert prepared.settings.task.background is None
    assert prepared.tiles.label_rule == LabelRule(0.0)
    if kind == "run":
        preflight.check_run_resumable(RunFolder(open_storage(str(tmp_path / "older"))), prepared.settings)


def test_a_checkpoint_holds_the_background_and_segmentation_and_evaluation_read_it(clefts, tmp_path):
    prepared = preflight.prepare_training(resolve(clefts))
    weights = build_network(prepared.settings.network.model_dump()).state_dict()
    (tmp_path / "best.pt").write_bytes(checkpoint_bytes(Checkpoint(weights, prepared.settings.training_record())))
    read = read_checkpoint((tmp_path / "best.pt").read_bytes(), "best.pt").settings
    assert resolve_settings(GivenSettings(), ("best.pt", {"task": read["task"]})).task.background == [NONE]


def test_initial_weights_of_another_range_are_a_line_with_both_ranges(tiny_task, tmp_path):
    network = build_network({"n_blocks": 2, "start_filters": 4})
    for name, intensity in (("same", [0.0, 255.0]), ("floats", [0.0, 1.0]), ("unknown", None)):
        checkpoint = Checkpoint(network.state_dict(), {"task": {}}, image_intensity=intensity)
        (tmp_path / f"{name}.pt").write_bytes(checkpoint_bytes(checkpoint))
        notes = preflight.prepare_training(resolve(tiny_task, weights=str(tmp_path / f"{name}.pt"))).notes
        text = "lie outside the grey levels 0 to 1 that the initial weights were trained on: they hold "
        assert any(text in note and "here 0 becomes black and 255 white" in note for note in notes) == (
            name == "floats"
        )

"""Does the network fit the tiles, and do the weights fit the network."""

import sys
import types

import pytest
import torch
from torch import nn

from kasthuri_ray import hardware
from kasthuri_ray.config.loading import resolve_settings
from kasthuri_ray.models.unet import build_network
from kasthuri_ray.training.preflight import build_checked_network, normalization_warning, read_initial_weights


def settings(*assignments: str):
    return resolve_settings("synapse", None, assignments=["network.start_filters=2", *assignments])


@pytest.mark.parametrize(
    "assignments",
    [
        [],
        ["task.tile_size=64,40"],
        ["network.dim=3", "task.volume_z=8", "task.tile_size=64,64"],
        ["network.dim=3", "network.pool_z=2", "task.volume_z=6", "task.tile_size=64,64"],
    ],
)
def test_tiles_that_the_pooling_halves_are_right(assignments):
    build_checked_network(settings(*assignments))


@pytest.mark.parametrize(
    ("assignments", "words"),
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
def test_tiles_that_it_cannot_halve_name_what_works(assignments, words):
    with pytest.raises(ValueError, match=r".") as caught:
        build_checked_network(settings(*assignments))
    assert words in str(caught.value)


def test_weights_to_start_from_are_held_against_the_network(tmp_path):
    network = build_network(settings().network.model_dump())
    file = tmp_path / "run" / "checkpoint" / "best.pt"
    file.parent.mkdir(parents=True)
    torch.save(network.state_dict(), file)
    assert read_initial_weights(settings()) is None
    for given in (file, tmp_path / "run"):
        found = read_initial_weights(settings(f"train.weights={given}"))
        assert all(torch.equal(found[name], value) for name, value in network.state_dict().items())
    with pytest.raises(ValueError, match=r"--weights .*best\.pt: these are weights of another network: ") as caught:
        read_initial_weights(settings(f"train.weights={file}", "network.start_filters=4"))
    assert "down_blocks.0.conv1.weight (2, 1, 3, 3), expected (4, 1, 3, 3)" in str(caught.value)
    with pytest.raises(FileNotFoundError, match=r"none\.pt"):
        read_initial_weights(settings("train.weights=none.pt"))


def test_more_parameters_than_fit_are_refused_with_the_numbers(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(hardware, "total_memory_bytes", lambda: 8 << 30)
    monkeypatch.setattr("kasthuri_ray.training.preflight.build_network", on_meta_alone)
    with pytest.raises(ValueError, match=r"network\.start_filters 8192 with network\.n_blocks 4 makes") as caught:
        build_checked_network(settings("network.start_filters=8192"))
    said = str(caught.value)
    assert "million parameters" in said
    assert "GiB, and this machine has 8. Give fewer filters" in said
    # Enough for the weights, which is all that another machine's training takes here.
    monkeypatch.setattr(hardware, "total_memory_bytes", lambda: 3 << 29)
    with pytest.raises(ValueError, match="with gradients and the optimizer's state they take"):
        build_checked_network(settings("network.start_filters=256"))
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    with pytest.raises(Built):
        build_checked_network(settings("network.start_filters=256"))


class Built(Exception):
    """Memory would have been taken."""


def on_meta_alone(given, shape=None):
    if torch.empty(1).device.type != "meta":
        raise Built
    return build_network(given, shape)


class Still(nn.Module):
    """A network without anything to learn."""

    def forward(self, x):
        return torch.cat([x, -x], 1)


class Frozen(nn.Conv2d):
    def __init__(self):
        super().__init__(1, 2, 3, padding=1)
        self.requires_grad_(False)


@pytest.mark.parametrize("name", ["Still", "Frozen"])
def test_a_network_that_cannot_learn_is_refused(monkeypatch, name):
    module = types.ModuleType("still_networks")
    module.Still, module.Frozen = Still, Frozen
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with pytest.raises(ValueError, match=f"network.model still_networks.{name} has no parameters that learn"):
        build_checked_network(settings(f"network.model=still_networks.{name}"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path, value):
    state = build_network(settings().network.model_dump()).state_dict()
    state["conv_final.bias"][0] = value
    torch.save(state, tmp_path / "broken.pt")
    with pytest.raises(
        ValueError, match=r"broken\.pt holds weights that are not finite .*, in conv_final\.bias: their"
    ):
        read_initial_weights(settings(f"train.weights={tmp_path / 'broken.pt'}"))


@pytest.mark.parametrize(("norm", "word"), [("instance", "instance norm"), ("group", "group norm"), ("batch", "")])
def test_a_network_that_normalizes_by_the_tile_is_warned_of(norm, word):
    warning = normalization_warning(build_checked_network(settings(f"network.normalization={norm}")))
    assert word in warning
    assert bool(warning) == bool(word)

"""Does the network fit the tiles, and do the weights fit the network."""

import pytest
import torch

from kasthuri_ray.layers import resolve
from kasthuri_ray.models.unet import build_network
from kasthuri_ray.training.start import check_network, norm_warning, read_start_weights


def settings(*assignments: str):
    return resolve("synapse", None, assignments=["network.start_filters=2", *assignments])


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
    check_network(settings(*assignments))


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
            "task.volume_z 12, task.tile_size [256, 256]: a tile of z, y, x = (12, 2",
        ),
        (["network.dim=3", "task.volume_z=12"], "(8, 256, 256) or (16, 256, 256) would work"),
        (["network.dim=3", "task.volume_z=1"], "(8, 256, 256) would work"),
        (["network.model=no.such.Net"], "no.such"),
    ],
)
def test_tiles_that_it_cannot_halve_name_what_works(assignments, words):
    with pytest.raises(ValueError, match=r".") as caught:
        check_network(settings(*assignments))
    assert words in str(caught.value)


def test_weights_to_start_from_are_held_against_the_network(tmp_path):
    network = build_network(settings().network.model_dump())
    file = tmp_path / "run" / "checkpoint" / "best.pt"
    file.parent.mkdir(parents=True)
    torch.save(network.state_dict(), file)
    assert read_start_weights(settings()) is None
    for given in (file, tmp_path / "run"):
        found = read_start_weights(settings(f"train.weights={given}"))
        assert all(torch.equal(found[name], value) for name, value in network.state_dict().items())
    with pytest.raises(ValueError, match=r"--weights .*best\.pt: these are weights of another network: ") as caught:
        read_start_weights(settings(f"train.weights={file}", "network.start_filters=4"))
    assert "down_blocks.0.conv1.weight (2, 1, 3, 3), expected (4, 1, 3, 3)" in str(caught.value)
    with pytest.raises(FileNotFoundError, match=r"none\.pt"):
        read_start_weights(settings("train.weights=none.pt"))


@pytest.mark.parametrize(("norm", "word"), [("instance", "instance norm"), ("group", "group norm"), ("batch", "")])
def test_a_network_that_normalizes_by_the_tile_is_warned_of(norm, word):
    warning = norm_warning(check_network(settings(f"network.normalization={norm}")))
    assert word in warning
    assert bool(warning) == bool(word)

"""What name and tensors of published weights say: network, task, grey levels, and the boxes that they learnt from."""

from pathlib import Path

import pytest
import torch

from kasthuri_ray.config.loading import GivenSettings, resolve_settings
from kasthuri_ray.errors import InputError
from kasthuri_ray.models.published_weights import network_of_tensors, published_checkpoint
from kasthuri_ray.models.unet import build_network, load_weights
from kasthuri_ray.volumes.learnt_from import LearntFrom

SEED = Path(__file__).parent / "seed_unet"
KINDS = ("unet", "attention", "residual", "depth")


def make_weights(kind, start_filters=4):
    """Return the state dict of a network of the challenge."""
    torch.manual_seed(0)
    blocks = 5 if kind == "depth" else 4
    settings = {"model_type": kind, "n_blocks": blocks, "start_filters": start_filters, "dim": 2}
    known = {"model": "UNet", "in_channels": 1, "classes": 2, "activation": "relu", "normalization": "batch"}
    return build_network({**known, "conv_mode": "same", "pool_z": None, "model_args": {}, **settings}).state_dict()


@pytest.mark.parametrize("kind", KINDS)
def test_the_tensors_show_the_network_which_loads_them(kind):
    weights = make_weights(kind)
    found = published_checkpoint(weights, f"UNet_2D_{kind}_synapse")
    settings = resolve_settings(GivenSettings(), ("published", found.settings))
    assert settings.network.n_blocks == (5 if kind == "depth" else 4)
    assert settings.network.start_filters == 4
    assert settings.network.model_type == ("unet" if kind == "depth" else kind)
    load_weights(build_network(settings.network.model_dump()), weights)
    assert settings.task.task_type == "synapse"
    assert settings.task.image_chan == "bossdb://Kasthuri/ac4/em"
    assert found.image_intensity == [0, 255]


def test_flags_win_over_what_is_implied():
    found = published_checkpoint(make_weights("unet"), "UNet_2D_membrane")
    settings = resolve_settings(GivenSettings(assignments=["task.image_intensity=[10,200]"]), ("p", found.settings))
    assert settings.task.task_type == "membrane"
    assert settings.task.image_intensity == [10, 200]


def test_the_boxes_of_the_challenge_count_as_learnt_from(array_volume):
    import numpy as np

    found = published_checkpoint(make_weights("unet"), "UNet_2D_synapse")
    learnt = LearntFrom.from_plain(found.learnt_from)
    volume = array_volume(np.zeros((100, 8, 8), np.uint8), uri="bossdb://Kasthuri/ac4/em/0", offset=(0, 300, 300))
    part = learnt.find_in(volume)
    assert [str(box) for box in part.boxes] == ["0:80,300:308,300:308", "80:90,300:308,300:308"]
    assert part.is_known
    other = array_volume(np.zeros((100, 8, 8), np.uint8), uri="bossdb://Kasthuri/ac3/em/0")
    assert learnt.find_in(other).boxes == ()


def test_they_count_in_every_resolution_of_the_public_server(array_volume):
    import numpy as np

    from kasthuri_ray.volumes.boss_requests import BossServer
    from kasthuri_ray.volumes.place import Place

    learnt = LearntFrom.from_plain(published_checkpoint(make_weights("unet"), "UNet_2D_synapse").learnt_from)
    name = f"{BossServer.of(None).url}/Kasthuri/ac4/em"
    common = {"voxel_size_nm": (30.0, 12.0, 12.0), "place": Place((0.0, 0.0, 0.0), "corner", "coordinate frame")}
    voxels = np.zeros((100, 512, 512), np.uint8)
    coarse = array_volume(voxels, uri="bossdb://Kasthuri/ac4/em/1", pyramid=name, source_id=f"{name}/1", **common)
    assert [str(box) for box in learnt.find_in(coarse).boxes] == ["0:80,122:378,122:378", "80:90,122:378,122:378"]
    renamed = array_volume(voxels, uri="another name", source_id=f"{name}/0")
    assert len(learnt.find_in(renamed).boxes) == 2


def test_other_weights_are_refused():
    with pytest.raises(InputError, match="ends with no task"):
        published_checkpoint(make_weights("unet"), "UNet_2D_vesicle")
    with pytest.raises(InputError, match="does not describe"):
        network_of_tensors({"a": torch.zeros(3)}, "x")


@pytest.mark.parametrize("name", ["UNet_2D", "UNet_2D_attention", "UNet_2D_depth", "UNet_2D_residual"])
def test_files_that_the_challenges_code_wrote_show_their_networks(name):
    weights = torch.load(SEED / f"{name}.pt", weights_only=True)
    found = published_checkpoint(weights, f"{name}_membrane")
    settings = resolve_settings(GivenSettings(), ("published", found.settings))
    load_weights(build_network(settings.network.model_dump()), weights)

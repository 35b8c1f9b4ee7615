from __future__ import annotations

import sys
import types

import pytest
from torch import nn

from kasthuri_ray.models.unet import build_network, load_weights


class UserNetwork(nn.Module):
    """A user's network: one convolution."""

    def __init__(self, classes: int = 2, shrink: int = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, classes, 3, padding=1 - shrink)

    def forward(self, x):
        return self.conv(x)


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    """Return the import path of a module that holds `UserNetwork`."""
    module = types.ModuleType("user_networks")
    module.UserNetwork, module.number = UserNetwork, 3
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module.__name__


def test_a_network_by_import_path_gets_its_arguments(user_module):
    network = build_network({"model": f"{user_module}.UserNetwork", "classes": 3, "model_args": {"classes": 3}})
    assert isinstance(network, UserNetwork)
    assert network.training


@pytest.mark.parametrize(
    ("name", "model_args", "message"),
    [
        ("UserNetwork", {"classes": 5}, r"returns \(1, 5, 64, 64\).*expected logits of shape \(1, 2, 64, 64\)"),
        ("UserNetwork", {"classes": 5}, r"size of the tile\). Change network.model_args. It takes classes=2, shrink=0"),
        ("UserNetwork", {"shrink": 1}, r"returns \(1, 2, 62, 62\)"),
        (
            "UserNetwork",
            {"depth": 1},
            "cannot be called with network.model_args {'depth': 1}.*unexpected keyword.*It takes classes=2, shrink=0",
        ),
        ("UserNetwork", [1], r"model_args is \[1\]"),
        ("UserNetwurk", {}, "has no 'UserNetwurk'; did you mean 'UserNetwork'"),
        ("number", {}, "not a subclass of torch.nn.Module"),
    ],
)
def test_a_network_by_import_path_that_does_not_fit_is_refused(user_module, name, model_args, message):
    with pytest.raises(ValueError, match=message):
        build_network({"model": f"{user_module}.{name}", "model_args": model_args})


def test_a_module_that_does_not_exist_is_named():
    with pytest.raises(ValueError, match=r"No module named 'nowhere_at_all'.*PYTHONPATH"):
        build_network({"model": "nowhere_at_all.Net"})


def test_the_error_of_a_network_that_fails_on_a_tile_is_shown():
    with pytest.raises(
        ValueError, match=r"torch.nn.Linear with network.model_args .* failed on a tile of shape \(1, 1, 64, 64\): mat1"
    ):
        build_network({"model": "torch.nn.Linear", "model_args": {"in_features": 3, "out_features": 2}})


def test_weights_that_do_not_fit_a_network_of_ones_own_name_its_arguments(user_module):
    network = build_network({"model": f"{user_module}.UserNetwork"})
    with pytest.raises(
        ValueError, match=r"other shapes conv.weight .*trained with \(network.model and network.model_ar"
    ):
        load_weights(network, UserNetwork(classes=5).state_dict())
    with pytest.raises(ValueError, match=r"trained with \(model_type, n_blocks"):
        load_weights(build_network({"n_blocks": 2, "start_filters": 4}), network.state_dict())

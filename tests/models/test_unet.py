from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from kasthuri_ray.models.unet import MODEL_TYPES, UNet, build_network, load_weights, pooling_factors

SEED = Path(__file__).parent / "seed_unet"
KEYS = json.loads((SEED / "state_dict_keys.json").read_text())
MODEL_TYPE = {"UNet_2D_attention": "attention", "UNet_2D_residual": "residual", "UNet_2D_depth": "depth"}


def seed_network(name: str, start_filters: int = 4) -> nn.Module:
    settings = {"model": "UNet", "model_type": MODEL_TYPE.get(name), "dim": KEYS[name]["dim"]}
    return build_network(settings | {"start_filters": start_filters, "classes": 2, "in_channels": 1})


def random_tiles(dim: int, size: int = 16, batch: int = 2) -> torch.Tensor:
    return torch.rand((batch, 1, *[size] * dim), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", KEYS)
def test_published_weights_load_strictly_and_return_the_published_logits(name):
    network = seed_network(name).eval()
    state = torch.load(SEED / f"{name}.pt", weights_only=True)
    network.load_state_dict(state, strict=True)
    published = np.load(SEED / f"{name}.npz")
    with torch.no_grad():
        logits = network(torch.from_numpy(published["input"]))
    np.testing.assert_allclose(logits.numpy(), published["logits"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", KEYS)
def test_a_network_of_32_filters_has_the_published_number_of_parameters(name):
    assert sum(p.numel() for p in seed_network(name, 32).parameters()) == KEYS[name]["params_at_32"]


@pytest.mark.parametrize("name", KEYS)
def test_channels_last_changes_no_logit(name):
    network = seed_network(name).eval()
    load_weights(network, torch.load(SEED / f"{name}.pt", weights_only=True))
    published = np.load(SEED / f"{name}.npz")
    layout = torch.channels_last if KEYS[name]["dim"] == 2 else torch.channels_last_3d
    with torch.no_grad():
        logits = network.to(memory_format=layout)(torch.from_numpy(published["input"]).to(memory_format=layout))
    np.testing.assert_allclose(logits.numpy(), published["logits"], rtol=0, atol=2e-5)


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_parameter_that_requires_a_gradient_gets_one(model_type, dim):
    network = UNet(start_filters=2, n_blocks=3, dim=dim, model_type=model_type)
    assert network(random_tiles(dim)).shape == (2, 2, *[16] * dim)
    network(random_tiles(dim)).square().mean().backward()
    trainable = {name for name, p in network.named_parameters() if p.requires_grad}
    assert trainable == {name for name, p in network.named_parameters() if p.grad is not None}
    assert {name for name, _ in network.named_parameters()} - trainable == {
        f"up_blocks.{i}.conv0.{kind}" for i in range(2) for kind in ("weight", "bias")
    }


def test_initial_weights_are_xavier_uniform_with_zero_biases():
    network = UNet(start_filters=32)
    weight = network.down_blocks[1].conv2.weight
    bound = (6 / (9 * (64 + 64))) ** 0.5
    assert 0.99 * bound < weight.abs().max() <= bound
    assert all(p.abs().max() == 0 for name, p in network.named_parameters() if name.endswith("conv1.bias"))


@pytest.mark.parametrize(
    ("dim", "n_blocks", "pool_z", "factors"),
    [(2, 4, 0, (1, 8, 8)), (2, 5, 3, (1, 16, 16)), (3, 4, 0, (8, 8, 8)), (3, 4, 2, (2, 8, 8)), (3, 4, 9, (1, 8, 8))],
)
def test_pooling_factors_are_the_smallest_tile_that_works(dim, n_blocks, pool_z, factors):
    assert pooling_factors(n_blocks, dim, pool_z) == factors
    network = UNet(n_blocks=n_blocks, dim=dim, pool_z=pool_z, start_filters=1).eval()
    size = factors[-dim:]
    assert network(torch.zeros(1, 1, *size)).shape == (1, 2, *size)


def test_pool_z_leaves_z_as_it_is_in_the_first_levels():
    network = UNet(n_blocks=3, dim=3, pool_z=1, start_filters=2).eval()
    assert [block.pool.kernel_size for block in network.down_blocks[:2]] == [(1, 2, 2), (2, 2, 2)]
    assert [tuple(block.up.weight.shape[2:]) for block in network.up_blocks] == [(2, 2, 2), (1, 2, 2)]
    assert network(torch.zeros(1, 1, 6, 8, 8)).shape == (1, 2, 6, 8, 8)


def test_pools_that_leave_z_as_it_is_do_not_mix_sections():
    """Along z a section depends on no more than the six convolutions of the longest path reach."""
    network = UNet(n_blocks=2, dim=3, pool_z=1, start_filters=2, normalization="none").eval()
    images = torch.zeros(1, 1, 24, 8, 8)
    changed = images.clone()
    changed[:, :, 0] = 1
    with torch.no_grad():
        differs = (network(images) - network(changed)).abs().amax((0, 1, 3, 4)) > 0
    assert not differs[7:].any()
    assert differs[:3].all()


def test_a_size_that_cannot_be_pooled_is_refused_with_sizes_that_work():
    with pytest.raises(ValueError, match=r"y, x = \(100, 256\).*multiples of \(8, 8\); \(96, 256\) or \(104, 256\)"):
        UNet(start_filters=1)(torch.zeros(1, 1, 100, 256))
    with pytest.raises(ValueError, match=r"z, y, x = \(5, 16, 16\).*\(8, 16, 16\) would work"):
        UNet(start_filters=1, dim=3)(torch.zeros(1, 1, 5, 16, 16))


def test_an_input_with_other_axes_is_refused():
    with pytest.raises(ValueError, match=r"3D network with 1 input channel.*N, 1, z, y, x; got \(1, 1, 16, 16\)"):
        UNet(start_filters=1, dim=3)(torch.zeros(1, 1, 16, 16))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"conv_mode": "valid"}, "smaller than the tile.*use 'same'"),
        ({"normalization": "layer"}, "'layer'; it can be batch, instance, group, none"),
        ({"normalization": "group0"}, "'group0'; it can be"),
        ({"activation": "tanhh"}, "'tanhh'; it can be relu"),
        ({"model_type": "unetr"}, "'unetr'; it can be unet, attention, residual, depth"),
        ({"dim": 4}, "dim is 4; it can be 2, 3"),
        ({"n_blocks": 0}, "n_blocks is 0; it must be a whole number of at least 1"),
        ({"pool_z": -1}, "pool_z is -1; it must be a whole number of at least 0"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        build_network(settings)


@pytest.mark.parametrize("normalization", ["batch", "instance", "group", "group3", "none"])
@pytest.mark.parametrize("activation", ["relu", "leaky", "elu", "gelu", "silu"])
def test_every_normalization_and_activation_makes_a_network_that_learns(normalization, activation):
    network = UNet(start_filters=6, n_blocks=2, normalization=normalization, activation=activation)
    network(random_tiles(2)).mean().backward()
    assert network.conv_final.weight.grad.abs().sum() > 0
    assert ("running_mean" in str(network.state_dict().keys())) == (normalization == "batch")


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_torch_compile_captures_one_graph(model_type):
    network = UNet(start_filters=2, n_blocks=2, model_type=model_type).eval()
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(random_tiles(2)), network(random_tiles(2)))


def test_a_model_name_without_a_dot_is_a_label_that_is_not_checked():
    assert isinstance(build_network({"model": "Anything", "start_filters": 1}), UNet)


def test_weights_of_a_wrapped_network_load_without_its_prefixes():
    source, target = UNet(start_filters=2, n_blocks=2), UNet(start_filters=2, n_blocks=2)
    load_weights(target, {f"module._orig_mod.{key}": value for key, value in source.state_dict().items()})
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters(), strict=True))


def test_weights_load_into_a_compiled_network():
    source, target = UNet(start_filters=2, n_blocks=2), UNet(start_filters=2, n_blocks=2)
    load_weights(torch.compile(target, backend="eager"), source.state_dict())
    assert torch.equal(source.conv_final.weight, target.conv_final.weight)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"start_filters": 4}, r"other shapes down_blocks.0.conv1.weight \(4, 1, 3, 3\), expected \(2, 1, 3, 3\)"),
        ({"n_blocks": 3}, r"unexpected keys down_blocks.2.conv1.weight, .* and \d+ more"),
        ({"n_blocks": 1}, "missing keys down_blocks.1.conv1.weight"),
        ({"dim": 3}, r"\(2, 1, 3, 3, 3\), expected \(2, 1, 3, 3\)"),
    ],
)
def test_weights_of_another_network_are_refused_with_keys_and_shapes(other, message):
    network = UNet(start_filters=2, n_blocks=2)
    before = network.conv_final.weight.clone()
    with pytest.raises(ValueError, match=message):
        load_weights(network, UNet(**{"start_filters": 2, "n_blocks": 2, **other}).state_dict())
    assert torch.equal(before, network.conv_final.weight)

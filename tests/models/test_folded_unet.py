"""Folded networks against the originals: equal inside of the margin, for any scale of a batch norm."""

import pytest
import torch
from torch import nn

from kasthuri_ray.models.folded_unet import can_fold, fold_network
from kasthuri_ray.models.receptive_field import find_receptive_field
from kasthuri_ray.models.unet import UNet

NORMS = (nn.BatchNorm2d, nn.BatchNorm3d)
FOLDED = {
    "2D": {},
    "depth": {"model_type": "depth", "n_blocks": 3},
    "3D": {"dim": 3, "n_blocks": 2},
    "thick sections": {"dim": 3, "n_blocks": 3, "pool_z": 1},
    "four classes, silu": {"activation": "silu", "classes": 4, "n_blocks": 2},
    "three channels, one level": {"in_channels": 3, "n_blocks": 1},
}


def trained(**settings):
    """Return a network whose batch norms have scales that are negative, zero, tiny and large."""
    torch.manual_seed(0)
    network = UNet(start_filters=4, **settings).eval()
    with torch.no_grad():
        for norm in network.modules():
            if isinstance(norm, NORMS):
                norm.weight.copy_(torch.randn_like(norm.weight).abs() + 0.2)
                norm.weight[:3] = torch.tensor([-1.0, 0.0, 1e-7])
                norm.bias.copy_(torch.randn_like(norm.bias))
                norm.running_mean.copy_(torch.rand_like(norm.running_mean))
                norm.running_var.uniform_(0.2, 2)
    return network


def image_of(network, size):
    shape = (1, network.in_channels, *[size] * network.dim)
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def difference(network, precision="float32"):
    """Return |difference| of logits inside and outside of the margin, and the standard deviation of the logits."""
    margin = find_receptive_field(network, network.dim, network.in_channels).margin[-network.dim :]
    factor = max(network.factors)
    image = image_of(network, -(-(2 * max(margin) + 16) // factor) * factor)
    logits = network(image)
    apart = (fold_network(network, precision)(image).float() - logits).abs()
    inside = apart[(..., *(slice(m, n - m) for m, n in zip(margin, image.shape[2:], strict=True)))]
    return inside.max().item(), apart.max().item(), logits.std().item()


@pytest.mark.parametrize("name", FOLDED)
def test_logits_are_equal_inside_of_the_margin(name):
    inside, anywhere, spread = difference(trained(**FOLDED[name]))
    assert inside <= 2e-5 * max(1, spread)
    assert anywhere > 100 * inside  # the padding differs: a fold without the margin would be seen
    assert spread > 0.01


def test_bf16_is_computed_in_bf16_but_for_the_first_convolution():
    network = trained()
    folded = fold_network(network, "bf16")
    formats = {name: parameter.dtype for name, parameter in folded.named_parameters() if ".conv" in name}
    assert formats.pop("down_blocks.0.conv1.weight") == formats.pop("down_blocks.0.conv1.bias") == torch.float32
    assert set(formats.values()) == {torch.bfloat16}
    image = image_of(network, 64)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        inside_autocast = folded(image)
    assert inside_autocast.dtype == torch.bfloat16
    torch.testing.assert_close(inside_autocast, folded(image), rtol=0, atol=0)


@pytest.mark.parametrize("activation", ["relu", "leaky", "silu"])
def test_rounded_numbers_shift_no_mean(activation):
    network = UNet(start_filters=8, n_blocks=2, activation=activation)
    image = image_of(network, 128)
    with torch.no_grad():
        for _ in range(30):  # means of this image
            network.train()(image)
        exact = network.eval()(image)
        with torch.autocast("cpu", torch.bfloat16):
            plain = network(image).float() - exact
        folded = fold_network(network, "bf16")(image).float() - exact
    inside = (..., slice(24, -24), slice(24, -24))
    assert folded[inside].square().mean() < plain[inside].square().mean()
    assert folded[inside].mean((0, 2, 3)).abs().max() < 0.02 * exact.std()


def test_the_network_is_not_changed():
    network = trained()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    folded = fold_network(network, "float32")
    folded(image_of(network, 32))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert (folded.in_channels, folded.factors) == (network.in_channels, network.factors)


@pytest.mark.parametrize(
    "settings",
    [{"model_type": "attention"}, {"model_type": "residual"}, {"normalization": "instance"}, {"normalization": "none"}],
)
def test_networks_of_another_kind_are_not_folded(settings):
    assert not can_fold(UNet(start_filters=2, n_blocks=2, **settings))
    assert not can_fold(nn.Conv2d(1, 2, 1))
    assert can_fold(UNet(start_filters=2, n_blocks=2, model_type="depth"))


def test_a_folded_network_takes_less_memory():
    from kasthuri_ray.inference.tile_memory import activation_bytes_per_voxel

    network = UNet(start_filters=8)
    plain = activation_bytes_per_voxel(network, "bf16", 2)
    assert activation_bytes_per_voxel(fold_network(network, "bf16"), "bf16", 2) < 0.9 * plain

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kasthuri_ray.models.receptive_field import _measure, find_receptive_field
from kasthuri_ray.models.unet import MODEL_TYPES, UNet

# dim, settings of the UNet, radius, margin, pooling factors
NETWORKS = [
    (2, {"model_type": "unet"}, (0, 51, 51), (0, 56, 56), (1, 8, 8)),
    (2, {"model_type": "attention"}, (0, 51, 51), (0, 56, 56), (1, 8, 8)),
    (2, {"model_type": "residual"}, (0, 95, 95), (0, 96, 96), (1, 8, 8)),
    (2, {"model_type": "depth"}, (0, 107, 107), (0, 112, 112), (1, 16, 16)),
    (3, {"dim": 3}, (51, 51, 51), (56, 56, 56), (8, 8, 8)),
    (3, {"dim": 3, "pool_z": 2}, (17, 51, 51), (18, 56, 56), (2, 8, 8)),
    (3, {"dim": 3, "pool_z": 3}, (14, 51, 51), (14, 56, 56), (1, 8, 8)),
]


@pytest.mark.parametrize(("dim", "settings", "radius", "margin", "factors"), NETWORKS)
def test_unets_have_the_receptive_field_of_their_layers(dim, settings, radius, margin, factors):
    field = find_receptive_field(UNet(start_filters=2, **settings), dim)
    assert (field.radius, field.margin, field.factors) == (radius, margin, factors)
    assert field.exact
    assert field.note == ""


def positive_network(dim, **settings):
    """Return a UNet through which every change passes: with positive weights and images every ReLU is active."""
    network = UNet(start_filters=2, dim=dim, **settings).double().eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.data = 0.1 + torch.rand(parameter.shape, generator=generator, dtype=torch.float64) / 10
    return network


def changed_outputs(network, axis, size, position):
    """Return where along an axis outputs change with one input voxel, which is made the maximum of every pool."""
    sides = list(network.factors)
    sides[axis] = size
    image = torch.rand((1, 1, *sides), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    grown = image.clone()
    grown.select(2 + axis, position)[(0,) * (image.ndim - 1)] += 1e6
    with torch.no_grad():
        differ = network(grown) != network(image)
    return differ.movedim(2 + axis, 0).flatten(1).any(1).nonzero().flatten().tolist()


@pytest.mark.parametrize(
    ("dim", "settings", "size"),
    [
        *((2, {"model_type": kind}, 256) for kind in MODEL_TYPES),
        *((3, {"model_type": kind, "n_blocks": 3, "pool_z": pool}, 96) for kind in MODEL_TYPES for pool in (0, 1)),
        (3, {}, 128),
        (3, {"pool_z": 2}, 128),
    ],
)
def test_the_radius_is_how_far_a_change_of_one_voxel_spreads(dim, settings, size):
    network = positive_network(dim, **settings)
    field = find_receptive_field(network, dim)
    for axis in range(dim - 1 if dim == 2 else 2):  # y is as x
        spread = 0
        for phase in range(network.factors[axis]):
            position = size // 2 + phase
            changed = changed_outputs(network, axis, size, position)
            spread = max(spread, position - changed[0], changed[-1] - position)
        assert spread == field.radius[axis - dim]


@pytest.mark.parametrize(
    ("dim", "settings"),
    [
        (2, {"model_type": "attention"}),
        (2, {"model_type": "residual", "n_blocks": 3}),
        (2, {"model_type": "depth"}),
        (3, {"n_blocks": 3, "pool_z": 1}),
        (2, {"normalization": "instance", "n_blocks": 2}),
        (2, {"activation": "gelu", "normalization": "none", "n_blocks": 1}),
    ],
)
def test_measuring_a_unet_finds_the_computed_receptive_field(dim, settings):
    network = UNet(start_filters=2, dim=dim, **settings)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert _measure(network, dim, 1) == find_receptive_field(network, dim)
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


class FunctionNetwork(nn.Module):
    """A user's network: a function of the image and of modules."""

    def __init__(self, function, *modules):
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(modules)

    def forward(self, x):
        return self.function(x, *self.parts)


def conv(kernel, **settings):
    return nn.Conv2d(1, 1, kernel, padding="same", **settings)


def pool_and_upsample(x, size, first):
    return F.interpolate(F.max_pool2d(first(x), size), scale_factor=size)


def test_a_users_network_is_measured():
    dead = conv(5)
    nn.init.constant_(dead.bias, -1e9)  # its ReLU is inactive for these images; other voxels may activate it
    cases = [
        (FunctionNetwork(lambda x, c: c(x), conv(1)), (0, 0), 1),
        (FunctionNetwork(lambda x, c: c(x), conv((3, 7))), (1, 3), 1),
        (FunctionNetwork(lambda x, c: c(x), conv(3, dilation=20)), (20, 20), 1),
        (FunctionNetwork(lambda x, c: torch.relu(c(x)), dead), (2, 2), 1),
        (FunctionNetwork(lambda x, c: pool_and_upsample(x, 4, c), conv(3)), (4, 4), 4),
        (FunctionNetwork(lambda x: F.pad(x, (9, 0))[..., : x.shape[-1]]), (0, 9), 1),
    ]
    for network, (y, x), factor in cases:
        field = find_receptive_field(network, 2)
        assert (field.radius, field.factors) == ((0, y, x), (1, factor, factor))
        assert field.margin == (0, -(-y // factor) * factor, -(-x // factor) * factor)
        assert field.exact


def test_the_margin_for_test_time_augmentation_is_the_wider_of_y_and_x():
    field = find_receptive_field(FunctionNetwork(lambda x, c: c(x), conv((3, 7))), 2).widened_for_tta()
    assert field.margin == (0, 3, 3)


def test_a_network_that_normalizes_by_the_tile_is_not_exact():
    for network in (
        UNet(start_filters=2, n_blocks=2, normalization="instance"),
        FunctionNetwork(lambda x, c, norm: norm(c(x)), conv(3), nn.InstanceNorm2d(1)),
    ):
        field = find_receptive_field(network, 2)
        assert not field.exact
        assert field.note.startswith(
            "the network uses instance normalization, whose statistics depend on the tile: its"
        )
        assert field.radius[1] < 20
    assert "group norm" in find_receptive_field(UNet(start_filters=2, n_blocks=2, normalization="group"), 2).note


def test_a_network_that_sees_the_whole_tile_is_not_exact():
    field = find_receptive_field(FunctionNetwork(lambda x: x - x.mean(dim=(2, 3), keepdim=True)), 2)
    assert not field.exact
    assert field.note.startswith("the network sees the whole tile along y, x, up to the 1024 voxels that were tried")
    assert field.margin[1] > 400


def test_a_network_whose_outputs_depend_on_the_position_is_not_exact():
    def times_position(x):
        return x * torch.arange(x.shape[-1], dtype=x.dtype)

    field = find_receptive_field(FunctionNetwork(times_position), 2)
    assert not field.exact
    assert "do not shift with the image" in field.note


def test_the_factors_follow_from_the_sizes_that_a_network_refuses():
    def multiples_of_8(x):
        if any(n % 8 for n in x.shape[2:]):
            raise RuntimeError("sizes must be multiples of 8")
        return x

    assert find_receptive_field(FunctionNetwork(multiples_of_8), 2).factors == (1, 8, 8)
    with pytest.raises(ValueError, match="takes no tile of 4, 8, 16, 32, 64, 128 voxels"):
        find_receptive_field(FunctionNetwork(lambda x: x[..., :1]), 2)


def test_z_is_measured_apart_from_y_and_x():
    def pool_z_less(x):
        return F.interpolate(F.avg_pool3d(x, (2, 4, 4)), scale_factor=(2, 4, 4))

    field = find_receptive_field(FunctionNetwork(pool_z_less), 3)
    assert field.factors == (2, 4, 4)
    assert field.radius == (1, 3, 3)
    assert field.margin == (2, 4, 4)


def test_the_radius_is_the_largest_over_all_positions_in_a_pooling_cell():
    network = UNet(start_filters=2, n_blocks=2)
    field = find_receptive_field(network, 2)
    spreads = [p - changed_outputs(positive_network(2, n_blocks=2), 1, 64, p)[0] for p in (32, 33)]
    assert spreads[0] != spreads[1]
    assert max(spreads) <= field.radius[1]

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kasthuri_ray.models.receptive_field import _measured, find_receptive_field
from kasthuri_ray.models.unet import MODEL_TYPES, UNet

FIVE = [
    (2, {"model_type": "unet"}, (0, 51, 51), (0, 56, 56), (1, 8, 8)),
    (2, {"model_type": "attention"}, (0, 51, 51), (0, 56, 56), (1, 8, 8)),
    (2, {"model_type": "residual"}, (0, 95, 95), (0, 96, 96), (1, 8, 8)),
    (2, {"model_type": "depth"}, (0, 107, 107), (0, 112, 112), (1, 16, 16)),
    (3, {"dim": 3}, (51, 51, 51), (56, 56, 56), (8, 8, 8)),
    (3, {"dim": 3, "pool_z": 2}, (17, 51, 51), (18, 56, 56), (2, 8, 8)),
    (3, {"dim": 3, "pool_z": 3}, (14, 51, 51), (14, 56, 56), (1, 8, 8)),
]


@pytest.mark.parametrize(("dim", "settings", "sees", "margin", "factors"), FIVE)
def test_how_far_our_networks_see(dim, settings, sees, margin, factors):
    reach = find_receptive_field(UNet(start_filters=2, **settings), dim)
    assert (reach.sees, reach.margin, reach.factors) == (sees, margin, factors)
    assert reach.exact
    assert reach.note == ""


def open_network(dim, **settings):
    """A network through which every change goes: all weights and images positive, so that no rectifier is shut."""
    network = UNet(start_filters=2, dim=dim, **settings).double().eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.data = 0.1 + torch.rand(parameter.shape, generator=generator, dtype=torch.float64) / 10
    return network


def changed_outputs(network, axis, size, place):
    """Where along an axis any output changes when one input voxel grows a lot, which makes it every pool's largest."""
    sides = list(network.factors)
    sides[axis] = size
    image = torch.rand((1, 1, *sides), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    grown = image.clone()
    grown.select(2 + axis, place)[(0,) * (image.ndim - 1)] += 1e6
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
def test_the_reach_is_what_a_change_of_one_voxel_shows(dim, settings, size):
    network = open_network(dim, **settings)
    reach = find_receptive_field(network, dim)
    for axis in range(dim - 1 if dim == 2 else 2):  # y is as x
        spread = 0
        for phase in range(network.factors[axis]):
            place = size // 2 + phase
            places = changed_outputs(network, axis, size, place)
            spread = max(spread, place - places[0], places[-1] - place)
        assert spread == reach.sees[axis - dim]


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
def test_measured_as_a_network_of_ones_own_it_is_the_same(dim, settings):
    network = UNet(start_filters=2, dim=dim, **settings)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert _measured(network, dim, 1) == find_receptive_field(network, dim)
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


class Own(nn.Module):
    """A network of one's own, made of a function of the image."""

    def __init__(self, function, *modules):
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(modules)

    def forward(self, x):
        return self.function(x, *self.parts)


def conv(kernel, **settings):
    return nn.Conv2d(1, 1, kernel, padding="same", **settings)


def pooled(x, size, first):
    return F.interpolate(F.max_pool2d(first(x), size), scale_factor=size)


def test_networks_of_ones_own_are_measured():
    dead = conv(5)
    nn.init.constant_(dead.bias, -1e9)  # its rectifier is shut for these weights; other voxels may open it
    cases = [
        (Own(lambda x, c: c(x), conv(1)), (0, 0), 1),
        (Own(lambda x, c: c(x), conv((3, 7))), (1, 3), 1),
        (Own(lambda x, c: c(x), conv(3, dilation=20)), (20, 20), 1),
        (Own(lambda x, c: torch.relu(c(x)), dead), (2, 2), 1),
        (Own(lambda x, c: pooled(x, 4, c), conv(3)), (4, 4), 4),
        (Own(lambda x: F.pad(x, (9, 0))[..., : x.shape[-1]]), (0, 9), 1),
    ]
    for network, (y, x), factor in cases:
        reach = find_receptive_field(network, 2)
        assert (reach.sees, reach.factors) == ((0, y, x), (1, factor, factor))
        assert reach.margin == (0, -(-y // factor) * factor, -(-x // factor) * factor)
        assert reach.exact


def test_a_margin_for_turned_tiles_is_the_wider_one():
    reach = find_receptive_field(Own(lambda x, c: c(x), conv((3, 7))), 2).turned()
    assert reach.margin == (0, 3, 3)


def test_a_network_that_normalizes_by_the_tile_says_so():
    for network in (
        UNet(start_filters=2, n_blocks=2, normalization="instance"),
        Own(lambda x, c, norm: norm(c(x)), conv(3), nn.InstanceNorm2d(1)),
    ):
        reach = find_receptive_field(network, 2)
        assert not reach.exact
        assert reach.note.startswith("the network normalizes by the tile (instance norm): its answers depend on the ti")
        assert reach.sees[1] < 20
    assert "group norm" in find_receptive_field(UNet(start_filters=2, n_blocks=2, normalization="group"), 2).note


def test_a_network_that_sees_the_whole_tile_says_so():
    reach = find_receptive_field(Own(lambda x: x - x.mean(dim=(2, 3), keepdim=True)), 2)
    assert not reach.exact
    assert reach.note.startswith("the network sees the whole tile along y, x, up to the 1024 voxels that were tried")
    assert reach.margin[1] > 400


def test_a_network_whose_answer_depends_on_the_place_says_so():
    def numbered(x):
        return x * torch.arange(x.shape[-1], dtype=x.dtype)

    reach = find_receptive_field(Own(numbered), 2)
    assert not reach.exact
    assert "do not move with the image" in reach.note


def test_sizes_that_a_network_refuses_make_its_factors():
    def fussy(x):
        if any(n % 8 for n in x.shape[2:]):
            raise RuntimeError("sizes must be multiples of 8")
        return x

    assert find_receptive_field(Own(fussy), 2).factors == (1, 8, 8)
    with pytest.raises(ValueError, match="gets through no tile of 4, 8, 16, 32, 64, 128 voxels"):
        find_receptive_field(Own(lambda x: x[..., :1]), 2)


def test_z_is_apart_from_y_and_x():
    def slabs(x):
        return F.interpolate(F.avg_pool3d(x, (2, 4, 4)), scale_factor=(2, 4, 4))

    reach = find_receptive_field(Own(slabs), 3)
    assert reach.factors == (2, 4, 4)
    assert reach.sees == (1, 3, 3)
    assert reach.margin == (2, 4, 4)


def test_every_phase_of_a_cell_counts():
    network = UNet(start_filters=2, n_blocks=2)
    reach = find_receptive_field(network, 2)
    seen = [
        place - places[0]
        for place, places in ((p, changed_outputs(open_network(2, n_blocks=2), 1, 64, p)) for p in (32, 33))
    ]
    assert seen[0] != seen[1]
    assert max(itertools.chain(seen)) <= reach.sees[1]

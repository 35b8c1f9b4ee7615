"""The tiles of a test are predicted with the image around them, as a segmentation predicts them."""

import numpy as np
import pytest
import torch
from torch import nn

from kasthuri_ray.geometry import Box
from kasthuri_ray.inference.inference_settings import InferenceSettings
from kasthuri_ray.inference.predictor import Predictor
from kasthuri_ray.inference.tiling import VolumePart
from kasthuri_ray.models.receptive_field import find_receptive_field
from kasthuri_ray.models.unet import build_network
from kasthuri_ray.tiles.sampling import GridTiles, TileSource, read_tile
from kasthuri_ray.training.grid_stream import with_context
from kasthuri_ray.training.tile_results import foreground_probabilities
from kasthuri_ray.volumes.memory_volume import volume_of_array

SETTINGS = {"dim": 2, "classes": 2, "n_blocks": 2, "start_filters": 4, "activation": "relu", "conv_mode": "same"}


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return build_network({**SETTINGS, "normalization": "batch"}).eval()


def grid_of(shape, box: Box, tile, network) -> GridTiles:
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    em, labels = (volume_of_array(each, uri) for each, uri in ((image, "array://em"), (image // 128, "array://labels")))
    source = TileSource(em, labels, box)
    return with_context(GridTiles((source,), tile), network)


def predict(network: nn.Module, tiles: GridTiles) -> np.ndarray:
    """Return the probability of each voxel of the box, from the tile in which it counts."""
    box = tiles.sources[0].box
    result = np.zeros(box.shape, np.float32)
    for number in range(len(tiles)):
        address = tiles.address(number)
        image, *_ = read_tile(tiles.sources, address)
        with torch.no_grad():
            probability = foreground_probabilities(network(torch.from_numpy(image[:, None] / np.float32(255))))
        result[address.own.slices(box.start)] = probability[:, 0][address.own.slices(address.box.start)]
    return result


def test_tiles_with_context_are_predicted_as_a_segmentation_predicts_their_box(network):
    box = Box((1, 32, 64), (3, 128, 160))
    tiles = grid_of((4, 192, 256), box, (1, 64, 64), network)
    settings = InferenceSettings("cpu", "float32", False, 1, (1, 512, 512), 1)
    predictor = Predictor(network, 2, 2, find_receptive_field(network, 2), settings)
    image = tiles.sources[0].image
    expected = predictor.predict(VolumePart(image.read(image.bounds), image.bounds, image.bounds), box)[0] / 255
    assert np.abs(predict(network, tiles) - expected).max() < 0.6 / 255
    without = predict(network, GridTiles(tiles.sources, tiles.tile))
    assert np.abs(without - expected).max() > 2 / 255


def test_the_context_is_the_margin_as_far_as_tile_and_image_allow(network):
    margin = find_receptive_field(network, 2).margin
    assert margin == (0, 10, 10)
    box = Box((0, 0, 0), (1, 64, 64))
    assert grid_of((1, 256, 256), box, (1, 64, 64), network).context == margin
    assert grid_of((1, 256, 256), box, (1, 32, 64), network).context == (0, 8, 10)  # a quarter of the tile
    assert grid_of((1, 70, 64), box, (1, 64, 64), network).context == (0, 2, 0)  # in whole cells of the pooling grid


@pytest.mark.parametrize("other", [nn.Conv2d(1, 2, 3), build_network({**SETTINGS, "normalization": "instance"})])
def test_networks_that_may_depend_on_the_shape_of_a_tile_get_no_context(other):
    assert grid_of((1, 256, 256), Box((0, 0, 0), (1, 64, 64)), (1, 64, 64), other).context == (0, 0, 0)

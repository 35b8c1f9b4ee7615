"""Objects of a split that was predicted tile by tile are those of the whole boxes."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from kasthuri_ray.geometry import Box
from kasthuri_ray.labels import IGNORE_LABEL
from kasthuri_ray.metrics.object_comparison import ObjectComparison, find_block_objects
from kasthuri_ray.tiles.sampling import GridTiles
from kasthuri_ray.training.tested_objects import match_tile_objects, pack_tile

BOXES = [Box((3, 10, 20), (13, 74, 90)), Box((0, 0, 0), (9, 40, 33))]


def make_classes(box, seed):
    """Return blobs of two classes as a prediction, and as a truth that differs, with ignored voxels."""
    rng = np.random.default_rng(seed)
    field = gaussian_filter(rng.normal(size=box.shape), 2)
    other = field + 0.4 * gaussian_filter(rng.normal(size=box.shape), 2)
    predicted, truth = ((each > 0.05).astype(np.uint8) + (each > 0.12) for each in (field, other))
    truth[:, :6] = IGNORE_LABEL
    return predicted, truth


def match_whole(box, predicted, truth, numbers):
    objects = ObjectComparison()
    objects.add(find_block_objects(predicted, truth, box, numbers))
    return objects.match(numbers)


@pytest.mark.parametrize("tile", [(1, 32, 24), (4, 32, 32), (9, 40, 33)])
def test_objects_of_tiles_equal_those_of_whole_boxes(tile):
    volumes = [make_classes(box, seed) for seed, box in enumerate(BOXES)]
    tiles = GridTiles(tuple(SimpleNamespace(box=box) for box in BOXES), tile)
    packed = {}
    for number in range(len(tiles)):
        address = tiles.address(number)
        inside = address.box.slices(BOXES[address.source].start)
        packed[number] = pack_tile(*(voxels[inside] for voxels in volumes[address.source]), address)
    found = match_tile_objects(tiles, packed, [1, 2], block=(4, 16, 20))
    for number in (1, 2):
        each = [match_whole(box, *volume, [1, 2])[number] for box, volume in zip(BOXES, volumes, strict=True)]
        for key in ("num_true", "num_predicted", "num_small"):
            assert found[number][key] == sum(row[key] for row in each)
        matched = sum(round(row["recall"] * row["num_true"]) for row in each)
        assert found[number]["num_true"] > 5
        assert found[number]["recall"] == pytest.approx(matched / found[number]["num_true"])
        assert 0 < found[number]["recall"] < 1


def test_tiles_that_were_not_read_do_not_count():
    box = BOXES[1]
    predicted, truth = make_classes(box, 0)
    tiles = GridTiles((SimpleNamespace(box=box),), (1, 40, 33))
    packed = {z: pack_tile(predicted[z], truth[z], tiles.address(z)) for z in range(5)}
    rest = truth.copy()
    rest[5:] = IGNORE_LABEL
    assert match_tile_objects(tiles, packed, [1]) == match_whole(box, predicted, rest, [1])

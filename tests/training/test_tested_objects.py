"""Objects of a split that was predicted tile by tile are those of the whole boxes."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from kasthuri_ray.geometry import Box
from kasthuri_ray.labels import IGNORE_LABEL
from kasthuri_ray.metrics.cleft_distances import measure_cleft_distances, pack_class_masks
from kasthuri_ray.metrics.object_comparison import ObjectComparison, class_bytes, find_block_objects
from kasthuri_ray.metrics.object_criteria import ObjectCriteria
from kasthuri_ray.metrics.object_outcomes import object_metrics, pool_outcomes
from kasthuri_ray.tiles.sampling import GridTiles
from kasthuri_ray.training.tested_objects import match_tile_objects, pack_tile

SIZE_NM = (40.0, 8.0, 8.0)
BOXES = [Box((3, 10, 20), (13, 74, 90)), Box((0, 0, 0), (9, 40, 33))]


def make_classes(box, seed):
    """Return blobs of two classes as a prediction with probabilities, and a truth that differs, with ignored voxels."""
    rng = np.random.default_rng(seed)
    field = gaussian_filter(rng.normal(size=box.shape), 2)
    other = field + 0.4 * gaussian_filter(rng.normal(size=box.shape), 2)
    predicted, truth = ((each > 0.05).astype(np.uint8) + (each > 0.12) for each in (field, other))
    truth[:, :6] = IGNORE_LABEL
    probability = np.clip(np.stack([2 * field + 0.5, 3 * field + 0.3]), 0, 1).astype(np.float32)
    return probability, predicted, truth


def match_whole(box, probability, predicted, truth, numbers):
    objects = ObjectComparison()
    of_class = (class_bytes(probability, classes) for classes in (predicted, truth))
    objects.add(find_block_objects(predicted, truth, box, numbers, *of_class))
    matched = objects.match(numbers, ObjectCriteria(box, SIZE_NM))
    masks = pack_class_masks(predicted, truth, box, numbers)
    return {
        number: (each.outcomes, measure_cleft_distances([masks[number]], SIZE_NM)) for number, each in matched.items()
    }


def make_source(box):
    return SimpleNamespace(box=box, image=SimpleNamespace(voxel_size_nm=SIZE_NM))


@pytest.mark.parametrize("tile", [(1, 32, 24), (4, 32, 32), (9, 40, 33)])
def test_objects_of_tiles_equal_those_of_whole_boxes(tile):
    volumes = [make_classes(box, seed) for seed, box in enumerate(BOXES)]
    tiles = GridTiles(tuple(map(make_source, BOXES)), tile)
    packed = {}
    for number in range(len(tiles)):
        address = tiles.address(number)
        inside = address.box.slices(BOXES[address.source].start)
        packed[number] = pack_tile(*(voxels[(..., *inside)] for voxels in volumes[address.source]), address)
    found = match_tile_objects(tiles, packed, [1, 2], block=(4, 16, 20))
    for number in (1, 2):
        each = [match_whole(box, *volume, [1, 2])[number] for box, volume in zip(BOXES, volumes, strict=True)]
        expected = object_metrics(pool_outcomes(outcomes for outcomes, _ in each))
        metrics = object_metrics(found.outcomes[number])
        assert metrics == expected
        assert metrics["num_true"] > 5
        assert 0 < metrics["f1"] < metrics["by"]["overlap"]["f1"] < 1
        assert 0 < metrics["average_precision"] < 1
        distances = found.distances[number].metrics()
        assert distances == pytest.approx((each[0][1] + each[1][1]).metrics())
        assert distances["adgt_nm"] > 0


def test_tiles_that_were_not_read_do_not_count():
    box = BOXES[1]
    probability, predicted, truth = make_classes(box, 0)
    tiles = GridTiles((make_source(box),), (1, 40, 33))
    packed = {z: pack_tile(probability[:, z], predicted[z], truth[z], tiles.address(z)) for z in range(5)}
    rest = truth.copy()
    rest[5:] = IGNORE_LABEL
    outcomes, distances = match_whole(box, probability, predicted, rest, [1])[1]
    found = match_tile_objects(tiles, packed, [1])
    assert object_metrics(found.outcomes[1]) == object_metrics(outcomes)
    assert found.distances[1] == distances

"""Objects of a split that was predicted tile by tile are those of the whole boxes."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from kasthuri_ray.geometry import Box
from kasthuri_ray.labels import IGNORE_LABEL
from kasthuri_ray.metrics.block_objects import class_bytes, find_block_objects
from kasthuri_ray.metrics.class_map import classes_at
from kasthuri_ray.metrics.cleft_distances import measure_cleft_distances, pack_class_masks
from kasthuri_ray.metrics.object_comparison import ObjectComparison
from kasthuri_ray.metrics.object_criteria import ObjectCriteria
from kasthuri_ray.metrics.object_detection import find_extent, select_objects
from kasthuri_ray.metrics.object_outcomes import object_metrics, pool_outcomes
from kasthuri_ray.metrics.object_settings import ObjectSettings
from kasthuri_ray.tiles.sampling import GridTiles
from kasthuri_ray.training.tested_objects import TileVolume, match_tile_objects, pack_tile

SIZE_NM = (40.0, 8.0, 8.0)
BOXES = [Box((3, 10, 20), (13, 74, 90)), Box((0, 0, 0), (9, 40, 33))]
SETTINGS = ObjectSettings((0.55, 0.5), (0.35, 0.4), (3.0, 2.0), bridge_sections=1)
THRESHOLDS = [0.5, 0.45]


def make_voxels(box, seed):
    """Return probabilities of two classes, and a truth that differs, with ignored voxels."""
    rng = np.random.default_rng(seed)
    field = gaussian_filter(rng.normal(size=box.shape), 2)
    other = field + 0.4 * gaussian_filter(rng.normal(size=box.shape), 2)
    truth = (other > 0.05).astype(np.uint8) + (other > 0.12)
    truth[:, :6] = IGNORE_LABEL
    first, second = (np.clip(0.5 + 12 * (field - middle), 0, 1) for middle in (0.05, 0.12))
    return np.stack([first * (1 - second), second]).astype(np.float32), truth


def match_whole(box, probability, truth, numbers, settings=SETTINGS):
    stored = np.rint(probability * 255).astype(np.uint8)
    extent = find_extent(stored, settings)
    objects = ObjectComparison(partial(select_objects, settings=settings, bounds=box))
    voxels = (extent.classes, truth, box, numbers, extent.probability, class_bytes(stored, truth))
    objects.add(find_block_objects(*voxels, extent.bridged))
    matched = objects.match(numbers, ObjectCriteria(box, SIZE_NM))
    masks = pack_class_masks(classes_at(stored, THRESHOLDS), truth, box, numbers)
    return {
        number: (each.outcomes, measure_cleft_distances([masks[number]], SIZE_NM)) for number, each in matched.items()
    }


def grid_of(*boxes, tile):
    image = SimpleNamespace(voxel_size_nm=SIZE_NM)
    return GridTiles(tuple(SimpleNamespace(box=box, image=image) for box in boxes), tile)


@pytest.mark.parametrize("tile", [(1, 32, 24), (4, 32, 32), (9, 40, 33)])
def test_objects_of_tiles_equal_those_of_whole_boxes(tile):
    volumes = [make_voxels(box, seed) for seed, box in enumerate(BOXES)]
    tiles = grid_of(*BOXES, tile=tile)
    packed = {}
    for number in range(len(tiles)):
        address = tiles.address(number)
        inside = address.box.slices(BOXES[address.source].start)
        packed[number] = pack_tile(*(voxels[(..., *inside)] for voxels in volumes[address.source]), address)
    found = match_tile_objects(tiles, packed, [1, 2], SETTINGS, THRESHOLDS, block=(4, 16, 20))
    for number in (1, 2):
        each = [match_whole(box, *volume, [1, 2])[number] for box, volume in zip(BOXES, volumes, strict=True)]
        expected = object_metrics(pool_outcomes(outcomes for outcomes, _ in each))
        metrics = object_metrics(found.outcomes[number])
        assert metrics == expected
        assert metrics["num_true"] > 5
        assert 0 < metrics["by"]["overlap"]["f1"] < 1
        assert 0 < metrics["average_precision"] < 1
        distances = found.distances[number].metrics()
        assert distances == pytest.approx((each[0][1] + each[1][1]).metrics())
        assert distances["adgt_nm"] > 0


def test_tiles_that_were_not_read_do_not_count():
    box = BOXES[1]
    probability, truth = make_voxels(box, 0)
    tiles = grid_of(box, tile=(1, 40, 33))
    packed = {z: pack_tile(probability[:, z], truth[z], tiles.address(z)) for z in range(5)}
    rest = truth.copy()
    rest[5:] = IGNORE_LABEL
    settings = replace(SETTINGS, bridge_sections=0)
    expected = probability.copy()
    expected[:, 5:] = 0
    outcomes, distances = match_whole(box, expected, rest, [1], settings)[1]
    found = match_tile_objects(tiles, packed, [1], settings, THRESHOLDS)
    assert object_metrics(found.outcomes[1]) == object_metrics(outcomes)
    assert found.distances[1] == distances


def test_probabilities_that_make_no_object_are_kept_where_an_object_is_missed():
    box = BOXES[1]
    probability, truth = make_voxels(box, 0)
    tiles = grid_of(box, tile=box.shape)
    packed = {0: pack_tile(probability, truth, tiles.address(0), lowest=0.3)}
    stored, labels = TileVolume.of_boxes(tiles, packed, 2)[0].read(box)
    expected = np.rint(probability * 255).astype(np.uint8)
    is_true = (truth > 0) & (truth != IGNORE_LABEL)
    np.testing.assert_array_equal(stored, np.where((expected >= 0.3 * 255) | is_true, expected, 0))
    np.testing.assert_array_equal(labels, truth)
    assert (expected[stored == 0] > 0).any()

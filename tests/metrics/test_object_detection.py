"""Objects of probabilities are those of a plain search through the whole array, whatever the blocks."""

from collections import deque
from itertools import pairwise, product

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from kasthuri_ray.geometry import Box
from kasthuri_ray.metrics.components import Components
from kasthuri_ray.metrics.object_detection import (
    block_read_box,
    bridge_gaps,
    find_objects,
    label_block_objects,
    select_objects,
)
from kasthuri_ray.metrics.object_settings import ObjectSettings
from kasthuri_ray.metrics.objects import join_objects

STEPS = [step for step in product((-1, 0, 1), repeat=3) if any(step)]
VOXEL_SIZE_NM = (40.0, 5.0, 4.0)
HALF = ObjectSettings.of_thresholds([0.5])


def plain_bridges(classes, num_sections):
    """Fill gaps voxel by voxel."""
    bridged = classes.copy()
    _, height, width = classes.shape
    for y, x in product(range(height), range(width)):
        marked = np.flatnonzero(classes[:, y, x])
        for below, above in pairwise(marked):
            if above - below - 1 <= num_sections and classes[below, y, x] == classes[above, y, x]:
                bridged[below:above, y, x] = classes[below, y, x]
    return bridged


def plain_objects(probability, settings, min_voxels):
    """Return the voxels of each object, from a search of one voxel after another in the whole array."""
    extents, shape = np.array(settings.extent)[:, None, None, None], probability.shape[1:]
    reached = np.where(probability / 255 >= extents, probability.astype(int) + 1, 0)
    classes = np.where(reached.any(0), reached.argmax(0) + 1, 0)
    connected, seen, objects = plain_bridges(classes, settings.bridge_sections), np.zeros(shape, bool), []
    for start in zip(*np.nonzero(classes), strict=True):
        if seen[start]:
            continue
        queue, voxels = deque([start]), []
        seen[start] = True
        while queue:
            voxel = queue.popleft()
            voxels += [voxel] if classes[voxel] else []
            for step in STEPS:
                other = tuple(a + b for a, b in zip(voxel, step, strict=True))
                is_inside = all(0 <= a < n for a, n in zip(other, shape, strict=True))
                if is_inside and not seen[other] and connected[other] == connected[voxel]:
                    seen[other] = True
                    queue.append(other)
        number = classes[start] - 1
        values = np.array([probability[(number, *voxel)] for voxel in voxels]) / 255
        cut = any(v == 0 or v == n - 1 for voxel in voxels for v, n in zip(voxel, shape, strict=True))
        sections = np.ptp([voxel[0] for voxel in voxels]) + 1
        is_large = len(voxels) >= min_voxels[number] and sections >= settings.min_sections
        is_sure = values.max() >= settings.seed[number] and values.mean() >= settings.min_score[number]
        if is_sure and (is_large or cut):
            objects.append(sorted(voxels))
    return sorted(objects)


def blobs(shape, seed=0, classes=1):
    """Return probabilities with blobs, specks and missing sections."""
    rng = np.random.default_rng(seed)
    fields = np.stack([gaussian_filter(rng.normal(size=shape), (0.5, 1.0, 1.0)) for _ in range(classes)])
    probability = np.clip(255 * (0.3 + 0.17 * fields / fields.std()), 0, 255)
    probability[:, rng.random(shape) < 0.006] = 240
    probability[:, 3::5] = 0
    return probability.astype(np.uint8)


def objects_by_blocks(probability, settings, block, start=(0, 0, 0)):
    """Return labels and table, found block by block; components are serialized between for one shape."""
    bounds = Box.at(start, probability.shape[1:])
    blocks, all_labels = [], []
    for own in bounds.cells(block, start):
        read = block_read_box(own, bounds, settings)
        components, labels = label_block_objects(probability[(slice(None), *read.slices(start))], own, bounds, settings)
        blocks.append(Components.from_bytes(components.to_bytes()) if block == (4, 8, 8) else components)
        all_labels.append((own, labels))
    table = select_objects(join_objects(blocks), settings, bounds, VOXEL_SIZE_NM)
    ids, first = np.zeros(probability.shape[1:], np.int64), 0
    for (own, labels), components in zip(all_labels, blocks, strict=True):
        of_block = np.concatenate([[0], table.object_ids[first : first + len(components.stats)]])
        ids[own.slices(start)] = of_block[labels]
        first += len(components.stats)
    return ids, table


BLOCKS = [(1, 7, 6), (1, 40, 40), (12, 1, 40), (2, 9, 9), (4, 8, 8), (3, 40, 40)]
ONE_NM3 = ObjectSettings((0.8,), (0.55,), (9 * 800.0,), is_nm3=True)
CASES = {
    "thresholds": (HALF, 1),
    "hysteresis": (ObjectSettings((0.9,), (0.5,), (0.0,)), 1),
    "size": (ONE_NM3, 1),
    "sections": (ObjectSettings((0.6,), (0.6,), (0.0,), min_sections=2), 1),
    "a bridge": (ObjectSettings((0.8,), (0.6,), (6.0,), min_sections=2, bridge_sections=1), 1),
    "long bridges": (ObjectSettings((0.8,), (0.7,), (0.0,), min_sections=3, bridge_sections=4), 1),
    "score": (ObjectSettings((0.7,), (0.5,), (0.0,), min_score=(0.62,)), 1),
    "classes": (ObjectSettings((0.9, 0.7), (0.5, 0.6), (3.0, 8.0), bridge_sections=2, min_score=(0.0, 0.65)), 2),
}


@pytest.mark.parametrize("name", CASES)
def test_objects_are_those_of_a_plain_search_for_all_blocks(name):
    settings, classes = CASES[name]
    probability = blobs((12, 22, 19), classes=classes)
    min_voxels = settings.min_voxels(VOXEL_SIZE_NM)
    expected = plain_objects(probability, settings, min_voxels)
    labels, table = find_objects(probability, settings, VOXEL_SIZE_NM)
    found = [sorted(map(tuple, np.argwhere(labels == number).tolist())) for number in range(1, len(table) + 1)]
    assert sorted(found) == [[tuple(map(int, voxel)) for voxel in each] for each in expected]
    without = find_objects(probability, ObjectSettings.of_thresholds(settings.extent))[1]
    assert len(expected) > 3, name
    assert len(expected) < len(without) or name == "thresholds", name
    for block in BLOCKS:
        ids, by_blocks = objects_by_blocks(probability, settings, block)
        np.testing.assert_array_equal(ids, labels, err_msg=str(block))
        np.testing.assert_array_equal(by_blocks.stats, table.stats, err_msg=str(block))


def test_what_is_judged_is_the_joined_object_and_not_its_part_in_a_block():
    probability = np.zeros((1, 6, 10, 24), np.uint8)
    probability[0, 1:5, 4:6, 2:22] = 140  # one object of 160 voxels over all blocks, whose seed is in one of them
    probability[0, 2, 4, 20] = 250
    probability[0, 2, 8, 3] = 250  # a speck
    probability[0, 1:5, 1:3, 2:22] = 140  # as large, without a seed
    settings = ObjectSettings((0.9,), (0.5,), (100.0,), min_sections=4)
    for block in [(6, 10, 24), (2, 5, 6), (1, 3, 7)]:
        ids, table = objects_by_blocks(probability, settings, block)
        assert table.size_voxels.tolist() == [160]
        assert (ids == 1).sum() == 160


def test_two_objects_that_touch_at_a_corner_are_one():
    probability = np.zeros((1, 3, 8, 8), np.uint8)
    probability[0, 1, 1:4, 1:4] = probability[0, 1, 4:7, 4:7] = 200
    assert find_objects(probability, HALF)[1].size_voxels.tolist() == [18]
    probability[0, 1, 4, 4] = 0
    assert find_objects(probability, HALF)[1].size_voxels.tolist() == [9, 8]


def test_neither_size_nor_sections_are_asked_of_an_object_that_the_box_cuts():
    probability = np.zeros((1, 5, 9, 9), np.uint8)
    for voxel in [(0, 4, 4), (4, 4, 4), (2, 0, 4), (2, 8, 4), (2, 4, 0), (2, 4, 8), (2, 4, 4)]:
        probability[(0, *voxel)] = 255
    settings = ObjectSettings((0.5,), (0.5,), (2.0,), min_sections=2)
    _, table = find_objects(probability, settings)
    assert len(table) == 6
    assert table.is_cut(Box((0, 0, 0), (5, 9, 9))).all()
    probability[0, 0, 4, 4] = 130
    seeded = ObjectSettings((0.9,), (0.5,), (2.0,))
    assert len(find_objects(probability, seeded)[1]) == 5, "the seed is asked of all"


@pytest.mark.parametrize("num_sections", [0, 1, 2, 5])
def test_gaps_are_filled_as_voxel_by_voxel(num_sections):
    classes = np.random.default_rng(num_sections).choice(3, (11, 6, 6), p=[0.7, 0.2, 0.1]).astype(np.uint8)
    filled = bridge_gaps(classes, num_sections)
    np.testing.assert_array_equal(filled, plain_bridges(classes, num_sections))
    assert (filled != classes).any() == (num_sections > 0)


def test_a_bridged_gap_joins_and_belongs_to_no_object():
    probability = np.zeros((1, 7, 6, 6), np.uint8)
    probability[0, 1:3, 2:4, 2:4] = probability[0, 4:6, 2:4, 2:4] = 200
    apart = find_objects(probability, ObjectSettings((0.5,), (0.5,), (0.0,), min_sections=3))[1]
    labels, joined = find_objects(
        probability, ObjectSettings((0.5,), (0.5,), (0.0,), min_sections=3, bridge_sections=1)
    )
    assert len(apart) == 0
    assert joined.size_voxels.tolist() == [16]
    assert not labels[3].any()


def test_settings_survive_json_and_know_whether_they_are_plain():
    for settings, _ in CASES.values():
        assert ObjectSettings.from_plain(settings.to_plain()) == settings
    assert HALF.is_plain
    assert not ONE_NM3.is_plain
    assert ONE_NM3.min_voxels(VOXEL_SIZE_NM) == (9.0,)
    with pytest.raises(ValueError, match="needs a voxel size"):
        ONE_NM3.min_voxels(None)

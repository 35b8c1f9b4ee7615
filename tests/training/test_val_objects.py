"""Object settings are chosen on val where it holds enough objects, else they follow from the annotation."""

from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest

from kasthuri_ray.geometry import Box
from kasthuri_ray.metrics.object_detection import find_objects
from kasthuri_ray.metrics.object_settings import ObjectSettings
from kasthuri_ray.tiles.sampling import GridTiles
from kasthuri_ray.training.tested_objects import pack_tile
from kasthuri_ray.training.val_objects import choice_lines, choose_object_settings

SHAPE, SIZE_NM = (6, 60, 120), (40.0, 5.0, 4.0)


class Source:
    """A box with labels, as a source of tiles has them."""

    def __init__(self, labels, voxel_size_nm=SIZE_NM):
        self.labels, self.box = labels, Box((0, 0, 0), labels.shape)
        self.image = SimpleNamespace(voxel_size_nm=voxel_size_nm)

    def read_labels(self, box):
        return self.labels[box.slices()]


def make_voxels(num_objects, seed=0):
    """Return probabilities of boxes and of specks, and the labels of the boxes."""
    rng, labels = np.random.default_rng(seed), np.zeros(SHAPE, np.uint8)
    for y, x in list(product(range(5, 60, 12), range(5, 120, 12)))[:num_objects]:
        labels[2:4, y : y + 5, x : x + 5] = 1
    probability = np.where(labels, 0.8, 0.05) + rng.normal(0, 0.01, SHAPE)
    specks = (rng.random(SHAPE) < 0.01) & (labels == 0)
    specks[[0, -1]] = specks[:, [0, -1]] = specks[:, :, [0, -1]] = False
    return np.where(specks, 0.9, probability).astype(np.float32)[None], labels


def choose(val, train_labels, size=SIZE_NM):
    probability, labels = val
    tiles = GridTiles((Source(labels, size),), (1, 32, 32))
    packed = {}
    for number in range(len(tiles)):
        inside = (address := tiles.address(number)).box.slices()
        packed[number] = pack_tile(probability[(slice(None), *inside)], labels[inside], address)
    return choose_object_settings(tiles, packed, [Source(train_labels, size)], ["synapse"], [1], [0.4])


def test_on_enough_objects_of_val_settings_are_chosen_that_leave_specks_out():
    probability, labels = val = make_voxels(40)
    choice = choose(val, labels)
    (of_class,) = choice.classes.values()
    assert (of_class.source, of_class.num_true) == ("val", 40)
    assert of_class.outcome["f1"] > 0.95
    stored = np.rint(probability * 255).astype(np.uint8)
    before = find_objects(stored, ObjectSettings.of_thresholds([0.4]))[1]
    after = find_objects(stored, choice.settings, SIZE_NM)[1]
    assert len(before) > 200
    assert len(after) == len(of_class.scores) == len(of_class.verdicts) < 45
    assert choice.settings.is_nm3
    assert 1 < choice.settings.min_voxels(SIZE_NM)[0] <= 50
    (line,) = choice_lines(choice)
    assert "chosen on the 40 objects of val" in line
    assert "nm^3" in line


def test_on_too_few_objects_the_size_follows_from_whole_objects_of_the_training_boxes():
    train = np.zeros((8, 60, 60), np.uint8)
    sizes = []
    for number, y in enumerate(range(2, 56, 6)):
        train[1:4, y : y + 3, 2 : 6 + number] = 1
        sizes.append(3 * 3 * (4 + number))
    train[0, :, 50:] = 1  # cut: not whole
    choice = choose(make_voxels(9), train)
    expected = np.percentile(sizes, 5) / 2
    assert choice.settings.extent == (0.4,)
    assert 0.7 < choice.settings.seed[0] < 0.85  # their probability is about 0.8
    assert choice.settings.min_voxels(SIZE_NM)[0] == pytest.approx(expected)
    (of_class,) = choice.classes.values()
    assert (of_class.source, of_class.num_true, of_class.num_annotated) == ("annotation", 9, len(sizes))
    assert (
        f"val holds 9 objects, too few to choose on, so the seed is the highest that loses none of them, and the size "
        f"is half of the 5th percentile of {len(sizes)} " in choice_lines(choice)[0]
    )
    assert len(of_class.scores) >= 9, "scores of val are kept all the same"


def test_without_whole_objects_there_is_no_smallest_size_and_without_a_voxel_size_it_is_in_voxels():
    choice = choose(make_voxels(3), np.zeros((4, 40, 40), np.uint8))
    assert choice.settings.min_size == (0.0,)
    assert choice.settings.seed == choice.settings.extent == (0.4,)
    assert "so there is no smallest size, since" in choice_lines(choice)[0]
    in_voxels = choose(make_voxels(40), np.zeros((4, 40, 40), np.uint8), size=None)
    assert not in_voxels.settings.is_nm3
    assert "voxels" in choice_lines(in_voxels)[0]
    assert choice_lines(None) == []

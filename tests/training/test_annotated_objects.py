"""The objects of the training boxes' annotation are counted, in boxes of any size."""

import cc3d
import numpy as np

from kasthuri_ray.geometry import Box
from kasthuri_ray.labels import IGNORE_LABEL
from kasthuri_ray.metrics.object_density import AnnotatedObjects
from kasthuri_ray.training.annotated_objects import count_annotated_objects


class Source:
    """Labels as a source of tiles has them."""

    def __init__(self, labels, voxel_size_nm=(30.0, 6.0, 6.0)):
        self.labels, self.box = labels, Box((0, 0, 0), labels.shape)
        self.image = type("Image", (), {"voxel_size_nm": voxel_size_nm})

    def read_labels(self, box):
        return self.labels[box.slices()]


def make_labels():
    labels = (np.random.default_rng(0).random((20, 40, 600)) < 0.02).astype(np.uint8)
    labels[:3] = IGNORE_LABEL
    return labels


def test_objects_are_the_components_of_all_boxes_and_ignored_voxels_do_not_count():
    labels = make_labels()
    counted = count_annotated_objects([Source(labels), Source(labels)], ["synapse"])
    number = cc3d.connected_components(labels == 1, connectivity=26).max()
    assert counted.num_objects == {"synapse": 2 * number}
    assert counted.num_voxels == 2 * 17 * 40 * 600
    assert AnnotatedObjects.from_plain(counted.to_plain()) == counted


def test_of_large_boxes_a_part_is_counted():
    labels = make_labels()
    for max_voxels, counted in ((24_000 * 5, 24_000 * 2), (10_000, 0)):
        assert count_annotated_objects([Source(labels)], ["synapse"], max_voxels).num_voxels == counted


def test_membranes_have_no_objects():
    assert count_annotated_objects([Source(make_labels())], ["membrane"]) is None

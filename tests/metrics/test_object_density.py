"""Objects that are mostly noise are named in a sentence; ordinary ones are not."""

import numpy as np
import pytest

from kasthuri_ray.metrics import components
from kasthuri_ray.metrics.object_density import AnnotatedObjects, describe_objects, object_warnings
from kasthuri_ray.metrics.objects import ObjectTable

SIZE = (30.0, 6.0, 6.0)  # a million voxels are 1.08 um^3
TRAINING = AnnotatedObjects({"synapse": 20}, 10_000_000, SIZE)


def warnings_of(num_predicted, num_true=20, num_small=0, num_voxels=10_000_000, size=SIZE, training=TRAINING):
    row = {"num_predicted": num_predicted, "num_true": num_true, "num_small": num_small}
    return object_warnings({"synapse": row}, num_voxels, size, training)


def test_a_prediction_of_specks_is_named():
    (warning,) = warnings_of(30, num_small=16)
    assert warning.startswith("Most of the 30 marked objects of the class synapse are specks: 16 have fewer than 10")
    assert warnings_of(30, num_small=15) == []
    assert warnings_of(0) == []


@pytest.mark.parametrize(("num_voxels", "highest"), [(10_000_000, 100), (1_000_000, 10)])
def test_over_five_times_as_many_objects_as_in_training_are_named(num_voxels, highest):
    assert warnings_of(highest, 2, num_voxels=num_voxels) == []
    (warning,) = warnings_of(highest + 1, 2, num_voxels=num_voxels)
    assert "That is over 5 times as many as in the annotation of the training boxes, 1.85 per um^3" in warning


def test_without_a_voxel_size_densities_are_those_of_voxels():
    coarse = AnnotatedObjects({"synapse": 20}, 10_000_000, (60.0, 12.0, 12.0))
    assert warnings_of(101, 2, training=coarse) != []  # in um^3 the training has 0.23 of the objects
    (warning,) = warnings_of(101, 2, size=None, training=coarse)
    assert "2 per million voxels" in warning


def test_an_annotation_with_as_many_objects_explains_them():
    assert warnings_of(110, 100) == []


@pytest.mark.parametrize("training", [None, AnnotatedObjects({"synapse": 0}, 10_000_000, SIZE)])
def test_where_training_tells_nothing_the_annotation_that_is_given_is_compared(training):
    assert warnings_of(100, training=training) == []
    (warning,) = warnings_of(101, training=training)
    assert "as many as in the annotation, 1.85 per um^3" in warning


def table_of(*objects):
    """Return a table of objects, each a class and a size."""
    stats = np.zeros((len(objects), components.NUM_COLUMNS), np.int64)
    for row, (number, size) in zip(stats, objects, strict=True):
        row[[components.CLASS, components.SIZE]] = number, size
    return ObjectTable(stats, np.arange(len(objects)))


def test_objects_are_counted_by_class_and_specks_of_each_are_named():
    counts, warnings = describe_objects(table_of((1, 50), (2, 3), (2, 9), (2, 10)), ["synapse", "vesicle"])
    assert counts == "4 objects (1 of synapse, 3 of vesicle)"
    (warning,) = warnings
    assert warning.startswith(
        "Most of the 3 marked objects of the class vesicle are specks: 2 have fewer than 10 voxels"
    )
    assert describe_objects(table_of((1, 50), (1, 3)), ["synapse"]) == ("2 objects", [])
    assert describe_objects(table_of(), ["synapse"]) == ("0 objects", [])

"""The precision of a review: whose objects were drawn, and from how many."""

import csv

import pytest

from kasthuri_ray.config.settings import EvaluateSettings
from kasthuri_ray.errors import InputError
from kasthuri_ray.evaluation.reviewed_precision import evaluate_reviewed
from kasthuri_ray.output.layout import plan_layout
from kasthuri_ray.output.ome_zarr import OmeZarrOutput, OutputSpec
from kasthuri_ray.output.pyramid import plan_levels
from kasthuri_ray.output.reviewed_file import KEEP, ReviewedObject, write_reviewed
from kasthuri_ray.output.side_files import object_table_path
from kasthuri_ray.progress import Reporter

SHAPE = (4, 64, 64)


@pytest.fixture
def evaluate_draw(tmp_path):
    """Return `evaluate_draw(num_objects, strata)`, of an output with a number of objects, and a draw from strata."""
    levels, layout = tuple(plan_levels(SHAPE, (30.0, 6.0, 6.0))), plan_layout(SHAPE)
    spec = OutputSpec(levels=levels, layout=layout, nanometers=True, channels=("synapse",), name="synapse")
    output = OmeZarrOutput.create(str(tmp_path / "out.zarr"), spec)

    def evaluate(num_objects, strata):
        with open(object_table_path(output.path, spec.channels), "w") as file:
            csv.writer(file).writerows([("id", "size_voxels"), *((n + 1, 400) for n in range(num_objects))])
        drawn = [ReviewedObject(n + 1, KEEP, name, size, 0.9, 400) for n, (name, size) in enumerate(strata)]
        path = str(tmp_path / "out.zarr.reviewed.csv")
        write_reviewed(path, drawn)
        return evaluate_reviewed(EvaluateSettings(prediction=output.path, reviewed=path), Reporter())

    return evaluate


def test_a_draw_from_fewer_objects_than_the_table_has_is_refused(evaluate_draw):
    strata = [("score 1 of 2", 25), ("score 2 of 2", 15), ("score 1 of 2", 25)]
    assert evaluate_draw(40, strata).metrics["objects"] == 40
    with pytest.raises(InputError, match=r"drawn from 40 objects, .*out\.zarr\.synapses\.csv has 140"):
        evaluate_draw(140, strata)


def test_objects_that_a_person_chose_belong_to_a_table_of_any_number(evaluate_draw):
    assert evaluate_draw(140, [("", 0)]).metrics["objects"] == 140

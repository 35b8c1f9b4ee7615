"""What a segmentation records about itself: position, classes, and whether it is finished."""

import json

import cc3d
import numpy as np
import pytest
import zarr
from sklearn.metrics import f1_score, precision_score

from kasthuri_ray.errors import InputError
from kasthuri_ray.evaluation.comparison_inputs import prepare_comparison
from kasthuri_ray.geometry import Box
from kasthuri_ray.metrics.class_map import classes_at
from kasthuri_ray.output.layout import plan_layout
from kasthuri_ray.output.ome_zarr import OmeZarrOutput, OutputSpec
from kasthuri_ray.output.pyramid import plan_levels

RANGES = {"xrange_vol": [0, 9], "yrange_vol": [0, 9], "z_train": [0, 1], "z_val": [1, 2], "z_test": [2, 3]}


def test_a_coarser_level_of_unknown_voxel_size_is_refused(synapses, write_prediction, write_volume, tmp_path):
    path = write_prediction(tmp_path / "out.zarr", synapses.probability, size=None)
    coarse = np.ascontiguousarray(synapses.probability[None, :, ::2, ::2])
    zarr.open_group(path).create_array("s1", data=coarse, dimension_names=("c", "z", "y", "x"))
    annotation = write_volume(tmp_path / "truth.zarr", synapses.truth, size=None)
    settings = synapses.settings.model_copy(update={"prediction": path, "annotation": annotation, "box": None})
    assert prepare_comparison(settings).comparison.prediction.bounds == Box((0, 0, 0), synapses.truth.shape)
    annotation = write_volume(tmp_path / "whole.zarr", np.ones((12, 300, 280), np.uint8), size=None)
    settings = settings.model_copy(update={"annotation": annotation})
    for name in (path, f"{path}/s0"):
        comparison = prepare_comparison(settings.model_copy(update={"prediction": name})).comparison
        assert comparison.prediction.bounds == Box.at(synapses.start, synapses.truth.shape)
    with pytest.raises(
        ValueError, match=r"is a downsampled level, and without a voxel size .* give the group or level s0"
    ):
        prepare_comparison(settings.model_copy(update={"prediction": f"{path}/s1"}))


def test_several_classes_are_compared_each_with_its_threshold(synapses, compare, write_volume, tmp_path):
    rng, start, shape = np.random.default_rng(0), synapses.start, synapses.truth.shape
    truth = np.zeros((12, 300, 280), np.uint8)
    inside = Box.at(start, shape).slices()
    truth[inside] = np.where(synapses.truth == 1, 1, 0)
    truth[inside][:, 150:200][truth[inside][:, 150:200] == 0] = 2
    truth[:, 100:130, 60:90] = synapses.ignore_label
    own = truth[inside] == np.arange(1, 3)[:, None, None, None]
    probability = np.rint(255 * np.clip(0.2 + 0.5 * own + rng.normal(0, 0.12, own.shape), 0, 1)).astype(np.uint8)
    path, levels, layout = str(tmp_path / "out.zarr"), plan_levels(shape, (30.0, 6.0, 6.0), start), plan_layout(shape)
    names = ["background", "synapse", "membrane"]
    task = {"task_type": "many", "ignore_label": synapses.ignore_label, "classes": names}
    provenance = {"task": task, "network": {"classes": 3}, "threshold": [0.4, 0.5], "box": "2:11,20:280,10:266"}
    spec = OutputSpec(tuple(levels), layout, True, ("synapse", "membrane"), "out", record=provenance)
    output = OmeZarrOutput.create(path, spec)
    for box in levels[0].box.cells(layout.shard):
        output.probabilities.write_block(0, box, probability[(slice(None), *box.slices())])
    changes = {"prediction": path, "annotation": write_volume(tmp_path / "truth.zarr", truth)}
    result, _ = compare(synapses.settings.model_copy(update=changes))
    assert result == compare(synapses.settings.model_copy(update=changes), (2, 77, 100))[0]
    labels = truth[inside]
    counted = labels != synapses.ignore_label
    predicted = classes_at(probability, [0.4, 0.5])
    for number, (name, at) in enumerate([("synapse", 0.4), ("membrane", 0.5)], start=1):
        true, marked = labels[counted] == number, probability[number - 1][counted] / 255 >= at
        row = result["classes"][name]
        assert row["foreground_f1"] == pytest.approx(f1_score(true, marked))
        assert row["precision"] == pytest.approx(precision_score(true, marked))
        assert row["threshold"] == at
        assert row["num_voxels"] == true.sum()
    means = [row["foreground_f1"] for row in result["classes"].values()]
    assert result["foreground_f1"] == pytest.approx(np.mean(means))
    assert result["threshold"] == [0.4, 0.5]
    assert "objects" not in result["classes"]["membrane"]
    true_objects, marked_objects = (
        cc3d.connected_components(mask, connectivity=26).max() for mask in (labels == 1, (predicted == 1) & counted)
    )
    objects = result["classes"]["synapse"]["objects"]
    assert (objects["num_true"], objects["num_predicted"]) == (true_objects, marked_objects)
    assert result["objects"] == objects


def test_a_prediction_of_one_class_is_refused_for_a_task_of_several(synapses, write_volume, tmp_path):
    other_tool = write_volume(tmp_path / "other.zarr", synapses.probability)
    task = {"name": "three", "task_type": "many", "classes": ["background", "synapse", "membrane"]}
    settings = synapses.settings.model_copy(update={"prediction": other_tool, "task": task | RANGES})
    with pytest.raises(InputError, match="holds 1 class, and the task three names 2: synapse, membrane"):
        prepare_comparison(settings)


def test_an_unfinished_segmentation_causes_a_warning(synapses, compare, write_prediction, tmp_path):
    image = "phantom://em?shape=12,300,280"
    path = write_prediction(tmp_path / "out.zarr", synapses.probability, image=image)
    for state, num_warnings in (("failed", 1), ("done", 0)):
        (tmp_path / "out.zarr.progress.json").write_text(json.dumps({"state": state, "done": 3, "blocks": 9}))
        notes = compare(synapses.settings.model_copy(update={"prediction": path}))[1]
        warnings = [note for note in notes if "The segmentation is not finished (failed: 3 of 9 blocks)" in note]
        assert len(warnings) == num_warnings

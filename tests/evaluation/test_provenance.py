"""What a segmentation records about itself: position, classes, and whether it is finished."""

import json

import numpy as np
import pytest
import zarr

from kasthuri_ray.evaluation.comparison_inputs import prepare_comparison
from kasthuri_ray.geometry import Box
from kasthuri_ray.output.layout import plan_layout
from kasthuri_ray.output.ome_zarr import OmeZarrOutput, OutputSpec
from kasthuri_ray.output.pyramid import plan_levels


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


def test_the_foreground_of_several_classes_is_the_sum_of_their_probabilities(
    synapses, compare, expected_metrics, tmp_path
):
    path, probability = str(tmp_path / "out.zarr"), synapses.probability
    levels = plan_levels(probability.shape, (30.0, 6.0, 6.0), synapses.start)
    task = {"task_type": "synapse", "ignore_label": synapses.ignore_label}
    provenance = {"task": task, "network": {"classes": 3}, "threshold": 0.4, "box": "2:11,20:280,10:266"}
    layout = plan_layout(probability.shape)
    output = OmeZarrOutput.create(
        path, OutputSpec(tuple(levels), layout, True, ("one", "two"), "out", record=provenance)
    )
    for box in levels[0].box.cells(layout.shard):
        part = probability[box.slices()]
        output.probabilities.write_block(0, box, np.stack([part // 3, part - part // 3]))
    result, _ = compare(synapses.settings.model_copy(update={"prediction": path}))
    expected = expected_metrics(synapses.truth, probability, 0.4)
    assert result["foreground_f1"] == pytest.approx(expected["foreground_f1"])
    assert result["box"] == "2:11,20:280,10:266"


def test_an_unfinished_segmentation_causes_a_warning(synapses, compare, write_prediction, tmp_path):
    image = "phantom://em?shape=12,300,280"
    path = write_prediction(tmp_path / "out.zarr", synapses.probability, image=image)
    for state, num_warnings in (("failed", 1), ("done", 0)):
        (tmp_path / "out.zarr.progress.json").write_text(json.dumps({"state": state, "done": 3, "blocks": 9}))
        notes = compare(synapses.settings.model_copy(update={"prediction": path}))[1]
        warnings = [note for note in notes if "The segmentation is not finished (failed: 3 of 9 blocks)" in note]
        assert len(warnings) == num_warnings

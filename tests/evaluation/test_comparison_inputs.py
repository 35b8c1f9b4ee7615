"""The inputs of a comparison: boxes, voxel sizes, and predictions of other tools."""

import json
from dataclasses import replace

import numpy as np
import pytest
import zarr


def test_a_box_is_in_voxels_of_the_annotation_and_cut_to_the_prediction(synapses, compare, expected_metrics):
    result, notes = compare(replace(synapses.settings, box="4:8,:,100:280"))
    assert result["box"] == "4:8,20:280,100:266"
    cut = (slice(2, 6), slice(None), slice(90, None))
    expected = expected_metrics(synapses.truth[cut], synapses.probability[cut], 0.4)
    assert result["foreground_f1"] == pytest.approx(expected["foreground_f1"])
    assert notes == [
        "The prediction covers only 4:8,20:280,100:266 of the box 4:8,0:300,100:280: only that part is compared."
    ]
    assert compare(replace(synapses.settings, box="4:8,20:280,100:266")) == (result, [])


def test_predictions_of_other_tools_may_be_floats_or_masks(synapses, compare, expected_metrics, write_volume, tmp_path):
    truth, probability = synapses.truth, synapses.probability
    task = tmp_path / "task.json"
    ranges = {"xrange_vol": [0, 8], "yrange_vol": [0, 8], "z_train": [0, 1], "z_val": [1, 2], "z_test": [2, 3]}
    names = {"image_chan": "a", "annotation_chan": "b"}
    task.write_text(json.dumps({"name": "own", "task_type": "synapse", "ignore_label": 255, **ranges, **names}))
    annotation = write_volume(tmp_path / "truth.zarr", np.where(truth == synapses.ignore_label, 255, truth))
    settings = replace(synapses.settings, annotation=annotation, task=str(task), threshold=0.4)

    def compare_array(name, array):
        return compare(replace(settings, prediction=write_volume(tmp_path / name, array)))

    expected, objects = expected_metrics(truth, probability, 0.4), compare(synapses.settings)[0]["objects"]
    floats, notes = compare_array("floats.zarr", (probability / 255).astype(np.float32))
    assert {name: floats[name] for name in expected} == pytest.approx(expected, abs=2e-3)
    assert floats["foreground_f1"] == pytest.approx(expected["foreground_f1"], abs=1e-9)
    assert floats["objects"] == objects
    assert notes == ["The image that was segmented is not known: the sections are shown on grey."]
    mask = probability / 255 >= 0.4
    bools, _ = compare_array("bools.zarr", mask)
    assert (bools["foreground_f1"], bools["objects"]) == (floats["foreground_f1"], objects)
    for name, array in (
        ("of255", probability.astype(np.float32)),
        ("nan", np.full(probability.shape, np.nan, np.float32)),
    ):
        with pytest.raises(ValueError, match=rf"{name}.zarr .* holds .*; expected probabilities: floats from 0 to 1"):
            compare_array(f"{name}.zarr", array)
    ones, notes = compare_array("ones.zarr", mask.astype(np.uint8))
    assert ones["foreground_f1"] == 0
    assert "largest value in this uint8 prediction is 1 (" in notes[0]


def test_without_voxel_sizes_the_provenance_says_where_the_prediction_starts(
    synapses, compare, expected_metrics, write_prediction, write_volume, tmp_path
):
    annotation = zarr.open_array(synapses.settings.annotation, mode="r")[:]
    prediction_without_size = write_prediction(tmp_path / "out.zarr", synapses.probability, size=None)
    annotation_without_size = write_volume(tmp_path / "truth.zarr", annotation, size=None)
    expected = expected_metrics(synapses.truth, synapses.probability, 0.4)["foreground_f1"]
    settings = replace(synapses.settings, prediction=prediction_without_size)
    result, notes = compare(replace(settings, annotation=annotation_without_size))
    assert result["foreground_f1"] == pytest.approx(expected)
    assert "voxels are compared by their index" in notes[0]
    result, notes = compare(settings)
    assert result["foreground_f1"] == pytest.approx(expected)
    assert "out.zarr does not state its voxel size" in notes[0]


def test_voxel_sizes_with_fewer_digits_do_not_shift_a_distant_prediction(
    synapses, compare, expected_metrics, write_prediction, write_volume, tmp_path
):
    truth, probability = synapses.truth, synapses.probability
    start = (10, 300, 300)
    annotation = np.zeros(np.add(start, truth.shape), np.uint8)
    annotation[start[0] :, start[1] :, start[2] :] = truth
    stored = write_volume(tmp_path / "truth.zarr", annotation, size=(30.0, 6.03, 6.03))
    prediction = write_prediction(tmp_path / "out.zarr", probability, start)
    result, _ = compare(replace(synapses.settings, annotation=stored, prediction=prediction))
    assert result["foreground_f1"] == pytest.approx(expected_metrics(truth, probability, 0.4)["foreground_f1"])

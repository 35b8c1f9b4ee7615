"""The inputs of a comparison: boxes, voxel sizes, and predictions of other tools."""

import json

import numpy as np
import pytest
import zarr

from kasthuri_ray.errors import InputError


def test_a_box_is_in_voxels_of_the_annotation_and_cut_to_the_prediction(synapses, compare, expected_metrics):
    result, notes = compare(synapses.settings.model_copy(update={"box": "4:8,:,100:280"}))
    assert result["box"] == "4:8,20:280,100:266"
    cut = (slice(2, 6), slice(None), slice(90, None))
    expected = expected_metrics(synapses.truth[cut], synapses.probability[cut], 0.4)
    assert result["foreground_f1"] == pytest.approx(expected["foreground_f1"])
    assert notes == [
        "The prediction covers only 4:8,20:280,100:266 of the box 4:8,0:300,100:280: only that part is compared."
    ]
    assert compare(synapses.settings.model_copy(update={"box": "4:8,20:280,100:266"})) == (result, [])


def test_predictions_of_other_tools_may_be_floats_or_masks(synapses, compare, expected_metrics, write_volume, tmp_path):
    truth, probability = synapses.truth, synapses.probability
    task = tmp_path / "task.json"
    ranges = {"xrange_vol": [0, 8], "yrange_vol": [0, 8], "z_train": [0, 1], "z_val": [1, 2], "z_test": [2, 3]}
    names = {"image_chan": "a", "annotation_chan": "b"}
    task.write_text(json.dumps({"name": "own", "task_type": "synapse", "ignore_label": 255, **ranges, **names}))
    annotation = write_volume(tmp_path / "truth.zarr", np.where(truth == synapses.ignore_label, 255, truth))
    settings = synapses.settings.model_copy(update={"annotation": annotation, "task": str(task), "threshold": 0.4})

    def compare_array(name, array):
        return compare(settings.model_copy(update={"prediction": write_volume(tmp_path / name, array)}))

    expected, objects = expected_metrics(truth, probability, 0.4), compare(synapses.settings)[0]["objects"]
    floats, notes = compare_array("floats.zarr", (probability / 255).astype(np.float32))
    assert {name: floats[name] for name in expected} == pytest.approx(expected, abs=2e-3)
    assert floats["foreground_f1"] == pytest.approx(expected["foreground_f1"], abs=1e-9)
    assert floats["objects"] == objects
    labelled, image_note = notes
    assert labelled == (
        f"{floats['voxels']:,} of {truth.size:,} voxels count (98.65%). The others have the label 255, which means not "
        "labelled in the task (task.ignore_label or task.labels)."
    )
    assert image_note == "The image that was segmented is not known: the sections are shown on grey."
    mask = probability / 255 >= 0.4
    bools, _ = compare_array("bools.zarr", mask)
    assert (bools["foreground_f1"], bools["objects"]["by"]) == (floats["foreground_f1"], objects["by"])
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
    settings = synapses.settings.model_copy(update={"prediction": prediction_without_size})
    result, notes = compare(settings.model_copy(update={"annotation": annotation_without_size}))
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
    result, _ = compare(synapses.settings.model_copy(update={"annotation": stored, "prediction": prediction}))
    assert result["foreground_f1"] == pytest.approx(expected_metrics(truth, probability, 0.4)["foreground_f1"])


def changed(example, **settings):
    return example.settings.model_copy(update=settings)


def test_an_annotation_without_a_place_lies_on_the_voxels_of_the_image(
    synapses, compare, write_prediction, write_volume, tmp_path
):
    """In a larger image, nothing says where a smaller annotation lies."""
    image = write_volume(tmp_path / "em.zarr", np.zeros((20, 320, 300), np.uint8))
    prediction = write_prediction(tmp_path / "out.zarr", synapses.probability, image=image)
    with pytest.raises(InputError, match=r"its shape is not that of the image that was segmented.*\?offset_nm=0,0,0"):
        compare(changed(synapses, prediction=prediction))
    annotation = f"{synapses.settings.annotation}?offset_nm=0,0,0"
    placed = changed(synapses, prediction=prediction, annotation=annotation)
    assert compare(placed)[0]["foreground_f1"] == compare(synapses.settings)[0]["foreground_f1"]


def test_prediction_annotation_and_instances_are_compared_at_their_places(
    membranes, compare, write_prediction, write_volume, tmp_path
):
    membrane = {"task_type": "membrane"}
    cells, annotation = membranes.settings.instances, f"{membranes.settings.annotation}?offset_nm=60,180,240"
    prediction = write_prediction(tmp_path / "out.zarr", membranes.probability, (3, 40, 50), task=membrane)
    big = np.zeros((10, 300, 300), np.uint64)
    big[2:7, 30:290, 40:300] = membranes.instances
    instances = f"{write_volume(tmp_path / 'cells.zarr', big)}?offset_nm=0,0,0"
    settings = changed(membranes, prediction=prediction, annotation=annotation, instances=instances)
    result, _ = compare(settings)
    assert result["box"] == "1:5,10:260,10:260"
    cut = np.ascontiguousarray(membranes.probability[:4, :250, :250])
    same = write_prediction(tmp_path / "same.zarr", cut, (1, 10, 10), task=membrane)
    assert result == compare(changed(membranes, prediction=same))[0] | {"prediction": result["prediction"]} | {
        key: result[key] for key in ("annotation", "instances") if key in result
    }
    elsewhere = settings.model_copy(update={"instances": f"{cells}?offset_nm=120,180,240"})
    with pytest.raises(
        InputError, match=r"cells.zarr\S* covers only 2:5,10:260,10:260 of what is compared, 1:5,.*--box"
    ):
        compare(elsewhere)


@pytest.mark.parametrize("image_size", [None, (30.0, 12.0, 12.0)])
def test_a_prediction_of_another_voxel_size_is_resampled_if_that_is_wanted(
    synapses, compare, expected_metrics, write_prediction, write_volume, tmp_path, image_size
):
    coarse = np.rint(synapses.probability.reshape(9, 130, 2, 128, 2).mean((2, 4))).astype(np.uint8)
    more = (
        {"image": write_volume(tmp_path / "em.zarr", np.zeros((12, 150, 140), np.uint8), image_size)}
        if image_size
        else {}
    )
    prediction = write_prediction(
        tmp_path / "out.zarr", coarse, (2, 10, 5), size=(30.0, 12.0, 12.0), voxel_size_nm=[30.0, 12.0, 12.0], **more
    )
    annotation = f"{synapses.settings.annotation}?offset_nm=0,0,0"
    with pytest.raises(InputError, match=r"voxel sizes differ: .*--resample"):
        compare(changed(synapses, prediction=prediction, annotation=annotation))
    result, _ = compare(changed(synapses, prediction=prediction, annotation=annotation, resample=True))
    assert result["box"] == "2:11,20:280,10:266"
    fine = coarse.astype(np.float32)
    for axis in (1, 2):
        old = np.arange(coarse.shape[axis])
        middles = (np.arange(2 * len(old)) + 0.5) / 2 - 0.5
        fine = np.apply_along_axis(lambda row, old=old, middles=middles: np.interp(middles, old, row), axis, fine)
    expected = expected_metrics(synapses.truth, np.rint(fine).astype(np.uint8), 0.4)
    assert result["foreground_f1"] == pytest.approx(expected["foreground_f1"])


def test_absent_chunks_of_annotation_and_of_other_tools_predictions_are_counted(synapses, compare, tmp_path):
    floats = (synapses.probability / 255).astype(np.float32)
    for name, array in (("truth.zarr", synapses.truth), ("floats.zarr", floats)):
        stored = {"chunks": (3, 64, 64), "zarr_format": 2, "config": {"write_empty_chunks": True}}
        zarr.create_array(tmp_path / name, data=array, **stored)
    for name in ("truth.zarr/0.0.0", "truth.zarr/2.3.1", "floats.zarr/1.1.1"):
        (tmp_path / name).unlink()
    task = {
        "name": "own", "task_type": "synapse", "ignore_label": synapses.ignore_label, "image_chan": "a",
        **{"annotation_chan": "b", "xrange_vol": [0, 8], "yrange_vol": [0, 8], "z_train": [0, 1], "z_val": [1, 2]},
    }  # fmt: skip
    names = {"annotation": f"{tmp_path}/truth.zarr", "prediction": f"{tmp_path}/floats.zarr"}
    for block_shape in (None, (2, 100, 77)):
        result, notes = compare(changed(synapses, task=task, threshold=0.4, **names), block_shape)
        assert result["absent_chunks"] == {"prediction": [1, 3 * 5 * 4], "annotation": [2, 3 * 5 * 4]}
    assert f"2 of 60 chunks absent in {tmp_path}/truth.zarr: their voxels count as the label 0" in notes
    own, _ = compare(synapses.settings)
    assert own["absent_chunks"]["prediction"] == [0, 0]  # complete by its ledger


NONE, OUTSIDE = 2**64 - 1, 2**64 - 3  # of CREMI


def as_clefts(example) -> np.ndarray:
    """Return labels of the whole annotation as CREMI stores them: ids from 0, the ignored voxels outside."""
    stored = zarr.open_array(example.settings.annotation, mode="r")[:]
    clefts = np.where(stored == 1, np.arange(stored.shape[2]) // 40, NONE).astype(np.uint64)
    clefts[stored == example.ignore_label] = OUTSIDE
    return clefts


def own_task(**more) -> dict:
    ranges = {"xrange_vol": [0, 8], "yrange_vol": [0, 8], "z_train": [0, 1], "z_val": [1, 2], "z_test": [2, 3]}
    return {"name": "own", "task_type": "synapse", "image_chan": "a", "annotation_chan": "b", **ranges, **more}


@pytest.mark.parametrize("task", ["own", "of the prediction"])
def test_clefts_of_cremi_are_compared_with_a_line(synapses, compare, write_volume, tmp_path, task):
    expected, _ = compare(synapses.settings)
    annotation = write_volume(tmp_path / "clefts.zarr", as_clefts(synapses))
    own = {"task": own_task(threshold=True)} if task == "own" else {}
    result, notes = compare(changed(synapses, annotation=annotation, **own))
    assert result["background"] == [NONE]
    assert "background" not in expected
    changes = {"annotation": annotation, "background": [NONE]}
    assert result == expected | changes
    share = f"the label {NONE} fills 9"
    assert [share in note for note in notes if annotation in note] == [True]


def test_the_background_of_the_task_counts_and_nothing_is_found_out(
    synapses, compare, write_prediction, write_volume, tmp_path
):
    expected, _ = compare(synapses.settings)
    clefts = as_clefts(synapses)
    annotation = write_volume(tmp_path / "clefts.zarr", clefts)
    recorded = write_prediction(tmp_path / "out.zarr", synapses.probability, task={"background": [NONE]})
    for given in ({"task": own_task(background=NONE)}, {"prediction": recorded}):
        result, notes = compare(changed(synapses, annotation=annotation, **given))
        assert result["foreground_f1"] == expected["foreground_f1"]
        assert result["objects"] == expected["objects"]
        assert not any("counts as background" in note for note in notes)
    result, _ = compare(changed(synapses, annotation=annotation, task=own_task(background=[0, NONE])))
    inside = (slice(2, 11), slice(20, 280), slice(10, 266))
    true = (clefts < OUTSIDE - 1) & (clefts > 0)
    predicted = synapses.probability / 255 >= 0.4
    assert result["recall"] == pytest.approx((predicted & true[inside]).sum() / true[inside].sum())


def test_an_annotation_that_cannot_hold_the_background_of_the_run_is_refused(
    synapses, compare, write_prediction, tmp_path
):
    prediction = write_prediction(tmp_path / "out.zarr", synapses.probability, task={"background": [NONE]})
    with pytest.raises(InputError, match=rf"synapse.zarr holds uint8, which cannot hold the background {NONE}.*--task"):
        compare(changed(synapses, prediction=prediction))
    compare(changed(synapses, prediction=prediction, task=own_task(ignore_label=synapses.ignore_label)))


def test_an_annotation_of_synapses_that_is_mostly_foreground_is_a_line(synapses, compare, write_volume, tmp_path):
    annotation = write_volume(tmp_path / "clefts.zarr", as_clefts(synapses))
    _, notes = compare(changed(synapses, annotation=annotation, task=own_task(threshold=True, background=[])))
    assert any("of what is compared of" in note and "is foreground, much for synapses" in note for note in notes)
    assert not any("much for synapses" in note for note in compare(synapses.settings)[1])


def test_ids_of_instances_that_mean_none_are_no_cell(membranes, compare, write_volume, tmp_path):
    expected, _ = compare(membranes.settings)
    ids = membranes.instances.copy()
    kept = np.isin(ids, np.unique(ids[ids > 0])[::3])
    without = np.where(kept, ids, 0)
    marked = np.where(kept, ids, NONE).astype(np.uint64)
    marked[:, :40][~kept[:, :40]] = OUTSIDE
    paths = [write_volume(tmp_path / f"{name}.zarr", ids) for name, ids in (("a", without), ("b", marked))]
    (zeros, _), (nones, notes) = (compare(changed(membranes, instances=path)) for path in paths)
    scores = ("arand", "voi_split", "voi_merge")
    assert [nones[name] for name in scores] == [zeros[name] for name in scores]
    assert [nones[name] for name in scores] != [expected[name] for name in scores]
    assert any(f"{paths[1]}: the label {NONE} fills" in note for note in notes)

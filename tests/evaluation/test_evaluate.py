"""An evaluation by blocks gives what scikit-learn, scikit-image and cc3d say of the whole arrays."""

import json
from dataclasses import replace
from pathlib import Path

import cc3d
import numpy as np
import pytest
import zarr
from skimage import metrics as sk
from skimage.measure import label
from sklearn import metrics as skl

from kasthuri_ray.config.settings import EvaluateSettings
from kasthuri_ray.evaluation import evaluate as evaluate_module
from kasthuri_ray.evaluation import evaluation_report
from kasthuri_ray.evaluation.comparison import ComparisonTotals, compare_block
from kasthuri_ray.evaluation.comparison_inputs import prepare_comparison
from kasthuri_ray.evaluation.evaluate import default_out, evaluate
from kasthuri_ray.evaluation.evaluation_report import evaluation_figures, evaluation_notes, evaluation_summary
from kasthuri_ray.output.ome_zarr import OmeZarrOutput, OutputSpec
from kasthuri_ray.output.pyramid import plan_layout, plan_levels
from kasthuri_ray.ray_cluster.resources import ClusterResources
from kasthuri_ray.volumes.opening import open_volume

SIZE_NM = [30.0, 6.0, 6.0]
SHAPE = (12, 300, 280)
START = (2, 20, 10)  # of the prediction, in voxels of the annotation
PART = (9, 260, 256)
IGNORED = 7


def write_prediction(path, probability, start=START, size=SIZE_NM, **record):
    """An OME-Zarr as a segmentation leaves it: c, z, y, x in uint8, with its provenance."""
    unit = {"unit": "nanometer"} if size else {}
    axes = [{"name": "c", "type": "channel"}, *({"name": axis, "type": "space", **unit} for axis in "zyx")]
    scale = size or [1.0, 1.0, 1.0]
    place = [
        {"type": "scale", "scale": [1.0, *scale]},
        {"type": "translation", "translation": [0.0, *(a * s for a, s in zip(start, scale, strict=True))]},
    ]
    levels = [{"path": "s0", "coordinateTransformations": place}]
    task = {"name": "t", "task_type": "synapse", "threshold": False, "threshold_value": 0.0, "ignore_label": IGNORED}
    box = ",".join(f"{a}:{a + n}" for a, n in zip(start, probability.shape[-3:], strict=True))
    known = {"task": task | record.pop("task", {}), "threshold": 0.4, "box": box, "network": {"classes": 2}, **record}
    group = zarr.create_group(path, zarr_format=3)
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"name": "t", "axes": axes, "datasets": levels}]}
    group.attrs["kasthuri_ray"] = known
    stored = probability[None] if probability.ndim == 3 else probability
    group.create_array("s0", data=stored, chunks=(1, 4, 64, 64), dimension_names=("c", "z", "y", "x"))
    return str(path)


def write_volume(path, array, size=SIZE_NM):
    stored = zarr.create_array(path, data=array, chunks=(4, 64, 64))
    if size:
        stored.attrs["voxel_size_nm_zyx"] = list(size)
    return str(path)


def blurred(mask, seed):
    """A prediction as networks make them: near the truth, unsure at edges, with objects missed and made up."""
    rng = np.random.default_rng(seed)
    soft = mask.astype(np.float32)
    for axis in (1, 2):
        soft = (np.roll(soft, 1, axis) + 2 * soft + np.roll(soft, -1, axis)) / 4
    coarse = rng.normal(0, 0.35, (mask.shape[0], *(n // 16 + 1 for n in mask.shape[1:])))
    noise = coarse.repeat(16, 1).repeat(16, 2)[:, : mask.shape[1], : mask.shape[2]]
    return np.rint(255 * np.clip(0.9 * soft + 0.05 + noise * (0.3 + soft), 0, 1)).astype(np.uint8)


def blobs(shape, number=30, seed=0):
    """Ellipsoids of many sizes: bool."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(shape, bool)
    places = np.indices(shape)
    for _ in range(number):
        middle, radius = rng.random(3) * shape, rng.uniform([0.6, 3, 3], [2.5, 12, 12])
        mask |= sum(((p - m) / r) ** 2 for p, m, r in zip(places, middle, radius, strict=True)) < 1
    return mask


def measured(options, block=None):
    """(evaluation.json, notes) in this process, without Ray, figures or page."""
    prepared = prepare_comparison(options)
    totals = ComparisonTotals(prepared.comparison)
    for own in prepared.comparison.blocks(block):
        totals.add(compare_block(prepared.comparison, own))
    result = evaluation_figures(prepared, totals)
    return result, evaluation_notes(prepared, totals, result)


@pytest.fixture(scope="module")
def synapses(tmp_path_factory):
    """(options, truth, probability): objects, some of them ignored, and a prediction of a part of the volume."""
    folder = tmp_path_factory.mktemp("synapses")
    annotation = blobs(SHAPE).astype(np.uint8)
    annotation[:, 100:130, 60:90] = IGNORED
    cut = tuple(slice(a, a + n) for a, n in zip(START, PART, strict=True))
    truth = annotation[cut]
    probability = blurred(truth == 1, seed=1)
    image = f"phantom://em?shape={','.join(map(str, SHAPE))}&seed=3"
    options = EvaluateSettings(
        prediction=write_prediction(folder / "out.zarr", probability, image=image),
        annotation=write_volume(folder / "synapse.zarr", annotation),
        out=str(folder / "evaluation"),
        cache="none",
    )
    return options, truth, probability


@pytest.fixture(scope="module")
def evaluated(ray_here, synapses):
    """What `evaluate` gave for them."""
    return evaluate(synapses[0])


def voxel_figures(truth, probability, threshold):
    kept = truth != IGNORED
    true, chance = truth[kept] > 0, probability[kept] / 255
    called = chance >= threshold
    return {
        "foreground_f1": skl.f1_score(true, called),
        "precision": skl.precision_score(true, called),
        "recall": skl.recall_score(true, called),
        "iou": skl.jaccard_score(true, called),
        "average_precision": skl.average_precision_score(true, chance),
        "voxels": int(kept.sum()),
    }


def test_figures_are_those_of_the_whole_arrays(evaluated, synapses):
    (_, truth, probability), result = synapses, evaluated
    assert result["threshold"] == 0.4
    expected = voxel_figures(truth, probability, 0.4)
    assert 0.3 < expected["foreground_f1"] < 0.95
    assert {name: result[name] for name in expected} == pytest.approx(expected, abs=1e-9)
    kept = truth != IGNORED
    precision, recall, _ = skl.precision_recall_curve(truth[kept] > 0, probability[kept])
    highest = (2 * precision * recall / (precision + recall + 1e-12)).max()
    assert result["best_foreground_f1"] == pytest.approx(highest)
    called = probability[kept] / 255 >= result["best_threshold"]
    assert skl.f1_score(truth[kept] > 0, called) == pytest.approx(highest)
    sections = [
        {"z": START[0] + z, "foreground_f1": skl.f1_score(t[k] > 0, p[k] / 255 >= 0.4, zero_division=0)}
        for z, (t, p, k) in enumerate(zip(truth, probability, kept, strict=True))
    ]
    assert result["sections"] == [pytest.approx(section) for section in sections]


def test_objects_are_those_of_cc3d_matched_by_intersection_over_union(evaluated, synapses):
    (_, truth, probability), found = synapses, evaluated["objects"]
    true = cc3d.connected_components(truth == 1, connectivity=26)
    predicted = cc3d.connected_components((probability / 255 >= 0.4) & (truth != IGNORED), connectivity=26)
    assert (found["num_true"], found["num_predicted"]) == (true.max(), predicted.max())
    sizes, others = np.bincount(true.ravel()), np.bincount(predicted.ravel())
    both = (true > 0) & (predicted > 0)
    (one, other), shared = np.unique(np.stack([true[both], predicted[both]]), axis=1, return_counts=True)
    iou = shared / (sizes[one] + others[other] - shared)
    right = int((iou > 0.5).sum())
    assert right < len(set(one)), "some overlap too little"
    assert 3 < right < predicted.max()
    assert found["recall"] == right / true.max()
    assert found["precision"] == right / predicted.max()
    assert found["f1"] == 2 * right / (true.max() + predicted.max())


@pytest.mark.parametrize("block", [None, (3, 50, 64)])
def test_one_object_over_everything_finds_no_synapse(synapses, tmp_path, block):
    options, truth, _ = synapses
    everything = write_prediction(tmp_path / "all.zarr", np.full(truth.shape, 255, np.uint8))
    found = measured(replace(options, prediction=everything), block)[0]
    assert found["recall"] == 1, "of voxels"
    assert (found["objects"]["num_predicted"], found["objects"]["num_true"] > 5) == (1, True)
    assert (found["objects"]["recall"], found["objects"]["precision"], found["objects"]["f1"]) == (0, 0, 0)


def test_what_it_leaves(evaluated, synapses):
    folder = Path(synapses[0].out)
    assert json.loads((folder / "evaluation.json").read_text()) == evaluated
    left = {path.relative_to(folder).as_posix() for path in folder.rglob("*.*")}
    assert left == {
        "evaluation.json", "index.html", "precision_recall.png", "sections.png",
        *(f"slices/slice_{number}.png" for number in range(6)),
    }  # fmt: skip
    page = (folder / "index.html").read_text()
    objects = evaluated["objects"]
    right = round(objects["recall"] * objects["num_true"])
    assert f"The network finds {right} of {objects['num_true']} synapses" in page
    assert "The best section" in page
    assert "The worst section" in page
    assert "on grey" not in page


def test_other_blocks_give_the_same_files(evaluated, synapses, tmp_path, capsys):
    options = replace(synapses[0], out=str(tmp_path / "other"))
    assert evaluate(options, block=(5, 128, 90)) == evaluated
    for name in ("evaluation.json", "index.html"):
        assert (tmp_path / "other" / name).read_bytes() == (Path(synapses[0].out) / name).read_bytes()
    said = capsys.readouterr().out.splitlines()
    assert said[0] == said[-1] == options.out


@pytest.mark.parametrize("block", [(1, 300, 300), (12, 64, 90), (9, 1, 300), (3, 50, 256)])
def test_any_blocks_give_the_same_figures(evaluated, synapses, block):
    assert measured(synapses[0], block)[0] == evaluated


@pytest.fixture(scope="module")
def membranes(tmp_path_factory):
    """(options, truth, probability, instances) of a phantom's membranes."""
    folder = tmp_path_factory.mktemp("membranes")
    volume = open_volume("phantom://membrane?shape=5,260,260&seed=2")
    truth = volume.read(volume.bounds)
    probability = blurred(truth == 1, seed=2)
    instances = np.stack([label(section == 0, connectivity=1) for section in truth]).astype(np.uint64)
    instances[instances > 0] += np.uint64(2**40)
    truth = truth.copy()
    truth[:, :30, 200:] = IGNORED
    options = EvaluateSettings(
        prediction=write_prediction(folder / "out.zarr", probability, (0, 0, 0), task={"task_type": "membrane"}),
        annotation=write_volume(folder / "membrane.zarr", truth),
        instances=write_volume(folder / "cells.zarr", instances),
        out=str(folder / "evaluation"),
        threshold=0.35,
        cache="none",
    )
    return options, truth, probability, instances


@pytest.mark.parametrize("block", [None, (2, 77, 100)])
def test_cells_are_compared_as_scikit_image_does(membranes, block):
    options, truth, probability, instances = membranes
    result, _ = measured(options, block)
    inside = probability / 255 < 0.35
    cells = np.stack([label(section, connectivity=1) + 10_000 * z for z, section in enumerate(inside)])
    true = np.where(instances > 0, (instances % 2**40).astype(int) + 10_000 * np.arange(5)[:, None, None], 0)
    true[~inside | (truth == IGNORED)] = 0
    assert result["arand"] == pytest.approx(sk.adapted_rand_error(true, cells)[0])
    assert 0.01 < result["arand"] < 0.95
    voi = sk.variation_of_information(true, cells, ignore_labels=(0,))
    assert [result["voi_split"], result["voi_merge"]] == pytest.approx(list(voi))
    assert {name: result[name] for name in ("foreground_f1", "iou")} == pytest.approx(
        {
            name: value
            for name, value in voxel_figures(truth, probability, 0.35).items()
            if name in ("foreground_f1", "iou")
        }
    )
    assert "objects" not in result


def test_a_box_is_in_voxels_of_the_annotation(synapses):
    options, truth, probability = synapses
    result, notes = measured(replace(options, box="4:8,:,100:280"))
    assert result["box"] == "4:8,20:280,100:266"
    cut = (slice(2, 6), slice(None), slice(90, None))
    assert result["foreground_f1"] == pytest.approx(voxel_figures(truth[cut], probability[cut], 0.4)["foreground_f1"])
    assert notes == [
        "Of the box 4:8,0:300,100:280 the prediction holds 4:8,20:280,100:266, and that is what is compared."
    ]
    assert measured(replace(options, box="4:8,20:280,100:266")) == (result, [])


def test_a_result_of_no_voxels_is_no_f1_of_zero(synapses):
    result, _ = measured(synapses[0])
    assert evaluation_summary(result).startswith("F1 0.")
    assert evaluation_summary(result | {"voxels": 0}) == "Nothing was compared: every voxel is ignored."


def test_what_the_page_warns_of_is_printed_too(synapses, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(evaluate_module, "connect_ray", lambda verbose: ClusterResources(2, 0, 1))
    monkeypatch.setattr(evaluate_module, "require_resources", lambda *demand: None)
    monkeypatch.setattr(
        evaluate_module, "compare_blocks", lambda comparison, blocks, _: (compare_block(comparison, b) for b in blocks)
    )
    ones = write_prediction(tmp_path / "ones.zarr", (synapses[2] > 102).astype(np.uint8))
    evaluate(replace(synapses[0], prediction=ones, out=str(tmp_path / "evaluation")))
    said = capsys.readouterr().out.splitlines()
    assert [line[:50] for line in said[1:3]] == [
        "The prediction holds nothing above 1 of 255. If it",
        "Which image was segmented is not known: the sectio",
    ]


def test_one_array_of_an_output_is_evaluated_beside_the_output(synapses, tmp_path):
    options = replace(synapses[0], out=None)
    group = options.prediction
    finest = replace(options, prediction=f"{group}/s0")
    assert default_out(options) == f"{group}.evaluation"
    assert default_out(finest) == f"{group}.s0.evaluation"
    other = write_volume(tmp_path / "x.zarr/em", np.zeros((1, 8, 8), np.uint8))
    assert default_out(replace(options, prediction=other)) == f"{other}.evaluation"
    progress = Path(f"{group}.progress.json")
    progress.write_text(json.dumps({"state": "running", "done": 1, "blocks": 4}))
    assert [note[:55] for note in measured(finest)[1]] == ["The segmentation is not finished (running: 1 of 4 block"]
    progress.unlink()


@pytest.mark.parametrize("place", [".", "s0", "evaluation"])
def test_nothing_is_left_in_the_prediction(synapses, place):
    options = synapses[0]
    for prediction in (options.prediction, f"{options.prediction}/s0"):
        with pytest.raises(ValueError, match=r"lies in the prediction, .*; give a place beside it"):
            default_out(replace(options, prediction=prediction, out=f"{options.prediction}/{place}"))


def test_a_coarser_level_of_unknown_size_is_refused(synapses, tmp_path):
    options, truth, probability = synapses
    path = write_prediction(tmp_path / "out.zarr", probability, size=None)
    coarse = np.ascontiguousarray(probability[None, :, ::2, ::2])
    zarr.open_group(path).create_array("s1", data=coarse, dimension_names=("c", "z", "y", "x"))
    annotation = write_volume(tmp_path / "truth.zarr", truth, size=None)
    options = replace(options, prediction=path, annotation=annotation, box=None)
    assert prepare_comparison(options).comparison.shift == tuple(-a for a in START)
    assert prepare_comparison(replace(options, prediction=f"{path}/s0")).comparison.shift == tuple(-a for a in START)
    with pytest.raises(ValueError, match="so a coarser level cannot be compared; give the whole group, or its s0"):
        prepare_comparison(replace(options, prediction=f"{path}/s1"))


def test_predictions_of_other_tools_are_floats_or_masks(synapses, tmp_path):
    options, truth, probability = synapses
    task = tmp_path / "task.json"
    ranges = {"xrange_vol": [0, 8], "yrange_vol": [0, 8], "z_train": [0, 1], "z_val": [1, 2], "z_test": [2, 3]}
    names = {"image_chan": "a", "annotation_chan": "b"}
    task.write_text(json.dumps({"name": "own", "task_type": "synapse", "ignore_label": 255, **ranges, **names}))
    annotation = write_volume(tmp_path / "truth.zarr", np.where(truth == IGNORED, 255, truth))
    asked = replace(options, annotation=annotation, task=str(task), threshold=0.4)

    def figures(name, array):
        return measured(replace(asked, prediction=write_volume(tmp_path / name, array)))

    expected, ours = voxel_figures(truth, probability, 0.4), measured(options)[0]["objects"]
    floats, notes = figures("floats.zarr", (probability / 255).astype(np.float32))
    assert {name: floats[name] for name in expected} == pytest.approx(expected, abs=2e-3)
    assert floats["foreground_f1"] == pytest.approx(expected["foreground_f1"], abs=1e-9)
    assert floats["objects"] == ours
    assert notes == ["Which image was segmented is not known: the sections are shown on grey."]
    mask = probability / 255 >= 0.4
    bools, _ = figures("bools.zarr", mask)
    assert (bools["foreground_f1"], bools["objects"]) == (floats["foreground_f1"], ours)
    for name, wrong in (("of255", probability.astype(np.float32)), ("nan", np.full(PART, np.nan, np.float32))):
        with pytest.raises(ValueError, match=rf"{name}.zarr .* holds .*; probabilities are floats from 0 to 1"):
            figures(f"{name}.zarr", wrong)
    ones, notes = figures("ones.zarr", mask.astype(np.uint8))
    assert ones["foreground_f1"] == 0
    assert "nothing above 1 of 255" in notes[0]


def test_without_voxel_sizes_the_provenance_says_where_the_prediction_lies(synapses, tmp_path):
    options, truth, probability = synapses
    annotation = zarr.open_array(options.annotation, mode="r")[:]
    bare = write_prediction(tmp_path / "out.zarr", probability, size=None)
    alone = write_volume(tmp_path / "truth.zarr", annotation, size=None)
    expected = voxel_figures(truth, probability, 0.4)["foreground_f1"]
    result, notes = measured(replace(options, prediction=bare, annotation=alone))
    assert result["foreground_f1"] == pytest.approx(expected)
    assert "they are compared by their index" in notes[0]
    result, notes = measured(replace(options, prediction=bare))
    assert result["foreground_f1"] == pytest.approx(expected)
    assert "out.zarr does not say how large its voxels are" in notes[0]


def test_sizes_written_with_fewer_digits_do_not_shift_what_lies_far_away(synapses, tmp_path):
    options, truth, probability = synapses
    far = (10, 300, 300)
    annotation = np.zeros(tuple(a + n for a, n in zip(far, PART, strict=True)), np.uint8)
    annotation[far[0] :, far[1] :, far[2] :] = truth
    stored = write_volume(tmp_path / "truth.zarr", annotation, size=(30.0, 6.03, 6.03))
    prediction = write_prediction(tmp_path / "out.zarr", probability, far)
    result, _ = measured(replace(options, annotation=stored, prediction=prediction))
    assert result["foreground_f1"] == pytest.approx(voxel_figures(truth, probability, 0.4)["foreground_f1"])


def test_several_classes_add_up_to_foreground(synapses, tmp_path):
    options, truth, probability = synapses
    path = str(tmp_path / "out.zarr")
    levels = plan_levels(PART, tuple(SIZE_NM), START)
    record = {"task": {"task_type": "synapse", "ignore_label": IGNORED}, "network": {"classes": 3}, "threshold": 0.4}
    spec = OutputSpec(tuple(levels), plan_layout(PART), True, ("one", "two"), "out", record=record)
    output = OmeZarrOutput.create(path, spec)
    for box in levels[0].box.cells(spec.layout.shard):
        part = probability[box.slices()]
        output.write_block(0, box, np.stack([part // 3, part - part // 3]))
    result, _ = measured(replace(options, prediction=path))
    assert result["foreground_f1"] == pytest.approx(voxel_figures(truth, probability, 0.4)["foreground_f1"])
    assert result["box"] == "2:11,20:280,10:266"


def test_a_segmentation_that_is_not_finished_is_said_to_be_so(synapses, tmp_path):
    options, _, probability = synapses
    path = write_prediction(tmp_path / "out.zarr", probability, image="phantom://em?shape=12,300,280")
    for state, said in (("failed", 1), ("done", 0)):
        (tmp_path / "out.zarr.progress.json").write_text(json.dumps({"state": state, "done": 3, "blocks": 9}))
        notes = measured(replace(options, prediction=path))[1]
        assert sum("The segmentation is not finished (failed: 3 of 9 blocks)" in note for note in notes) == said


def test_labels_that_are_no_class_are_bad_input(ray_here, synapses, tmp_path):
    options, _, _ = synapses
    ids = write_volume(tmp_path / "ids.zarr", np.full(SHAPE, 12, np.uint16))
    with pytest.raises(ValueError, match=r"ids.zarr .*the annotation holds 12; allowed are 0 to 1 and 7"):
        evaluate(replace(options, annotation=ids, out=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_a_worker_that_dies_costs_nothing_but_time(evaluated, synapses, tmp_path, monkeypatch):
    mark = tmp_path / "died"

    def dying(comparison, own):
        import os

        from kasthuri_ray.evaluation.comparison import compare_block

        if own.start[0] > 4 and not mark.exists():
            mark.touch()
            os._exit(1)
        return compare_block(comparison, own)

    monkeypatch.setattr(evaluate_module, "compare_block", dying)
    monkeypatch.setattr(evaluation_report, "write_evaluation_report", lambda *_: None)
    assert evaluate(synapses[0], block=(4, 128, 128)) == evaluated
    assert mark.exists()

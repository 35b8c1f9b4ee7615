"""Folds test every part of a volume once, and pool what was found."""

import io
import json

import numpy as np
import pytest
from sklearn.metrics import f1_score

from kasthuri_ray.config.loading import GivenSettings, resolve_settings
from kasthuri_ray.errors import InputError, WorkFailed
from kasthuri_ray.metrics.cleft_distances import CleftDistances
from kasthuri_ray.metrics.intervals import TileSample, tile_counts
from kasthuri_ray.metrics.object_outcomes import ObjectOutcomes
from kasthuri_ray.metrics.voxel_counts import VoxelCounts
from kasthuri_ray.progress import Reporter
from kasthuri_ray.storage.folder import open_storage
from kasthuri_ray.training.folds import make_fold_settings, write_fold_settings, write_pooled_results
from kasthuri_ray.training.run_folder import RunFolder
from kasthuri_ray.training.split_results import SplitResults, pool_results, pooled_metrics
from kasthuri_ray.training.tested_objects import SplitObjects


def resolve(**task):
    assignments = [f"task.{key}={json.dumps(value)}" for key, value in task.items()]
    flags = {"train": {"folds": 4, "storage": "/runs"}}
    return resolve_settings(GivenSettings("phantom_synapse", None, flags=flags, assignments=assignments))


def test_folds_are_ordinary_runs_with_boxes_within_the_ranges_of_the_task():
    settings = resolve(xrange_vol=[0, 200], yrange_vol=[100, 300], z_train=[5, 20], z_val=[20, 25], z_test=[30, 40])
    folds = make_fold_settings(settings, "/runs/vnc")
    assert [(fold.train.name, fold.train.storage, fold.train.folds) for fold in folds] == [
        (f"fold_{k}", "/runs/vnc", None) for k in range(4)
    ]
    assert folds[0].task.boxes.test[0].box_text() == "5:40,100:200,0:100"
    assert folds[0].task.boxes.val[0].box_text() == "5:40,100:200,100:200"
    assert [each.box_text() for each in folds[0].task.boxes.train] == ["5:40,200:300,100:200", "5:40,200:300,0:100"]
    assert folds[0].task.z_train is None
    assert folds[0].task.regions("test")[0].image == settings.task.image_chan


def test_a_task_without_ranges_is_divided_as_far_as_its_annotation_goes():
    uri = "phantom://{}?shape=12,90,120&seed=3"
    ranges = dict.fromkeys(("xrange_vol", "yrange_vol", "z_train", "z_val", "z_test"))
    settings = resolve(image_chan=uri.format("em"), annotation_chan=uri.format("synapse"), **ranges)
    (first, *_) = make_fold_settings(settings)
    assert first.task.boxes.test[0].box_text() == "0:12,0:45,0:60"


def test_a_task_with_boxes_or_a_gap_is_refused():
    box = [{"box": "0:8,0:64,0:64"}]
    ranges = dict.fromkeys(("xrange_vol", "yrange_vol", "z_train", "z_val", "z_test"))
    with pytest.raises(InputError, match="the task has boxes"):
        make_fold_settings(resolve(boxes={"train": box, "val": [{"box": "8:9,:,:"}]}, **ranges))
    with pytest.raises(InputError, match="leaves no gap"):
        make_fold_settings(resolve(z_gap=1))


def make_results(seed, classes=2, num_tiles=5):
    """Return results of random tiles, and their labels and predictions at the threshold 0.4."""
    rng = np.random.default_rng(seed)
    tiles, labels, marked, total = [], [], [], VoxelCounts.zeros(classes)
    for _ in range(num_tiles):
        label = rng.integers(0, classes, 400)
        of_class = [np.clip(0.5 * (label == number) + 0.5 * rng.random(400), 0, 1) for number in range(1, classes)]
        probability = np.stack(of_class)
        predicted = np.where(probability.max(0) >= 0.4, probability.argmax(0) + 1, 0)
        counts = VoxelCounts.zeros(classes)
        counts.add(probability, predicted, label)
        tiles.append(tile_counts(counts, [0.4] * (classes - 1)))
        labels.append(label)
        marked.append(probability >= 0.4)
        total = total + counts
    partners = {"overlap": np.array([1, -1, 0]), "iou": np.array([-1, -1, 0]), "centroid": np.array([1, -1, -1])}
    cut = np.array([True, False, False])
    outcomes = ObjectOutcomes(partners, rng.random(4), cut, np.append(cut, True), np.append(cut, False), 150.0)
    objects = SplitObjects({1: outcomes}, {1: CleftDistances(10.5 + seed, 2.0, 30, 40)})
    results = SplitResults(total, total.confusion, TileSample.of(tiles), objects)
    return results, np.concatenate(labels), np.concatenate(marked, axis=1)


def test_results_are_read_as_they_were_written():
    results, _, _ = make_results(0)
    read = SplitResults.from_bytes(results.to_bytes())
    assert read.counts == results.counts
    assert pooled_metrics(read, ["synapse"]) == pooled_metrics(results, ["synapse"])
    assert read.objects.distances == results.objects.distances


@pytest.mark.parametrize("classes", [2, 3])
def test_pooled_voxels_score_as_all_voxels_at_once(classes):
    parts = [make_results(seed, classes, 3 + seed) for seed in range(4)]
    names = ["synapse", "vesicle"][: classes - 1]
    metrics = pooled_metrics(pool_results([part for part, _, _ in parts]), names)
    labels = np.concatenate([label for _, label, _ in parts])
    marked = np.concatenate([each for _, _, each in parts], axis=1)
    expected = [f1_score(labels == number, marked[number - 1]) for number in range(1, classes)]
    assert metrics["foreground_f1"] == pytest.approx(np.mean(expected), abs=0.005)  # thresholds are edges of bins
    low, high = metrics["foreground_f1_interval"]
    assert low < metrics["foreground_f1"] < high


def test_folds_that_are_trained_for_longer_are_not_finished_with_their_earlier_scores(tmp_path):
    folder, settings = RunFolder(open_storage(str(tmp_path))), resolve()
    write_fold_settings(folder, settings)
    folder.write_metrics({"epochs": settings.network.epochs})
    write_fold_settings(folder, settings)
    assert folder.read_metrics() is not None
    longer = settings.model_copy(update={"network": settings.network.model_copy(update={"epochs": 100})})
    write_fold_settings(folder, longer)
    assert folder.read_metrics() is None
    assert folder.read_settings()["network"]["epochs"] == 100


def test_a_fold_without_a_labelled_test_voxel_is_left_out_of_the_pooled_scores(tmp_path):
    settings, printed = resolve(), io.StringIO()
    folder, folds = RunFolder(open_storage(str(tmp_path))), make_fold_settings(settings, str(tmp_path))
    runs = [RunFolder(folder.storage.child(fold.train.name)) for fold in folds]
    parts = [make_results(seed)[0] for seed in range(4)]
    for run, part in zip(runs, parts, strict=True):
        is_tested = part is not parts[0]
        if is_tested:
            run.write("test_results.npz", part.to_bytes())
        test = {**pooled_metrics(part, ["synapse"]), "threshold": 0.4} if is_tested else None
        run.write_metrics({"test": test, "warnings": [], "epochs": 2, "seconds": 1.0})
    write_pooled_results(folder, settings, folds, Reporter(printed))
    metrics = folder.read_metrics()
    assert metrics["warnings"] == ["fold_0: no voxel of its test part is labelled; the pooled scores leave it out"]
    assert [row["name"] for row in metrics["folds"]] == ["fold_1", "fold_2", "fold_3"]
    assert metrics["test"] == json.loads(json.dumps(pooled_metrics(pool_results(parts[1:]), ["synapse"])))
    assert "warning: fold_0: no voxel" in printed.getvalue()
    assert "pooled over 3 folds" in printed.getvalue()
    for run in runs:
        run.write_metrics({"test": None, "warnings": [], "epochs": 2, "seconds": 1.0})
    with pytest.raises(WorkFailed, match="no fold has a labelled voxel"):
        write_pooled_results(folder, settings, folds, Reporter(printed))


def test_pooled_objects_are_counted_over_all_folds():
    parts = [make_results(seed)[0] for seed in range(4)]
    metrics = pooled_metrics(pool_results(parts), ["synapse"])
    assert (metrics["objects"]["num_true"], metrics["objects"]["num_predicted"]) == (12, 16)
    assert metrics["objects"]["by"]["overlap"]["true_positives"] == 8
    assert metrics["objects"]["by"]["iou"]["true_positives"] == 4
    assert metrics["cleft_distances"]["adgt_nm"] == pytest.approx((4 * 10.5 + 6) / 120)

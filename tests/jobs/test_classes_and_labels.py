"""Several classes and labels by name, from the command to what a person reads: training, segmentation, evaluation."""

import csv
import html
import json
import re
from collections import Counter

import cc3d
import numpy as np
import pytest
import zarr

from kasthuri_ray.geometry import Box
from kasthuri_ray.metrics.class_map import classes_at
from kasthuri_ray.metrics.object_detection import find_objects
from kasthuri_ray.metrics.object_settings import ObjectSettings
from kasthuri_ray.output.ome_zarr import OmeZarrOutput
from kasthuri_ray.volumes.opening import open_volume

pytestmark = pytest.mark.slow

NAMES = ["membrane", "synapse"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with an image, an annotation with labels of ilastik's kind, and the task and network files."""
    folder = tmp_path_factory.mktemp("classes")
    em, membrane, synapse = (
        volume.read(volume.bounds)
        for volume in (
            open_volume(f"phantom://{name}?shape=14,256,256&seed=7") for name in ("em", "membrane", "synapse")
        )
    )
    labels = np.where(synapse > 0, 9, np.where(membrane > 0, 4, 1)).astype(np.uint8)
    labels[:, :40] = 0  # where nobody looked
    for name, voxels in (("em", em), ("labels", labels)):
        stored = zarr.create_array(folder / f"{name}.zarr", data=voxels, chunks=(2, 128, 128))
        stored.attrs["voxel_size_nm_zyx"] = [30, 6, 6]
    task = {
        **{"name": "organelles", "task_type": "organelles", "volume_z": 1, "tile_size": [64, 64]},
        **{"image_chan": str(folder / "em.zarr"), "annotation_chan": str(folder / "labels.zarr")},
        **{"xrange_vol": [0, 256], "yrange_vol": [0, 256], "z_train": [0, 8], "z_val": [8, 11], "z_test": [11, 14]},
        "labels": {"unlabelled": 0, "background": 1, "membrane": 4, "synapse": 9},
    }
    network = {"dim": 2, "classes": 2, "n_blocks": 3, "start_filters": 8, "epochs": 2, "batch_size": 4}
    network |= {"tiles_per_epoch": 96, "learning_rate": 0.01, "scheduler": "one_cycle", "loss": "dice_ce"}
    (folder / "task.json").write_text(json.dumps(task))
    (folder / "net.json").write_text(json.dumps(network))
    return folder


@pytest.fixture(scope="module")
def run(start_job, cluster, folder):
    """Train on the labels."""
    flags = ["--task", folder / "task.json", "--network", folder / "net.json", "--compile", "off", "--cache", "none"]
    job = start_job(*flags, "--storage", folder, "--name", "run", cluster=cluster).wait()
    assert job.code == 0, job.out + job.err
    return folder / "run"


@pytest.fixture(scope="module")
def output(run, start_job, cluster, folder):
    """Segment the sections of the test box, with mask and objects."""
    flags = ["--weights", run, "--output", folder / "out.zarr", "--box", "11:14,:,:", "--save-mask", "--objects"]
    job = start_job(*flags, "--precision", "float32", cluster=cluster, script="jobs/segment.py").wait()
    assert job.code == 0, job.out + job.err
    with open(folder / "out.zarr.objects.csv") as file:
        numbers = Counter(row["class"] for row in csv.DictReader(file))
    counted = ", ".join(f"{numbers[name]:,} of {name}" for name in NAMES)
    assert f"{numbers.total():,} objects ({counted}): {folder}/out.zarr.objects.csv" in job.out
    return folder / "out.zarr"


def page_text(path):
    page = re.sub(r"<style>.*?</style>|<svg.*?</svg>|<[^>]*>", " ", path.read_text(), flags=re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(page))


def test_a_run_has_scores_and_a_threshold_for_each_class_and_counts_labelled_voxels_alone(run, folder):
    metrics = json.loads((run / "metrics.json").read_text())
    assert list(metrics["test"]["classes"]) == NAMES
    assert len(metrics["test"]["threshold"]) == 2
    assert np.sum(metrics["test"]["confusion"]) == 3 * 216 * 256  # without the rows where nobody looked
    means = [row["foreground_f1"] for row in metrics["test"]["classes"].values()]
    assert metrics["test"]["foreground_f1"] == pytest.approx(np.mean(means))
    assert metrics["test"]["classes"]["membrane"]["foreground_f1"] > 0.3
    labels = open_volume(str(folder / "labels.zarr")).read(Box((11, 0, 0), (14, 256, 256)))
    objects = metrics["test"]["classes"]["synapse"]["objects"]
    assert objects["num_true"] == cc3d.connected_components(labels == 9, connectivity=26).max() > 0
    assert metrics["test"]["objects"] == objects  # membranes have none
    assert "objects" not in metrics["test"]["classes"]["membrane"]
    settings = json.loads((run / "settings.json").read_text())
    assert settings["network"]["classes"] == 3
    text = page_text(run / "index.html")
    for name, row in metrics["test"]["classes"].items():
        assert f"{name} {row['foreground_f1']:.3f} {row['recall']:.3f} {row['precision']:.3f}" in text
    assert f"F1 of objects {objects['by']['overlap']['f1']:.3f}" in text
    assert f"{objects['num_true']:,} organelles that are found" in text
    assert "unlabelled" not in metrics["test"]["classes"]


def test_the_mask_is_of_the_most_probable_class_that_reaches_its_threshold_and_objects_are_those_of_the_run(
    run, output
):
    thresholds = json.loads((run / "metrics.json").read_text())["test"]["threshold"]
    group = zarr.open_group(output, mode="r")
    names = [channel["label"] for channel in group.attrs["ome"]["omero"]["channels"]]
    assert names == NAMES
    expected = classes_at(group["s0"][:], thresholds)
    np.testing.assert_array_equal(group["labels/organelles/s0"][:], expected)
    with open(f"{output}.objects.csv") as file:
        rows = list(csv.DictReader(file))
    settings = ObjectSettings.from_plain(group.attrs["kasthuri_ray"]["objects"])
    spec = OmeZarrOutput.open(str(output)).spec
    table = find_objects(group["s0"][:], settings, spec.levels[0].scale if spec.nanometers else None)[1]
    assert [int(row["size_voxels"]) for row in rows] == table.size_voxels.tolist()
    assert [NAMES.index(row["class"]) + 1 for row in rows] == table.class_numbers.tolist()


def test_an_evaluation_has_a_row_for_each_class_and_leaves_unlabelled_voxels_out(output, start_job, cluster, folder):
    arguments = ["--prediction", output, "--annotation", folder / "labels.zarr", "--out", folder / "evaluation"]
    job = start_job(*arguments, cluster=cluster, script="jobs/evaluate.py").wait()
    assert job.code == 0, job.out + job.err
    result = json.loads((folder / "evaluation/evaluation.json").read_text())
    tested = json.loads((folder / "run/metrics.json").read_text())["test"]
    assert result["voxels"] == 3 * 216 * 256
    for name, row in result["classes"].items():
        assert row["foreground_f1"] == pytest.approx(tested["classes"][name]["foreground_f1"], abs=0.02)
    evaluated, of_run = result["classes"]["synapse"]["objects"], tested["classes"]["synapse"]["objects"]
    assert (evaluated["num_true"], evaluated["matching_iou"]) == (of_run["num_true"], of_run["matching_iou"])
    assert evaluated["f1"] == pytest.approx(of_run["f1"], abs=0.1)
    assert "objects" not in result["classes"]["membrane"]
    assert f"synapse {result['classes']['synapse']['foreground_f1']:.3f}" in page_text(folder / "evaluation/index.html")
    wrong = start_job(*arguments, "--threshold", "0.5,0.4,0.3", cluster=cluster, script="jobs/evaluate.py").wait()
    assert wrong.code == 2
    assert "3 thresholds for 2 classes" in wrong.err


def test_labels_that_are_no_classes_are_refused_with_every_remedy(start_job, cluster, folder):
    task = json.loads((folder / "task.json").read_text())
    (folder / "plain.json").write_text(json.dumps({key: value for key, value in task.items() if key != "labels"}))
    flags = ["--task", folder / "plain.json", "--network", folder / "net.json", "--storage", folder, "--name", "plain"]
    job = start_job(*flags, "--set", "task.foreground_share=0.5", cluster=cluster).wait()
    assert job.code in (1, 2), job.out
    for remedy in ("task.ignore_label=", "task.labels", "task.threshold=true"):
        assert remedy in job.err

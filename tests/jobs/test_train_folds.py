"""jobs/train.py --folds: one run for each part of the volume, pooled scores, resume, and the mean over the networks."""

import json
import re

import cc3d
import numpy as np
import pytest
import zarr

from kasthuri_ray.volumes.opening import open_volume

pytestmark = pytest.mark.slow

SHAPE = (8, 256, 288)
NETWORK = {"n_blocks": 2, "start_filters": 4, "epochs": 1, "batch_size": 4, "tiles_per_epoch": 32, "seed": 1}
NETWORK |= {"learning_rate": 0.01, "scheduler": "one_cycle", "loss": "dice_ce", "outweightfilename": "tiny"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with an image, its annotation, a task without ranges, and a network."""
    folder = tmp_path_factory.mktemp("folds")
    uri = f"phantom://{{}}?shape={','.join(map(str, SHAPE))}&seed=0"
    for name in ("em", "synapse"):
        volume = open_volume(uri.format(name))
        stored = zarr.create_array(folder / f"{name}.zarr", data=volume.read(volume.bounds), chunks=(2, 64, 64))
        stored.attrs["voxel_size_nm_zyx"] = [30, 6, 6]
    task = {"name": "synapse", "task_type": "synapse", "volume_z": 1, "tile_size": [32, 32], "threshold": True}
    task |= {"image_chan": str(folder / "em.zarr"), "annotation_chan": str(folder / "synapse.zarr")}
    (folder / "task.json").write_text(json.dumps(task))
    (folder / "net.json").write_text(json.dumps(NETWORK))
    return folder


@pytest.fixture(scope="module")
def train(start_job, cluster, folder):
    """`train(*flags)` runs the job on the image; return it when it has ended."""
    files = ["--task", folder / "task.json", "--network", folder / "net.json", "--compile", "off", "--cache", "none"]

    def run(*flags):
        return start_job(*files, "--storage", folder, *flags, cluster=cluster).wait()

    return run


@pytest.fixture(scope="module")
def finished(train, folder):
    job = train("--folds", "4", "--name", "folds")
    assert job.code == 0, job.out + job.err
    assert job.lines[0] == job.lines[-1] == str(folder / "folds")
    return job, json.loads((folder / "folds/metrics.json").read_text())


def test_four_networks_test_all_of_the_volume_once(finished, folder):
    _, metrics = finished
    labels = zarr.open_array(folder / "synapse.zarr")[:] > 0
    assert np.sum(metrics["test"]["confusion"]) == labels.size
    assert np.sum(metrics["test"]["confusion"][1]) == labels.sum()
    quadrants = [labels[:, rows, columns] for rows in np.s_[:128, 128:] for columns in np.s_[:144, 144:]]
    num_true = sum(cc3d.connected_components(each, connectivity=26).max() for each in quadrants)
    assert metrics["test"]["objects"]["num_true"] == num_true > 0
    assert [fold["box"] for fold in metrics["folds"]] == [
        "0:8,0:128,0:144", "0:8,0:128,144:288", "0:8,128:256,144:288", "0:8,128:256,0:144"
    ]  # fmt: skip


def test_pooled_objects_are_the_sums_of_the_folds(finished, folder):
    _, metrics = finished
    each = [json.loads((folder / f"folds/fold_{k}/metrics.json").read_text())["test"] for k in range(4)]
    for key in ("num_true", "num_predicted"):
        assert metrics["test"]["objects"][key] == sum(test["objects"][key] for test in each)
    assert [fold["foreground_f1"] for fold in metrics["folds"]] == [test["foreground_f1"] for test in each]
    recall = sum(test["recall"] * np.sum(test["confusion"][1]) for test in each) / np.sum(
        metrics["test"]["confusion"][1]
    )
    assert metrics["test"]["recall"] == pytest.approx(recall)


def test_the_page_and_the_console_show_the_pooled_scores(finished, folder):
    job, metrics = finished
    page = (folder / "folds/index.html").read_text()
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page))
    for fold in metrics["folds"]:
        assert f"{fold['name']} {fold['box']} {fold['foreground_f1']:.3f}" in text
    assert f"pooled over 4 folds: F1 {metrics['test']['foreground_f1']:.3f}" in job.out


def test_finished_folds_are_not_trained_again_and_other_settings_are_refused(finished, train, folder):
    before = (folder / "folds/metrics.json").read_bytes()
    again = train("--folds", "4", "--name", "folds")
    assert again.code == 2
    assert "the folds folds are finished" in again.err
    other = train("--folds", "4", "--name", "folds", "--set", "network.learning_rate=0.02")
    assert other.code == 2
    assert "network.learning_rate: 0.01 -> 0.02" in other.err
    single = train("--name", "folds")
    assert single.code == 2
    assert "train.folds: 4 -> null" in single.err
    assert (folder / "folds/metrics.json").read_bytes() == before


def test_folds_that_stopped_resume_and_give_the_same_scores(finished, train, folder):
    _, metrics = finished
    for name in ("folds/metrics.json", "folds/index.html", "folds/fold_3/metrics.json"):
        (folder / name).unlink()
    job = train("--folds", "4", "--name", "folds")
    assert job.code == 0, job.out + job.err
    resumed = json.loads((folder / "folds/metrics.json").read_text())
    assert resumed["test"] == metrics["test"]


def test_a_segmentation_averages_the_networks_of_the_folds(finished, start_job, cluster, folder):
    runs = [folder / f"folds/fold_{k}" for k in range(4)]
    flags = ["--cache", "none", "--compile", "off", "--precision", "float32"]

    def segment(output, *weights):
        script = {"script": "jobs/segment.py", "cluster": cluster}
        job = start_job("--weights", *weights, "--output", folder / output, *flags, **script).wait()
        assert job.code == 0, job.out + job.err
        return job, zarr.open_array(folder / output / "s0", mode="r")[:].astype(float)

    alone = [segment(f"{k}.zarr", run)[1] for k, run in enumerate(runs)]
    job, mean = segment("mean.zarr", *runs)
    assert "the probabilities are the mean over 4 networks" in job.out
    np.testing.assert_array_equal(mean, np.floor(np.mean(alone, axis=0) + 0.5))
    assert segment("mean.zarr", *runs)[1].shape == mean.shape
    other = start_job("--weights", *runs[:3], "--output", folder / "mean.zarr", *flags, script="jobs/segment.py",
                      cluster=cluster).wait()  # fmt: skip
    assert other.code == 2
    assert "was started with other settings" in other.err

"""What was learnt from is known: fine-tuned on sections of the first run, and an evaluation of training sections."""

import json

import numpy as np
import pytest
import tifffile
import zarr

from kasthuri_ray.volumes.opening import open_volume

pytestmark = pytest.mark.slow

NETWORK = {"dim": 2, "classes": 2, "n_blocks": 2, "start_filters": 4, "epochs": 1, "batch_size": 4}
NETWORK |= {"tiles_per_epoch": 16, "learning_rate": 0.01, "loss": "dice_ce", "outweightfilename": "small"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with an image, its membranes, a copy of the last sections as TIFF, and the task files."""
    folder = tmp_path_factory.mktemp("learnt")
    for name in ("em", "membrane"):
        volume = open_volume(f"phantom://{name}?shape=12,96,96&seed=7")
        voxels = volume.read(volume.bounds)
        stored = zarr.create_array(folder / f"{name}.zarr", data=voxels, chunks=(2, 96, 96))
        stored.attrs["voxel_size_nm_zyx"] = [30, 6, 6]
        tifffile.imwrite(folder / f"{name}.tif", voxels[3:])
    write_task(folder / "first.json", "zarr", [0, 4], [4, 6], [6, 8])
    write_task(folder / "more.json", "zarr", [8, 10], [10, 12], [4, 8])
    write_task(folder / "copy.json", "tif", [5, 7], [7, 9], [0, 3])  # sections 3 to 6 of the image are tested
    (folder / "network.json").write_text(json.dumps(NETWORK))
    return folder


def write_task(path, suffix, train, val, test):
    task = {"name": path.stem, "task_type": "membrane", "volume_z": 1, "tile_size": [48, 48]}
    task |= {
        "image_chan": str(path.parent / f"em.{suffix}"),
        "annotation_chan": str(path.parent / f"membrane.{suffix}"),
    }
    task |= {"xrange_vol": [0, 96], "yrange_vol": [0, 96], "z_train": train, "z_val": val, "z_test": test}
    path.write_text(json.dumps(task))


@pytest.fixture(scope="module")
def train(start_job, cluster, folder):
    """Return `train(name, *flags)`, which returns the run's folder and what the job printed."""

    def run(name, *flags):
        common = ["--task", folder / f"{name}.json", "--storage", folder, "--compile", "off", "--cache", "none"]
        job = start_job(*common, "--name", name, *flags, cluster=cluster, cwd=folder).wait()
        assert job.code == 0, job.out + job.err
        return folder / name, job.out + job.err

    return run


@pytest.fixture(scope="module")
def first(train, folder):
    """Train the first run, which tests sections that it never saw."""
    return train("first", "--network", folder / "network.json")[0]


def page_of(run):
    return " ".join((run / "index.html").read_text().split())


def test_a_first_run_never_saw_its_test_box(first):
    page, test = page_of(first), json.loads((first / "metrics.json").read_text())["test"]
    assert "The network never saw the test box." in page
    assert "started from the weights" not in page
    assert (test["learnt_from"]["share"], test["learnt_from"]["known"]) == (0, True)
    assert test["unseen"]["foreground_f1"] == test["foreground_f1"]
    (run,) = json.loads((first / "settings.json").read_text())["learnt_from"]["runs"]
    assert run["images"][0]["boxes"] == {"train": ["0:4,0:96,0:96"], "val": ["4:6,0:96,0:96"]}


def test_a_run_says_which_part_of_its_test_box_an_earlier_run_learnt_from(train, first):
    run, printed = train("more", "--weights", first)
    assert "50% of the test box was learnt from before: by the run first" in printed
    assert "the network is that of --weights" in printed  # there is no --network
    assert json.loads((run / "settings.json").read_text())["network"]["start_filters"] == 4
    test = json.loads((run / "metrics.json").read_text())["test"]
    assert test["learnt_from"]["share"] == 0.5  # sections 4 and 5 of 4 to 8
    assert (np.sum(test["confusion"]), np.sum(test["unseen"]["confusion"])) == (4 * 96 * 96, 2 * 96 * 96)
    page = page_of(run)
    assert "Of the voxels of the test box, 50% lie in boxes that the network learnt from." in page
    assert (
        f'<b>{test["unseen"]["foreground_f1"]:.3f}</b><b class="whole">whole: {test["foreground_f1"]:.3f}</b>' in page
    )
    assert f"The training started from the weights of {first}." in page
    assert "never saw" not in page


def test_a_cropped_copy_and_bare_weights(train, first):
    run, _ = train("copy", "--weights", first)
    page, metrics = page_of(run), json.loads((run / "metrics.json").read_text())
    assert metrics["warnings"][0].startswith("The network learnt from all of the test box")
    assert "<h1>The network learnt from all of the test box" in page
    assert metrics["test"]["unseen"] is None


def test_an_evaluation_says_which_part_was_learnt_from(first, start_job, cluster, folder):
    outputs = {"run": ["--weights", first]}
    bare = ["--weights", first / "small_membrane.pt", "--network", folder / "network.json"]
    outputs["bare"] = [*bare, "--task", folder / "first.json"]
    results = {}
    for name, flags in outputs.items():
        output, annotation = folder / f"{name}.zarr", folder / "membrane.zarr"
        job = start_job(*flags, "--output", output, "--cache", "none", cluster=cluster, script="jobs/segment.py").wait()
        assert job.code == 0, job.out + job.err
        assert ("the weights state no threshold: the default, 0.5, decides" in job.out) == (name == "bare")
        compared = ["--prediction", output, "--annotation", annotation, "--cache", "none"]
        job = start_job(*compared, cluster=cluster, script="jobs/evaluate.py").wait()
        assert job.code == 0, job.out + job.err
        evaluation = folder / f"{name}.zarr.evaluation"
        results[name] = json.loads((evaluation / "evaluation.json").read_text()), page_of(evaluation), job.out
    result, page, printed = results["run"]
    assert result["learnt_from"]["share"] == 0.5  # sections 0 to 6 of 12
    assert (result["unseen"]["voxels"], result["voxels"]) == (6 * 96 * 96, 12 * 96 * 96)
    assert f"F1 {result['unseen']['foreground_f1']:.3f} at threshold" in printed
    assert f"on the 50% that was not learnt from (whole: {result['foreground_f1']:.3f})" in printed
    assert "Of the voxels of what is compared, 50% lie in boxes that the network learnt from." in page
    result, page, printed = results["bare"]
    assert (result["learnt_from"]["known"], result["unseen"]) == (False, None)
    for text in (page, printed):
        assert "It is not known what the network learnt from" in text
        assert "never saw" not in text

"""Volumes of one's own with sparse labels and without ranges, from the command to what a person reads."""

import html
import json
import re
import shlex

import numpy as np
import pytest
import tifffile

from kasthuri_ray.volumes.opening import open_volume

pytestmark = pytest.mark.slow

FLAGS = ("--network", "net.json", "--storage", "runs", "--compile", "off", "--cache", "none")
SMALL_TILES = ("--set", "task.tile_size=[16,16]")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with TIFF files: an image, and labels of which one in a hundred is not 255, as 0 and 1."""
    folder = tmp_path_factory.mktemp("sparse")
    em, membrane = (open_volume(f"phantom://{name}?shape=14,128,160&seed=7")[:] for name in ("em", "membrane"))
    labels, rng = np.full(membrane.shape, 255, np.uint8), np.random.default_rng(0)
    for z in range(14):
        y, x = rng.integers(0, 128 - 14), rng.integers(0, 160 - 15)
        labels[z, y : y + 14, x : x + 15] = membrane[z, y : y + 14, x : x + 15]
    for name, voxels in (("em", em), ("labels", labels), ("ilastik", np.where(labels == 255, 0, labels + 1))):
        tifffile.imwrite(folder / f"{name}.tif", voxels.astype(np.uint8))
    network = {"dim": 2, "n_blocks": 2, "start_filters": 4, "epochs": 2, "batch_size": 4, "tiles_per_epoch": 32}
    (folder / "net.json").write_text(json.dumps(network | {"learning_rate": 0.01}))
    return folder


@pytest.fixture(scope="module")
def start(start_job, cluster, folder):
    """Return `start(annotation, *flags)`, which starts a training on the image with an annotation."""
    volumes = ("--task", "membrane", "--image", "em.tif", "--annotation")
    return lambda annotation, *flags: start_job(*volumes, annotation, *FLAGS, *flags, cluster=cluster, cwd=folder)


@pytest.fixture(scope="module")
def run(start):
    """Train with 255 as unlabelled."""
    job = start("labels.tif", *SMALL_TILES, "--set", "task.ignore_label=255", "--name", "run").wait()
    assert job.code == 0, job.out + job.err
    return job


def printed_split(text: str) -> list[str]:
    """Return the settings that are printed for the split."""
    line = next(line for line in text.splitlines() if line.startswith("the task gives no ranges for this volume"))
    return [word for word in shlex.split(line[line.index("--set") :]) if word != "--set"]


def test_a_volume_without_ranges_is_split_and_the_ranges_of_the_built_in_task_are_not_used(run, folder):
    text = run.out + run.err
    assert (
        "z_test of the task membrane_task belong to bossdb://Kasthuri/ac4/em, not to em.tif: they are not used" in text
    )
    assert printed_split(text)[2:] == ["task.z_train=0,8", "task.z_val=9,11", "task.z_test=12,14"]
    task = json.loads((folder / "runs/run/settings.json").read_text())["task"]
    assert (task["xrange_vol"], task["yrange_vol"]) == ([0, 160], [0, 128])
    assert (task["z_train"], task["z_val"], task["z_test"]) == ([0, 8], [9, 11], [12, 14])


def test_a_run_says_how_many_voxels_are_labelled_and_gives_intervals(run, folder):
    assert "train: 1,680 of 163,840 voxels are labelled (1.03%); only tiles that hold a labelled" in run.out + run.err
    metrics = json.loads((folder / "runs/run/metrics.json").read_text())
    counted = {split: (each["labelled"], each["voxels"]) for split, each in metrics["labelled_voxels"].items()}
    assert counted == {"train": (1680, 163840), "val": (420, 40960), "test": (420, 40960)}
    page = re.sub(r"<[^>]*>", " ", (folder / "runs/run/index.html").read_text())
    page = re.sub(r"\s+", " ", html.unescape(page))
    assert "1,680 of 163,840 voxels (1.03%) of the training box" in page
    assert "The scores rest on 420 voxels" in page
    low, high = metrics["test"]["recall_interval"]
    assert f"that are found; 95% interval {low:.3f} to {high:.3f}" in page


def test_the_same_command_resumes_with_the_same_split_and_labels_by_name_draw_the_same_tiles(run, start, folder):
    same = start("labels.tif", *SMALL_TILES, "--set", "task.ignore_label=255", "--name", "run").wait()
    assert same.code == 2
    assert "the run run is finished" in same.err
    more = ("--set", "network.epochs=3")
    longer = start("labels.tif", *SMALL_TILES, "--set", "task.ignore_label=255", *more, "--name", "run").wait()
    assert longer.code == 0, longer.err
    assert printed_split(longer.out + longer.err) == printed_split(run.out + run.err)
    names = 'task.labels={"Unlabelled": 0, "background": 1, "membrane": 2}'
    typed = [part for text in printed_split(run.out + run.err) for part in ("--set", text)]
    named = start("ilastik.tif", *SMALL_TILES, "--set", names, *typed, *more, "--name", "named").wait()
    assert named.code == 0, named.err
    assert "the task gives no ranges" not in named.out + named.err
    metrics = [json.loads((folder / f"runs/{name}/metrics.json").read_text()) for name in ("run", "named")]
    assert metrics[0]["labelled_voxels"] == metrics[1]["labelled_voxels"]
    first = [line.split(",")[1] for line in (folder / "runs/named/history.csv").read_text().splitlines()]
    assert len(first) == 4


@pytest.mark.parametrize(
    ("annotation", "flags", "words"),
    [
        ("labels.tif", (), ["the annotation holds 255 (9", "mean? Not labelled: --set task.ignore_label=255."]),
        (
            "labels.tif",
            ("--set", "task.threshold=true"),
            [
                "the label 255 fills 9",
                " voxels, and with task.threshold it would be foreground",
                "--set task.ignore_label=255",
                "--set task.background=[]",
            ],
        ),
        (
            "labels.tif",
            ("--set", "task.ignore_label=[0,1,255]"),
            ["annotation without a labelled voxel", "all are ignored (0, 1, 255)"],
        ),
    ],
)
def test_labels_that_do_not_fit_are_refused_before_any_work(start, folder, annotation, flags, words):
    job = start(annotation, *SMALL_TILES, *flags, "--name", "refused").wait()
    assert job.code == 2, job.out + job.err
    for word in words:
        assert word in job.err
    assert not (folder / "runs/refused").exists()

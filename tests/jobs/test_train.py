"""Training as a person finds it: what a run leaves, how it is extended, and what it can be given."""

import json
import re
import shlex

import pytest
import torch

from kasthuri_ray.models.checkpoints import read_checkpoint
from kasthuri_ray.models.unet import build_network

COLUMNS = [
    *("epoch", "train.loss", "val.loss", "val.foreground_f1", "val.average_precision"),
    *("learning_rate", "seconds", "tiles_per_second"),
]
SCORES = {
    *("f1", "mean_f1", "iou", "mean_iou", "accuracy", "balanced_accuracy"),
    *("foreground_f1", "average_precision", "threshold", "confusion"),
}
VAL_VOXELS, TEST_VOXELS = 3 * 128 * 128, 5 * 128 * 128


def test_a_run_leaves_the_files_of_the_contract(finished):
    found = {str(path.relative_to(finished.folder)) for path in finished.folder.rglob("*") if path.is_file()}
    assert {name for name in found if "tfevents" in name}
    slices = {name for name in found if name.startswith("test_outputs/slice_")}
    assert len(slices) == 6
    assert {name for name in found if "tfevents" not in name} - slices == {
        *("settings.json", "tiny_membrane.pt", "checkpoint/best.pt", "checkpoint/last.pt", "history.csv"),
        *("metrics.json", "report.rpt", "learning_curve.png", "index.html"),
    }


def test_the_path_is_the_first_and_the_last_line_and_nothing_else_is_said_but_the_run(finished):
    lines = finished.job.lines
    assert lines[0] == lines[-1] == str(finished.folder)
    assert lines[1] == "carried along and not read: encoder_name"
    assert [line.split("  ")[0] for line in lines if re.match(r"epoch \d+  ", line)] == [
        f"epoch {n}" for n in range(1, 5)
    ]
    assert finished.job.err == ""
    assert not [line for line in lines if re.search(r"ray::|\(pid|WARNING|INFO|Warning", line)]


def test_the_command_that_goes_on_is_printed_and_is_one(finished):
    (line,) = [line for line in finished.job.lines if line.startswith("to go on")]
    words = shlex.split(line.partition(": ")[2])
    assert words[0] == "python"
    assert words[1].endswith("jobs/train.py")
    assert words[2:] == [*finished.arguments, "--name", "whole"]


def test_history_has_every_epoch(finished):
    header, *rows = (finished.folder / "history.csv").read_text().splitlines()
    assert header.split(",") == COLUMNS
    assert [row.split(",")[0] for row in rows] == ["1", "2", "3", "4"]


def test_metrics_count_each_voxel_of_the_boxes_once(finished):
    metrics = json.loads((finished.folder / "metrics.json").read_text())
    assert {"test", "val", "best_epoch", "epochs", "tiles_per_second", "wait_share", "seconds"} <= metrics.keys()
    assert metrics["test"].keys() == metrics["val"].keys() == SCORES
    assert metrics["epochs"] == 4
    assert sum(map(sum, metrics["test"]["confusion"])) == TEST_VOXELS
    assert sum(map(sum, metrics["val"]["confusion"])) == VAL_VOXELS
    for name in ("f1", "iou", "accuracy"):
        assert len(metrics["test"][name]) == 2


def test_the_best_epoch_is_the_one_with_the_highest_average_precision(finished):
    rows = [line.split(",") for line in (finished.folder / "history.csv").read_text().splitlines()[1:]]
    best = max(rows, key=lambda row: float(row[COLUMNS.index("val.average_precision")]))
    metrics = json.loads((finished.folder / "metrics.json").read_text())
    assert metrics["best_epoch"] == int(best[0])
    assert metrics["val"]["average_precision"] == pytest.approx(float(best[4]))


def test_the_weights_are_those_of_the_best_checkpoint_and_load_strictly(finished):
    weights = torch.load(finished.folder / "tiny_membrane.pt", weights_only=True)
    settings = json.loads((finished.folder / "settings.json").read_text())
    build_network(settings["network"]).load_state_dict(weights, strict=True)
    best = read_checkpoint((finished.folder / "checkpoint/best.pt").read_bytes(), "best.pt")
    assert all(torch.equal(weights[name], best.weights[name]) for name in weights)
    assert best.settings["task"] == settings["task"]


def test_settings_hold_all_that_is_needed_to_do_it_again(finished):
    settings = json.loads((finished.folder / "settings.json").read_text())
    assert settings["seed"] == 0
    assert settings["task"]["z_train"] == [0, 8]
    assert settings["network"]["tiles_per_epoch"] == 16
    assert settings["versions"].keys() >= {"python", "torch", "ray", "kasthuri_ray"}
    assert re.fullmatch("[0-9a-f]{40}", settings["git_commit"])


def test_the_page_needs_nothing_but_itself(finished):
    page = (finished.folder / "index.html").read_text()
    links = re.findall(r"""(?:src|href)\s*=\s*["']?([^"'\s>]+)|url\(\s*["']?([^"')]+)""", page)
    outside = [a or b for a, b in links if not (a or b).startswith(("data:", "#"))]
    assert outside == []
    assert "<script src" not in page


def test_a_finished_run_is_refused_and_says_how_to_train_it_longer(finished, start, cluster):
    before = {path: path.stat().st_mtime_ns for path in finished.folder.rglob("*")}
    again = start(*finished.arguments, "--name", "whole", cluster=cluster)
    changed = start(*finished.arguments, "--set", "network.learning_rate=0.5", "--name", "whole", cluster=cluster)
    again.wait()
    changed.wait()
    assert again.code == changed.code == 2
    assert "is finished" in again.err
    assert "--set network.epochs=8" in again.err
    assert "network.learning_rate: 0.01 -> 0.5" in changed.err
    assert "Traceback" not in again.err + changed.err
    assert {path: path.stat().st_mtime_ns for path in finished.folder.rglob("*")} == before


def test_two_workers_learn_from_the_same_tiles_and_count_each_voxel_once(finished, start, cluster, runs):
    two = start(*finished.arguments, "--num-workers", "2", "--name", "two", cluster=cluster).wait()
    assert two.code == 0, two.out + two.err
    metrics = json.loads((runs / "two/metrics.json").read_text())
    assert sum(map(sum, metrics["test"]["confusion"])) == TEST_VOXELS
    assert sum(map(sum, metrics["val"]["confusion"])) == VAL_VOXELS
    one, other = (
        [float(line.split(",")[1]) for line in (runs / name / "history.csv").read_text().splitlines()[1:]]
        for name in ("whole", "two")
    )
    # The same tiles, but each rank normalizes by the statistics of its own half of a batch.
    assert other == pytest.approx(one, rel=0.1)
    assert other != one

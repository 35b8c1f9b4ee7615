"""jobs/train.py as a process: its lines, the files of a run, and what happens when a run is finished."""

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
    *("f1", "mean_f1", "iou", "mean_iou", "accuracy", "balanced_accuracy", "confusion", "argmax"),
    *("foreground_f1", "foreground_iou", "precision", "recall", "average_precision", "threshold"),
}
VAL_VOXELS, TEST_VOXELS = 3 * 128 * 128, 5 * 128 * 128


def test_a_run_writes_the_documented_files(finished_run):
    names = {str(path.relative_to(finished_run.folder)) for path in finished_run.folder.rglob("*") if path.is_file()}
    assert {name for name in names if "tfevents" in name}
    slices = {name for name in names if name.startswith("test_outputs/slice_")}
    assert len(slices) == 6
    assert {name for name in names if "tfevents" not in name} - slices == {
        *("settings.json", "tiny_membrane.pt", "checkpoint/best.pt", "checkpoint/last.pt", "history.csv"),
        *("metrics.json", "report.rpt", "test_results.npz", "learning_curve.png", "index.html"),
    }


def test_the_path_is_the_first_and_the_last_line_and_ray_prints_nothing(finished_run):
    lines = finished_run.job.lines
    assert lines[0] == lines[-1] == str(finished_run.folder)
    assert lines[1] == "unused keys of the task and network files: encoder_name"
    assert [line.split("  ")[0] for line in lines if re.match(r"epoch \d+  ", line)] == [
        f"epoch {n}" for n in range(1, 5)
    ]
    assert finished_run.job.err == ""
    assert not [line for line in lines if re.search(r"ray::|\(pid|WARNING|INFO|Warning", line)]


def test_the_command_that_resumes_is_printed_once(finished_run):
    (line,) = [line for line in finished_run.job.lines if line.startswith("to resume")]
    command = shlex.split(line.partition(": ")[2])
    assert command[0] == "python"
    assert command[1].endswith("jobs/train.py")
    assert command[2:] == [*finished_run.arguments, "--name", "whole"]


def test_history_has_a_row_for_every_epoch(finished_run):
    header, *rows = (finished_run.folder / "history.csv").read_text().splitlines()
    assert header.split(",") == COLUMNS
    assert [row.split(",")[0] for row in rows] == ["1", "2", "3", "4"]


def test_metrics_count_each_voxel_once(finished_run):
    metrics = json.loads((finished_run.folder / "metrics.json").read_text())
    assert {"test", "val", "best_epoch", "epochs", "tiles_per_second", "wait_share", "seconds"} <= metrics.keys()
    assert metrics["val"].keys() == SCORES
    scores = ("foreground_f1", "average_precision", "foreground_iou", "precision", "recall")
    assert metrics["test"].keys() == SCORES | {f"{name}_interval" for name in scores} | {"learnt_from", "unseen"}
    shown = [line for line in finished_run.job.lines if line.startswith("warning: ")]
    assert shown == [f"warning: {warning}" for warning in metrics["warnings"]]
    assert metrics["epochs"] == 4
    assert sum(map(sum, metrics["test"]["confusion"])) == TEST_VOXELS
    assert sum(map(sum, metrics["val"]["confusion"])) == VAL_VOXELS
    for name in ("f1", "iou", "accuracy"):
        assert len(metrics["test"][name]) == 2


def test_the_best_epoch_is_the_one_with_the_highest_average_precision(finished_run):
    rows = [line.split(",") for line in (finished_run.folder / "history.csv").read_text().splitlines()[1:]]
    best = max(rows, key=lambda row: float(row[COLUMNS.index("val.average_precision")]))
    metrics = json.loads((finished_run.folder / "metrics.json").read_text())
    assert metrics["best_epoch"] == int(best[0])
    assert metrics["val"]["average_precision"] == pytest.approx(float(best[4]))


def test_the_weights_are_those_of_the_best_checkpoint_and_load_strictly(finished_run):
    weights = torch.load(finished_run.folder / "tiny_membrane.pt", weights_only=True)
    settings = json.loads((finished_run.folder / "settings.json").read_text())
    build_network(settings["network"]).load_state_dict(weights, strict=True)
    best = read_checkpoint((finished_run.folder / "checkpoint/best.pt").read_bytes(), "best.pt")
    assert all(torch.equal(weights[name], best.weights[name]) for name in weights)
    assert best.settings["task"] == settings["task"]


def test_settings_record_all_that_is_needed_to_repeat_a_run(finished_run):
    settings = json.loads((finished_run.folder / "settings.json").read_text())
    assert settings["seed"] == 0
    assert settings["task"]["z_train"] == [0, 8]
    assert settings["network"]["tiles_per_epoch"] == 16
    assert settings["versions"].keys() >= {"python", "torch", "ray", "kasthuri_ray"}
    assert re.fullmatch("[0-9a-f]{40}", settings["git_commit"])


def test_the_report_page_loads_no_other_file(finished_run):
    page = (finished_run.folder / "index.html").read_text()
    links = re.findall(r"""(?:src|href)\s*=\s*["']?([^"'\s>]+)|url\(\s*["']?([^"')]+)""", page)
    external = [a or b for a, b in links if not (a or b).startswith(("data:", "#"))]
    assert external == []
    assert "<script src" not in page


def test_a_finished_run_is_refused_before_ray_starts_with_the_flag_that_extends_it(finished_run, start_job, no_ray):
    before = {path: path.stat().st_mtime_ns for path in finished_run.folder.rglob("*")}
    flags = [*finished_run.arguments, "--name", "whole"]
    same = start_job(*flags, env=no_ray)
    changed = start_job(*flags, "--set", "network.learning_rate=0.5", "network.ema=0", env=no_ray)
    assert same.wait().code == changed.wait().code == 2
    assert "127.0.0.1:9" in start_job(*finished_run.arguments, "--name", "new", env=no_ray).wait().err
    assert "is finished" in same.err
    assert "--set network.epochs=8" in same.err
    assert "network.learning_rate: 0.01 -> 0.5" in changed.err
    assert "network.ema: 0.9 -> 0" in changed.err
    assert "Traceback" not in same.err + changed.err
    assert {path: path.stat().st_mtime_ns for path in finished_run.folder.rglob("*")} == before


@pytest.mark.slow
def test_two_workers_train_on_the_same_tiles_and_count_each_voxel_once(
    finished_run, start_job, cluster, shared_storage
):
    two = start_job(*finished_run.arguments, "--num-workers", "2", "--name", "two", cluster=cluster).wait()
    assert two.code == 0, two.out + two.err
    metrics = json.loads((shared_storage / "two/metrics.json").read_text())
    assert sum(map(sum, metrics["test"]["confusion"])) == TEST_VOXELS
    assert sum(map(sum, metrics["val"]["confusion"])) == VAL_VOXELS
    one, other = (
        [float(line.split(",")[1]) for line in (shared_storage / name / "history.csv").read_text().splitlines()[1:]]
        for name in ("whole", "two")
    )
    # The same tiles, but batch normalization of each worker uses its own half of a batch.
    assert other == pytest.approx(one, rel=0.1)
    assert other != one

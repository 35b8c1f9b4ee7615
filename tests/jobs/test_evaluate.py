"""jobs/evaluate.py refuses bad input before any work: exit code 2, no traceback, nothing written."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import zarr

from kasthuri_ray import cli
from kasthuri_ray.evaluation import evaluate as evaluate_module
from kasthuri_ray.evaluation import evaluation_report
from kasthuri_ray.ray_cluster.resources import ClusterResources

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = "jobs/evaluate.py"


@pytest.fixture(scope="module")
def main(load_module):
    """Return `main` of jobs/evaluate.py."""
    return load_module(ROOT / SCRIPT).main


def write_store(path, array, voxel_size_nm=(30, 6, 6)):
    stored = zarr.create_array(path, data=array, chunks=(4, 16, 16))
    stored.attrs["voxel_size_nm_zyx"] = list(voxel_size_nm)
    return path


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Make a current folder with a prediction `p.zarr`, its annotation `a.zarr` and cells `c.zarr`; forbid Ray."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(evaluate_module, "connect_ray", lambda *_: pytest.fail("Ray was started"))
    write_store("p.zarr", np.zeros((4, 32, 32), np.uint8))
    write_store("a.zarr", np.zeros((4, 32, 32), np.uint8))
    write_store("c.zarr", np.ones((4, 32, 32), np.uint32))
    return tmp_path


@pytest.fixture
def refused(main, folder, capsys):
    """Return `refused(*arguments)`: the error of the job with these arguments added; later arguments win."""
    common = ["--prediction", "p.zarr", "--annotation", "a.zarr", "--task", "membrane", "--cache", "none"]

    def run(*arguments: object) -> str:
        before = sorted(os.listdir(folder))
        code = cli.run_job(main, [*common, *map(str, arguments)])
        printed = capsys.readouterr()
        assert code == 2, printed.out + printed.err
        assert printed.err.startswith("error: ")
        assert "Traceback" not in printed.err
        assert printed.out == ""
        assert sorted(os.listdir(folder)) == before
        return printed.err

    return run


def test_missing_volumes_are_refused(refused):
    assert "nowhere.zarr" in refused("--prediction", "nowhere.zarr")
    assert "nowhere.zarr" in refused("--annotation", "nowhere.zarr")
    assert "nowhere.zarr" in refused("--instances", "nowhere.zarr")


def test_a_prediction_without_provenance_needs_a_task(main, folder, capsys):
    assert cli.run_job(main, ["--prediction", "p.zarr", "--annotation", "a.zarr", "--cache", "none"]) == 2
    stderr = capsys.readouterr().err
    assert "p.zarr does not say which task it was made for: give --task, one of membrane, phantom_membrane, " in stderr
    assert cli.run_job(main, ["--prediction", "nowhere.zarr", "--annotation", "a.zarr", "--cache", "none"]) == 2
    assert "error: --prediction nowhere.zarr: there is no " in capsys.readouterr().err


def test_an_output_folder_that_cannot_be_written_is_refused(refused, folder, monkeypatch):
    (folder / "file").write_text("")
    monkeypatch.setattr(evaluate_module, "connect_ray", lambda *_: ClusterResources(2, 0, 1))
    assert f"{folder}/file is a file; give another --out" in refused("--out", "file/out")


def test_an_unknown_task_is_refused(refused):
    assert "--task membranes: there is no " in refused("--task", "membranes")


def test_volumes_that_do_not_overlap_are_refused(refused):
    place = [{"type": "scale", "scale": [30, 6, 6]}, {"type": "translation", "translation": [0, 0, 6000]}]
    axes = [{"name": axis, "type": "space", "unit": "nanometer"} for axis in "zyx"]
    levels = [{"path": "s0", "coordinateTransformations": place}]
    group = zarr.create_group("far.zarr")
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": levels}]}
    group.create_array("s0", data=np.zeros((4, 32, 32), np.uint8), chunks=(4, 32, 32))
    error = refused("--prediction", "far.zarr", "--annotation", "a.zarr?offset_nm=0,0,0")
    assert "do not overlap" in error
    assert "0:120,0:192,0:192 nm" in error
    assert "0:120,0:192,6000:6192 nm" in error
    assert "is outside the prediction" not in error


def test_boxes_outside_the_volumes_are_refused(refused):
    assert "--box 0:5,:,: is outside the volume" in refused("--box", "0:5,:,:")
    assert "negative indices are refused" in refused("--box", "0:2,-2:8,:")
    write_store("low.zarr", np.zeros((2, 32, 32), np.uint8))
    placed = ("--prediction", "low.zarr?offset_nm=0,0,0", "--annotation", "a.zarr?offset_nm=0,0,0")
    error = refused(*placed, "--box", "2:4,:,:")
    assert "--box 2:4,0:32,0:32 is outside the prediction: prediction and annotation overlap in 0:2,0:32,0:32" in error


def test_different_voxel_sizes_are_refused(refused):
    write_store("coarse.zarr", np.zeros((4, 16, 16), np.uint8), (30, 12, 12))
    error = refused("--prediction", "coarse.zarr")
    assert "30 x 6 x 6 nm" in error
    assert "30 x 12 x 12 nm" in error


def test_wrong_dtypes_are_refused(refused):
    write_store("floats.zarr", np.zeros((4, 32, 32), np.float32))
    assert "floats.zarr holds float32; an annotation holds integers" in refused("--annotation", "floats.zarr")
    assert "c.zarr holds uint32; a prediction holds probabilities (uint8" in refused("--prediction", "c.zarr")
    assert "floats.zarr holds float32; instances are integers" in refused("--instances", "floats.zarr")


def test_instances_need_the_bounds_of_the_annotation_and_a_membrane_task(refused):
    write_store("small.zarr", np.zeros((4, 32, 16), np.uint32))
    error = refused("--instances", "small.zarr")
    assert "small.zarr is 0:4,0:32,0:16" in error
    assert "a.zarr is 0:4,0:32,0:32" in error
    assert "the task synapse_task is synapse" in refused("--instances", "c.zarr", "--task", "synapse")


def test_invalid_thresholds_and_output_locations_are_refused(refused):
    error = refused("--threshold", 1.5)
    assert "--threshold 1.5: expected less than or equal to 1" in error
    assert "files are stored on a disk or on S3" in refused("--out", "gs://bucket/x")
    error = refused(
        "--prediction", "phantom://membrane?shape=4,32,32", "--annotation", "phantom://membrane?shape=4,32,32"
    )
    assert "no folder next to phantom://membrane" in error


def test_help_lists_the_flags(help_text):
    text = help_text(SCRIPT)
    flags = ("prediction", "annotation", "task", "instances", "threshold", "box", "out", "config", "set", "boss")
    flags += ("cache", "verbose")
    for flag in flags:
        assert f"--{flag} " in text
    start = time.perf_counter()
    subprocess.run([sys.executable, SCRIPT, "--help"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    assert time.perf_counter() - start < 20


def test_an_image_as_annotation_is_refused_before_ray_starts(refused):
    write_store("grey.zarr", np.random.default_rng(0).integers(0, 256, (4, 32, 32), np.uint8))
    assert "error: --annotation grey.zarr 1:2,0:32,0:32: the annotation holds " in refused("--annotation", "grey.zarr")


def test_another_evaluation_in_the_folder_is_refused_before_ray_starts(refused, folder):
    out = folder / "p.zarr.evaluation"
    out.mkdir()
    earlier = {"prediction": "p.zarr", "annotation": "b.zarr", "box": "0:4,0:32,0:32", "threshold": 0.5, "voxels": 4096}
    (out / "evaluation.json").write_text(json.dumps(earlier))  # as earlier versions wrote it, without a record
    error = refused("--threshold", 0.9, "--box", "0:2,:,:")
    assert f"error: {out} holds another evaluation:" in error
    assert f'annotation: "{folder}/b.zarr" -> "{folder}/a.zarr"' in error
    assert 'box: "0:4,0:32,0:32" -> "0:2,0:32,0:32"' in error
    assert "threshold: 0.5 -> 0.9" in error
    assert "prediction:" not in error
    assert "--out DIR, or replace the other with --overwrite" in error


@pytest.mark.parametrize("flags", [[], ["--overwrite"]])
def test_a_folder_of_something_else_is_never_replaced(refused, folder, flags):
    (folder / "run").mkdir()
    (folder / "run" / "index.html").write_text("the page of a run")
    error = refused("--out", "run", *flags)
    assert f"{folder}/run is no folder of an evaluation, it holds index.html; give another --out" in error
    assert (folder / "run" / "index.html").read_text() == "the page of a run"


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_the_same_evaluation_is_replaced_and_another_one_needs_overwrite(main, folder, monkeypatch, capsys):
    from kasthuri_ray.ray_cluster.connection import connect_ray

    monkeypatch.setattr(evaluate_module, "connect_ray", connect_ray)
    labels = np.zeros((4, 32, 32), np.uint8)
    labels[:, 5:20, 7] = 1
    write_store("labels.zarr", labels)
    write_store("probabilities.zarr", labels * np.uint8(200))
    arguments = ["--prediction", "probabilities.zarr", "--annotation", "labels.zarr", "--task", "membrane"]
    out = folder / "probabilities.zarr.evaluation"

    def run(*flags: str) -> int:
        return cli.run_job(main, [*arguments, "--cache", "none", *flags])

    assert run() == 0
    (out / "slices" / "slice_9.png").write_text("of the earlier one")
    (out / "notes.txt").write_text("mine")
    assert run("--threshold", "0.5") == 0, "the threshold is the default one"
    assert not (out / "slices" / "slice_9.png").exists()
    assert run("--threshold", "0.9") == 2
    assert "threshold: 0.5 -> 0.9" in capsys.readouterr().err
    assert json.loads((out / "evaluation.json").read_text())["threshold"] == 0.5
    assert run("--threshold", "0.9", "--overwrite") == 0
    assert json.loads((out / "evaluation.json").read_text())["threshold"] == 0.9
    assert json.loads((out / "settings.json").read_text())["evaluate"]["box"] == "0:4,0:32,0:32"
    assert (out / "notes.txt").read_text() == "mine"
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    for module, broken in ((evaluation_report, "write_evaluation_report"), (evaluate_module, "compare_blocks")):
        with monkeypatch.context() as patch:
            patch.setattr(module, broken, fail_after(getattr(module, broken)))
            assert run("--overwrite") == 1
        assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    (out / "unfinished").mkdir()  # of one that was killed
    (out / "unfinished/index.html").write_text("a part")
    assert run("--overwrite") == 0
    assert not (out / "unfinished").exists()


def fail_after(function):
    """Return the function, which fails after its work, as where a disk is full."""

    def failing(*arguments):
        result = function(*arguments)
        list(result or ())
        raise OSError("no space left")

    return failing


@pytest.mark.usefixtures("local_ray")
def test_labels_that_the_threshold_of_a_task_merges_are_named_in_a_line_and_on_the_page(
    main, folder, monkeypatch, capsys
):
    from kasthuri_ray.ray_cluster.connection import connect_ray

    monkeypatch.setattr(evaluate_module, "connect_ray", connect_ray)
    labels = np.random.default_rng(0).integers(0, 4, (4, 32, 32), np.uint8)
    write_store("labels.zarr", labels)
    write_store("probabilities.zarr", (labels == 1) * np.uint8(200))
    arguments = ["--prediction", "probabilities.zarr", "--annotation", "labels.zarr", "--task", "synapse"]
    assert cli.run_job(main, [*arguments, "--cache", "none"]) == 0
    text = "holds the labels 1, 2, 3 in the 4,096 voxels: all of them count as foreground, by task.threshold."
    assert text in capsys.readouterr().out
    assert text in (folder / "probabilities.zarr.evaluation/index.html").read_text()
    assert cli.run_job(main, [*arguments, "--set", "task.background=[0,2,3]", "--out", "one", "--cache", "none"]) == 0
    assert "all of them count" not in capsys.readouterr().out
    assert json.loads((folder / "one/evaluation.json").read_text())["foreground_f1"] == 1


@pytest.mark.usefixtures("local_ray")
def test_an_evaluation_is_written_to_s3(main, folder, s3, monkeypatch, capsys):
    from kasthuri_ray.ray_cluster.connection import connect_ray

    monkeypatch.setattr(evaluate_module, "connect_ray", connect_ray)
    labels = np.zeros((4, 32, 32), np.uint8)
    labels[:, 5:20, 7] = 1
    write_store("labels.zarr", labels)
    write_store("probabilities.zarr", labels * np.uint8(200))
    arguments = ["--prediction", "probabilities.zarr", "--annotation", "labels.zarr", "--task", "membrane"]
    arguments += ["--instances", "c.zarr", "--out", "s3://some-bucket/evaluations/one", "--cache", "none"]
    assert cli.run_job(main, arguments) == 0
    assert capsys.readouterr().out.splitlines()[0] == "s3://some-bucket/evaluations/one"
    body = s3.get_object(Bucket="some-bucket", Key="evaluations/one/evaluation.json")["Body"].read()
    result = json.loads(body)
    assert (result["foreground_f1"], result["arand"], result["threshold"]) == (1.0, 0.0, 0.5)
    page = s3.get_object(Bucket="some-bucket", Key="evaluations/one/index.html")["Body"].read().decode()
    assert "The prediction finds all membrane voxels" in page


@pytest.mark.slow
def test_specks_are_warnings_on_the_console_in_the_file_and_above_the_headline(start_job, cluster, tmp_path):
    probability, labels = np.zeros((4, 64, 64), np.uint8), np.zeros((4, 64, 64), np.uint8)
    labels[:, 20:30, 20:30] = 1
    probability[:, 20:30, 20:30] = 230
    probability[0, ::6, ::6] = 230
    prediction, annotation = write_store(tmp_path / "p.zarr", probability), write_store(tmp_path / "a.zarr", labels)
    arguments = ["--prediction", prediction, "--annotation", annotation, "--task", "synapse", "--cache", "none"]
    job = start_job(*arguments, "--out", tmp_path / "out", script=SCRIPT, cluster=cluster).wait()
    assert job.code == 0, job.out + job.err
    warnings = json.loads((tmp_path / "out/evaluation.json").read_text())["warnings"]
    assert [line for line in job.lines if line.startswith("warning: ")] == [f"warning: {each}" for each in warnings]
    assert "specks" in warnings[0]
    assert "over 5 times as many as in the annotation" in warnings[1]
    page = (tmp_path / "out/index.html").read_text()
    above = page[page.index("<main>") : page.index('aria-label="Scores"')]
    assert above.index('aria-label="Warnings about the scores"') < above.index("<h1>Most of the")
    assert "finds" not in above

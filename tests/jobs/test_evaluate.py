"""What is wrong with what was given to jobs/evaluate.py is said before any work: exit code 2, nothing written."""

import importlib.util
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
from kasthuri_ray.ray_cluster.resources import ClusterResources

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def main():
    """`main` of jobs/evaluate.py."""
    spec = importlib.util.spec_from_file_location("evaluate_job", ROOT / "jobs/evaluate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def store(path, array, size=(30, 6, 6)):
    stored = zarr.create_array(path, data=array, chunks=(4, 16, 16))
    stored.attrs["voxel_size_nm_zyx"] = list(size)
    return path


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a prediction `p.zarr`, its annotation `a.zarr` and cells `c.zarr`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(evaluate_module, "connect_ray", lambda verbose: pytest.fail("Ray was started"))
    store("p.zarr", np.zeros((4, 32, 32), np.uint8))
    store("a.zarr", np.zeros((4, 32, 32), np.uint8))
    store("c.zarr", np.ones((4, 32, 32), np.uint32))
    return tmp_path


@pytest.fixture
def refused(main, here, capsys):
    """`refused(*arguments)`: what the job said about them; later ones win."""
    given = ["--prediction", "p.zarr", "--annotation", "a.zarr", "--task", "membrane", "--cache", "none"]

    def run(*arguments: object) -> str:
        before = sorted(os.listdir(here))
        code = cli.run_job(main, [*given, *map(str, arguments)])
        said = capsys.readouterr()
        assert code == 2, said.out + said.err
        assert said.err.startswith("error: ")
        assert "Traceback" not in said.err
        assert said.out == ""
        assert sorted(os.listdir(here)) == before
        return said.err

    return run


def test_volumes_that_are_not_there(refused):
    assert "nowhere.zarr" in refused("--prediction", "nowhere.zarr")
    assert "nowhere.zarr" in refused("--annotation", "nowhere.zarr")
    assert "nowhere.zarr" in refused("--instances", "nowhere.zarr")


def test_a_task_that_nobody_names(main, here, capsys):
    assert cli.run_job(main, ["--prediction", "p.zarr", "--annotation", "a.zarr", "--cache", "none"]) == 2
    said = capsys.readouterr().err
    assert "p.zarr does not say which task it was made for: give --task, one of membrane, phantom_membrane, " in said
    assert cli.run_job(main, ["--prediction", "nowhere.zarr", "--annotation", "a.zarr", "--cache", "none"]) == 2
    assert "nowhere.zarr: nothing is there" in capsys.readouterr().err


def test_a_place_that_takes_no_files(refused, here, monkeypatch):
    (here / "file").write_text("")
    monkeypatch.setattr(evaluate_module, "connect_ray", lambda verbose: ClusterResources(2, 0, 1))
    assert f"{here}/file is a file; give another --out" in refused("--out", "file/out")


def test_a_task_that_is_not_there(refused):
    assert "no task 'membranes'" in refused("--task", "membranes")


def test_no_overlap(refused):
    place = [{"type": "scale", "scale": [30, 6, 6]}, {"type": "translation", "translation": [0, 0, 6000]}]
    axes = [{"name": axis, "type": "space", "unit": "nanometer"} for axis in "zyx"]
    levels = [{"path": "s0", "coordinateTransformations": place}]
    group = zarr.create_group("far.zarr")
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": levels}]}
    group.create_array("s0", data=np.zeros((4, 32, 32), np.uint8), chunks=(4, 32, 32))
    said = refused("--prediction", "far.zarr")
    assert "do not overlap" in said
    assert "0:120,0:192,0:192 nm" in said
    assert "0:120,0:192,6000:6192 nm" in said
    assert "is not where the prediction lies" not in said


def test_boxes_that_lead_outside(refused):
    assert "0:5,0:32,0:32 is not within 0:4,0:32,0:32" in refused("--box", "0:5,:,:")
    assert "negative indices are refused" in refused("--box", "0:2,-2:8,:")
    store("low.zarr", np.zeros((2, 32, 32), np.uint8))
    said = refused("--prediction", "low.zarr", "--box", "2:4,:,:")
    assert "--box 2:4,0:32,0:32 is not where the prediction lies: the two overlap in 0:2,0:32,0:32" in said


def test_voxels_of_other_sizes(refused):
    store("coarse.zarr", np.zeros((4, 16, 16), np.uint8), (30, 12, 12))
    said = refused("--prediction", "coarse.zarr")
    assert "30 x 6 x 6 nm" in said
    assert "30 x 12 x 12 nm" in said


def test_types_that_are_none_of_theirs(refused):
    store("floats.zarr", np.zeros((4, 32, 32), np.float32))
    assert "floats.zarr holds float32; an annotation holds integers" in refused("--annotation", "floats.zarr")
    assert "c.zarr holds uint32; a prediction is probabilities, uint8" in refused("--prediction", "c.zarr")
    assert "floats.zarr holds float32; instances are integers" in refused("--instances", "floats.zarr")


def test_instances_that_do_not_fit(refused):
    store("small.zarr", np.zeros((4, 32, 16), np.uint32))
    said = refused("--instances", "small.zarr")
    assert "small.zarr is 0:4,0:32,0:16" in said
    assert "a.zarr is 0:4,0:32,0:32" in said
    assert "the task synapse_task is synapse" in refused("--instances", "c.zarr", "--task", "synapse")


def test_thresholds_and_places_that_are_none(refused):
    assert "--threshold 1.5 is no probability" in refused("--threshold", 1.5)
    assert "files are kept on a disk or on S3" in refused("--out", "gs://bucket/x")
    said = refused(
        "--prediction", "phantom://membrane?shape=4,32,32", "--annotation", "phantom://membrane?shape=4,32,32"
    )
    assert "no place beside phantom://membrane" in said


def test_help_is_there_at_once():
    command = [sys.executable, "-X", "importtime", str(ROOT / "jobs/evaluate.py"), "--help"]
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert time.perf_counter() - began < 20
    assert done.returncode == 0
    flags = ("prediction", "annotation", "task", "instances", "threshold", "box", "out", "boss", "cache", "verbose")
    for flag in flags:
        assert f"--{flag} " in done.stdout
    imported = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "argparse" in imported
    assert not imported & {"torch", "ray", "numpy", "pydantic", "tensorstore"}


@pytest.mark.usefixtures("ray_here")
def test_from_the_command_line_to_s3(main, here, s3, monkeypatch, capsys):
    from kasthuri_ray.ray_cluster.connection import connect_ray

    monkeypatch.setattr(evaluate_module, "connect_ray", connect_ray)
    truth = np.zeros((4, 32, 32), np.uint8)
    truth[:, 5:20, 7] = 1
    store("truth.zarr", truth)
    store("seen.zarr", truth * np.uint8(200))
    given = ["--prediction", "seen.zarr", "--annotation", "truth.zarr", "--task", "membrane", "--instances", "c.zarr"]
    assert cli.run_job(main, [*given, "--out", "s3://some-bucket/evaluations/one", "--cache", "none"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "s3://some-bucket/evaluations/one"
    found = s3.get_object(Bucket="some-bucket", Key="evaluations/one/evaluation.json")["Body"].read()
    result = json.loads(found)
    assert (result["foreground_f1"], result["arand"], result["threshold"]) == (1.0, 0.0, 0.5)
    page = s3.get_object(Bucket="some-bucket", Key="evaluations/one/index.html")["Body"].read().decode()
    assert "The network finds all membrane voxels" in page

"""What is wrong with what was given is said before any work: exit code 2, nothing written, no traceback."""

import importlib.util
import json
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

from kasthuri_ray import cli
from kasthuri_ray.training import preflight
from kasthuri_ray.training import train as train_module

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def main():
    """`main` of jobs/train.py."""
    spec = importlib.util.spec_from_file_location("train_job", ROOT / "jobs/train.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture
def refused(main, tiny, tmp_path, monkeypatch, capsys):
    """`refused(*arguments, code=2)` runs the job in this process, where Ray must not start; gives what it said."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("KASTHURI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(train_module, "connect_ray", lambda verbose: pytest.fail("Ray was started"))
    monkeypatch.setattr(sys, "path", list(sys.path))

    def run(*arguments: object, code: int = 2) -> str:
        words = [str(each) for each in arguments]
        given = [*([] if "--task" in words else tiny[:2]), *([] if "--network" in words else tiny[2:]), *words]
        found = cli.run_job(main, given)
        said = capsys.readouterr()
        assert found == code, said.out + said.err
        assert said.err.startswith("error: ")
        assert "Traceback" not in said.err + said.out
        assert said.out == ""
        assert list(here.iterdir()) == []
        return said.err

    return run


def write_store(path: Path, array: np.ndarray, voxel_size=(30, 6, 6)) -> Path:
    stored = zarr.create_array(path, data=array, chunks=(4, 32, 32))
    stored.attrs["voxel_size_nm_zyx"] = list(voxel_size)
    return path


@pytest.fixture
def em(tmp_path) -> Path:
    return write_store(tmp_path / "em.zarr", np.full((16, 128, 128), 100, np.uint8))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--task", "synaps"], ["no task 'synaps'", "did you mean synapse?"]),
        (["--network", "UNet_4D"], ["no network 'UNet_4D'", "UNet_2D"]),
        (["--config", "none.json"], ["none.json"]),
        (["--set", "network.epocs=3"], ["no setting network.epocs", "did you mean epochs?"]),
        (["--set", "network.epochs=many"], ["network.epochs", "many"]),
        (["--set", "nets.epochs=1"], ["no section 'nets'", "task, network, train"]),
        (["--num-workers", "none"], ["num_workers", "MIN-MAX"]),
        (["--boss", "none.json"], ["--boss none.json", "no such file"]),
        (["--weights", "none.pt"], ["none.pt"]),
        (["--image", "nowhere.zarr"], ["nowhere.zarr"]),
        (["--image", "phantom://em?shape=16,128,x"], ["phantom://em?shape=16,128,x"]),
        (["--set", "task.z_val=8,17"], ["17", "0:16,0:128,0:128"]),
        (["--set", "task.xrange_vol=0,129"], ["129", "0:16,0:128,0:128"]),
        (["--set", "task.z_val=7,11"], ["train and val share voxels", "7:8,0:128,0:128"]),
        (["--set", "task.tile_size=160,64"], ["tile", "160", "128", "task.tile_size"]),
        (["--set", "task.tile_size=63,64"], ["63", "64"]),
        (["--set", "task.volume_z=2"], ["network.dim 2", "use 1"]),
        (["--set", "network.model=nowhere.Net"], ["nowhere.Net", "PYTHONPATH"]),
        (["--storage", "ftp://x/y"], ["ftp://x/y", "s3://"]),
        (["--storage", "/proc/runs"], ["/proc/runs", "/proc takes no new files", "another --storage"]),
        (["--storage", "/dev/null"], ["/dev/null is a file", "another --storage"]),
        (["--set", "task.z_train=0,900"], ["task.z_train is [0, 900]", "0:16,0:128,0:128"]),
        (["--set", "task.threshold_value=Infinity"], ["task.threshold_value is Infinity", "a finite number"]),
        (["--set", "network.beta1=1"], ["network.beta1 is 1", "less than 1"]),
        (["--num-workers", "²"], ['num_workers is "²"', "MIN-MAX"]),
        (["--name", "runs/one"], ["--name 'runs/one'", "--storage"]),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) and value[0].startswith("--") else "",
)
def test_what_is_given_wrongly_is_named(refused, arguments, words):
    said = refused(*arguments)
    for word in words:
        assert word in said


def test_an_exit_code_is_one_of_the_process_too(start, tiny, tmp_path):
    job = start(*tiny, "--storage", tmp_path / "runs", "--set", "network.epocs=3").wait()
    assert (job.code, job.out) == (2, "")
    assert len(job.errors) == 1
    assert not (tmp_path / "runs").exists()


def test_sections_that_pooling_cannot_halve_come_with_values_that_work(refused):
    said = refused("--network", "UNet_3D", "--set", "task.volume_z=6", "--set", "network.pool_z=0")
    assert "task.volume_z 6" in said
    assert "8" in said


def test_image_and_annotation_of_different_shapes(refused, em, tmp_path):
    other = write_store(tmp_path / "label.zarr", np.ones((15, 128, 128), np.uint8))
    said = refused("--image", em, "--annotation", other)
    assert "different shapes" in said
    assert "0:16,0:128,0:128" in said
    assert "0:15,0:128,0:128" in said


def test_image_and_annotation_of_different_voxel_sizes(refused, em, tmp_path):
    other = write_store(tmp_path / "label.zarr", np.ones((16, 128, 128), np.uint8), voxel_size=(30, 4, 4))
    said = refused("--image", em, "--annotation", other)
    assert "different voxel sizes" in said
    assert "(30.0, 6.0, 6.0)" in said
    assert "(30.0, 4.0, 4.0)" in said


def test_an_annotation_without_foreground(refused, em, tmp_path):
    other = write_store(tmp_path / "label.zarr", np.zeros((16, 128, 128), np.uint8))
    said = refused("--image", em, "--annotation", other)
    assert "annotation without foreground" in said
    assert "label.zarr" in said


class Malice:
    def __reduce__(self):
        return os.system, ("touch it_ran",)


def test_a_pickle_that_would_run_something_is_not_run(refused, tmp_path):
    evil = tmp_path / "evil.pt"
    evil.write_bytes(pickle.dumps(Malice()))
    said = refused("--weights", evil)
    assert "evil.pt" in said
    torch.save({"layer": Malice()}, tmp_path / "evil_zip.pt")
    for more in ([], ["--name", "mine"]):  # before Ray, under a name too
        said = refused("--weights", tmp_path / "evil_zip.pt", *more)
        assert "evil_zip.pt" in said


def test_weights_of_another_network_name_the_key_and_the_shapes(refused, tmp_path):
    from kasthuri_ray.models.unet import build_network

    network = build_network({"n_blocks": 2, "start_filters": 8})
    torch.save(network.state_dict(), tmp_path / "wide.pt")
    said = refused("--weights", tmp_path / "wide.pt")
    name, value = next(iter(network.state_dict().items()))
    assert name in said
    assert str(tuple(value.shape)) in said
    assert str((4, *value.shape[1:])) in said


def test_weights_on_s3_and_in_a_folder_that_is_no_run(refused, s3_server, monkeypatch, tmp_path):
    for name, value in s3_server.items():
        monkeypatch.setenv(name, value)
    assert "s3://lab/none.pt" in refused("--weights", "s3://lab/none.pt")
    (tmp_path / "empty").mkdir()
    assert "empty/checkpoint/best.pt" in refused("--weights", tmp_path / "empty")


@pytest.fixture
def boss(boss_server, tmp_path):
    """A Boss with an image and an annotation, and the arguments that lead to it."""
    for name, dtype in (("em", np.uint8), ("synapse", np.uint64)):
        boss_server.add(f"Kasthuri/ac4/{name}", np.ones((16, 128, 128), dtype))
    boss_server.token = "a-secret-token"
    options = tmp_path / "boss.json"
    options.write_text(json.dumps(boss_server.options))
    ranges = {"xrange_vol": "0,128", "yrange_vol": "0,128", "z_train": "0,8", "z_val": "8,11", "z_test": "11,16"}
    small = [word for key, value in ranges.items() for word in ("--set", f"task.{key}={value}")]
    return boss_server, ["--task", "synapse", "--boss", options, *small, "--set", "task.tile_size=64,64"]


@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [
        ("401", 2, ["token"]),
        ("403", 2, ["permission"]),
        ("404", 2, ["does not exist"]),
        ("429", 1, ["quota"]),
        ("500", 1, ["500"]),
        ("reset", 1, []),
        ("html", 1, []),
    ],
)
def test_a_boss_that_refuses_or_is_down_is_said(refused, boss, monkeypatch, fault, code, words):
    server, arguments = boss
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the tries
    server.fault = fault
    said = refused(*arguments, code=code)
    assert "bossdb://Kasthuri/ac4/" in said
    assert "a-secret-token" not in said
    for word in words:
        assert word in said


def test_a_boss_that_is_not_there(refused, boss, monkeypatch):
    server, arguments = boss
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    server.close()
    assert "127.0.0.1" in refused(*arguments, code=1)


def test_a_boss_file_that_is_not_json_is_not_shown(refused, tmp_path):
    (tmp_path / "boss.json").write_text("a-secret-token")
    said = refused("--boss", tmp_path / "boss.json")
    assert "boss.json is not readable as JSON" in said
    assert "a-secret-token" not in said


def test_a_batch_smaller_than_the_workers():
    from kasthuri_ray.config.loading import resolve_settings
    from kasthuri_ray.ray_cluster.resources import ClusterResources

    settings = resolve_settings("phantom_synapse", None, assignments=["network.batch_size=2", "train.num_workers=3"])
    with pytest.raises(ValueError, match=r"network.batch_size 2 is smaller than the 3 workers"):
        preflight.plan_workers(settings, ClusterResources(8, 0, 1))


def test_a_ray_that_is_not_there_is_said_at_once(start, tiny, tmp_path):
    from_nowhere = start(*tiny, "--storage", tmp_path, env={"RAY_ADDRESS": "127.0.0.1:1"})
    dashboard = start(*tiny, "--storage", tmp_path, env={"RAY_ADDRESS": "http://127.0.0.1:8265"})
    for job, word in ((from_nowhere, "no Ray answers there"), (dashboard, "a dashboard")):
        job.wait()
        assert job.code == 2
        assert word in job.err
        assert "Traceback" not in job.err
    assert not list(tmp_path.iterdir())

"""jobs/train.py refuses bad input before any work: exit code 2, no traceback, nothing written."""

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
from kasthuri_ray.training import train as train_module

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def main(load_module):
    """Return `main` of jobs/train.py."""
    return load_module(ROOT / "jobs/train.py").main


@pytest.fixture
def refused(main, tiny_flags, tmp_path, monkeypatch, capsys):
    """Return `refused(*arguments, code=2)`, which runs the job in this process without Ray and returns its error."""
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("KASTHURI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(train_module, "connect_ray", lambda *_: pytest.fail("Ray was started"))
    monkeypatch.setattr(sys, "path", list(sys.path))

    def run(*arguments: object, code: int = 2) -> str:
        flags = [str(each) for each in arguments]
        task = [] if "--task" in flags else tiny_flags[:2]
        network = [] if "--network" in flags else tiny_flags[2:]
        exit_code = cli.run_job(main, [*task, *network, *flags])
        printed = capsys.readouterr()
        assert exit_code == code, printed.out + printed.err
        assert "\nerror: " in f"\n{printed.err}"  # below a note about whose ranges these are
        assert "Traceback" not in printed.err + printed.out
        assert printed.out == ""
        assert list(folder.iterdir()) == []
        return printed.err

    return run


def write_store(path: Path, array: np.ndarray, voxel_size=(30, 6, 6)) -> Path:
    stored = zarr.create_array(path, data=array, chunks=(4, 32, 32))
    stored.attrs["voxel_size_nm_zyx"] = list(voxel_size)
    return path


@pytest.fixture
def em(tmp_path) -> Path:
    return write_store(tmp_path / "em.zarr", np.random.default_rng(0).integers(1, 256, (16, 128, 128), np.uint8))


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (["--task", "synaps"], ["--task synaps: there is no ", "did you mean synapse?"]),
        (["--network", "UNet_4D"], ["--network UNet_4D: there is no ", "built-in networks are UNet_2D"]),
        (["--config", "none.json"], ["none.json"]),
        (["--set", "network.epocs=3"], ["no setting network.epocs", "did you mean network.epochs?"]),
        (["--set", "network.epochs=many"], ["network.epochs", "many"]),
        (["--set", "nets.epochs=1"], ["no section 'nets'", "task, network, train"]),
        (["--num-workers", "none"], ["--num-workers none: expected N or MIN-MAX"]),
        (["--boss", "none.json"], ["--boss none.json: there is no "]),
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
        (["--storage", "/proc/runs"], ["/proc/runs", "no file can be created in /proc", "another --storage"]),
        (["--storage", "/dev/null"], ["/dev/null is a file", "another --storage"]),
        (
            ["--set", "task.z_train=0,900"],
            ["--set task.z_train: the train box 0:900,0:128,0:128 is outside", "0:16,0:128,0:128"],
        ),
        (["--set", "task.threshold_value=Infinity"], ["--set task.threshold_value=Infinity:", "a finite number"]),
        (["--set", "network.beta1=1"], ["--set network.beta1=1:", "less than 1"]),
        (["--num-workers", "²"], ["--num-workers ²:", "MIN-MAX"]),
        (["--name", "runs/one"], ["--name 'runs/one'", "--storage"]),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) and value[0].startswith("--") else "",
)
def test_the_error_names_the_wrong_value_and_what_is_allowed(refused, arguments, messages):
    error = refused(*arguments)
    for message in messages:
        assert message in error


def test_the_process_ends_with_the_exit_code(start_job, tiny_flags, tmp_path):
    job = start_job(*tiny_flags, "--storage", tmp_path / "runs", "--set", "network.epocs=3").wait()
    assert (job.code, job.out) == (2, "")
    assert len(job.errors) == 1
    assert not (tmp_path / "runs").exists()


def test_a_number_of_sections_that_pooling_cannot_halve_is_refused_with_one_that_works(refused):
    error = refused("--network", "UNet_3D", "--set", "task.volume_z=6", "--set", "network.pool_z=0")
    assert "task.volume_z 6" in error
    assert "8" in error


@pytest.mark.parametrize(
    ("shape", "voxel_size", "messages"),
    [
        ((15, 128, 128), (30, 6, 6), ["different shapes", "0:16,0:128,0:128", "0:15,0:128,0:128"]),
        ((16, 128, 128), (30, 4, 4), ["voxel sizes differ", "30 x 6 x 6", "30 x 4 x 4"]),
    ],
    ids=["shapes", "voxel sizes"],
)
def test_image_and_annotation_with_different_grids_are_refused(refused, em, tmp_path, shape, voxel_size, messages):
    annotation = write_store(tmp_path / "label.zarr", np.ones(shape, np.uint8), voxel_size)
    error = refused("--image", em, "--annotation", annotation)
    for message in messages:
        assert message in error


def test_an_annotation_without_foreground_is_refused(refused, em, tmp_path):
    annotation = write_store(tmp_path / "label.zarr", np.zeros((16, 128, 128), np.uint8))
    error = refused("--image", em, "--annotation", annotation)
    assert "annotation without foreground" in error
    assert "label.zarr" in error


class MaliciousPickle:
    def __reduce__(self):
        return os.system, ("touch it_ran",)


def test_code_in_a_pickle_is_not_run(refused, tmp_path):
    pickled = tmp_path / "pickled.pt"
    pickled.write_bytes(pickle.dumps(MaliciousPickle()))
    error = refused("--weights", pickled)
    assert "pickled.pt" in error
    torch.save({"layer": MaliciousPickle()}, tmp_path / "zipped.pt")
    for more in ([], ["--name", "mine"]):  # before Ray starts, with and without a name
        error = refused("--weights", tmp_path / "zipped.pt", *more)
        assert "zipped.pt" in error


def test_weights_of_another_network_are_refused_with_the_key_and_the_shapes(refused, tmp_path):
    from kasthuri_ray.models.unet import build_network

    network = build_network({"n_blocks": 2, "start_filters": 8})
    torch.save(network.state_dict(), tmp_path / "wide.pt")
    error = refused("--weights", tmp_path / "wide.pt")
    name, value = next(iter(network.state_dict().items()))
    assert name in error
    assert str(tuple(value.shape)) in error
    assert str((4, *value.shape[1:])) in error


def test_missing_weights_on_s3_and_a_folder_that_is_no_run_are_refused(refused, s3_server, monkeypatch, tmp_path):
    for name, value in s3_server.items():
        monkeypatch.setenv(name, value)
    assert "s3://lab/none.pt" in refused("--weights", "s3://lab/none.pt")
    (tmp_path / "empty").mkdir()
    assert "empty/checkpoint/best.pt" in refused("--weights", tmp_path / "empty")


@pytest.fixture
def boss(boss_server, tmp_path):
    """Return a BossDB server with an image and an annotation, and the arguments to train from it."""
    for name, dtype in (("em", np.uint8), ("synapse", np.uint64)):
        boss_server.add(f"Kasthuri/ac4/{name}", np.ones((16, 128, 128), dtype))
    boss_server.token = "a-secret-token"
    options = tmp_path / "boss.json"
    options.write_text(json.dumps(boss_server.options))
    ranges = {"xrange_vol": "0,128", "yrange_vol": "0,128", "z_train": "0,8", "z_val": "8,11", "z_test": "11,16"}
    small = [word for key, value in ranges.items() for word in ("--set", f"task.{key}={value}")]
    return boss_server, ["--task", "synapse", "--boss", options, *small, "--set", "task.tile_size=64,64"]


@pytest.mark.parametrize(
    ("fault", "code", "messages"),
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
def test_an_error_of_bossdb_is_printed_without_the_token(refused, boss, monkeypatch, fault, code, messages):
    server, arguments = boss
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # no pauses between retries
    server.fault = fault
    error = refused(*arguments, code=code)
    assert "bossdb://Kasthuri/ac4/" in error
    assert "a-secret-token" not in error
    for message in messages:
        assert message in error


def test_an_unreachable_bossdb_is_an_error_with_its_address(refused, boss, monkeypatch):
    server, arguments = boss
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    server.close()
    assert "127.0.0.1" in refused(*arguments, code=1)


def test_the_contents_of_a_broken_boss_file_are_not_shown(refused, tmp_path):
    (tmp_path / "boss.json").write_text("a-secret-token")
    error = refused("--boss", tmp_path / "boss.json")
    assert "boss.json is not readable as JSON" in error
    assert "a-secret-token" not in error


@pytest.mark.slow
def test_a_wrong_address_of_ray_is_refused(start_job, tiny_flags, tmp_path):
    nowhere = start_job(*tiny_flags, "--storage", tmp_path, env={"RAY_ADDRESS": "127.0.0.1:1"})
    dashboard = start_job(*tiny_flags, "--storage", tmp_path, env={"RAY_ADDRESS": "http://127.0.0.1:8265"})
    for job, message in ((nowhere, "no Ray answers there"), (dashboard, "address of the dashboard")):
        job.wait()
        assert job.code == 2
        assert message in job.err
        assert "Traceback" not in job.err
    assert not list(tmp_path.iterdir())

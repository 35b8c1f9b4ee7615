"""Files in the folder where the user stands that are called like a library: none hides it, here and in the workers."""

import json
import shutil
import time
from pathlib import Path

import h5py
import pytest

from kasthuri_ray.volumes.opening import open_volume

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
NETWORK = """
from torch import nn

class MyNet(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 2, 1))

    def forward(self, image):
        return self.layers(image)
"""
ARGUMENTS = ["--task", "task.json", "--network", "net.json"]


@pytest.fixture
def folder(tmp_path, tiny_task):
    """Return a folder with a task on HDF5, a network of one's own, and notes that are called like libraries."""
    (tmp_path / "here").mkdir()
    for name in ("em", "membrane"):
        volume = open_volume(f"phantom://{name}?shape=16,128,128&seed=7")
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["voxels"] = volume.read(volume.bounds)
            file["voxels"].attrs["voxel_size_nm_zyx"] = [30, 6, 6]
    volumes = {"image_chan": f"{tmp_path}/em.h5:voxels", "annotation_chan": f"{tmp_path}/membrane.h5:voxels"}
    network = {"model": "my_nets.MyNet", "model_args": {"width": 4}, "tiles_per_epoch": 8, "batch_size": 4}
    (tmp_path / "here/task.json").write_text(json.dumps(tiny_task | volumes))
    (tmp_path / "here/net.json").write_text(json.dumps(network | {"epochs": 1, "outweightfilename": "mine"}))
    (tmp_path / "here/my_nets.py").write_text(NETWORK)
    for name in ("h5py", "queue", "inspect"):
        (tmp_path / f"here/{name}.py").write_text('raise RuntimeError("my notes")')
    return tmp_path / "here"


def test_a_network_of_the_current_folder_trains_beside_files_that_are_called_like_libraries(
    folder, start_job, cluster, submit_job, job_client, tmp_path, assert_same_run
):
    # Ray itself puts the copy of --working-dir before Python's own modules: of these files it bears only h5py.py.
    submitted = tmp_path / "submitted"
    shutil.copytree(folder, submitted, ignore=shutil.ignore_patterns("queue.py", "inspect.py"))
    shutil.copytree(ROOT / "jobs", submitted / "jobs", ignore=shutil.ignore_patterns("__pycache__"))

    arguments = [*ARGUMENTS, "--storage", tmp_path / "runs", "--name"]
    jobs = [
        start_job(*arguments, name, cwd=folder, cluster=address)
        for name, address in (("local", None), ("attached", cluster))
    ]
    ray_job = submit_job("jobs/train.py", *arguments, "submitted", working_dir=submitted)
    for job in jobs:
        job.wait()
        assert job.code == 0, job.out + job.err
    end = time.monotonic() + 400
    while (status := job_client.get_job_status(ray_job).value) not in ("SUCCEEDED", "FAILED"):
        assert time.monotonic() < end, job_client.get_job_logs(ray_job)
        time.sleep(0.2)
    assert status == "SUCCEEDED", job_client.get_job_logs(ray_job)
    for name in ("attached", "submitted"):
        assert_same_run(tmp_path / "runs/local", tmp_path / f"runs/{name}", "mine_membrane.pt")

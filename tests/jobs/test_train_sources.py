"""Training from BossDB through intern, with faults of the server: the same run as from a zarr array."""

import collections
import json
import re
from pathlib import Path

import numpy as np
import pytest
import zarr

from kasthuri_ray.volumes.opening import open_volume

SHAPE = (80, 128, 128)
RANGES = {"xrange_vol": "0,128", "yrange_vol": "0,128", "z_train": "0,70", "z_val": "70,72", "z_test": "78,80"}
SMALL = [word for key, value in RANGES.items() for word in ("--set", f"task.{key}={value}")]
TOKEN = "a-secret-token-0123456789"


@pytest.fixture
def volumes(boss_server, tmp_path):
    """Return a BossDB server with image and annotation; write its --boss file and zarr arrays of the same voxels."""
    em, synapse = (
        volume.read(volume.bounds)
        for volume in map(
            open_volume, ("phantom://em?shape=80,128,128&seed=7", "phantom://membrane?shape=80,128,128&seed=7")
        )
    )
    boss_server.add("Kasthuri/ac4/em", em)
    boss_server.add("Kasthuri/ac4/synapse", synapse.astype(np.uint64))
    boss_server.token = TOKEN
    (tmp_path / "boss.json").write_text(json.dumps(boss_server.options))
    chunks = open_volume("bossdb://Kasthuri/ac4/em", boss=boss_server.options).chunk
    for name, array in (("em", em), ("synapse", synapse)):
        stored = zarr.create_array(tmp_path / f"{name}.zarr", data=array, chunks=chunks)
        stored.attrs["voxel_size_nm_zyx"] = [30, 6, 6]
    return boss_server


@pytest.mark.slow
def test_faults_of_bossdb_do_not_change_the_run_and_each_cutout_is_downloaded_once(
    volumes, start_job, cluster, tiny_flags, tmp_path, assert_same_run
):
    boss = volumes
    common = ["--task", "synapse", *tiny_flags[2:], *SMALL, "--set", "task.tile_size=64,48", "--storage", tmp_path]
    stored = start_job(
        *(*common, "--image", tmp_path / "em.zarr", "--annotation", tmp_path / "synapse.zarr", "--name", "zarr"),
        cluster=cluster,
    )
    num_before = len(boss.requests)
    boss.inject_faults(0.2)
    boss.next_faults = ["500", "truncated", "short"]  # at least these
    fetched = start_job(
        *(*common, "--boss", tmp_path / "boss.json", "--cache", tmp_path / "cache", "--name", "boss"), cluster=cluster
    )
    for job in (stored, fetched):
        job.wait()
        assert job.code == 0, job.out + job.err
    assert_same_run(tmp_path / "zarr", tmp_path / "boss", "tiny_synapse.pt")

    requests = boss.requests[num_before:]
    assert any(request.fault for request in requests)
    answered = collections.Counter(request.path for request in requests if request.is_cutout and not request.fault)
    assert answered
    assert set(answered.values()) == {1}
    boxes = [request.box for request in requests if request.is_cutout and not request.fault and "/em/" in request.path]
    num_reads = np.zeros(SHAPE, int)
    for box in boxes:
        num_reads[tuple(slice(a, b) for a, b in box)] += 1
    assert num_reads.max() == 1

    assert all(request.token == TOKEN for request in requests)
    assert TOKEN not in fetched.out + fetched.err
    with_token = [path for path in Path(tmp_path).rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
    assert with_token == [tmp_path / "boss.json"]


@pytest.mark.faults
def test_a_training_fails_when_bossdb_goes_down_and_resumes_later(volumes, start_job, cluster, tiny_flags, tmp_path):
    boss = volumes
    arguments = ["--task", "synapse", *tiny_flags[2:], *SMALL, "--set", "task.tile_size=64,48", "--storage", tmp_path]
    arguments += ["--boss", tmp_path / "boss.json", "--cache", "none", "--set", "network.epochs=6", "--name", "down"]
    job = start_job(*arguments, cluster=cluster)
    job.wait_for_line("epoch 2  ", 600)
    boss.fault = "403"
    job.wait(900)
    assert job.code == 1, job.out + job.err
    assert re.search(r"training failed: .*bossdb://Kasthuri/ac4/", job.err), job.err
    assert "to resume: python" in job.err
    assert "Traceback" not in job.err
    boss.fault = None
    resumed = start_job(*arguments, cluster=cluster).wait(900)
    assert resumed.code == 0, resumed.out + resumed.err
    assert "epoch 1  " not in resumed.out


@pytest.mark.faults
def test_a_3d_network_trains_on_tiles_of_several_sections(start_job, cluster, tiny_flags, tmp_path):
    job = start_job(
        *(*tiny_flags[:2], "--network", "UNet_3D", "--storage", tmp_path, "--name", "solid"),
        *("--set", "network.n_blocks=2", "--set", "network.start_filters=4", "--set", "task.volume_z=4"),
        *("--set", "task.z_val=8,12", "--set", "task.z_test=12,16", "--set", "task.tile_size=32,32"),
        *("--set", "network.epochs=2", "--set", "network.tiles_per_epoch=8", "--set", "network.batch_size=4"),
        cluster=cluster,
    ).wait()
    assert job.code == 0, job.out + job.err
    metrics = json.loads((tmp_path / "solid/metrics.json").read_text())
    assert sum(map(sum, metrics["test"]["confusion"])) == 4 * 128 * 128

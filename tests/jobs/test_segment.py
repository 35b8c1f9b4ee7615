"""jobs/segment.py as a process: killed and resumed, stopped, on S3, on a cluster, with an image from BossDB."""

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = "jobs/segment.py"
SHAPE = (4, 128, 640)
BLOCKS = 2 * 4 * 10
FLAGS = ["--shard", "2,32,64", "--block", "2,32,64", "--precision", "float32", "--compile", "off", "--save-mask"]


@pytest.fixture(scope="session")
def segmented(start_job, cluster, tmp_path_factory):
    """Segment 80 blocks without a fault; return the arguments and the output."""
    folder = tmp_path_factory.mktemp("segmented")
    arguments = ["--weights", write_run(folder / "run"), "--image", write_image(folder / "em.zarr"), *FLAGS]
    job = start_job(*arguments, "--output", folder / "out.zarr", cluster=cluster, script=SCRIPT).wait()
    assert job.code == 0, job.out + job.err
    return arguments, folder / "out.zarr"


def write_run(folder: Path, **network: int) -> Path:
    """Write a run folder as training does, with random weights."""
    import torch

    from kasthuri_ray.models.checkpoints import Checkpoint, checkpoint_bytes
    from kasthuri_ray.models.unet import build_network

    torch.manual_seed(0)
    network = {"n_blocks": 2, "start_filters": 4} | network
    task = {"name": "tiny", "task_type": "synapse", "image_chan": "x", "annotation_chan": "y"}
    ranges = {"xrange_vol": [0, 9], "yrange_vol": [0, 9], "z_train": [0, 1], "z_val": [1, 2]}
    about = {"best": {"threshold": 0.5}, "image_intensity": [0.0, 255.0], "voxel_size_nm": [30.0, 6.0, 6.0]}
    settings = {"task": task | ranges, "network": network}
    (folder / "checkpoint").mkdir(parents=True)
    weights = build_network(network).state_dict()
    (folder / "checkpoint/best.pt").write_bytes(checkpoint_bytes(Checkpoint(weights, settings, **about)))
    return folder


def write_image(path: Path) -> Path:
    import zarr

    image = np.random.default_rng(0).integers(1, 255, SHAPE, np.uint8)
    stored = zarr.create_array(path, data=image, chunks=(2, 64, 64))
    stored.attrs["voxel_size_nm_zyx"] = [30, 6, 6]
    return path


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def records(output: Path) -> dict[str, int]:
    """Return the records of the finished blocks and their times."""
    folder = Path(f"{output}.ledger/s0")
    times = {}
    for path in folder.iterdir() if folder.exists() else ():
        with contextlib.suppress(FileNotFoundError):
            times[path.name] = path.stat().st_mtime_ns
    return times


def wait_for_blocks(output: Path, job, number: int = 3, timeout_s: float = 240) -> None:
    end = time.monotonic() + timeout_s
    while len(records(output)) < number:
        assert time.monotonic() < end, job.out + job.err
        assert job.process.poll() is None, job.out + job.err
        time.sleep(0.005)


def test_help_is_printed_within_a_second_and_in_groups(help_text):
    text = help_text(SCRIPT)
    titles = ("input:", "output:", "processing:", "planning:", "settings:", "data access:", "compute:")
    for word in (*titles, "--weights", "--no-skip-blank", "--wait-for-resources", "--price-per-hour"):
        assert word in text
    # Processor time, which other processes of the machine do not change.
    command = [
        sys.executable,
        "-c",
        f"import os, subprocess; subprocess.run([{sys.executable!r}, {SCRIPT!r}, '--help'], "
        "stdout=subprocess.DEVNULL); t = os.times(); print(t.children_user + t.children_system)",
    ]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert float(process.stdout) < 1


@pytest.mark.slow
def test_the_same_command_resumes_after_the_driver_was_killed(start_job, segmented, cluster, tmp_path):
    """The first job starts its own Ray, as on a laptop, and is killed with it; the second one runs on a cluster."""
    arguments, expected = segmented
    out = tmp_path / "out.zarr"
    first = start_job(*arguments, "--output", out, script=SCRIPT)
    wait_for_blocks(out, first)
    first.send_signal(signal.SIGKILL)
    at_kill = records(out)
    first.wait()
    first.kill_session()  # all that it had started, at once
    assert 3 <= len(at_kill) < BLOCKS - 3
    start = time.monotonic()
    resumed = start_job(*arguments, "--output", out, cluster=cluster, script=SCRIPT).wait()
    assert resumed.code == 0, resumed.out + resumed.err
    assert f"{BLOCKS} blocks of 2 x 32 x 64 (z,y,x), " in resumed.out
    num_repeated = sum(records(out)[name] != time_ns for name, time_ns in at_kill.items())
    assert num_repeated <= 3
    assert content_of(out) == content_of(expected)
    assert json.loads(Path(f"{out}.progress.json").read_text())["state"] == "done"
    assert time.monotonic() - start < 240


@pytest.mark.slow
def test_ctrl_c_on_s3_ends_the_job_and_the_printed_command_resumes(
    start_job, segmented, cluster, lab_bucket, download, tmp_path
):
    arguments, expected = segmented
    job = start_job(*arguments, "--output", "s3://lab/out.zarr", cluster=cluster, script=SCRIPT)

    def num_done() -> int:
        return len(list(lab_bucket.objects.filter(Prefix="out.zarr.ledger/s0/")))

    end = time.monotonic() + 240
    while num_done() < 3:
        assert time.monotonic() < end, job.out + job.err
        time.sleep(0.02)
    job.send_signal(signal.SIGINT)
    job.wait()
    assert job.code == 130, job.out + job.err
    assert job.err.split() == ["stopped"]
    assert job.lines[0] == "s3://lab/out.zarr"
    assert 3 <= num_done() < BLOCKS
    command = shlex.split(job.lines[-1].removeprefix("to resume: "))
    resumed = start_job(*command[2:], cluster=cluster, script=SCRIPT).wait()
    assert resumed.code == 0, resumed.out + resumed.err
    assert resumed.lines[0] == resumed.lines[-1] == "s3://lab/out.zarr"
    (line,) = [line for line in resumed.lines if "blocks of 2 x 32 x 64" in line]
    assert " 0 done" not in line
    download("out.zarr", tmp_path)
    assert content_of(tmp_path) == content_of(expected)


@pytest.mark.slow
def test_an_image_of_bossdb_is_downloaded_once_for_all_actors(start_job, cluster, boss_server, tmp_path):
    """Halos are as wide as those of UNet_2D; neighbouring blocks read the voxels that they share from the cache."""
    image = np.random.default_rng(0).integers(1, 255, (16, 1100, 1100), np.uint8)
    uri = boss_server.add("Kasthuri/em/em", image)
    (tmp_path / "boss.json").write_text(json.dumps(boss_server.options))
    run = write_run(tmp_path / "run", n_blocks=4, start_filters=2)  # the receptive field of UNet_2D
    arguments = ["--weights", run, "--image", uri, "--boss", tmp_path / "boss.json", "--cache", tmp_path / "cache"]
    arguments += ["--shard", "16,256,256", "--block", "16,512,512", "--actors", "2"]
    job = start_job(*arguments, "--output", tmp_path / "out.zarr", cluster=cluster, script=SCRIPT).wait()
    assert job.code == 0, job.out + job.err
    num_requested = sum(np.prod([b - a for a, b in request.box]) for request in boss_server.cutouts)
    assert image.size * 0.9 < num_requested <= 1.15 * image.size


@pytest.mark.slow
def test_a_submitted_job_writes_to_the_storage_of_the_cluster(submit_job, job_client, segmented, tmp_path):
    arguments, expected = segmented
    job = submit_job(SCRIPT, *arguments, "--output", "results/out.zarr", env={"KASTHURI_STORAGE": str(tmp_path)})
    end = time.monotonic() + 400
    while (status := job_client.get_job_status(job).value) not in ("SUCCEEDED", "FAILED"):
        assert time.monotonic() < end, job_client.get_job_logs(job)
        time.sleep(0.2)
    log = job_client.get_job_logs(job)
    assert status == "SUCCEEDED", log
    lines = [line for line in log.splitlines() if line]
    assert lines[-1] == str(tmp_path / "results/out.zarr")
    assert content_of(tmp_path / "results/out.zarr") == content_of(expected)


@pytest.mark.slow
def test_sigterm_ends_all_processes_and_prints_the_command_that_resumes(start_job, segmented, tmp_path):
    """The job starts its own Ray in a folder of its own; `start_job` checks at the end that no process is left."""
    arguments, _ = segmented
    (tmp_path / ("long" * 10)).mkdir()
    env = {"TMPDIR": str(tmp_path / ("long" * 10))}
    job = start_job(*arguments, "--output", tmp_path / "out.zarr", script=SCRIPT, env=env)
    wait_for_blocks(tmp_path / "out.zarr", job)
    os.kill(job.process.pid, signal.SIGTERM)
    job.wait()
    assert job.code == 143, job.out + job.err
    assert job.lines[-1].startswith("to resume: python ")
    assert "Traceback" not in job.err
    ray_folder = re.search(r"Ray keeps its temporary files in (\S+)/ray, because", job.err)
    assert ray_folder is not None, job.err
    assert not Path(ray_folder[1]).exists()
    assert not Path(tmp_path / "out.zarr.ledger/lock.json").exists()
    assert json.loads((tmp_path / "out.zarr.progress.json").read_text())["state"] == "failed"


@pytest.mark.slow
def test_actors_and_export_files_that_cannot_be_are_refused_before_ray_starts(start_job, segmented, tmp_path, no_ray):
    arguments, _ = segmented
    many = start_job(*arguments, "--output", tmp_path / "out.zarr", "--actors", "5000", script=SCRIPT).wait()
    assert many.code == 2, many.out + many.err
    assert "5000 actors need 1250 CPUs, the cluster has" in many.err
    assert "Give fewer with --actors" in many.err
    assert "starting Ray" not in many.out + many.err
    (tmp_path / "mine.tif").write_text("of another program")
    for file, message in (
        ("mine.tif", "exists and is no export"),
        ("out.zarr/a.tif", "is in the folder of the output"),
    ):
        flags = ["--output", tmp_path / "out.zarr", "--export", tmp_path / file]
        refused = start_job(*arguments, *flags, env=no_ray, script=SCRIPT).wait()
        assert refused.code == 2, refused.out + refused.err
        assert message in refused.err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.tif"]

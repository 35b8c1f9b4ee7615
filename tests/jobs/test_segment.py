"""jobs/segment.py as the process that it is: killed and resumed, stopped, on S3, on a cluster, from a Boss."""

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
SHAPE = (4, 128, 640)
BLOCKS = 2 * 4 * 10
CUT = ["--shard", "2,32,64", "--block", "2,32,64", "--precision", "float32", "--compile", "off", "--save-mask"]


@pytest.fixture(scope="session")
def segmented(start, cluster, tmp_path_factory):
    """Arguments of a job of 80 blocks, and what it leaves when nothing disturbs it."""
    folder = tmp_path_factory.mktemp("segmented")
    arguments = ["--weights", write_run(folder / "run"), "--image", write_image(folder / "em.zarr"), *CUT]
    job = start(*arguments, "--output", folder / "out.zarr", cluster=cluster, script="jobs/segment.py").wait()
    assert job.code == 0, job.out + job.err
    return arguments, folder / "out.zarr"


def write_run(folder: Path, **network: int) -> Path:
    """What training leaves, of random weights."""
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
    (folder / "checkpoint/best.pt").write_bytes(checkpoint_bytes(Checkpoint(weights, settings, about)))
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
    """The finished blocks and when they were recorded."""
    folder = Path(f"{output}.ledger/s0")
    found = {}
    for path in folder.iterdir() if folder.exists() else ():
        with contextlib.suppress(FileNotFoundError):
            found[path.name] = path.stat().st_mtime_ns
    return found


def until_some_are_done(output: Path, job, number: int = 3, seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while len(records(output)) < number:
        assert time.monotonic() < end, job.out + job.err
        assert job.process.poll() is None, job.out + job.err
        time.sleep(0.005)


def test_help_comes_within_a_second_and_without_torch_or_ray():
    script = (
        "import sys, runpy; sys.argv = ['segment.py', '--help']\n"
        "try: runpy.run_path('jobs/segment.py', run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert not {'torch', 'ray', 'tensorstore', 'numpy'} & sys.modules.keys()"
    )
    shown = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert shown.returncode == 0, shown.stderr
    groups = ("what to segment", "what it leaves", "how:", "planning:", "settings:", "reading:", "computing:")
    for word in (*groups, "--weights", "--no-skip-blank", "--wait-for-resources", "--price-per-hour"):
        assert word in shown.stdout
    # Processor time: a machine that does ten other things is not to blame on the program.
    command = [
        sys.executable,
        "-c",
        f"import os, subprocess; subprocess.run([{sys.executable!r}, 'jobs/segment.py', '--help'], "
        "stdout=subprocess.DEVNULL); t = os.times(); print(t.children_user + t.children_system)",
    ]
    took = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert float(took.stdout) < 1


def test_a_killed_driver_holds_nothing_and_the_same_command_goes_on(start, segmented, cluster, tmp_path):
    """The first starts a Ray of its own, as on a laptop, and is killed with it; what goes on does so on a cluster."""
    arguments, whole = segmented
    out = tmp_path / "out.zarr"
    first = start(*arguments, "--output", out, script="jobs/segment.py")
    until_some_are_done(out, first)
    first.send(signal.SIGKILL)
    struck = records(out)
    first.wait()
    first.end()  # and all that it had begun, at once
    assert 3 <= len(struck) < BLOCKS - 3
    begin = time.monotonic()
    again = start(*arguments, "--output", out, cluster=cluster, script="jobs/segment.py").wait()
    assert again.code == 0, again.out + again.err
    assert f"{BLOCKS} blocks of 2 x 32 x 64 (z,y,x), " in again.out
    redone = sum(records(out)[name] != when for name, when in struck.items())
    assert redone <= 3
    assert content_of(out) == content_of(whole)
    assert json.loads(Path(f"{out}.progress.json").read_text())["state"] == "done"
    assert time.monotonic() - begin < 240


def test_ctrl_c_on_s3_ends_the_actors_and_the_command_that_it_names_goes_on(
    start, segmented, cluster, clean_env, tmp_path
):
    from pyarrow.fs import FileSelector, LocalFileSystem, S3FileSystem, copy_files

    arguments, whole = segmented
    job = start(*arguments, "--output", "s3://lab/out.zarr", cluster=cluster, script="jobs/segment.py")
    files = S3FileSystem(
        endpoint_override=clean_env["AWS_ENDPOINT_URL"], access_key="key", secret_key="secret", region="us-east-1"
    )

    def done() -> int:
        return len(files.get_file_info(FileSelector("lab/out.zarr.ledger/s0", allow_not_found=True)))

    end = time.monotonic() + 240
    while done() < 3:
        assert time.monotonic() < end, job.out + job.err
        time.sleep(0.02)
    job.send(signal.SIGINT)
    job.wait()
    assert job.code == 130, job.out + job.err
    assert job.err.split() == ["stopped"]
    assert job.lines[0] == "s3://lab/out.zarr"
    assert 3 <= done() < BLOCKS
    words = shlex.split(job.lines[-1].removeprefix("to go on: "))
    again = start(*words[2:], cluster=cluster, script="jobs/segment.py").wait()
    assert again.code == 0, again.out + again.err
    assert again.lines[0] == again.lines[-1] == "s3://lab/out.zarr"
    (line,) = [line for line in again.lines if "blocks of 2 x 32 x 64" in line]
    assert " 0 done" not in line
    copy_files("lab/out.zarr", str(tmp_path), source_filesystem=files, destination_filesystem=LocalFileSystem())
    assert content_of(tmp_path) == content_of(whole)


def test_bytes_of_a_boss_are_read_once_for_all_actors(start, cluster, boss_server, tmp_path):
    """Halos as wide as those of UNet_2D: what neighbours share comes from the cache, whoever read it first."""
    image = np.random.default_rng(0).integers(1, 255, (16, 1100, 1100), np.uint8)
    uri = boss_server.add("Kasthuri/em/em", image)
    (tmp_path / "boss.json").write_text(json.dumps(boss_server.options))
    run = write_run(tmp_path / "run", n_blocks=4, start_filters=2)  # sees as far as UNet_2D
    arguments = ["--weights", run, "--image", uri, "--boss", tmp_path / "boss.json", "--cache", tmp_path / "cache"]
    arguments += ["--shard", "16,256,256", "--block", "16,512,512", "--actors", "2"]
    job = start(*arguments, "--output", tmp_path / "out.zarr", cluster=cluster, script="jobs/segment.py").wait()
    assert job.code == 0, job.out + job.err
    asked = [np.prod([b - a for a, b in request.box]) for request in boss_server.cutouts]
    unique = image.size
    assert unique * 0.9 < sum(asked) <= 1.15 * unique


@pytest.fixture
def submit(cluster, clean_env):
    """`submit(*arguments, env={})` gives the id of a submitted jobs/segment.py."""
    from ray.job_submission import JobSubmissionClient

    client, ids = JobSubmissionClient(cluster.dashboard), []

    def send(*arguments: object, env: dict[str, str]) -> str:
        command = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--no-wait"]
        command += ["--address", cluster.dashboard, "--working-dir", str(ROOT)]
        command += ["--runtime-env-json", json.dumps({"env_vars": env})]
        command += ["--", "python", "jobs/segment.py", *map(str, arguments)]
        sent = subprocess.run(
            command, env=clean_env | {"RAY_AUTH_MODE": "disabled"}, capture_output=True, text=True, timeout=240
        )
        assert sent.returncode == 0, sent.stdout + sent.stderr
        ids.append(next(word for word in sent.stdout.replace("'", " ").split() if word.startswith("raysubmit_")))
        return ids[-1]

    yield client, send
    for each in ids:
        client.stop_job(each)


def test_a_submitted_job_writes_where_the_storage_of_the_cluster_is(submit, segmented, tmp_path):
    client, send = submit
    arguments, whole = segmented
    job = send(*arguments, "--output", "results/out.zarr", env={"KASTHURI_STORAGE": str(tmp_path)})
    end = time.monotonic() + 400
    while (status := client.get_job_status(job).value) not in ("SUCCEEDED", "FAILED"):
        assert time.monotonic() < end, client.get_job_logs(job)
        time.sleep(0.2)
    log = client.get_job_logs(job)
    assert status == "SUCCEEDED", log
    lines = [line for line in log.splitlines() if line]
    assert lines[-1] == str(tmp_path / "results/out.zarr")
    assert content_of(tmp_path / "results/out.zarr") == content_of(whole)


def test_sigterm_ends_all_processes_and_says_how_to_go_on(start, segmented, tmp_path):
    """With a Ray of its own; that nothing is left of it is checked when all tests are done."""
    arguments, _ = segmented
    job = start(*arguments, "--output", tmp_path / "out.zarr", script="jobs/segment.py")
    until_some_are_done(tmp_path / "out.zarr", job)
    os.kill(job.process.pid, signal.SIGTERM)
    job.wait()
    assert job.code == 143, job.out + job.err
    assert job.lines[-1].startswith("to go on: python ")
    assert "Traceback" not in job.err
    assert not Path(tmp_path / "out.zarr.ledger/lock.json").exists()
    assert json.loads((tmp_path / "out.zarr.progress.json").read_text())["state"] == "failed"

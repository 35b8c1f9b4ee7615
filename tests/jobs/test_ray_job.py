"""`ray job submit` to a real cluster: the run lies where the contract says, and it can be stopped, killed, resumed."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def submit(cluster, clean_env):
    """`submit(*arguments, env={})` gives the id of a submitted jobs/train.py; what still runs is stopped afterwards."""
    client = _client(cluster)
    ids = []

    def send(*arguments: object, env: dict[str, str] | None = None) -> str:
        # The command line itself, which prints the id and does not wait.
        command = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--no-wait"]
        command += ["--address", cluster.dashboard, "--working-dir", str(ROOT)]
        command += ["--runtime-env-json", json.dumps({"env_vars": env or {}})]
        command += ["--", "python", "jobs/train.py", *map(str, arguments)]
        sent = subprocess.run(
            command, env=clean_env | {"RAY_AUTH_MODE": "disabled"}, capture_output=True, text=True, timeout=240
        )
        assert sent.returncode == 0, sent.stdout + sent.stderr
        ids.append(next(word for word in sent.stdout.replace("'", " ").split() if word.startswith("raysubmit_")))
        return ids[-1]

    yield send
    for each in ids:
        client.stop_job(each)


def _client(cluster):
    from ray.job_submission import JobSubmissionClient

    return JobSubmissionClient(cluster.dashboard)


def wait_for(client, job: str, done, seconds: float = 400) -> str:
    """The job's log once `done(status, log)`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        status, log = client.get_job_status(job).value, client.get_job_logs(job)
        if done(status, log):
            return log
        assert status not in ("FAILED", "SUCCEEDED"), log
        time.sleep(0.2)
    raise AssertionError(f"{job}: not within {seconds} s:\n{log}")


def drivers_of(arguments: list[str]) -> list[int]:
    """The ids of the processes that are jobs/train.py with these arguments."""
    wanted = b"\0".join([b"jobs/train.py", *(str(each).encode() for each in arguments), b""])
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (folder / "cmdline").read_bytes().partition(b"\0")[2] == wanted:
                found.append(int(folder.name))
    return found


def test_a_submitted_run_on_s3_is_killed_and_the_same_command_goes_on(
    finished, submit, cluster, clean_env, tmp_path, same_run
):
    from pyarrow.fs import LocalFileSystem, S3FileSystem, copy_files

    client = _client(cluster)
    # Relative to KASTHURI_STORAGE, since the job's own folder is a copy that is thrown away.
    arguments = [*finished.arguments[:4], "--storage", "runs", "--name", "job"]
    env = {"KASTHURI_STORAGE": "s3://lab"}
    first = submit(*arguments, env=env)
    wait_for(client, first, lambda status, log: "epoch 1  " in log)
    (driver,) = drivers_of(arguments)
    os.kill(driver, signal.SIGKILL)
    wait_for(client, first, lambda status, log: status == "FAILED")
    second = submit(*arguments, env=env)
    log = wait_for(client, second, lambda status, log: status == "SUCCEEDED")
    lines = [line for line in log.splitlines() if line]
    assert lines[-1] == "s3://lab/runs/job"
    assert "s3://lab/runs/job" in lines[:-1]
    assert "epoch 1  " not in log
    files = S3FileSystem(
        endpoint_override=clean_env["AWS_ENDPOINT_URL"], access_key="key", secret_key="secret", region="us-east-1"
    )
    copy_files("lab/runs/job", str(tmp_path), source_filesystem=files, destination_filesystem=LocalFileSystem())
    ours = {str(path.relative_to(finished.folder)) for path in finished.folder.rglob("*") if path.is_file()}
    theirs = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert theirs == ours
    same_run(finished.folder, tmp_path)


@pytest.mark.faults
def test_a_stopped_job_says_how_to_go_on_and_lies_in_the_home_of_a_single_node(tiny, submit, cluster, tmp_path):
    client = _client(cluster)
    arguments = [*tiny, "--name", "home", "--set", "network.epochs=50"]
    env = {"HOME": str(tmp_path)}
    job = submit(*arguments, env=env)
    wait_for(client, job, lambda status, log: "epoch 1  " in log)
    client.stop_job(job)
    log = wait_for(client, job, lambda status, log: status == "STOPPED")
    folder = tmp_path / "kasthuri_ray/outputs/home"
    assert str(folder) in log
    assert (folder / "checkpoint/last.pt").exists()
    again = submit(*arguments, env=env)
    log = wait_for(client, again, lambda status, log: "epoch " in log)
    assert "epoch 1  " not in log
    client.stop_job(again)
    wait_for(client, again, lambda status, log: status == "STOPPED")

"""`ray job submit` to a real cluster: where the run is stored, and how it is stopped, killed and resumed."""

import contextlib
import os
import signal
import time
from pathlib import Path

import pytest

TRAIN = "jobs/train.py"


def wait_for(client, job: str, condition, timeout_s: float = 400) -> str:
    """Wait until `condition(status, log)`, and return the log of the job."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        status, log = client.get_job_status(job).value, client.get_job_logs(job)
        if condition(status, log):
            return log
        assert status not in ("FAILED", "SUCCEEDED"), log
        time.sleep(0.2)
    raise AssertionError(f"{job}: not within {timeout_s} s:\n{log}")


def find_drivers(arguments: list[str]) -> list[int]:
    """Return the ids of the processes of jobs/train.py with these arguments."""
    command = b"\0".join([b"jobs/train.py", *(str(each).encode() for each in arguments), b""])
    pids = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (folder / "cmdline").read_bytes().partition(b"\0")[2] == command:
                pids.append(int(folder.name))
    return pids


@pytest.mark.slow
def test_a_killed_run_on_s3_is_resumed_by_the_same_ray_job(
    finished_run, submit_job, job_client, download, tmp_path, assert_same_run, assert_same_files
):
    # The storage is relative to KASTHURI_STORAGE, because the job's own folder is a temporary copy.
    arguments = [*finished_run.arguments[:4], "--storage", "runs", "--name", "job"]
    env = {"KASTHURI_STORAGE": "s3://lab"}
    first = submit_job(TRAIN, *arguments, env=env)
    wait_for(job_client, first, lambda status, log: "epoch 1  " in log)
    (driver,) = find_drivers(arguments)
    os.kill(driver, signal.SIGKILL)
    wait_for(job_client, first, lambda status, log: status == "FAILED")
    second = submit_job(TRAIN, *arguments, env=env)
    log = wait_for(job_client, second, lambda status, log: status == "SUCCEEDED")
    lines = [line for line in log.splitlines() if line]
    assert lines[-1] == "s3://lab/runs/job"
    assert "s3://lab/runs/job" in lines[:-1]
    assert "epoch 1  " not in log
    download("runs/job", tmp_path)
    assert_same_files(finished_run.folder, tmp_path)
    assert_same_run(finished_run.folder, tmp_path)


@pytest.mark.faults
def test_a_stopped_ray_job_is_resumed_from_the_home_folder_of_a_single_node(
    tiny_flags, submit_job, job_client, tmp_path
):
    arguments = [*tiny_flags, "--name", "home", "--set", "network.epochs=50"]
    env = {"HOME": str(tmp_path)}
    job = submit_job(TRAIN, *arguments, env=env)
    wait_for(job_client, job, lambda status, log: "epoch 1  " in log)
    job_client.stop_job(job)
    log = wait_for(job_client, job, lambda status, log: status == "STOPPED")
    folder = tmp_path / "kasthuri_ray/outputs/home"
    assert str(folder) in log
    assert (folder / "checkpoint/last.pt").exists()
    resumed = submit_job(TRAIN, *arguments, env=env)
    log = wait_for(job_client, resumed, lambda status, log: "epoch " in log)
    assert "epoch 1  " not in log
    job_client.stop_job(resumed)
    wait_for(job_client, resumed, lambda status, log: status == "STOPPED")

"""jobs/train.py with faults: a training that is killed or stopped resumes with the same result, or explains why not."""

import json
import os
import random
import shlex
import signal
import time
from pathlib import Path

import pytest


def find_processes(session: int, name: str) -> list[int]:
    """Return the ids of the processes of a session whose title starts with `name`."""
    pids = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and (folder / "cmdline").read_text().startswith(name):
                pids.append(int(folder.name))
        except OSError:
            continue
    return pids


def wait_for_worker(session: int, known: set[int] = frozenset()) -> int:
    """Wait for a Train worker that is not in `known`, and return its id."""
    end = time.monotonic() + 240
    while time.monotonic() < end:
        new = [pid for pid in find_processes(session, "ray::RayTrainWorker") if pid not in known]
        if new:
            return new[0]
        time.sleep(0.05)
    raise AssertionError("no Train worker")


@pytest.mark.slow
def test_a_name_in_use_is_refused_and_a_killed_run_resumes_to_the_same_weights(
    finished_run, start_job, cluster, tiny_flags, tmp_path, assert_same_run
):
    """The first job starts its own Ray, as on a laptop; the job that resumes runs on a cluster."""
    arguments = [*tiny_flags, "--storage", tmp_path, "--name", "killed"]
    first = start_job(*arguments)
    first.wait_for_line("epoch 1  ")
    worker = wait_for_worker(first.process.pid)
    os.kill(worker, signal.SIGSTOP)  # keeps the run alive and unfinished while the duplicate starts
    duplicate = start_job(*arguments, cluster=cluster).wait()
    os.kill(worker, signal.SIGCONT)
    time.sleep(random.uniform(0, 0.5))
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert duplicate.code == 2
    assert f"held by another live run: process {first.process.pid}" in duplicate.err
    assert "--name" in duplicate.err
    assert "Traceback" not in duplicate.err

    second = start_job(*arguments, cluster=cluster)
    seconds = _seconds_until_locked(second, tmp_path / "killed")
    second.wait()
    assert second.code == 0, second.out + second.err
    assert seconds < 30
    assert "epoch 1  " not in second.out
    assert_same_run(finished_run.folder, tmp_path / "killed")


def _seconds_until_locked(job, folder: Path) -> float:
    """Return the seconds from the first line, which is printed once Ray runs, until the job holds the run's name."""
    job.wait_for_line(str(folder))
    start_job = time.monotonic()
    while time.monotonic() < start_job + 60:
        try:
            if json.loads((folder / "lock.json").read_text())["pid"] == job.process.pid:
                break
        except (FileNotFoundError, ValueError):
            pass
        time.sleep(0.05)
    return time.monotonic() - start_job


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_the_result_is_the_same(
    finished_run, start_job, cluster, shared_storage, assert_same_run
):
    known = set(find_processes(cluster.session, "ray::RayTrainWorker"))
    job = start_job(*finished_run.arguments, "--name", "worker", cluster=cluster)
    job.wait_for_line("epoch 1  ")
    os.kill(wait_for_worker(cluster.session, known), signal.SIGKILL)
    job.wait()
    assert job.code == 0, job.out + job.err
    (line,) = [line for line in job.lines if "start again" in line]
    assert line.startswith("worker 0 failed (ActorDiedError: The actor died unexpectedly")
    assert job.err == ""
    assert "(raylet)" not in job.out
    assert_same_run(finished_run.folder, shared_storage / "worker")


@pytest.mark.faults
def test_ctrl_c_on_s3_ends_the_run_and_the_printed_command_resumes(
    finished_run, start_job, cluster, tiny_flags, download, tmp_path, assert_same_run, assert_same_files
):
    job = start_job(*tiny_flags, "--storage", "s3://lab/runs", "--name", "stopped", cluster=cluster)
    job.wait_for_line("epoch 1  ")
    job.send_signal(signal.SIGINT)
    job.wait()
    assert job.code == 130, job.out + job.err
    assert job.err.split() == ["stopped"]
    assert job.lines[0] == "s3://lab/runs/stopped"
    command = shlex.split(job.lines[-1].removeprefix("to resume: "))
    resumed = start_job(*command[2:], cluster=cluster).wait()
    assert resumed.code == 0, resumed.out + resumed.err
    assert resumed.lines[0] == resumed.lines[-1] == "s3://lab/runs/stopped"
    assert "epoch 1  " not in resumed.out
    download("runs/stopped", tmp_path)
    assert_same_files(finished_run.folder, tmp_path)
    assert_same_run(finished_run.folder, tmp_path)


@pytest.mark.faults
def test_sigterm_ends_the_workers_and_releases_the_name(start_job, cluster, tiny_flags, tmp_path):
    known = set(find_processes(cluster.session, "ray::RayTrainWorker"))
    arguments = [*tiny_flags, "--storage", tmp_path, "--name", "ended", "--set", "network.epochs=50"]
    job = start_job(*arguments, cluster=cluster)
    job.wait_for_line("epoch 1  ")
    worker = wait_for_worker(cluster.session, known)
    job.send_signal(signal.SIGTERM)
    job.wait()
    assert job.code == 143
    assert job.lines[-1].startswith("to resume: python ")
    assert "Traceback" not in job.err
    end = time.monotonic() + 30
    while Path(f"/proc/{worker}").exists() and time.monotonic() < end:
        time.sleep(0.1)
    assert not Path(f"/proc/{worker}").exists()
    assert not (tmp_path / "ended/lock.json").exists()


@pytest.mark.faults
@pytest.mark.parametrize("extra", [["--precision", "bf16"], ["--compile", "on"]], ids=["bf16", "compiled"])
def test_kills_at_random_moments_do_not_change_the_result(
    start_job, cluster, tiny_flags, tmp_path, assert_same_run, extra, fault_trials
):
    arguments = [*tiny_flags, "--storage", tmp_path, *extra]
    uninterrupted = start_job(*arguments, "--name", "whole", cluster=cluster).wait()
    assert uninterrupted.code == 0, uninterrupted.out + uninterrupted.err
    seconds = time.monotonic() - uninterrupted.started
    moments = [random.uniform(0.3, 1) * seconds for _ in range(fault_trials(2 * 3) // 2)]
    for moment in moments:
        job = start_job(*arguments, "--name", "killed", cluster=cluster)
        time.sleep(moment)
        if job.process.poll() is None:
            job.send_signal(signal.SIGKILL)
        job.wait()
    last = start_job(*arguments, "--name", "killed", cluster=cluster).wait()
    assert last.code == 0 or "is finished" in last.err, last.out + last.err
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.faults
def test_a_run_killed_on_another_machine_is_resumed_after_a_wait(start_job, cluster, tiny_flags, tmp_path):
    arguments = [*tiny_flags, "--storage", tmp_path, "--name", "away"]
    job = start_job(*arguments, cluster=cluster)
    job.wait_for_line("epoch 1  ")
    job.send_signal(signal.SIGKILL)
    job.wait()
    lock = tmp_path / "away/lock.json"
    record = json.loads(lock.read_text())
    lock.write_text(json.dumps(record | {"machine": "another", "host": "another"}).ljust(512))
    resumed = start_job(*arguments, cluster=cluster)
    resumed.wait_for_line("waiting to see whether the run that holds 'away' is still alive")
    assert _seconds_until_locked(resumed, tmp_path / "away") < 30
    assert resumed.wait().code == 0


@pytest.mark.faults
def test_an_elastic_run_trains(start_job, cluster, tiny_flags, tmp_path):
    arguments = [*tiny_flags, "--storage", tmp_path, "--name", "elastic", "--num-workers", "1-2"]
    job = start_job(*arguments, cluster=cluster).wait()
    assert job.code == 0, job.out + job.err
    assert len((tmp_path / "elastic/history.csv").read_text().splitlines()) == 5


FAILING_NETWORK = """
from torch import nn
import torch.distributed as dist

class Fails(nn.Module):
    def __init__(self, error):
        super().__init__()
        self.layer, self.error, self.num_batches = nn.Conv2d(1, 2, 1), error, 0

    def forward(self, image):
        self.num_batches += self.training
        if self.num_batches == 3 and (not dist.is_initialized() or dist.get_rank() == 1):
            raise (ValueError if self.error == "value" else RuntimeError)("third batch")
        return self.layer(image)
"""


@pytest.mark.faults
@pytest.mark.parametrize(
    ("error", "message"),
    [("value", "failed: ValueError: third batch"), ("runtime", "failed: RuntimeError: third batch")],
)
def test_an_error_on_one_worker_ends_all_of_them_with_its_message(
    start_job, cluster, tiny_flags, tmp_path, error, message
):
    (tmp_path / "failing.py").write_text(FAILING_NETWORK)
    network = {"model": "failing.Fails", "model_args": {"error": error}, "batch_size": 4, "tiles_per_epoch": 16}
    (tmp_path / "fails.json").write_text(json.dumps(network))
    arguments = [*tiny_flags[:2], "--network", "fails.json", "--num-workers", "2", "--name", "fails"]
    job = start_job(*arguments, cluster=cluster, cwd=tmp_path).wait()
    assert job.code == 1, job.out + job.err
    assert f"training {message}" in job.err
    assert "to resume: python" in job.err
    assert "start again" not in job.out
    assert "Traceback" not in job.err


FULL_DISK = """
import errno, os
real = os.fsync

def fsync(handle):
    name = os.readlink(f"/proc/self/fd/{handle}")
    if ".last.pt." in name and os.path.exists(os.path.join(os.path.dirname(name), "last.pt")):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    real(handle)

os.fsync = fsync
"""


@pytest.mark.faults
def test_a_run_resumes_after_the_disk_was_full(finished_run, start_job, tiny_flags, tmp_path, assert_same_run):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/sitecustomize.py").write_text(FULL_DISK)
    arguments = [*tiny_flags, "--storage", tmp_path, "--name", "full_disk"]
    job = start_job(*arguments, env={"PYTHONPATH": str(tmp_path / "full")}).wait()
    folder = tmp_path / "full_disk"
    assert job.code == 1, job.out + job.err
    assert f"the disk is full: {folder}/checkpoint/last.pt" in job.err
    assert "the earlier file is unchanged" in job.err
    assert "Traceback" not in job.err
    assert not [path for path in folder.rglob("*") if path.name.endswith(".part")]
    resumed = start_job(*arguments).wait()
    assert resumed.code == 0, resumed.out + resumed.err
    assert "epoch 1  " not in resumed.out
    assert_same_run(finished_run.folder, folder)


@pytest.mark.slow
def test_more_workers_than_the_cluster_holds_are_refused_at_once_or_after_the_wait(
    start_job, cluster, tiny_flags, tmp_path
):
    arguments = [*tiny_flags, "--storage", tmp_path, "--num-workers", "64", "--set", "network.batch_size=64"]
    refused = start_job(*arguments, cluster=cluster)
    waited = start_job(*arguments, "--wait-for-resources", "3", cluster=cluster)
    refused.wait()
    waited.wait()
    assert refused.code == waited.code == 2
    assert "64 workers and their data loading need 32.25 CPUs, the cluster has 4" in refused.err
    assert "--num-workers" in refused.err
    assert "waiting up to 3 s for resources: 64 workers" in waited.out
    assert "(waited 3 s)" in waited.err
    assert "Traceback" not in refused.err + waited.err
    assert not list(tmp_path.iterdir())

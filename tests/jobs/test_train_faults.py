"""Training that is killed, stopped, starved or broken: it goes on, with the same result, or says why not."""

import json
import os
import random
import shlex
import signal
import time
from pathlib import Path

import pytest


def processes_named(session: int, name: str) -> list[int]:
    """The ids of the processes of a session whose title starts with `name`."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and (folder / "cmdline").read_text().startswith(name):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def wait_for_worker(session: int, known: set[int] = frozenset()) -> int:
    """The id of a Train worker that was not known before."""
    end = time.monotonic() + 240
    while time.monotonic() < end:
        found = [pid for pid in processes_named(session, "ray::RayTrainWorker") if pid not in known]
        if found:
            return found[0]
        time.sleep(0.05)
    raise AssertionError("no Train worker")


def test_a_live_run_is_refused_and_a_killed_one_goes_on_to_the_same_weights(
    finished, start, cluster, tiny, tmp_path, same_run
):
    """The first starts a Ray of its own, as on a laptop; what goes on does so on a cluster."""
    arguments = [*tiny, "--storage", tmp_path, "--name", "killed"]
    first = start(*arguments)
    first.until("epoch 1  ")
    worker = wait_for_worker(first.process.pid)
    os.kill(worker, signal.SIGSTOP)  # alive, and not done before the twin has looked
    twin = start(*arguments, cluster=cluster).wait()
    os.kill(worker, signal.SIGCONT)
    time.sleep(random.uniform(0, 0.5))
    first.send(signal.SIGKILL)
    first.wait()
    assert twin.code == 2
    assert f"held by another live run: process {first.process.pid}" in twin.err
    assert "--name" in twin.err
    assert "Traceback" not in twin.err

    second = start(*arguments, cluster=cluster)
    seconds = _until_it_holds_the_name(second, tmp_path / "killed")
    second.wait()
    assert second.code == 0, second.out + second.err
    assert seconds < 30
    assert "epoch 1  " not in second.out  # it went on
    same_run(finished.folder, tmp_path / "killed")


def _until_it_holds_the_name(job, folder: Path) -> float:
    """Seconds from the first line, which comes once Ray has started, to the lock."""
    job.until(str(folder))
    begin = time.monotonic()
    while time.monotonic() < begin + 60:
        try:
            if json.loads((folder / "lock.json").read_text())["pid"] == job.process.pid:
                break
        except (FileNotFoundError, ValueError):
            pass
        time.sleep(0.05)
    return time.monotonic() - begin


def test_a_killed_worker_is_replaced_and_the_result_is_the_same(finished, start, cluster, runs, same_run):
    known = set(processes_named(cluster.session, "ray::RayTrainWorker"))
    job = start(*finished.arguments, "--name", "worker", cluster=cluster)
    job.until("epoch 1  ")
    os.kill(wait_for_worker(cluster.session, known), signal.SIGKILL)
    job.wait()
    assert job.code == 0, job.out + job.err
    (line,) = [line for line in job.lines if "start again" in line]
    assert line.startswith("worker 0 failed (ActorDiedError: The actor died unexpectedly")
    assert job.err == ""
    assert "(raylet)" not in job.out
    same_run(finished.folder, runs / "worker")


@pytest.mark.faults
def test_ctrl_c_on_s3_says_how_to_go_on_and_that_command_does(
    finished, start, cluster, tiny, clean_env, tmp_path, same_run
):
    from pyarrow.fs import LocalFileSystem, S3FileSystem, copy_files

    job = start(*tiny, "--storage", "s3://lab/runs", "--name", "stopped", cluster=cluster)
    job.until("epoch 1  ")
    job.send(signal.SIGINT)
    job.wait()
    assert job.code == 130, job.out + job.err
    assert job.err.split() == ["stopped"]
    assert job.lines[0] == "s3://lab/runs/stopped"
    words = shlex.split(job.lines[-1].removeprefix("to go on: "))
    again = start(*words[2:], cluster=cluster).wait()
    assert again.code == 0, again.out + again.err
    assert again.lines[0] == again.lines[-1] == "s3://lab/runs/stopped"
    assert "epoch 1  " not in again.out

    files = S3FileSystem(
        endpoint_override=clean_env["AWS_ENDPOINT_URL"], access_key="key", secret_key="secret", region="us-east-1"
    )
    copy_files("lab/runs/stopped", str(tmp_path), source_filesystem=files, destination_filesystem=LocalFileSystem())
    ours = {str(path.relative_to(finished.folder)) for path in finished.folder.rglob("*") if path.is_file()}
    theirs = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert theirs == ours
    same_run(finished.folder, tmp_path)


@pytest.mark.faults
def test_kill_and_job_stop_end_the_workers(start, cluster, tiny, tmp_path):
    known = set(processes_named(cluster.session, "ray::RayTrainWorker"))
    job = start(*tiny, "--storage", tmp_path, "--name", "ended", "--set", "network.epochs=50", cluster=cluster)
    job.until("epoch 1  ")
    worker = wait_for_worker(cluster.session, known)
    job.send(signal.SIGTERM)
    job.wait()
    assert job.code == 143
    assert job.lines[-1].startswith("to go on: python ")
    assert "Traceback" not in job.err
    end = time.monotonic() + 30
    while Path(f"/proc/{worker}").exists() and time.monotonic() < end:
        time.sleep(0.1)
    assert not Path(f"/proc/{worker}").exists()
    assert not (tmp_path / "ended/lock.json").exists()


@pytest.mark.faults
@pytest.mark.parametrize("extra", [["--precision", "bf16"], ["--compile", "on"]], ids=["bf16", "compiled"])
def test_kills_at_any_moment_change_nothing(start, cluster, tiny, tmp_path, same_run, extra):
    arguments = [*tiny, "--storage", tmp_path, *extra]
    whole = start(*arguments, "--name", "whole", cluster=cluster).wait()
    assert whole.code == 0, whole.out + whole.err
    seconds = time.monotonic() - whole.started
    moments = [random.uniform(0.3, 1) * seconds for _ in range(3)]
    for moment in moments:
        job = start(*arguments, "--name", "killed", cluster=cluster)
        time.sleep(moment)
        if job.process.poll() is None:
            job.send(signal.SIGKILL)
        job.wait()
    last = start(*arguments, "--name", "killed", cluster=cluster).wait()
    assert last.code == 0 or "is finished" in last.err, last.out + last.err
    same_run(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.faults
def test_a_run_killed_on_another_machine_is_waited_for_and_goes_on(start, cluster, tiny, tmp_path):
    arguments = [*tiny, "--storage", tmp_path, "--name", "away"]
    job = start(*arguments, cluster=cluster)
    job.until("epoch 1  ")
    job.send(signal.SIGKILL)
    job.wait()
    lock = tmp_path / "away/lock.json"
    record = json.loads(lock.read_text())
    lock.write_text(json.dumps(record | {"machine": "another", "host": "another"}).ljust(512))
    again = start(*arguments, cluster=cluster)
    again.until("waiting to see whether the run that holds 'away' is still alive")
    assert _until_it_holds_the_name(again, tmp_path / "away") < 30
    assert again.wait().code == 0


@pytest.mark.faults
def test_an_elastic_run_trains(start, cluster, tiny, tmp_path):
    job = start(*tiny, "--storage", tmp_path, "--name", "elastic", "--num-workers", "1-2", cluster=cluster).wait()
    assert job.code == 0, job.out + job.err
    assert len((tmp_path / "elastic/history.csv").read_text().splitlines()) == 5


FAILS = """
from torch import nn
import torch.distributed as dist

class Fails(nn.Module):
    def __init__(self, word):
        super().__init__()
        self.layer, self.word, self.seen = nn.Conv2d(1, 2, 1), word, 0

    def forward(self, image):
        self.seen += self.training
        if self.seen == 3 and (not dist.is_initialized() or dist.get_rank() == 1):
            raise (ValueError if self.word == "value" else RuntimeError)("this network has had enough")
        return self.layer(image)
"""


@pytest.mark.faults
@pytest.mark.parametrize(("word", "said"), [("value", "failed: this"), ("runtime", "failed: RuntimeError: this")])
def test_what_fails_on_one_rank_ends_all_of_them_with_its_words(start, cluster, tiny, tmp_path, word, said):
    (tmp_path / "failing.py").write_text(FAILS)
    network = {"model": "failing.Fails", "model_args": {"word": word}, "batch_size": 4, "tiles_per_epoch": 16}
    (tmp_path / "fails.json").write_text(json.dumps(network))
    job = start(
        *(*tiny[:2], "--network", "fails.json", "--num-workers", "2", "--name", "fails"), cluster=cluster, cwd=tmp_path
    ).wait()
    assert job.code == 1, job.out + job.err
    assert f"training {said} network has had enough" in job.err
    assert "to go on: python" in job.err
    assert "start again" not in job.out
    assert "Traceback" not in job.err


FULL = """
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
def test_a_full_disk_is_said_and_costs_nothing(finished, start, tiny, tmp_path, same_run):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/sitecustomize.py").write_text(FULL)
    arguments = [*tiny, "--storage", tmp_path, "--name", "full_disk"]
    job = start(*arguments, env={"PYTHONPATH": str(tmp_path / "full")}).wait()
    folder = tmp_path / "full_disk"
    assert job.code == 1, job.out + job.err
    assert f"the disk is full: {folder}/checkpoint/last.pt" in job.err
    assert "what was there before is unchanged" in job.err
    assert "Traceback" not in job.err
    assert not [path for path in folder.rglob("*") if path.name.endswith(".part")]
    again = start(*arguments).wait()
    assert again.code == 0, again.out + again.err
    assert "epoch 1  " not in again.out
    same_run(finished.folder, folder)


def test_more_than_the_cluster_has_is_refused_at_once_or_after_the_wait(start, cluster, tiny, tmp_path):
    arguments = [*tiny, "--storage", tmp_path, "--num-workers", "64", "--set", "network.batch_size=64"]
    refused = start(*arguments, cluster=cluster)
    waited = start(*arguments, "--wait-for-resources", "3", cluster=cluster)
    refused.wait()
    waited.wait()
    assert refused.code == waited.code == 2
    assert "64 workers and their reading need 32.25 CPUs, the cluster has 4" in refused.err
    assert "--num-workers" in refused.err
    assert "waiting up to 3 s for resources: 64 workers" in waited.out
    assert "(waited 3 s)" in waited.err
    assert "Traceback" not in refused.err + waited.err
    assert not list(tmp_path.iterdir())

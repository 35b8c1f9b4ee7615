"""Fixtures for the tests of the jobs: a Ray cluster on the loopback, and jobs that run as processes."""

import csv
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def import_processes() -> ModuleType:
    """Import processes.py, which is beside this file and not on the path."""
    spec = importlib.util.spec_from_file_location("tests_jobs_processes", Path(__file__).with_name("processes.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


processes = import_processes()
WITHOUT_TOKEN = {"RAY_AUTH_MODE": "disabled"}
NO_RAY = {"RAY_ADDRESS": "127.0.0.1:9"}  # where nothing answers: what comes before that error needed no cluster
TILE_SIZE = [64, 48]  # 128 is no multiple of 48: tiles of the grid overlap, and each voxel must count once
TINY_NETWORK = {
    "n_blocks": 2,
    "start_filters": 4,
    "optimizer": "AdamW",
    "learning_rate": 0.01,
    "scheduler": "one_cycle",
    "warmup": 0.25,
    "loss": "dice_ce",
    "augmentations": "em",
    "ema": 0.9,
    "early_stopping": 0,
    "epochs": 4,
    "batch_size": 4,
    "tiles_per_epoch": 16,
    "precision": "float32",
    "outweightfilename": "tiny",
    "encoder_name": "resnet34",  # a key of the challenge's files that nothing reads
}


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster. address: for RAY_ADDRESS. dashboard: for `ray job submit`. session: id of all its processes."""

    address: str
    dashboard: str
    session: int


@pytest.fixture(scope="session")
def clean_env(s3_server, tmp_path_factory) -> dict[str, str]:
    """Return the environment of jobs: no other Ray cluster, a cache of its own, S3 on the loopback.

    A Ray that a job starts has a token; the clusters that tests start for many jobs have none (WITHOUT_TOKEN).
    """
    dropped = ("RAY_", "AWS_", "KASTHURI_", "BOSSDB_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    return {
        **kept,
        **s3_server,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
        "KASTHURI_CACHE": str(tmp_path_factory.mktemp("cache")),
    }


@pytest.fixture(scope="session")
def cluster(clean_env) -> Iterator[Cluster]:
    """Run a real `ray start --head` with four logical CPUs, on ports of its own; kill all its processes at the end."""
    folder = tempfile.mkdtemp(prefix="kr", dir="/tmp")  # short, because socket names are limited
    gcs, dashboard, agent, client = processes.free_ports(4)
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--port", gcs]
    command += ["--dashboard-port", dashboard, "--dashboard-agent-listen-port", agent]
    command += ["--ray-client-server-port", client, "--min-worker-port", "0", "--max-worker-port", "0"]
    command += ["--num-cpus", "4", "--object-store-memory", str(300 * 2**20), "--temp-dir", folder]
    path = f"{Path(sys.executable).parent}:{clean_env['PATH']}"  # so that `python` is this interpreter
    head = processes.run_ray_start(command, clean_env | WITHOUT_TOKEN | {"PATH": path}, Path(folder) / "start.log")
    try:
        processes.wait_until(lambda: processes.is_listening(dashboard), 120, "the dashboard listens")
        yield Cluster(f"127.0.0.1:{gcs}", f"http://127.0.0.1:{dashboard}", head.pid)
    finally:
        processes.kill_session(head)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def process_tools() -> ModuleType:
    """Return processes.py, whose functions start and end nodes; tests cannot import it."""
    return processes


@pytest.fixture(scope="session")
def no_ray() -> dict[str, str]:
    """Return the environment of a job that fails with another error as soon as it connects to Ray."""
    return NO_RAY


@pytest.fixture(scope="session")
def tiny_flags(tiny_task, tmp_path_factory) -> list[str]:
    """Return `--task FILE --network FILE` of a task and a network that train in seconds."""
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "tiny_task.json").write_text(json.dumps(tiny_task | {"tile_size": TILE_SIZE}))
    (folder / "tiny.json").write_text(json.dumps(TINY_NETWORK))
    return ["--task", str(folder / "tiny_task.json"), "--network", str(folder / "tiny.json")]


@pytest.fixture(scope="session")
def start_job(clean_env, tmp_path_factory) -> Iterator[Callable[..., processes.JobProcess]]:
    """Return `start_job(*arguments, cluster, env, cwd, script, prefix)`; a job without a cluster starts its own Ray."""
    jobs: list[processes.JobProcess] = []

    def start(
        *arguments: str,
        cluster: Cluster | None = None,
        env: dict[str, str] | None = None,
        cwd: Path | None = None,
        script: str = "jobs/train.py",
        prefix: Sequence[str] = (),
    ) -> processes.JobProcess:
        attached = {"RAY_ADDRESS": cluster.address, **WITHOUT_TOKEN} if cluster else {}
        job_env = clean_env | attached | (env or {})
        command = [*prefix, sys.executable, "-u", str(ROOT / script), *map(str, arguments)]
        job = processes.JobProcess(command, job_env, cwd or tmp_path_factory.mktemp("cwd"))
        jobs.append(job)
        return job

    yield start
    # A job that has ended, however it ended, must have left no process. Jobs that still run are killed here.
    ended = [job for job in jobs if job.process.poll() is not None]
    processes.wait_until(
        lambda: not any(processes.session_processes(job.process.pid) for job in ended),
        30,
        "ended jobs leave no process",
    )
    for job in jobs:
        job.kill_session()


@pytest.fixture
def job_client(cluster) -> Any:
    """Return the client for status and logs of submitted jobs."""
    from ray.job_submission import JobSubmissionClient

    return JobSubmissionClient(cluster.dashboard)


@pytest.fixture
def submit_job(cluster, job_client, clean_env) -> Iterator[Callable[..., str]]:
    """Return `submit_job(script, *arguments, env, working_dir)`: it runs `ray job submit` and returns the job's id.

    Jobs that still run at the end of the test are stopped.
    """
    ids = []

    def submit(script: str, *arguments: object, env: dict[str, str] | None = None, working_dir: Path = ROOT) -> str:
        # Ray's command line, which prints the id and does not wait.
        command = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--no-wait"]
        command += ["--address", cluster.dashboard, "--working-dir", str(working_dir)]
        command += ["--runtime-env-json", json.dumps({"env_vars": env or {}})]
        command += ["--", "python", script, *map(str, arguments)]
        job_env = clean_env | WITHOUT_TOKEN
        submitted = subprocess.run(command, env=job_env, capture_output=True, text=True, timeout=240)
        assert submitted.returncode == 0, submitted.stdout + submitted.stderr
        words = submitted.stdout.replace("'", " ").split()
        ids.append(next(word for word in words if word.startswith("raysubmit_")))
        return ids[-1]

    yield submit
    for each in ids:
        job_client.stop_job(each)


@pytest.fixture(scope="session")
def lab_bucket(clean_env) -> Any:
    """Return the bucket `lab` of the S3 server."""
    import boto3

    keys = {"aws_access_key_id": "key", "aws_secret_access_key": "secret"}
    return boto3.resource("s3", region_name="us-east-1", endpoint_url=clean_env["AWS_ENDPOINT_URL"], **keys).Bucket(
        "lab"
    )


@pytest.fixture(scope="session")
def download(lab_bucket) -> Callable[[str, Path], None]:
    """Return `download(key, folder)`, which copies a folder of the bucket `lab` to a local one."""

    def copy(key: str, folder: Path) -> None:
        for item in lab_bucket.objects.filter(Prefix=f"{key}/"):
            path = folder / item.key.removeprefix(f"{key}/")
            path.parent.mkdir(parents=True, exist_ok=True)
            lab_bucket.download_file(item.key, str(path))

    return copy


@pytest.fixture(scope="session")
def shared_storage(tmp_path_factory) -> Path:
    """Return the storage of runs that several tests use."""
    return tmp_path_factory.mktemp("runs")


@dataclass(frozen=True)
class FinishedRun:
    """An uninterrupted run: its folder, its process, and its arguments without `--name`."""

    folder: Path
    job: processes.JobProcess
    arguments: list[str]


@pytest.fixture(scope="session")
def finished_run(start_job, cluster, tiny_flags, shared_storage) -> FinishedRun:
    """Train the tiny network once, from start to end."""
    arguments = [*tiny_flags, "--storage", str(shared_storage)]
    job = start_job(*arguments, "--name", "whole", cluster=cluster).wait()
    assert job.code == 0, job.out + job.err
    return FinishedRun(shared_storage / "whole", job, arguments)


def read_history(folder: Path) -> list[dict[str, str]]:
    """Return the rows of history.csv without the columns that depend on the clock."""
    clock = {"seconds", "tiles_per_second"}
    with (folder / "history.csv").open() as file:
        return [{key: value for key, value in row.items() if key not in clock} for row in csv.DictReader(file)]


@pytest.fixture(scope="session")
def assert_same_run() -> Callable[..., None]:
    """Return a function that asserts that two runs have the same weights and history, bit for bit."""

    def check(one: Path, other: Path, weights: str = "tiny_membrane.pt") -> None:
        import torch

        assert read_history(one) == read_history(other)
        first, second = (torch.load(folder / weights, weights_only=True) for folder in (one, other))
        assert first.keys() == second.keys()
        different = [key for key in first if not torch.equal(first[key], second[key])]
        assert not different, f"{one} and {other} differ in {different}"

    return check


@pytest.fixture(scope="session")
def assert_same_files() -> Callable[[Path, Path], None]:
    """Return a function that asserts that two folders contain files of the same names."""

    def names(folder: Path) -> set[str]:
        return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}

    def check(one: Path, other: Path) -> None:
        assert names(one) == names(other)

    return check

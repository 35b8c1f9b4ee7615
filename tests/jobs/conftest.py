"""What the tests of the jobs share: a Ray cluster and an S3 on loopback, and jobs as the processes that they are."""

import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

PR_SET_PDEATHSIG = 1  # from linux/prctl.h
ROOT = Path(__file__).resolve().parents[2]
WITHOUT_TOKEN = {"RAY_AUTH_MODE": "disabled"}
PATIENCE_S = 240  # for one job: seconds on a quiet machine, minutes on one that does ten other things
TINY_TASK = {
    "name": "tiny_task",
    "image_chan": "phantom://em?shape=16,128,128&seed=7",
    "annotation_chan": "phantom://membrane?shape=16,128,128&seed=7",
    "xrange_vol": [0, 128],
    "yrange_vol": [0, 128],
    "z_train": [0, 8],
    "z_val": [8, 11],
    "z_test": [11, 16],
    "tile_size": [64, 48],  # 128 is no multiple of 48: tiles of the grid overlap, and each voxel must count once
    "task_type": "membrane",
}
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
    "encoder_name": "resnet34",  # of the challenge's files; nobody reads it
}


def _prepare() -> None:
    """In a process of ours, before it is what it shall be: Ctrl-C reaches it, and it does not outlive the tests."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs ignore it
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class JobProcess:
    """`jobs/train.py` as a process: its lines as they come, its exit code, and signals for it."""

    def __init__(self, arguments: list[str], env: dict[str, str], cwd: Path, script: str = "jobs/train.py") -> None:
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-u", str(ROOT / script), *arguments],
            env=env,
            cwd=cwd,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=_prepare,
        )
        self.lines: list[str] = []
        self.errors: list[str] = []
        self._readers = [
            threading.Thread(target=self._collect, args=pair, daemon=True)
            for pair in ((self.process.stdout, self.lines), (self.process.stderr, self.errors))
        ]
        for reader in self._readers:
            reader.start()

    @staticmethod
    def _collect(stream: Any, lines: list[str]) -> None:
        for line in stream:
            lines.append(line.rstrip("\n"))

    @property
    def out(self) -> str:
        return "\n".join(self.lines)

    @property
    def err(self) -> str:
        return "\n".join(self.errors)

    def wait(self, seconds: float = PATIENCE_S) -> "JobProcess":
        """Wait for the end."""
        self.process.wait(timeout=seconds)
        for reader in self._readers:
            reader.join(timeout=10)
        return self

    def until(self, text: str, seconds: float = PATIENCE_S) -> str:
        """Wait for a line that holds the text, and give it."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            found = [line for line in list(self.lines) if text in line]
            if found:
                return found[0]
            if self.process.poll() is not None:
                self.wait()
                assert text in self.out, f"ended with {self.code} before {text!r}:\n{self.out}\n{self.err}"
            time.sleep(0.05)
        raise AssertionError(f"no {text!r} within {seconds} s:\n{self.out}\n{self.err}")

    @property
    def code(self) -> int | None:
        return self.process.returncode

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self) -> None:
        """Whatever is left of it and of the Ray that it started."""
        end_session(self.process)


@dataclass(frozen=True)
class Cluster:
    """address: for RAY_ADDRESS. dashboard: for `ray job submit`. session: the id of all its processes."""

    address: str
    dashboard: str
    session: int


def processes_of(session: int) -> dict[int, str]:
    """The living processes of a session: ids and command lines."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] not in "ZX":
                found[int(stat.parent.name)] = (stat.parent / "cmdline").read_text().replace("\0", " ")[:100]
    return found


def end_session(first: subprocess.Popen) -> None:
    """End a process that began a session, and all that it started; an assertion fails if that takes long."""
    end = time.monotonic() + 30
    while left := processes_of(first.pid):
        assert time.monotonic() < end, f"still there: {left}"
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        first.poll()
        time.sleep(0.05)
    first.wait(timeout=30)


def wait_until(true: Callable[[], Any], seconds: float, what: str) -> None:
    """Until `true()`; an assertion fails after so many seconds."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.1)


@pytest.fixture(scope="session")
def clean_env(s3_server, tmp_path_factory) -> dict[str, str]:
    """The environment of jobs: no Ray of somebody else's, a cache of our own, S3 on loopback.

    The Ray that a job starts has a token; the clusters that are started here for many jobs have none (WITHOUT_TOKEN).
    """
    ours = ("RAY_", "AWS_", "KASTHURI_", "BOSSDB_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return {
        **kept,
        **s3_server,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
        "KASTHURI_CACHE": str(tmp_path_factory.mktemp("cache")),
    }


@pytest.fixture(scope="session")
def cluster(clean_env) -> Iterator[Cluster]:
    """A real `ray start --head` with four logical CPUs, on ports of its own; gone with all its processes afterwards."""
    folder = tempfile.mkdtemp(prefix="kr", dir="/tmp")  # short: its sockets' names must be
    gcs, dashboard, agent, client = free_ports(4)
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--port", gcs]
    command += ["--dashboard-port", dashboard, "--dashboard-agent-listen-port", agent]
    command += ["--ray-client-server-port", client, "--min-worker-port", "0", "--max-worker-port", "0"]
    command += ["--num-cpus", "4", "--object-store-memory", str(300 * 2**20), "--temp-dir", folder]
    path = f"{Path(sys.executable).parent}:{clean_env['PATH']}"  # `python` must be this one
    head = started(command, clean_env | WITHOUT_TOKEN | {"PATH": path}, Path(folder) / "start.log")
    try:
        wait_until(lambda: answers(dashboard), 120, "the dashboard")
        yield Cluster(f"127.0.0.1:{gcs}", f"http://127.0.0.1:{dashboard}", head.pid)
    finally:
        end_session(head)
        shutil.rmtree(folder, ignore_errors=True)


def started(command: list[str], env: dict[str, str], log: Path, tries: int = 3) -> subprocess.Popen:
    """`ray start`, once it has; a busy machine can take longer than the 30 s that Ray allows itself."""
    for _ in range(tries):
        with log.open("w") as output:
            head = subprocess.Popen(
                command, env=env, stdout=output, stderr=subprocess.STDOUT, start_new_session=True, preexec_fn=_prepare
            )
        wait_until(lambda: "Ray runtime started" in log.read_text() or head.poll() is not None, 120, "ray start")  # noqa: B023
        if head.poll() is None:
            return head
        end_session(head)
    raise AssertionError(log.read_text())


def free_ports(number: int) -> list[str]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(contextlib.closing(socket.socket())) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [str(each.getsockname()[1]) for each in sockets]


def answers(port: str) -> bool:
    try:
        socket.create_connection(("127.0.0.1", int(port)), 1).close()
    except OSError:
        return False
    return True


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> list[str]:
    """`--task` and `--network` of a task and a network that train in seconds."""
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "tiny_task.json").write_text(json.dumps(TINY_TASK))
    (folder / "tiny.json").write_text(json.dumps(TINY_NETWORK))
    return ["--task", str(folder / "tiny_task.json"), "--network", str(folder / "tiny.json")]


@pytest.fixture(scope="session")
def start(clean_env, tmp_path_factory) -> Iterator[Callable[..., JobProcess]]:
    """`start(*arguments, cluster, env, cwd, script)` starts a job; without a cluster it starts a Ray of its own."""
    jobs: list[JobProcess] = []

    def begin(
        *arguments: str,
        cluster: Cluster | None = None,
        env: dict[str, str] | None = None,
        cwd: Path | None = None,
        script: str = "jobs/train.py",
    ) -> JobProcess:
        attached = {"RAY_ADDRESS": cluster.address, **WITHOUT_TOKEN} if cluster else {}
        found = clean_env | attached | (env or {})
        job = JobProcess([str(a) for a in arguments], found, cwd or tmp_path_factory.mktemp("here"), script)
        jobs.append(job)
        return job

    yield begin
    # A job that ended, however it ended, has left nothing; what a test left running is ended here.
    ended = [job for job in jobs if job.process.poll() is not None]
    wait_until(lambda: not any(processes_of(job.process.pid) for job in ended), 30, "the end of what jobs started")
    for job in jobs:
        job.end()


@pytest.fixture(scope="session")
def runs(tmp_path_factory) -> Path:
    """The storage of the runs that several tests look at."""
    return tmp_path_factory.mktemp("runs")


@dataclass(frozen=True)
class Finished:
    """A run that was never interrupted: its folder, its process, and the arguments without `--name`."""

    folder: Path
    job: JobProcess
    arguments: list[str]


@pytest.fixture(scope="session")
def finished(start, cluster, tiny, runs) -> Finished:
    """The tiny run, trained once from start to end."""
    arguments = [*tiny, "--storage", str(runs)]
    job = start(*arguments, "--name", "whole", cluster=cluster).wait()
    assert job.code == 0, job.out + job.err
    return Finished(runs / "whole", job, arguments)


def read_history(folder: Path) -> list[dict[str, str]]:
    """history.csv without what depends on the clock."""
    import csv

    clock = {"seconds", "tiles_per_second"}
    with (folder / "history.csv").open() as file:
        return [{key: value for key, value in row.items() if key not in clock} for row in csv.DictReader(file)]


@pytest.fixture(scope="session")
def same_run() -> Callable[..., None]:
    """Asserts that two runs learnt the same, bit for bit: their weights and their history."""

    def check(one: Path, other: Path, name: str = "tiny_membrane.pt") -> None:
        import torch

        assert read_history(one) == read_history(other)
        first, second = (torch.load(folder / name, weights_only=True) for folder in (one, other))
        assert first.keys() == second.keys()
        differ = [key for key in first if not torch.equal(first[key], second[key])]
        assert not differ, f"{one} and {other} differ in {differ}"

    return check

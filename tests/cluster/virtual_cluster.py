"""Hosts in network namespaces on one bridge, and a Ray cluster on them with a secret token.

Each host has its own address, name, processes and home folder, and can be powered off with everything that runs on it.
The bridge is in a namespace too: the machine's own network is not touched, and nothing outside is reachable.
"""

import contextlib
import ctypes
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CLONE_NEWNET, PR_SET_PDEATHSIG = 0x40000000, 1  # from linux/sched.h and linux/prctl.h
GCS, DASHBOARD, CLIENT = 6379, 8265, 10001
DROPPED_VARIABLES = ("RAY_", "AWS_", "KASTHURI_", "BOSSDB_", "GLOO_", "NCCL_", "PYTEST_")
STORE_BYTES = 100 * 2**20
START_TIMEOUT_S = 300


def missing_requirement() -> str:
    """Return what this machine lacks to create namespaces, or an empty string."""
    for program in ("ip", "unshare", "ss"):
        if shutil.which(program) is None:
            return f"there is no program {program}"
    name = f"kr{os.getpid()}try"
    added = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if added.returncode:
        return added.stderr.strip()
    subprocess.run(["ip", "netns", "delete", name], check=True)
    return ""


def remove_leftovers() -> None:
    """Remove namespaces and folders of killed tests; their names contain the id of the test's process."""
    for path in [*Path("/run/netns").glob("kr*"), *Path("/tmp").glob("kr*lab*")]:
        owner = re.match(r"kr(\d+)(sw|try|h\d|lab)", path.name)
        if owner and not Path(f"/proc/{owner[1]}").exists():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                subprocess.run(["ip", "netns", "delete", path.name], capture_output=True)


def _end_with_parent() -> None:
    """In a new child process: end it together with the tests."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


@dataclass
class Host:
    """A host of the cluster.

    number: the last part of its address. interface: a different name on each host, as on machines of several kinds.
    """

    number: int
    name: str
    namespace: str
    process: subprocess.Popen | None = None
    options: tuple[str, ...] = ()
    log: Path | None = None
    env: dict[str, str] | None = None
    mounts: str = "true"
    network: str = "10.77.0"

    @property
    def log_text(self) -> str:
        return self.log.read_text() if self.log else ""

    @property
    def has_started(self) -> bool:
        return "Ray runtime started" in self.log_text

    @property
    def has_ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    @property
    def address(self) -> str:
        return f"{self.network}.{self.number}"

    @property
    def interface(self) -> str:
        return f"port{self.number}"


@dataclass
class VirtualCluster:
    """A head, workers, a spare host that is off at first, and a host outside the cluster from which jobs are submitted.

    folder: seen by all hosts. working_dir: the package and its jobs, sent along with a job.
    """

    is_substitute = False  # no field: see loopback.py
    names: tuple[str, ...] = ("head", "anna", "bert")
    spare: str = "cora"
    root: Path = ROOT
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix=f"kr{os.getpid()}lab", dir="/tmp")))

    def __post_init__(self) -> None:
        self.token = secrets.token_hex(32)
        self.token_file = self.folder / "token"
        self.token_file.touch(mode=0o600)
        self.token_file.write_text(self.token)
        self.working_dir, self.shared = self.folder / "work", self.folder / "shared"
        self.shared.mkdir()
        copy_package(self.working_dir)
        prefix = f"kr{os.getpid()}"
        self.switch = f"{prefix}sw"
        self.hosts = {
            n: Host(i, n, f"{prefix}h{i}") for i, n in enumerate((*self.names, self.spare, "outside"), start=1)
        }
        self.node_env: dict[str, str] = {}
        self._log_number = 0

    # Network

    def build(self) -> None:
        remove_leftovers()
        _ip("netns", "add", self.switch)
        _ip("-n", self.switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", self.switch, "link", "set", "bridge", "up")
        for host in self.hosts.values():
            _ip("netns", "add", host.namespace)
            ends = ("netns", self.switch, "type", "veth", "peer", "name", host.interface, "netns", host.namespace)
            _ip("link", "add", f"to{host.number}", *ends)
            _ip("-n", self.switch, "link", "set", f"to{host.number}", "master", "bridge", "up")
            _ip("-n", host.namespace, "address", "add", f"{host.address}/24", "dev", host.interface)
            for interface in (host.interface, "lo"):
                _ip("-n", host.namespace, "link", "set", interface, "up")

    def disconnect(self, name: str) -> None:
        """Drop all packets from and to a host, which is not notified."""
        _ip("-n", self.switch, "link", "set", f"to{self.hosts[name].number}", "nomaster")

    def reconnect(self, name: str) -> None:
        _ip("-n", self.switch, "link", "set", f"to{self.hosts[name].number}", "master", "bridge")

    def destroy(self) -> None:
        for host in self.hosts.values():
            self.power_off(host.name)
        for namespace in (*(host.namespace for host in self.hosts.values()), self.switch):
            subprocess.run(["ip", "netns", "delete", namespace], capture_output=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    # Hosts

    def env(self, host: Host, token: bool = True) -> dict[str, str]:
        """Return the environment of programs on a host; without `token` they have no access to the cluster."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(DROPPED_VARIABLES)}
        home = self.folder / "homes" / host.name
        home.mkdir(parents=True, exist_ok=True)
        access = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token_file)} if token else {}
        return kept | access | {
            "HOME": str(home),
            "PATH": f"{Path(sys.executable).parent}:{kept['PATH']}",  # so that `python` is this interpreter
            "PYTHONPATH": str(ROOT),
            "KASTHURI_CACHE": str(home / "cache"),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",
        }  # fmt: skip

    def start(self, name: str, *options: str, env: dict[str, str] | None = None, mounts: str = "true") -> None:
        """Switch a host on and start Ray on it, by default with the options of its last start.

        mounts: a shell command that runs first, in the host's own mount namespace.
        """
        self.launch(name, *options, env=env, mounts=mounts)
        self.wait_until_started(name)

    def launch(self, name: str, *options: str, env: dict[str, str] | None = None, mounts: str = "true") -> None:
        """Do the same without waiting. Call it in the main thread: what a thread starts ends with the thread."""
        host = self.hosts[name]
        host.options, host.env, host.mounts = options or host.options, env, mounts
        role = ("--head", "--port", str(GCS), "--dashboard-host", host.address, "--dashboard-port", str(DASHBOARD))
        if name != self.names[0]:
            role = ("--address", f"{self.hosts[self.names[0]].address}:{GCS}")
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *role]
        ray += ["--node-ip-address", host.address, "--object-store-memory", str(STORE_BYTES)]
        ray += ["--temp-dir", str(self.session_folder(name)), *host.options]
        self._log_number += 1
        host.log = self.folder / f"{name}-{self._log_number}.log"
        with host.log.open("w") as output:
            host.process = subprocess.Popen(
                [*self._on_host(host, mounts), *ray],
                env=self.env(host) | self.node_env | (env or {}),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd="/",
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )

    def _on_host(self, host: Host, mounts: str) -> list[str]:
        """Return the prefix of a command that makes it the first process of a host."""
        isolate = ["unshare", "--uts", "--mount", "--pid", "--fork", "--kill-child=SIGKILL", "--mount-proc"]
        script = f'hostname "$1"; shift; {mounts}; exec "$@"'
        return [*self._in_network_of(host), *isolate, "sh", "-c", script, "sh", host.name]

    def wait_until_started(self, name: str, tries: int = 3) -> None:
        """Wait until Ray runs on a host; retry, because a busy machine can exceed the 30 s that Ray allows."""
        host, log = self.hosts[name], ""
        for left in reversed(range(tries)):
            wait_until(
                lambda: host.has_started or host.has_ended, START_TIMEOUT_S, lambda: f"ray on {name}: {host.log_text}"
            )
            if not host.has_ended:
                return
            log += host.log_text
            if left:
                self.launch(name, env=host.env, mounts=host.mounts)
        raise AssertionError(log)

    def session_folder(self, name: str) -> Path:
        """Return the folder of Ray's logs and sockets on a host; short, because socket names are limited."""
        return self.folder / name[0]

    def power_off(self, name: str) -> None:
        """Kill a host with everything that runs on it."""
        process = self.hosts[name].process
        if process is not None:
            process.kill()
            process.wait(timeout=60)
            wait_until(lambda: not self.processes(name), 30, f"no process runs on {name}")

    def processes(self, name: str, text: str = "") -> list[int]:
        """Return the ids of the processes on a host whose command line contains the text."""
        with contextlib.suppress(OSError):
            wanted = os.stat(f"/run/netns/{self.hosts[name].namespace}").st_ino
            return [pid for pid, inode, command in _all_processes() if inode == wanted and text in command]
        return []

    def run_in_network_of(self, name: str, command: list[str]) -> str:
        """Run a program in the network of a host, and return its output."""
        command = [*self._in_network_of(self.hosts[name]), *command]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def _in_network_of(self, host: Host) -> list[str]:
        return ["ip", "netns", "exec", host.namespace]

    def run(
        self, command: list[str], token: bool = True, timeout_s: float = 120, **env: str
    ) -> subprocess.CompletedProcess:
        """Run a program on the outside host until it ends."""
        outside = self.hosts["outside"]
        return subprocess.run(
            [*self._in_network_of(outside), *command],
            env=self.env(outside, token) | env,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )

    # The cluster as seen from the outside host

    def request(self, path: str, body: Any = None, token: str | None = None) -> Any:
        """Return the answer of the dashboard. body: JSON to post.

        Raises urllib.error.HTTPError if the dashboard refuses.
        """
        url = f"http://{self.hosts[self.names[0]].address}:{DASHBOARD}{path}"
        request = urllib.request.Request(url, data=None if body is None else json.dumps(body).encode())
        request.add_header("Authorization", f"Bearer {token or self.token}")

        def read() -> Any:
            direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with direct.open(request, timeout=20) as answer:
                return json.loads(answer.read())

        return self._call_outside(read)

    def _call_outside(self, function: Callable[[], Any]) -> Any:
        """Return `function()`, called on the outside host."""
        return call_in_namespace(self.hosts["outside"].namespace, function)

    def alive_hosts(self) -> set[str]:
        """Return the names of the hosts that Ray considers alive."""
        nodes = self.request("/api/v0/nodes?limit=1000")["data"]["result"]["result"]
        by_address = {host.address: host.name for host in self.hosts.values()}
        return {by_address[row["node_ip"]] for row in nodes if row["state"] == "ALIVE"}

    def submit(self, *arguments: object, ship: bool = True, **env: str) -> "SubmittedJob":
        """Submit a job by `ray job submit`: `submit("jobs/train.py", "--task", ...)`.

        ship: send the package along; otherwise the nodes run the package that is installed on them.
        """
        command = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--no-wait"]
        command += ["--address", f"http://{self.hosts[self.names[0]].address}:{DASHBOARD}"]
        command += ["--working-dir", str(self.working_dir)] if ship else []
        command += ["--runtime-env-json", json.dumps({"env_vars": env})] if env else []
        submitted = self.run([*command, "--", "python", *map(str, arguments)], timeout_s=180)
        assert submitted.returncode == 0, submitted.stdout + submitted.stderr
        words = submitted.stdout.replace("'", " ").split()
        return SubmittedJob(self, next(word for word in words if word.startswith("raysubmit_")))

    def stop_jobs(self) -> None:
        """Stop every job that still runs."""
        for job in self.request("/api/jobs/"):
            if job["status"] in ("PENDING", "RUNNING"):
                self.request(f"/api/jobs/{job['submission_id']}/stop", body={})


@dataclass
class SubmittedJob:
    """A job that was submitted to the cluster."""

    cluster: VirtualCluster
    id: str

    @property
    def status(self) -> str:
        return self.cluster.request(f"/api/jobs/{self.id}")["status"]

    @property
    def log(self) -> str:
        return self.cluster.request(f"/api/jobs/{self.id}/logs")["logs"]

    def wait_until(self, condition: Callable[[], Any], what: str, timeout_s: float = 600) -> None:
        """Wait until `condition()` is true; fail if the job ends before."""
        end = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < end, f"not within {timeout_s} s: {what}\n{self.log}"
            assert self.status in ("PENDING", "RUNNING") or condition(), f"ended before {what}:\n{self.log}"
            time.sleep(0.2)

    def wait(self, timeout_s: float = 600) -> str:
        """Wait until the job has ended, and return its status."""
        wait_until(lambda: self.status not in ("PENDING", "RUNNING"), timeout_s, lambda: f"{self.id} ends:\n{self.log}")
        return self.status


def copy_package(folder: Path) -> None:
    """Copy the jobs and the package of this checkout to a folder."""
    for name in ("jobs", "kasthuri_ray"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))


def _ip(*arguments: str) -> None:
    process = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    assert process.returncode == 0, f"ip {' '.join(arguments)}: {process.stderr}"


def _all_processes() -> list[tuple[int, int, str]]:
    """Return the id, network namespace and command line of every process."""
    processes = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            inode = os.stat(folder / "ns" / "net").st_ino
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if command:  # empty for ended processes and kernel threads
                processes.append((int(folder.name), inode, command))
    return processes


def call_in_namespace(name: str, function: Callable[[], Any]) -> Any:
    """Return `function()`, called in a thread of this network namespace."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            with open(f"/run/netns/{name}") as namespace:
                if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), f"setns {name}")
            outcome.append((function(), None))
        except BaseException as error:
            outcome.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(timeout=60)
    assert outcome, f"no answer in {name}"
    value, error = outcome[0]
    if error is not None:
        raise error
    return value


def wait_until(condition: Callable[[], Any], timeout_s: float, what: "str | Callable[[], str]") -> None:
    """Wait until `condition()` is true; fail after the timeout."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"not within {timeout_s} s: {what if isinstance(what, str) else what()}"
        time.sleep(0.2)

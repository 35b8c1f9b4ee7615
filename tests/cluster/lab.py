"""Hosts made of network namespaces on one bridge, with a Ray cluster over them whose token nobody else has.

Each host has an address, a name, processes and a home of its own, and can be ended with all that runs on it.
The bridge lies in a namespace too: nothing of the machine's own network is touched, and nothing outside is reached.
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
CLONE_NEWNET, PR_SET_PDEATHSIG = 0x40000000, 1
GCS, DASHBOARD, CLIENT = 6379, 8265, 10001
NOT_OURS = ("RAY_", "AWS_", "KASTHURI_", "BOSSDB_", "GLOO_", "NCCL_", "PYTEST_")
STORE_BYTES = 100 * 2**20
START_S = 300


def missing() -> str:
    """What this machine lacks to make namespaces; empty if nothing."""
    for program in ("ip", "unshare", "ss"):
        if shutil.which(program) is None:
            return f"there is no program {program}"
    name = f"kr{os.getpid()}try"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if made.returncode:
        return made.stderr.strip()
    subprocess.run(["ip", "netns", "delete", name], check=True)
    return ""


def sweep() -> None:
    """Take away what tests left that were killed: namespaces and folders, which have their process's id in the name."""
    for path in [*Path("/run/netns").glob("kr*"), *Path("/tmp").glob("kr*lab*")]:
        owner = re.match(r"kr(\d+)(sw|try|h\d|lab)", path.name)
        if owner and not Path(f"/proc/{owner[1]}").exists():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                subprocess.run(["ip", "netns", "delete", path.name], capture_output=True)


def _prepare() -> None:
    """In a process of ours, before it is what it shall be: it does not outlive the tests."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


@dataclass
class Host:
    """number: the last part of its address. interface: another name on each, as on machines of several kinds."""

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
    def said(self) -> str:
        return self.log.read_text() if self.log else ""

    @property
    def has_started(self) -> bool:
        return "Ray runtime started" in self.said

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
class Lab:
    """A head, workers, one more that is not started, and a place outside of the cluster from where people submit.

    folder: what all hosts see. work: what is submitted with a job: the package and its jobs.
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
        self.work, self.shared = self.folder / "work", self.folder / "shared"
        self.shared.mkdir()
        copy_package(self.work)
        prefix = f"kr{os.getpid()}"
        self.switch = f"{prefix}sw"
        self.hosts = {
            n: Host(i, n, f"{prefix}h{i}") for i, n in enumerate((*self.names, self.spare, "outside"), start=1)
        }
        self.env_of_nodes: dict[str, str] = {}
        self._log_number = 0

    # The network

    def build(self) -> None:
        sweep()
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

    def cut(self, name: str) -> None:
        """From now on nothing arrives from this host, or at it; it does not see why."""
        _ip("-n", self.switch, "link", "set", f"to{self.hosts[name].number}", "nomaster")

    def heal(self, name: str) -> None:
        _ip("-n", self.switch, "link", "set", f"to{self.hosts[name].number}", "master", "bridge")

    def destroy(self) -> None:
        for host in self.hosts.values():
            self.power_off(host.name)
        for namespace in (*(host.namespace for host in self.hosts.values()), self.switch):
            subprocess.run(["ip", "netns", "delete", namespace], capture_output=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    # The hosts

    def env(self, host: Host, token: bool = True) -> dict[str, str]:
        """What programs on a host find: without `token` nothing that lets them in."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(NOT_OURS)}
        home = self.folder / "homes" / host.name
        home.mkdir(parents=True, exist_ok=True)
        let_in = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token_file)} if token else {}
        return kept | let_in | {
            "HOME": str(home),
            "PATH": f"{Path(sys.executable).parent}:{kept['PATH']}",  # `python` must be this one
            "PYTHONPATH": str(ROOT),
            "KASTHURI_CACHE": str(home / "cache"),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",
        }  # fmt: skip

    def start(self, name: str, *options: str, env: dict[str, str] | None = None, mounts: str = "true") -> None:
        """Switch a host on and start Ray on it, as it was started the last time if nothing is said.

        mounts: a shell command that is run first, in the host's own view of the disks.
        """
        self.launch(name, *options, env=env, mounts=mounts)
        self.until_started(name)

    def launch(self, name: str, *options: str, env: dict[str, str] | None = None, mounts: str = "true") -> None:
        """The same without a wait. In the main thread: what a thread began ends with it."""
        host = self.hosts[name]
        host.options, host.env, host.mounts = options or host.options, env, mounts
        joins = ("--head", "--port", str(GCS), "--dashboard-host", host.address, "--dashboard-port", str(DASHBOARD))
        if name != self.names[0]:
            joins = ("--address", f"{self.hosts[self.names[0]].address}:{GCS}")
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *joins]
        ray += ["--node-ip-address", host.address, "--object-store-memory", str(STORE_BYTES)]
        ray += ["--temp-dir", str(self.session(name)), *host.options]
        self._log_number += 1
        host.log = self.folder / f"{name}-{self._log_number}.log"
        with host.log.open("w") as output:
            host.process = subprocess.Popen(
                [*self._on(host, mounts), *ray],
                env=self.env(host) | self.env_of_nodes | (env or {}),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd="/",
                start_new_session=True,
                preexec_fn=_prepare,
            )

    def _on(self, host: Host, mounts: str) -> list[str]:
        """The words before a command that make it the first process of a host."""
        own = ["unshare", "--uts", "--mount", "--pid", "--fork", "--kill-child=SIGKILL", "--mount-proc"]
        script = f'hostname "$1"; shift; {mounts}; exec "$@"'
        return [*self._inside(host), *own, "sh", "-c", script, "sh", host.name]

    def until_started(self, name: str, tries: int = 3) -> None:
        """Until Ray runs on a host; a busy machine can take longer than the 30 s that Ray allows itself."""
        host, said = self.hosts[name], ""
        for left in reversed(range(tries)):
            wait_until(lambda: host.has_started or host.has_ended, START_S, lambda: f"ray on {name}: {host.said}")
            if not host.has_ended:
                return
            said += host.said
            if left:
                self.launch(name, env=host.env, mounts=host.mounts)
        raise AssertionError(said)

    def session(self, name: str) -> Path:
        """Where Ray on this host keeps its logs and sockets, whose names must be short."""
        return self.folder / name[0]

    def power_off(self, name: str) -> None:
        """End a host with all that runs on it, at once."""
        process = self.hosts[name].process
        if process is not None:
            process.kill()
            process.wait(timeout=60)
            wait_until(lambda: not self.processes(name), 30, f"the end of what ran on {name}")

    def processes(self, name: str, word: str = "") -> list[int]:
        """The ids of what runs on a host, with this word in its command line."""
        with contextlib.suppress(OSError):
            wanted = os.stat(f"/run/netns/{self.hosts[name].namespace}").st_ino
            return [pid for pid, inode, command in _all_processes() if inode == wanted and word in command]
        return []

    def inspect(self, name: str, command: list[str]) -> str:
        """What a program prints that looks at a host's network."""
        shown = subprocess.run([*self._inside(self.hosts[name]), *command], capture_output=True, text=True, check=True)
        return shown.stdout

    def _inside(self, host: Host) -> list[str]:
        return ["ip", "netns", "exec", host.namespace]

    def run(
        self, command: list[str], token: bool = True, seconds: float = 120, **env: str
    ) -> subprocess.CompletedProcess:
        """A program on the host outside, to its end."""
        outside = self.hosts["outside"]
        return subprocess.run(
            [*self._inside(outside), *command],
            env=self.env(outside, token) | env,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=seconds,
        )

    # The cluster, seen from outside

    def ask(self, path: str, body: Any = None, token: str | None = None) -> Any:
        """What the dashboard answers; urllib.error.HTTPError where it refuses. body: JSON that is posted."""
        url = f"http://{self.hosts[self.names[0]].address}:{DASHBOARD}{path}"
        request = urllib.request.Request(url, data=None if body is None else json.dumps(body).encode())
        request.add_header("Authorization", f"Bearer {token or self.token}")

        def read() -> Any:
            direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with direct.open(request, timeout=20) as answer:
                return json.loads(answer.read())

        return self._outside(read)

    def _outside(self, call: Callable[[], Any]) -> Any:
        """What `call()` gives on the host outside."""
        return in_namespace(self.hosts["outside"].namespace, call)

    def living(self) -> set[str]:
        """The names of the hosts that Ray takes for alive."""
        found = self.ask("/api/v0/nodes?limit=1000")["data"]["result"]["result"]
        by_address = {host.address: host.name for host in self.hosts.values()}
        return {by_address[row["node_ip"]] for row in found if row["state"] == "ALIVE"}

    def submit(self, *arguments: object, ship: bool = True, **env: str) -> "Job":
        """Submit a job as a person does: `submit("jobs/train.py", "--task", ...)`.

        ship: send the package with it; else the nodes run what is installed on them.
        """
        command = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--no-wait"]
        command += ["--address", f"http://{self.hosts[self.names[0]].address}:{DASHBOARD}"]
        command += ["--working-dir", str(self.work)] if ship else []
        command += ["--runtime-env-json", json.dumps({"env_vars": env})] if env else []
        sent = self.run([*command, "--", "python", *map(str, arguments)], seconds=180)
        assert sent.returncode == 0, sent.stdout + sent.stderr
        return Job(self, next(w for w in sent.stdout.replace("'", " ").split() if w.startswith("raysubmit_")))

    def stop_jobs(self) -> None:
        """End every job that still runs."""
        for job in self.ask("/api/jobs/"):
            if job["status"] in ("PENDING", "RUNNING"):
                self.ask(f"/api/jobs/{job['submission_id']}/stop", body={})


@dataclass
class Job:
    """A submitted job."""

    lab: Lab
    id: str

    @property
    def status(self) -> str:
        return self.lab.ask(f"/api/jobs/{self.id}")["status"]

    @property
    def log(self) -> str:
        return self.lab.ask(f"/api/jobs/{self.id}/logs")["logs"]

    def until(self, true: Callable[[], Any], what: str, seconds: float = 600) -> None:
        """Until `true()`; an assertion fails where the job ends before."""
        end = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < end, f"not within {seconds} s: {what}\n{self.log}"
            assert self.status in ("PENDING", "RUNNING") or true(), f"ended before {what}:\n{self.log}"
            time.sleep(0.2)

    def wait(self, seconds: float = 600) -> str:
        """The status at the end."""
        wait_until(lambda: self.status not in ("PENDING", "RUNNING"), seconds, lambda: f"{self.id} ends:\n{self.log}")
        return self.status


def copy_package(folder: Path) -> None:
    """The jobs and the package of this checkout, in another folder."""
    for name in ("jobs", "kasthuri_ray"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))


def _ip(*arguments: str) -> None:
    made = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    assert made.returncode == 0, f"ip {' '.join(arguments)}: {made.stderr}"


def _all_processes() -> list[tuple[int, int, str]]:
    """Of each process its id, the number of its network namespace, and its command line."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            inode = os.stat(folder / "ns" / "net").st_ino
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if command:  # else ended already, or the kernel's
                found.append((int(folder.name), inode, command))
    return found


def in_namespace(name: str, call: Callable[[], Any]) -> Any:
    """What `call()` gives in a thread that is in this network namespace."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            with open(f"/run/netns/{name}") as namespace:
                if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), f"setns {name}")
            outcome.append((call(), None))
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


def wait_until(true: Callable[[], Any], seconds: float, what: "str | Callable[[], str]") -> None:
    """Until `true()`; an assertion fails after so many seconds."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not within {seconds} s: {what if isinstance(what, str) else what()}"
        time.sleep(0.2)

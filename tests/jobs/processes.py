"""Processes of tests: jobs, nodes of Ray, and sessions of processes that end together."""

import contextlib
import ctypes
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG = 1  # from linux/prctl.h
FIXED_PORTS = (20000, 32000)
TIMEOUT_S = 240  # of one job: seconds on an idle machine, minutes on a busy one


def _prepare_process() -> None:
    """In a new child process: let Ctrl-C reach it, and end it together with the tests."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # background jobs of a shell ignore it
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class JobProcess:
    """A job that runs as a process: its lines as they are printed, its exit code, and signals to it."""

    def __init__(self, command: list[str], env: dict[str, str], cwd: Path) -> None:
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            command,
            env=env,
            cwd=cwd,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=_prepare_process,
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

    def wait(self, timeout_s: float = TIMEOUT_S) -> "JobProcess":
        """Wait until the process has ended."""
        self.process.wait(timeout=timeout_s)
        for reader in self._readers:
            reader.join(timeout=10)
        return self

    def wait_for_line(self, text: str, timeout_s: float = TIMEOUT_S) -> str:
        """Wait for a line that contains the text, and return the line."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            matches = [line for line in list(self.lines) if text in line]
            if matches:
                return matches[0]
            if self.process.poll() is not None:
                self.wait()
                assert text in self.out, f"ended with {self.code} before {text!r}:\n{self.out}\n{self.err}"
            time.sleep(0.05)
        raise AssertionError(f"no {text!r} within {timeout_s} s:\n{self.out}\n{self.err}")

    @property
    def code(self) -> int | None:
        return self.process.returncode

    def send_signal(self, number: int) -> None:
        self.process.send_signal(number)

    def kill_session(self) -> None:
        """Kill all that is left of the job and of the Ray that it started."""
        kill_session(self.process)


def session_processes(session: int) -> dict[int, str]:
    """Return the ids and command lines of the living processes of a session."""
    processes = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] not in "ZX":
                processes[int(stat.parent.name)] = (stat.parent / "cmdline").read_text().replace("\0", " ")[:100]
    return processes


def kill_session(leader: subprocess.Popen) -> None:
    """Kill the leader of a session and all that it started; fail if they do not end soon."""
    end = time.monotonic() + 30
    while alive := session_processes(leader.pid):
        assert time.monotonic() < end, f"still running: {alive}"
        for pid in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        leader.poll()
        time.sleep(0.05)
    leader.wait(timeout=30)


def wait_until(condition: Callable[[], Any], timeout_s: float, what: str) -> None:
    """Wait until `condition()` is true; fail after the timeout."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"not within {timeout_s} s: {what}"
        time.sleep(0.1)


def run_ray_start(command: list[str], env: dict[str, str], log: Path, tries: int = 3) -> subprocess.Popen:
    """Run `ray start` and wait until Ray runs; retry, because a busy machine can exceed the 30 s that Ray allows."""
    for _ in range(tries):
        with log.open("w") as output:
            node = subprocess.Popen(
                command,
                env=env,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_prepare_process,
            )
        wait_until(lambda: "Ray runtime started" in log.read_text() or node.poll() is not None, 120, "ray start")  # noqa: B023
        if node.poll() is None:
            return node
        kill_session(node)
    raise AssertionError(log.read_text())


def free_ports(number: int) -> list[str]:
    """Return ports below those that the system gives to others, such as to another Ray that starts meanwhile."""
    ports: set[int] = set()
    while len(ports) < number:
        port = random.randrange(*FIXED_PORTS)
        with contextlib.suppress(OSError), contextlib.closing(socket.socket()) as tried:
            tried.bind(("127.0.0.1", port))
            ports.add(port)
    return [str(port) for port in ports]


def is_listening(port: str) -> bool:
    try:
        socket.create_connection(("127.0.0.1", int(port)), 1).close()
    except OSError:
        return False
    return True

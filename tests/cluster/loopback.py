"""Hosts on one machine without privileges: Rays at addresses of their own on the loopback.

They stand in for the lab's hosts where a person may make no network namespaces. What needs a network or a disk of each
host's own is skipped, in words.
"""

import contextlib
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
from lab import Host, Lab, wait_until

MARK = "KASTHURI_TEST_HOST"  # in the environment of all that runs on a host


class Loopback(Lab):
    """The same cluster; its hosts share this machine's name, disks and processes."""

    is_substitute = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for host in self.hosts.values():
            host.network = "127.77.0"

    def build(self) -> None:
        """There is nothing to build: all of 127.0.0.0/8 is here."""

    def destroy(self) -> None:
        for name in self.hosts:
            self.power_off(name)
        shutil.rmtree(self.folder, ignore_errors=True)

    def cut(self, name: str) -> NoReturn:
        pytest.skip("only a host in a network namespace can be cut off (root on Linux)")

    def heal(self, name: str) -> None:
        """Nothing was cut."""

    def inspect(self, name: str, command: list[str]) -> NoReturn:
        pytest.skip("hosts that share a machine have no ports of their own to knock at (root on Linux)")

    def env(self, host: Host, token: bool = True) -> dict[str, str]:
        return super().env(host, token) | {MARK: f"{self.folder}/{host.name}"}

    def processes(self, name: str, word: str = "") -> list[int]:
        mark, found = f"{MARK}={self.folder}/{name}\0".encode(), []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # ended, or somebody else's
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                # As it lies there: a process that named itself has overwritten the first part.
                if command and word in command and mark in (folder / "environ").read_bytes():
                    found.append(int(folder.name))
        return found

    def power_off(self, name: str) -> None:
        process = self.hosts[name].process
        if process is None:
            return

        def ended() -> bool:
            for pid in self.processes(name):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return not self.processes(name)

        wait_until(ended, 60, f"the end of what ran on {name}")
        process.wait(timeout=60)

    def _inside(self, host: Host) -> list[str]:
        return []

    def _on(self, host: Host, mounts: str) -> list[str]:
        if mounts != "true":
            pytest.skip("hosts that share a machine have no disks of their own (root on Linux)")
        return []

    def _outside(self, call: Callable[[], Any]) -> Any:
        return call()

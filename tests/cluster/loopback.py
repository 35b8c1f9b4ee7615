"""Hosts on one machine without privileges: Ray nodes at different addresses of the loopback.

They replace the hosts of `virtual_cluster` where the user cannot create network namespaces. Tests that need a network
or a disk of each host's own are skipped with the reason.
"""

import contextlib
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
from virtual_cluster import Host, VirtualCluster, wait_until

MARK = "KASTHURI_TEST_HOST"  # environment variable of all processes of a host


class LoopbackCluster(VirtualCluster):
    """The same cluster; its hosts share the name, disks and processes of this machine."""

    is_substitute = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for host in self.hosts.values():
            host.network = "127.77.0"

    def build(self) -> None:
        """Do nothing: all of 127.0.0.0/8 exists already."""

    def destroy(self) -> None:
        for name in self.hosts:
            self.power_off(name)
        shutil.rmtree(self.folder, ignore_errors=True)

    def disconnect(self, name: str) -> NoReturn:
        pytest.skip("only a host in a network namespace can be disconnected (root on Linux)")

    def reconnect(self, name: str) -> None:
        """Do nothing: no host was disconnected."""

    def run_in_network_of(self, name: str, command: list[str]) -> NoReturn:
        pytest.skip("hosts that share a machine have no ports of their own to scan (root on Linux)")

    def env(self, host: Host, token: bool = True) -> dict[str, str]:
        return super().env(host, token) | {MARK: f"{self.folder}/{host.name}"}

    def processes(self, name: str, text: str = "") -> list[int]:
        mark, pids = f"{MARK}={self.folder}/{name}\0".encode(), []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # ended, or of another user
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                # A process that has changed its title has overwritten the start of its environment, not the mark.
                if command and text in command and mark in (folder / "environ").read_bytes():
                    pids.append(int(folder.name))
        return pids

    def power_off(self, name: str) -> None:
        process = self.hosts[name].process
        if process is None:
            return

        def has_ended() -> bool:
            for pid in self.processes(name):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return not self.processes(name)

        wait_until(has_ended, 60, f"no process runs on {name}")
        process.wait(timeout=60)

    def _in_network_of(self, host: Host) -> list[str]:
        return []

    def _on_host(self, host: Host, mounts: str) -> list[str]:
        if mounts != "true":
            pytest.skip("hosts that share a machine have no disks of their own (root on Linux)")
        return []

    def _call_outside(self, function: Callable[[], Any]) -> Any:
        return function()

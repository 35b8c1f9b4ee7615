"""How ranks on several hosts find each other: by the network that their nodes are known by, which nobody has to name.

Gloo asks for the address of the machine's own name, which on many machines is that of the loopback; NCCL takes the
first interface that it likes. Ray knows each node by an address that all others reach: the interface that holds it is
the right one.
"""

from __future__ import annotations

import os
import socket
from typing import Any

from ray.train.torch import TorchConfig

VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


_Backend: Any = TorchConfig().backend_cls


def find_interface(address: str) -> str | None:
    """The name of this machine's network interface that holds an address; None where none does."""
    import psutil

    held = socket.AF_INET6 if ":" in address else socket.AF_INET
    for name, entries in psutil.net_if_addrs().items():
        # Of an IPv6 address the zone follows a percent sign.
        if any(entry.family == held and entry.address.partition("%")[0] == address for entry in entries):
            return name
    return None


def set_network_interface(address: str) -> None:
    """Tell gloo and NCCL by which interface this process is reached, unless a person has told them."""
    name = find_interface(address)
    for variable in VARIABLES if name else ():
        os.environ.setdefault(variable, str(name))


def _address() -> str:
    import ray

    return ray.util.get_node_ip_address()


def _name_interface_here() -> None:
    set_network_interface(_address())


class _InterfaceBackend(_Backend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        if len(set(worker_group.execute(_address))) > 1:
            worker_group.execute(_name_interface_here)
        super().on_start(worker_group, backend_config)


class MultiHostTorchConfig(TorchConfig):
    """Ray's setup of torch's process group, in which each rank names its interface first where there are many hosts."""

    @property
    def backend_cls(self) -> Any:
        return _InterfaceBackend

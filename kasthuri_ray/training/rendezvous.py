"""Network interfaces for gloo and NCCL, so that ranks on several hosts find each other without configuration.

Gloo uses the address of the machine's own host name, which on many machines is that of the loopback interface; NCCL
takes the first interface that seems usable. Ray knows each node by an address that all others reach, so the interface
with this address is the right one.
"""

from __future__ import annotations

import os
import socket
from typing import Any

from ray.train.torch import TorchConfig

INTERFACE_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")

_TorchBackend: Any = TorchConfig().backend_cls


class MultiHostTorchConfig(TorchConfig):
    """Ray's setup of torch's process group; on several hosts each rank first sets its network interface."""

    @property
    def backend_cls(self) -> Any:
        return _InterfaceBackend


def set_network_interface(address: str) -> None:
    """Have gloo and NCCL use the interface that has this address, unless the environment already names one."""
    name = find_interface(address)
    for variable in INTERFACE_VARIABLES if name else ():
        os.environ.setdefault(variable, str(name))


def find_interface(address: str) -> str | None:
    """Return the name of this machine's network interface that has an address; None if there is none."""
    import psutil

    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    for name, entries in psutil.net_if_addrs().items():
        # In an IPv6 address, the zone follows a percent sign.
        if any(entry.family == family and entry.address.partition("%")[0] == address for entry in entries):
            return name
    return None


class _InterfaceBackend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        if len(set(worker_group.execute(_node_address))) > 1:
            worker_group.execute(_set_node_interface)
        super().on_start(worker_group, backend_config)


def _set_node_interface() -> None:
    set_network_interface(_node_address())


def _node_address() -> str:
    import ray

    return ray.util.get_node_ip_address()

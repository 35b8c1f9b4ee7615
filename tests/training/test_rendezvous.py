"""The network interfaces by which ranks on several hosts find each other."""

import os
import socket

import pytest
from ray.train.torch import TorchConfig

from kasthuri_ray.training import rendezvous
from kasthuri_ray.training.rendezvous import MultiHostTorchConfig, find_interface, set_network_interface


@pytest.fixture(autouse=True)
def no_interface_set(monkeypatch):
    for variable in rendezvous.INTERFACE_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    return monkeypatch


def test_the_interface_is_found_by_its_address():
    names = [name for _, name in socket.if_nameindex()]
    assert find_interface("127.0.0.1") in names
    assert find_interface("192.0.2.77") is None


def test_an_interface_that_the_environment_names_is_kept(no_interface_set):
    no_interface_set.setenv("NCCL_SOCKET_IFNAME", "ib0")
    set_network_interface("127.0.0.1")
    assert os.environ["GLOO_SOCKET_IFNAME"] == find_interface("127.0.0.1")
    assert os.environ["NCCL_SOCKET_IFNAME"] == "ib0"
    no_interface_set.delenv("GLOO_SOCKET_IFNAME")
    set_network_interface("192.0.2.77")
    assert "GLOO_SOCKET_IFNAME" not in os.environ


class WorkerGroup:
    """A group of workers at these addresses, which records the functions that are executed on it."""

    def __init__(self, *addresses):
        self.addresses, self.executed = addresses, []

    def execute(self, work):
        self.executed.append(work)
        return list(self.addresses) if work is rendezvous._node_address else None


@pytest.mark.parametrize(("addresses", "is_set"), [(("10.0.0.1",) * 2, False), (("10.0.0.1", "10.0.0.2"), True)])
def test_interfaces_are_set_on_several_hosts_only_and_before_the_process_group_starts(monkeypatch, addresses, is_set):
    executed_before_start = []

    def on_start(self, group, config):
        executed_before_start.append(list(group.executed))

    config = MultiHostTorchConfig()
    assert isinstance(config, TorchConfig)
    backend = config.backend_cls
    monkeypatch.setattr(TorchConfig().backend_cls, "on_start", on_start)
    backend().on_start(WorkerGroup(*addresses), config)
    expected = [rendezvous._node_address, *([rendezvous._set_node_interface] if is_set else [])]
    assert executed_before_start == [expected]

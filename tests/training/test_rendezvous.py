"""How ranks on several hosts find each other."""

import socket

import pytest
from ray.train.torch import TorchConfig

from kasthuri_ray.training import rendezvous
from kasthuri_ray.training.rendezvous import MultiHostTorchConfig, find_interface, set_network_interface


@pytest.fixture(autouse=True)
def nothing_named(monkeypatch):
    for variable in rendezvous.VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    return monkeypatch


def test_the_interface_is_the_one_that_holds_the_address():
    names = [name for _, name in socket.if_nameindex()]
    assert find_interface("127.0.0.1") in names
    assert find_interface("192.0.2.77") is None


def test_what_a_person_says_wins(nothing_named):
    import os

    nothing_named.setenv("NCCL_SOCKET_IFNAME", "ib0")
    set_network_interface("127.0.0.1")
    assert os.environ["GLOO_SOCKET_IFNAME"] == find_interface("127.0.0.1")
    assert os.environ["NCCL_SOCKET_IFNAME"] == "ib0"
    nothing_named.delenv("GLOO_SOCKET_IFNAME")
    set_network_interface("192.0.2.77")
    assert "GLOO_SOCKET_IFNAME" not in os.environ


class Group:
    """A group of workers at these addresses, which notes what is run on it."""

    def __init__(self, *addresses):
        self.addresses, self.run = addresses, []

    def execute(self, work):
        self.run.append(work)
        return list(self.addresses) if work is rendezvous._address else None


@pytest.mark.parametrize(("addresses", "named"), [(("10.0.0.1",) * 2, False), (("10.0.0.1", "10.0.0.2"), True)])
def test_interfaces_are_named_before_the_group_is_made_and_only_over_several_hosts(monkeypatch, addresses, named):
    made = []
    config = MultiHostTorchConfig()
    assert isinstance(config, TorchConfig)
    backend = config.backend_cls
    monkeypatch.setattr(TorchConfig().backend_cls, "on_start", lambda self, group, config: made.append(list(group.run)))
    backend().on_start(Group(*addresses), config)
    expected = [rendezvous._address, *([rendezvous._name_interface_here] if named else [])]
    assert made == [expected]

"""By which token Ray is spoken to, and what is asked of an autoscaler."""

import os
import re
import sys

import pytest

from kasthuri_ray import resources
from kasthuri_ray.resources import Cluster, Demand, check_demand, settle_token


@pytest.fixture
def home(monkeypatch, tmp_path):
    """A home without a token, and an environment that says nothing."""
    for name in ("RAY_AUTH_MODE", *resources.TOKEN_VARIABLES):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delitem(sys.modules, "ray", raising=False)  # as in a job, which imports it afterwards
    return tmp_path


def said() -> dict[str, str]:
    return {name: os.environ[name] for name in ("RAY_AUTH_MODE", *resources.TOKEN_VARIABLES) if name in os.environ}


def test_a_ray_of_our_own_has_a_token_that_lies_in_no_file(home):
    settle_token(attach=False)
    found = said()
    assert found["RAY_AUTH_MODE"] == "token"
    assert re.fullmatch("[0-9a-f]{64}", found["RAY_AUTH_TOKEN"])
    assert not list(home.iterdir())
    settle_token(attach=False)
    assert said() == found, "a process keeps the token of its Ray"


def test_a_person_may_say_otherwise(home, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    settle_token(attach=False)
    assert said() == {"RAY_AUTH_MODE": "disabled"}
    monkeypatch.delenv("RAY_AUTH_MODE")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/a/token")
    settle_token(attach=False)
    assert said() == {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "/a/token"}


def test_to_attach_the_token_is_the_one_of_the_home(home):
    settle_token(attach=True)
    assert said() == {"RAY_AUTH_MODE": "disabled"}
    os.environ.pop("RAY_AUTH_MODE")
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text("x")
    settle_token(attach=True)
    assert said() == {"RAY_AUTH_MODE": "token"}


@pytest.mark.parametrize("grows", [True, False])
def test_a_wish_for_more_is_taken_back_once_it_is_there_or_in_vain(monkeypatch, grows):
    """Else idle nodes are kept, and paid for, after the job has ended."""
    wishes, sizes = [], iter([Cluster(1, 0, 1), *[Cluster(8 if grows else 1, 0, 2)] * 100])
    held = [next(sizes)]

    def now() -> Cluster:
        return held[0]

    def ask(num_cpus=None, bundles=None) -> None:
        wishes.append((num_cpus, bundles))
        held[0] = next(sizes)

    monkeypatch.setattr(resources, "cluster", now)
    monkeypatch.setattr(resources, "free", now)
    monkeypatch.setattr("ray.autoscaler.sdk.request_resources", ask)
    demand = Demand(4, 1.0, noun="actors", flag="--actors")
    if grows:
        check_demand(demand, 5.0, lambda line: None)
    else:
        with pytest.raises(ValueError, match=r"4 actors need 4 CPUs, the cluster has 1 \(waited 0.5 s\)"):
            check_demand(demand, 0.5, lambda line: None)
    assert wishes == [(4, [{"CPU": 1.0}] * 4), (0, [])]
    wishes.clear()
    held[0] = Cluster(8, 0, 2)
    check_demand(demand, 5.0, lambda line: None)
    assert not wishes

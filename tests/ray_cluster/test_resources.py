"""What is said before a job's first line, by which token Ray is spoken to, and of a cluster that is too small."""

import os
import re
import subprocess
import sys

import pytest

from kasthuri_ray import cli
from kasthuri_ray.ray_cluster import connection, resources
from kasthuri_ray.ray_cluster.connection import choose_auth_token
from kasthuri_ray.ray_cluster.resources import ClusterResources, ResourceDemand, require_resources


@pytest.fixture
def ray_init(monkeypatch):
    """What takes the place of `ray.init`; `failures` are raised first."""
    import ray

    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    calls: list[dict] = []
    failures: list[Exception] = []

    def init(**options):
        calls.append({**options, "told": os.environ.get("RAY_API_SERVER_ADDRESS")})
        if failures:
            raise failures.pop(0)

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr("kasthuri_ray.hardware.usable_cpus", lambda: 2)
    return calls, failures


def test_a_line_says_that_ray_starts_and_leaves_the_output_to_scripts(ray_init, capsys):
    calls, failures = ray_init
    connection._start(False, 40)
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "starting Ray on this machine (2 CPUs)\n")
    assert calls[0]["num_cpus"] == 2
    assert calls[0]["told"] == "none://none", "what Ray starts looks for no dashboard"
    assert "RAY_API_SERVER_ADDRESS" not in os.environ, "what this process starts later does"
    failures.append(Exception("The current node timed out during startup"))
    connection._start(False, 40)
    assert capsys.readouterr().err.splitlines()[1:] == ["Ray did not come up in time; trying again (2 of 3)"]
    failures.append(RuntimeError("no room"))
    with pytest.raises(RuntimeError, match="no room"):
        connection._start(False, 40)


def test_a_machine_that_is_too_busy_for_ray_comes_with_what_to_do(ray_init, monkeypatch, capsys):
    calls, failures = ray_init
    failures += [Exception("The current node timed out during startup")] * 3
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert cli.run_job(lambda given: connection._start(False, 40), []) == cli.FAILED
    assert len(calls) == 3
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: Ray did not come up on this machine, 3 times in a row: it is too busy")
    assert "when it is quieter; or set RAY_ADDRESS=HOST:PORT" in error


@pytest.mark.parametrize(
    ("demand", "words"),
    [
        (ResourceDemand(1, 0.5, 1), "1 worker needs 1 GPU, the cluster has 0"),
        (ResourceDemand(4, 0.5, 0.5), "4 workers need 2 GPUs, the cluster has 0"),
        (ResourceDemand(1, 3.0, noun="actors"), "1 actor needs 3 CPUs, the cluster has 2"),
        (ResourceDemand(1, 2.0, reading_cpus=0.5), "1 worker and its reading need 2.5 CPUs, the cluster has 2"),
        (ResourceDemand(8, 0.5, reading_cpus=0.5), "8 workers and their reading need 4.5 CPUs, the cluster has 2"),
        (ResourceDemand(1, 3.0, noun="task"), "1 task needs 3 CPUs, the cluster has 2"),
        (ResourceDemand(2, 1.0), ""),
    ],
)
def test_what_a_cluster_lacks_is_said_in_numbers(demand, words):
    assert demand.unmet(ClusterResources(2, 0, 1)) == words


def test_a_card_that_is_not_there_comes_with_what_there_is_and_what_to_type(monkeypatch):
    monkeypatch.setattr(resources, "cluster_resources", lambda: ClusterResources(2, 0, 1))
    with pytest.raises(ValueError, match=r"\.") as caught:
        require_resources(ResourceDemand(1, 0.5, 1), None, print)
    said = str(caught.value)
    assert said.startswith("1 worker needs 1 GPU, the cluster has 0. What there is: 2 CPUs, and no card. ")
    assert "Leave --device cuda out" in said
    assert "RAY_ADDRESS=HOST:PORT" in said
    assert "--num-workers" not in said
    monkeypatch.setattr(resources, "cluster_resources", lambda: ClusterResources(2, 1, 1))
    with pytest.raises(ValueError, match=r"2 workers need 2 GPUs, the cluster has 1\. Give fewer with --num-workers"):
        require_resources(ResourceDemand(2, 0.5, 1), None, print)


def test_a_wait_in_vain_for_cards_says_that_there_is_none(monkeypatch):
    for name in ("cluster_resources", "free_resources"):
        monkeypatch.setattr(resources, name, lambda: ClusterResources(2, 0, 1))
    monkeypatch.setattr(resources, "_ask_autoscaler", lambda demand: None)
    with pytest.raises(ValueError, match="waited") as caught:
        require_resources(ResourceDemand(4, 0.5, 1), 0.1, lambda line: None)
    said = str(caught.value)
    assert said.startswith(
        "4 workers need 4 GPUs, the cluster has 0 (waited 0.1 s). What there is: 2 CPUs, and no card. "
    )
    assert "Leave --device cuda out" in said
    assert said.endswith("or wait longer")
    assert "fewer" not in said
    assert "--wait-for-resources" not in said


def test_one_alone_cannot_be_fewer():
    assert "fewer" not in ResourceDemand(1, 3.0).advice(ClusterResources(2, 0, 1))
    assert (
        ResourceDemand(2, 3.0)
        .advice(ClusterResources(2, 0, 1))
        .startswith("Give fewer with --num-workers, or let --wait")
    )
    assert "Leave --gpus out" in ResourceDemand(4, 0.5, 1, flag="--gpus", cards="--gpus").advice(
        ClusterResources(2, 0, 1)
    )


@pytest.fixture
def home(monkeypatch, tmp_path):
    """A home without a token, and an environment that says nothing."""
    for name in ("RAY_AUTH_MODE", *connection.TOKEN_VARIABLES):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delitem(sys.modules, "ray", raising=False)  # as in a job, which imports it afterwards
    return tmp_path


def said() -> dict[str, str]:
    return {name: os.environ[name] for name in ("RAY_AUTH_MODE", *connection.TOKEN_VARIABLES) if name in os.environ}


def test_a_ray_of_our_own_has_a_token_that_lies_in_no_file(home):
    choose_auth_token(attach=False)
    found = said()
    assert found["RAY_AUTH_MODE"] == "token"
    assert re.fullmatch("[0-9a-f]{64}", found["RAY_AUTH_TOKEN"])
    assert not list(home.iterdir())
    choose_auth_token(attach=False)
    assert said() == found, "a process keeps the token of its Ray"


def test_a_person_may_say_otherwise(home, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    choose_auth_token(attach=False)
    assert said() == {"RAY_AUTH_MODE": "disabled"}
    monkeypatch.delenv("RAY_AUTH_MODE")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/a/token")
    choose_auth_token(attach=False)
    assert said() == {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "/a/token"}


def test_to_attach_the_token_is_the_one_of_the_home(home):
    choose_auth_token(attach=True)
    assert said() == {"RAY_AUTH_MODE": "disabled"}
    os.environ.pop("RAY_AUTH_MODE")
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text("x")
    choose_auth_token(attach=True)
    assert said() == {"RAY_AUTH_MODE": "token"}


@pytest.mark.parametrize("grows", [True, False])
def test_a_wish_for_more_is_taken_back_once_it_is_there_or_in_vain(monkeypatch, grows):
    """Else idle nodes are kept, and paid for, after the job has ended."""
    wishes, sizes = [], iter([ClusterResources(1, 0, 1), *[ClusterResources(8 if grows else 1, 0, 2)] * 100])
    held = [next(sizes)]

    def now() -> ClusterResources:
        return held[0]

    def ask(num_cpus=None, bundles=None) -> None:
        wishes.append((num_cpus, bundles))
        held[0] = next(sizes)

    monkeypatch.setattr(resources, "cluster_resources", now)
    monkeypatch.setattr(resources, "free_resources", now)
    monkeypatch.setattr("ray.autoscaler.sdk.request_resources", ask)
    demand = ResourceDemand(4, 1.0, noun="actors", flag="--actors")
    if grows:
        require_resources(demand, 5.0, lambda line: None)
    else:
        with pytest.raises(ValueError, match=r"4 actors need 4 CPUs, the cluster has 1 \(waited 0.5 s\)"):
            require_resources(demand, 0.5, lambda line: None)
    assert wishes == [(4, [{"CPU": 1.0}] * 4), (0, [])]
    wishes.clear()
    held[0] = ClusterResources(8, 0, 2)
    require_resources(demand, 5.0, lambda line: None)
    assert not wishes


def test_nothing_attaches_to_a_ray_by_itself():
    code = (
        "from kasthuri_ray.ray_cluster.connection import set_ray_environment\n"
        "set_ray_environment()\n"
        "import ray\n"
        "try: ray.put(1)\n"
        "except Exception as error: print('refused', ray.is_initialized())"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    shown = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert shown.stdout == "refused False\n", shown.stderr

"""What is said before a job's first line, and of a cluster that is too small."""

import pytest

from kasthuri_ray import resources
from kasthuri_ray.resources import Cluster, Demand, check_demand


@pytest.fixture
def ray_init(monkeypatch):
    """What takes the place of `ray.init`; `failures` are raised first."""
    import ray

    calls: list[dict] = []
    failures: list[Exception] = []

    def init(**options):
        calls.append(options)
        if failures:
            raise failures.pop(0)

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr("kasthuri_ray.device.usable_cpus", lambda: 2)
    return calls, failures


def test_a_line_says_that_ray_starts_and_leaves_the_output_to_scripts(ray_init, capsys):
    calls, failures = ray_init
    resources._start(False, 40)
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "starting Ray on this machine (2 CPUs)\n")
    assert calls[0]["num_cpus"] == 2
    failures.append(Exception("The current node timed out during startup"))
    resources._start(False, 40)
    assert capsys.readouterr().err.splitlines()[1:] == ["Ray did not come up in time; trying again (2 of 3)"]
    failures.append(RuntimeError("no room"))
    with pytest.raises(RuntimeError, match="no room"):
        resources._start(False, 40)


@pytest.mark.parametrize(
    ("demand", "words"),
    [
        (Demand(1, 0.5, 1), "1 worker needs 1 GPU, the cluster has 0"),
        (Demand(4, 0.5, 0.5), "4 workers need 2 GPUs, the cluster has 0"),
        (Demand(1, 3.0, noun="actors"), "1 actor needs 3 CPUs, the cluster has 2"),
        (Demand(1, 2.0, reading_cpus=0.5), "1 worker and its reading need 2.5 CPUs, the cluster has 2"),
        (Demand(8, 0.5, reading_cpus=0.5), "8 workers and their reading need 4.5 CPUs, the cluster has 2"),
        (Demand(1, 3.0, noun="task"), "1 task needs 3 CPUs, the cluster has 2"),
        (Demand(2, 1.0), ""),
    ],
)
def test_what_a_cluster_lacks_is_said_in_numbers(demand, words):
    assert demand.unmet(Cluster(2, 0, 1)) == words


def test_a_card_that_is_not_there_comes_with_what_there_is_and_what_to_type(monkeypatch):
    monkeypatch.setattr(resources, "cluster", lambda: Cluster(2, 0, 1))
    with pytest.raises(ValueError, match=r"\.") as caught:
        check_demand(Demand(1, 0.5, 1), None, print)
    said = str(caught.value)
    assert said.startswith("1 worker needs 1 GPU, the cluster has 0. What there is: 2 CPUs, and no card. ")
    assert "Leave --device cuda out" in said
    assert "RAY_ADDRESS=HOST:PORT" in said
    assert "--num-workers" not in said
    monkeypatch.setattr(resources, "cluster", lambda: Cluster(2, 1, 1))
    with pytest.raises(ValueError, match=r"2 workers need 2 GPUs, the cluster has 1\. Give fewer with --num-workers"):
        check_demand(Demand(2, 0.5, 1), None, print)

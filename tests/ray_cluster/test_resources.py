"""Resources of a cluster: what a job lacks, what to do about it, and requests to the autoscaler."""

import pytest

from kasthuri_ray.ray_cluster import resources
from kasthuri_ray.ray_cluster.resources import (
    ClusterResources,
    ResourceDemand,
    count_fitting_actors,
    missing_resources_text,
    nodes_large_enough,
    require_resources,
)


@pytest.mark.parametrize(
    ("demand", "shortage"),
    [
        (ResourceDemand(1, 0.5, 1), "1 worker needs 1 GPU, the cluster has 0"),
        (ResourceDemand(4, 0.5, 0.5), "4 workers need 2 GPUs, the cluster has 0"),
        (ResourceDemand(1, 3.0, noun="actors"), "1 actor needs 3 CPUs, the cluster has 2"),
        (ResourceDemand(1, 2.0, loading_cpus=0.5), "1 worker and its data loading need 2.5 CPUs, the cluster has 2"),
        (ResourceDemand(8, 0.5, loading_cpus=0.5), "8 workers and their data loading need 4.5 CPUs, the cluster has 2"),
        (ResourceDemand(1, 3.0, noun="task"), "1 task needs 3 CPUs, the cluster has 2"),
        (ResourceDemand(2, 1.0), ""),
    ],
)
def test_a_shortage_is_described_with_both_numbers(demand, shortage):
    assert demand.describe_shortage(ClusterResources(2, 0, 1)) == shortage


def test_a_cluster_without_gpus_is_an_error_that_says_what_it_has_and_what_to_type(monkeypatch):
    monkeypatch.setattr(resources, "cluster_resources", lambda: ClusterResources(2, 0, 1))
    with pytest.raises(ValueError, match=r"\.") as caught:
        require_resources(ResourceDemand(1, 0.5, 1), None, print)
    message = str(caught.value)
    assert message.startswith("1 worker needs 1 GPU, the cluster has 0. The cluster has 2 CPUs and no GPU. ")
    assert "Leave --device cuda out" in message
    assert "RAY_ADDRESS=HOST:PORT" in message
    assert "--num-workers" not in message
    monkeypatch.setattr(resources, "cluster_resources", lambda: ClusterResources(2, 1, 1))
    with pytest.raises(ValueError, match=r"2 workers need 2 GPUs, the cluster has 1\. Give fewer with --num-workers"):
        require_resources(ResourceDemand(2, 0.5, 1), None, print)


def test_waiting_in_vain_for_gpus_is_an_error_that_says_that_there_are_none(monkeypatch):
    for name in ("cluster_resources", "free_resources"):
        monkeypatch.setattr(resources, name, lambda: ClusterResources(2, 0, 1))
    monkeypatch.setattr(resources, "_request_from_autoscaler", lambda demand: None)
    with pytest.raises(ValueError, match="waited") as caught:
        require_resources(ResourceDemand(4, 0.5, 1), 0.1, lambda line: None)
    message = str(caught.value)
    assert message.startswith(
        "4 workers need 4 GPUs, the cluster has 0 (waited 0.1 s). The cluster has 2 CPUs and no GPU. "
    )
    assert "Leave --device cuda out" in message
    assert message.endswith("or wait longer")
    assert "fewer" not in message
    assert "--wait-for-resources" not in message


def test_fewer_processes_are_suggested_only_if_there_are_several():
    cluster = ClusterResources(2, 0, 1)
    assert "fewer" not in ResourceDemand(1, 3.0).suggest_fix(cluster)
    fix = ResourceDemand(2, 3.0).suggest_fix(cluster)
    assert fix.startswith("Give fewer with --num-workers, or add --wait")
    assert "Leave --gpus out" in ResourceDemand(4, 0.5, 1, flag="--gpus", gpu_flag="--gpus").suggest_fix(cluster)


@pytest.mark.parametrize("grows", [True, False])
def test_a_request_to_the_autoscaler_is_withdrawn_at_success_and_at_failure(monkeypatch, grows):
    """Otherwise idle nodes are kept, and paid for, after the job has ended."""
    requests, sizes = [], iter([ClusterResources(1, 0, 1), *[ClusterResources(8 if grows else 1, 0, 2)] * 100])
    current = [next(sizes)]

    def current_size() -> ClusterResources:
        return current[0]

    def request(num_cpus=None, bundles=None) -> None:
        requests.append((num_cpus, bundles))
        current[0] = next(sizes)

    monkeypatch.setattr(resources, "cluster_resources", current_size)
    monkeypatch.setattr(resources, "free_resources", current_size)
    monkeypatch.setattr("ray.autoscaler.sdk.request_resources", request)
    demand = ResourceDemand(4, 1.0, noun="actors", flag="--actors")
    if grows:
        require_resources(demand, 5.0, lambda line: None)
    else:
        with pytest.raises(ValueError, match=r"4 actors need 4 CPUs, the cluster has 1 \(waited 0.5 s\)"):
            require_resources(demand, 0.5, lambda line: None)
    assert requests == [(4, [{"CPU": 1.0}] * 4), (0, [])]
    requests.clear()
    current[0] = ClusterResources(8, 0, 2)
    require_resources(demand, 5.0, lambda line: None)
    assert not requests


def test_the_number_of_actors_that_fit_is_limited_by_the_scarcest_resource():
    assert count_fitting_actors({"CPU": 0.5, "GPU": 1.0}, {"CPU": 8.0, "GPU": 3.0}) == 3
    assert count_fitting_actors({"CPU": 0.1}, {"CPU": 0.3}) == 3
    assert count_fitting_actors({"CPU": 1.0, "GPU": 1.0}, {"CPU": 8.0}) == 0


def test_a_node_is_large_enough_by_all_of_its_resources_whether_they_are_free_or_not():
    def node(name, alive=True, **resources):
        return {"NodeID": name, "Alive": alive, "Resources": resources}

    nodes = [node("head", CPU=0.0), node("a", CPU=4.0, GPU=1.0), node("dead", alive=False, CPU=4.0, GPU=1.0)]
    assert nodes_large_enough({"CPU": 1.0, "GPU": 1.0}, nodes) == ["a"]


def test_missing_resources_are_named_with_both_numbers():
    text = missing_resources_text({"CPU": 1.0, "GPU": 0.5}, {"CPU": 8.0}, {"CPU": 2.0}, 1)
    assert text == "an actor needs 1 CPU and 0.5 GPU; the cluster has 8 CPU (2 free) and 0 GPU (0 free) on 1 node"

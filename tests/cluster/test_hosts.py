"""A cluster of several hosts: access needs the token, and jobs run on all hosts and survive the loss of one.

Longer tests are in test_hosts_refusals.py and test_hosts_trials.py; run them by `make test-cluster`.
"""

import json
import os
import signal
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

HERE = Path(__file__).resolve().parent
HEAD_ENV = {"RAY_health_check_period_ms": "1000"}  # a lost host is detected in a third of the usual time
# Ray answers these without a token: the page that asks for it, and health checks. They run nothing.
OPEN_HTTP = {
    *("GET /", "GET /api/healthz", "GET /api/gcs_healthz", "GET /api/local_raylet_healthz"),
    *("GET /api/authentication_mode", "GET /-/healthz"),
}


def test_no_port_serves_a_client_without_the_token(cluster):
    mark = cluster.shared / "a_command_was_run"
    targets = []
    for name in cluster.names:
        ports = open_ports(cluster, name)
        targets.append(f"{cluster.hosts[name].address}:{','.join(map(str, ports))}")
    scan = cluster.run([sys.executable, str(HERE / "port_scan.py"), str(mark), *targets], token=False, timeout_s=240)
    assert scan.returncode == 0, scan.stderr
    answers = json.loads(scan.stdout)
    head = cluster.hosts["head"].address

    # The documented ports.
    gcs, dashboard, client = (answers[f"{head}:{port}"] for port in (6379, 8265, 10001))
    for method in (
        "NodeInfoGcsService/GetAllNodeInfo",
        "InternalKVGcsService/InternalKVPut",
        "JobInfoGcsService/AddJob",
    ):
        assert gcs["grpc"][method] == "UNAUTHENTICATED"
    assert (dashboard["http"]["GET /api/jobs/"], dashboard["http"]["POST /api/jobs/"]) == (401, 401)
    assert dashboard["http"]["GET /api/jobs/ with a wrong token"] == 403
    assert client["grpc"]["RayletDriver/ClusterInfo"] == "UNAUTHENTICATED"
    for service, hosts in (("NodeManagerService/RequestWorkerLease", 3), ("ObjectManagerService/Pull", 3)):
        assert sum(port["grpc"].get(service) == "UNAUTHENTICATED" for port in answers.values()) >= hosts
    assert sum(port["http"].get("POST /api/job_agent/jobs/") == 401 for port in answers.values()) >= 1

    # All ports: every call is refused, and only the open pages are served.
    refused = ("UNAUTHENTICATED", "UNIMPLEMENTED", "UNAVAILABLE", "DEADLINE_EXCEEDED")
    assert not {
        (address, method, status)
        for address, port in answers.items()
        for method, status in port["grpc"].items()
        if status not in refused
    }
    pages = {request for port in answers.values() for request, status in port["http"].items() if status == 200}
    assert pages <= OPEN_HTTP, pages - OPEN_HTTP
    # Ports that serve metrics for Prometheus answer every request with metrics or an error.
    metrics = [port["http"] for port in answers.values() if "metrics" in port["http"].values()]
    assert metrics
    assert all(status in ("metrics", "no HTTP") or status >= 400 for http in metrics for status in http.values())
    assert not mark.exists()
    assert not [job for job in cluster.request("/api/jobs/") if "touch" in job["entrypoint"]]


def open_ports(cluster, name: str) -> list[int]:
    """Return the ports of a host that other hosts can reach."""
    lines = cluster.run_in_network_of(name, ["ss", "-Hltn"]).splitlines()
    ends = (line.split()[3] for line in lines)
    return sorted(
        {int(end.rpartition(":")[2]) for end in ends if not end.startswith(("127.", "[::1]", "[::ffff:127."))}
    )


def test_the_check_finds_the_cluster_fit(cluster):
    arguments = ["--storage", cluster.shared / "runs", "--image", "phantom://em?shape=8,64,64", "--cache", "none"]
    job = cluster.submit("jobs/check.py", *arguments)
    status = job.wait()
    lines = [line for line in job.log.splitlines() if line.startswith(("ok", "fix", "fit", "not fit"))]
    problems = {line.split()[1] for line in lines if line.startswith("fix")}
    assert problems <= {"bandwidth"}, job.log  # a busy machine can be too slow
    assert (status, lines[-1]) == (("FAILED", "not fit: 1 of 10 to fix") if problems else ("SUCCEEDED", "fit"))
    assert any("3 nodes, 4 CPUs, 0 GPUs" in line for line in lines)
    access = "this machine alone" if cluster.is_substitute else "token, private addresses"
    assert any(access in line for line in lines)
    assert any("MB/s or more between nodes" in line for line in lines)
    assert not list((cluster.shared / "runs").iterdir())


def test_a_training_survives_the_loss_of_a_host_in_the_middle_of_an_epoch(cluster, train_command, tools):
    run = cluster.shared / "runs" / "lost"
    job = cluster.submit(*train_command, "--name", "lost")
    job.wait_until(lambda: len(tools.read_history(run)) >= 1, "the first epoch")
    assert all(cluster.processes(name, "ray::RayTrainWorker") for name in ("anna", "bert"))
    cluster.power_off("bert")
    assert job.wait() == "SUCCEEDED", job.log
    assert [row["epoch"] for row in tools.read_history(run)] == [str(number) for number in range(1, tools.epochs + 1)]
    assert json.loads((run / "metrics.json").read_text())["epochs"] == tools.epochs
    assert "the workers start again from the last epoch" in job.log
    cluster.start("bert")
    tools.wait_until(lambda: cluster.alive_hosts() == {"head", "anna", "bert"}, 60, "bert is back")


def test_a_killed_raylet_does_not_change_the_output(cluster, segment_command, expected_output, tools):
    out = cluster.shared / "killed.zarr"
    job = tools.submit_on_all_hosts(cluster, *segment_command, "--output", out)
    job.wait_until(lambda: len(tools.records(out)) >= 20, "some blocks")
    (raylet,) = cluster.processes("bert", "raylet/raylet")
    os.kill(raylet, signal.SIGKILL)
    assert job.wait() == "SUCCEEDED", job.log
    assert tools.content_of(out) == expected_output


@pytest.mark.usefixtures("expected_output")
def test_no_file_contains_a_key(cluster, tools):
    """Search outputs, ledgers, settings and Ray's logs of all tests that ran before."""
    secrets = [cluster.token, *(key for key in tools.keys.values() if len(key) > 8)]
    files = [path for path in cluster.folder.rglob("*") if path.is_file() and path != cluster.token_file]
    assert any("session_" in str(path) and path.name.startswith("raylet") for path in files)
    assert any(path.name == "zarr.json" for path in files)
    leaks = [(path, secret) for path in files for secret in secrets if secret.encode() in path.read_bytes()]
    assert not leaks
    assert cluster.token_file.stat().st_mode & 0o777 == 0o600

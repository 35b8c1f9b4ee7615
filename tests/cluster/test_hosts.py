"""Several hosts, for real: strangers are refused, jobs run over all of them, and end well when one goes away.

What takes longer is in test_hosts_refusals.py and test_hosts_trials.py, by `make test-cluster`.
"""

import json
import os
import signal
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ENV_OF_HEAD = {"RAY_health_check_period_ms": "1000"}  # a host that is gone is seen in a third of the time
# What Ray answers to anybody: pages that ask for the token, and whether it is alive. None of it runs anything.
OPEN_HTTP = {
    *("GET /", "GET /api/healthz", "GET /api/gcs_healthz", "GET /api/local_raylet_healthz"),
    *("GET /api/authentication_mode", "GET /-/healthz"),
}


def test_strangers_are_refused_at_every_door(lab, shop):
    mark = lab.shared / "a_stranger_was_here"
    doors = []
    for name in lab.names:
        ports = ports_of(lab, name)
        doors.append(f"{lab.hosts[name].address}:{','.join(map(str, ports))}")
    knocked = lab.run([sys.executable, str(HERE / "doors.py"), str(mark), *doors], token=False, seconds=240)
    assert knocked.returncode == 0, knocked.stderr
    found = json.loads(knocked.stdout)
    head = lab.hosts["head"].address

    # The doors that people know.
    gcs, dashboard, client = (found[f"{head}:{port}"] for port in (6379, 8265, 10001))
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
        assert sum(door["grpc"].get(service) == "UNAUTHENTICATED" for door in found.values()) >= hosts
    assert sum(door["http"].get("POST /api/job_agent/jobs/") == 401 for door in found.values()) >= 1

    # All of them: no call gets through, and no page but those that are for everybody.
    shut = ("UNAUTHENTICATED", "UNIMPLEMENTED", "UNAVAILABLE", "DEADLINE_EXCEEDED")
    assert not {
        (door, what, status)
        for door, seen in found.items()
        for what, status in seen["grpc"].items()
        if status not in shut
    }
    pages = {what for seen in found.values() for what, status in seen["http"].items() if status == 200}
    assert pages <= OPEN_HTTP, pages - OPEN_HTTP
    # Beside them numbers for Prometheus, at ports where an order is answered by nothing else.
    metrics = [seen["http"] for seen in found.values() if "metrics" in seen["http"].values()]
    assert metrics
    assert all(status in ("metrics", "no HTTP") or status >= 400 for seen in metrics for status in seen.values())
    assert not mark.exists()
    assert lab.ask("/api/jobs/") == [job for job in lab.ask("/api/jobs/") if "touch" not in job["entrypoint"]]


def ports_of(lab, name: str) -> list[int]:
    """The ports at which a host can be reached by others, as its kernel has them."""
    shown = lab.inspect(name, ["ss", "-Hltn"])
    ends = (line.split()[3] for line in shown.splitlines())
    return sorted(
        {int(end.rpartition(":")[2]) for end in ends if not end.startswith(("127.", "[::1]", "[::ffff:127."))}
    )


def test_the_cluster_is_found_fit(lab):
    job = lab.submit(
        "jobs/check.py", "--storage", lab.shared / "runs", "--image", "phantom://em?shape=8,64,64", "--cache", "none"
    )
    status = job.wait()
    lines = [line for line in job.log.splitlines() if line.startswith(("ok", "mend", "fit", "not fit"))]
    mend = {line.split()[1] for line in lines if line.startswith("mend")}
    assert mend <= {"bandwidth"}, job.log  # on a machine that does ten other things, objects crawl
    assert (status, lines[-1]) == (("FAILED", "not fit: 1 of 10 to mend") if mend else ("SUCCEEDED", "fit"))
    assert any("3 nodes, 4 CPUs, 0 GPUs" in line for line in lines)
    doors = "this machine alone" if lab.is_substitute else "token, private addresses"
    assert any(doors in line for line in lines)
    assert any("MB/s or more between nodes" in line for line in lines)
    assert not list((lab.shared / "runs").iterdir())


def test_two_ranks_on_two_hosts_lose_one_of_them_in_the_middle_of_an_epoch(lab, train, shop):
    run = lab.shared / "runs" / "lost"
    job = lab.submit(*train, "--name", "lost")
    job.until(lambda: len(shop.history(run)) >= 1, "the first epoch")
    assert all(lab.processes(name, "ray::RayTrainWorker") for name in ("anna", "bert"))
    lab.power_off("bert")
    assert job.wait() == "SUCCEEDED", job.log
    assert [row["epoch"] for row in shop.history(run)] == [str(number) for number in range(1, shop.epochs + 1)]
    assert json.loads((run / "metrics.json").read_text())["epochs"] == shop.epochs
    assert "the workers start again from the last epoch" in job.log
    lab.start("bert")
    shop.wait_until(lambda: lab.living() == {"head", "anna", "bert"}, 60, "bert is back")


def test_a_raylet_that_is_killed_costs_no_byte(lab, segment, whole, shop):
    out = lab.shared / "killed.zarr"
    job = shop.begin_on_all(lab, *segment, "--output", out)
    job.until(lambda: len(shop.records(out)) >= 20, "some blocks")
    (raylet,) = lab.processes("bert", "raylet/raylet")
    os.kill(raylet, signal.SIGKILL)
    assert job.wait() == "SUCCEEDED", job.log
    assert shop.content_of(out) == whole


def test_no_key_lies_in_anything_that_was_left(lab, whole, shop):
    """Runs of their own that were here before, or the whole one alone: outputs, ledgers, settings, and Ray's logs."""
    secrets = [lab.token, *(key for key in shop.keys.values() if len(key) > 8)]
    files = [path for path in lab.folder.rglob("*") if path.is_file() and path != lab.token_file]
    assert any("session_" in str(path) and path.name.startswith("raylet") for path in files)
    assert any(path.name == "zarr.json" for path in files)
    found = [(path, secret) for path in files for secret in secrets if secret.encode() in path.read_bytes()]
    assert not found
    assert lab.token_file.stat().st_mode & 0o777 == 0o600

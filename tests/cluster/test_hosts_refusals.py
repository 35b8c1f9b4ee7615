"""Slow tests of what a cluster of several hosts refuses: clients without a token, nodes that differ."""

import sys

import pytest

pytestmark = pytest.mark.cluster


@pytest.mark.parametrize("address", ["{head}:6379", "ray://{head}:10001"])
def test_a_ray_client_without_the_token_is_refused(cluster, address):
    script = f"import ray; ray.init({address.format(head=cluster.hosts['head'].address)!r}); print('connected')"
    client = cluster.run([sys.executable, "-c", script], token=False, timeout_s=300, RAY_AUTH_MODE="disabled")
    assert client.returncode != 0
    assert "connected" not in client.stdout.split()
    assert "ConnectionError" in client.stderr


def test_nodes_with_another_storage_or_package_are_named_before_the_work(cluster, train_command, tools):
    cluster.power_off("bert")
    other = cluster.folder / "other"
    private = cluster.folder / "private"
    private.mkdir()
    other.mkdir()
    tools.copy_package(other)
    (other / "kasthuri_ray" / "geometry.py").open("a").write("\n# another release\n")
    cluster.start("bert", env={"PYTHONPATH": str(other)}, mounts=f"mount --bind {private} {cluster.shared}")
    tools.wait_until(lambda: cluster.alive_hosts() == {"head", "anna", "bert"}, 60, "bert is back")
    job = cluster.submit(*train_command, "--name", "refused")
    assert job.wait() == "FAILED"
    assert "is not a folder that all 3 nodes share: bert cannot see it; give --storage s3://" in job.log
    absolute = [cluster.working_dir / each if str(each).endswith(".json") else each for each in train_command[1:]]
    installed = cluster.submit(tools.root / train_command[0], *absolute, "--name", "refused", ship=False)
    assert installed.wait() == "FAILED"
    assert "nodes of this cluster run other packages than this job" in installed.log
    assert "\n  bert has kasthuri_ray " in installed.log
    assert "anna has" not in installed.log
    assert not (cluster.shared / "runs" / "refused").exists()
    checked = cluster.submit(
        "jobs/check.py", "--storage", cluster.shared / "runs", "--image", "none", "--cache", "none"
    )
    assert checked.wait() == "FAILED"
    (line,) = [line for line in checked.log.splitlines() if line.split()[:2] == ["fix", "storage"]]
    assert "bert: this node cannot read a file that another node wrote there" in line
    cluster.power_off("bert")
    cluster.start("bert")
    tools.wait_until(lambda: cluster.alive_hosts() == {"head", "anna", "bert"}, 60, "bert is back")

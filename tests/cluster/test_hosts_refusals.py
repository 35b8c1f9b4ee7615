"""What a cluster of several hosts refuses, where that takes time: clients without a token, nodes unlike each other."""

import sys

import pytest

pytestmark = pytest.mark.cluster


@pytest.mark.parametrize("address", ["{head}:6379", "ray://{head}:10001"])
def test_a_client_of_rays_own_without_the_token_does_not_come_in(lab, address):
    script = f"import ray; ray.init({address.format(head=lab.hosts['head'].address)!r}); print('in')"
    came = lab.run([sys.executable, "-c", script], token=False, seconds=300, RAY_AUTH_MODE="disabled")
    assert came.returncode != 0
    assert "in" not in came.stdout.split()
    assert "ConnectionError" in came.stderr


def test_nodes_with_another_storage_or_package_are_named_before_the_work(lab, train, shop):
    lab.power_off("bert")
    other = lab.folder / "other"
    own = lab.folder / "own"
    own.mkdir()
    (other).mkdir()
    shop.copy_package(other)
    (other / "kasthuri_ray" / "geometry.py").open("a").write("\n# another release\n")
    lab.start("bert", env={"PYTHONPATH": str(other)}, mounts=f"mount --bind {own} {lab.shared}")
    shop.wait_until(lambda: lab.living() == {"head", "anna", "bert"}, 60, "bert is back")
    job = lab.submit(*train, "--name", "refused")
    assert job.wait() == "FAILED"
    assert "is not a folder that all 3 nodes share: bert cannot see it; give --storage s3://" in job.log
    here = [lab.work / each if str(each).endswith(".json") else each for each in train[1:]]
    installed = lab.submit(shop.root / train[0], *here, "--name", "refused", ship=False)
    assert installed.wait() == "FAILED"
    assert "nodes of this cluster run other packages than this job" in installed.log
    assert "\n  bert has kasthuri_ray " in installed.log
    assert "anna has" not in installed.log
    assert not (lab.shared / "runs" / "refused").exists()
    checked = lab.submit("jobs/check.py", "--storage", lab.shared / "runs", "--image", "none", "--cache", "none")
    assert checked.wait() == "FAILED"
    (line,) = [line for line in checked.log.splitlines() if line.split()[:2] == ["mend", "storage"]]
    assert "bert: it does not see what the other nodes write there" in line
    lab.power_off("bert")
    lab.start("bert")
    shop.wait_until(lambda: lab.living() == {"head", "anna", "bert"}, 60, "bert is back")

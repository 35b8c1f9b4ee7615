"""jobs/check.py as a process: a machine that is fit, a cluster that is not, and volumes without Ray."""

import json
import os
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest

from kasthuri_ray import cli

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = "jobs/check.py"


@pytest.fixture
def check(load_module, monkeypatch, tmp_path, capsys):
    """Return `check(*arguments)`: runs the job in this process, and returns its exit code and what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray.init", lambda *_, **__: pytest.fail("Ray was started"))
    main = load_module(ROOT / SCRIPT).main

    def run(*arguments: object) -> SimpleNamespace:
        with patch.dict(os.environ):
            code = cli.run_job(main, list(map(str, arguments)))
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        return SimpleNamespace(code=code, out=printed.out, err=printed.err, lines=printed.out.splitlines())

    return run


def test_help_lists_the_flags_and_the_exit_codes(help_text):
    text = help_text(SCRIPT)
    words = ("--address", "--storage", "--gpus", "--boss", "--wait-for-resources", "--report", "0 fit, 1 not fit")
    for word in (*words, "--volume", "--annotation", "--task", "--mip", "--voxel-size", "--out"):
        assert word in text


@pytest.mark.slow
def test_a_machine_with_storage_on_s3_and_a_reachable_bossdb_is_fit(start_job, boss_server, clean_env, tmp_path):
    import boto3
    import numpy as np

    boss_server.add("Kasthuri/ac4/em", np.ones((16, 64, 64), np.uint8))
    boss_server.token = "a-secret-token"
    (tmp_path / "boss.json").write_text(json.dumps(boss_server.options))
    arguments = ["--storage", "s3://lab/checked", "--boss", tmp_path / "boss.json", "--cache-size", "1MB"]
    job = start_job(*arguments, script=SCRIPT).wait()
    assert job.code == 0, job.out + job.err
    assert job.lines[-1] == "fit"
    assert any(line.startswith("ok    storage") and "s3://lab/checked: written" in line for line in job.lines)
    assert any(line.startswith("ok    image") and "bossdb://Kasthuri/ac4/em: read" in line for line in job.lines)
    assert {request.token for request in boss_server.requests} == {"a-secret-token"}
    assert "a-secret-token" not in job.out + job.err
    s3 = boto3.client(
        "s3", region_name="us-east-1", endpoint_url=clean_env["AWS_ENDPOINT_URL"],
        aws_access_key_id="key", aws_secret_access_key="secret",
    )  # fmt: skip
    assert not s3.list_objects_v2(Bucket="lab", Prefix="checked").get("Contents")


@pytest.mark.slow
def test_every_problem_of_an_unfit_cluster_is_printed_with_its_remedy(start_job, cluster, boss_server, tmp_path):
    (tmp_path / "boss.json").write_text(json.dumps(boss_server.options))  # the server has no such channel
    (tmp_path / "file").write_text("not a folder")
    arguments = ["--address", cluster.address, "--storage", tmp_path / "file" / "runs"]
    arguments += ["--boss", tmp_path / "boss.json", "--cache-size", "900TB", "--gpus", "2"]
    job = start_job(*arguments, script=SCRIPT, env={"RAY_AUTH_MODE": "disabled"}).wait()
    assert job.code == 1, job.out + job.err
    problems = {line.split()[1] for line in job.lines if line.startswith("fix")}
    # A cluster without a token is open to everybody who can reach it, unless it listens on the loopback only.
    assert problems | {"access"} == {"nodes", "access", "storage", "image", "cache"}
    assert job.lines[-1] == f"not fit: {len(problems)} of 10 to fix"
    assert "2 workers need 2 GPUs, the cluster has 0" in job.out
    assert job.err == ""


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--storage", "ftp://lab/runs", "expected a path or s3://bucket/prefix"),
        ("--boss", "none.json", "none.json: there is no "),
        ("--cache-size", "much", "not a positive number of bytes"),
    ],
)
def test_bad_input_is_an_error_before_anything_starts(check, flag, value, message):
    refused = check(flag, value)
    assert (refused.code, refused.out) == (2, "")
    assert message in refused.err


@pytest.mark.parametrize(
    ("address", "message"),
    [("http://127.0.0.1:8265", "address of the dashboard"), ("127.0.0.1:9", "no Ray answers there")],
)
def test_an_address_at_which_no_ray_answers_is_an_error(start_job, address, message):
    # A process of its own: that of the tests may be connected to Ray, and a job would use that connection.
    job = start_job("--address", address, script=SCRIPT).wait()
    assert (job.code, job.out) == (2, "")
    assert message in job.err
    assert "Traceback" not in job.err


def test_a_fault_report_is_written_without_ray_and_its_path_is_printed(check, monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    done = check("--report")
    assert (done.code, done.err) == (0, "")
    report = tmp_path / "kasthuri_ray_report.txt"
    assert done.out.strip().endswith(f": {report}")
    assert "RAY_ADDRESS=127.0.0.1:9" in report.read_text()
    assert (check("--report", tmp_path / "other.txt").code, (tmp_path / "other.txt").exists()) == (0, True)


def test_a_volume_of_bossdb_is_checked_without_ray(start_job, boss_server, tmp_path):
    import numpy as np

    image = np.random.default_rng(0).integers(1, 256, (20, 70, 80), np.uint8)
    boss_server.add("Kasthuri/ac4/em", image, offset=(3, 100, 50))
    labels = np.zeros((20, 70, 80), np.uint64)
    labels[4, 10:20, 30:50] = 17
    boss_server.add("Kasthuri/ac4/synapse", labels, offset=(3, 100, 50))
    boss_server.token = "a-secret-token"
    (tmp_path / "boss.json").write_text(json.dumps(boss_server.options))
    (tmp_path / "ray.py").write_text("raise ImportError('Ray was imported')")
    volumes = ["--volume", "bossdb://Kasthuri/ac4/em", "--annotation", "bossdb://Kasthuri/ac4/synapse"]
    arguments = [*volumes, "--boss", tmp_path / "boss.json", "--cache", tmp_path / "cache"]
    job = start_job(*arguments, script=SCRIPT, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}).wait()
    assert (job.code, job.err) == (0, "")
    assert job.lines[0] == job.lines[-1] == str(tmp_path / "volume_check")
    rows = [" ".join(line.split()) for line in job.lines]
    for row in (
        "format BossDB",
        "voxels 3:23,100:170,50:130 (z,y,x)",
        "voxel size 30 x 6 x 6 nm (z,y,x), from coordinate frame",
        f"values 1 to 255; percentiles 1, 50, 99: {', '.join(map(str, percentiles(image)))}",
        f"distinct values 0 (99.8%), 17 ({100 * 200 / labels.size:.3g}%)",
        "overlap 3:23,100:170,50:130 in voxels of the image (z,y,x)",
    ):
        assert row in rows
    assert "a-secret-token" not in job.out + (tmp_path / "volume_check" / "index.html").read_text()


def percentiles(image) -> list[int]:
    import numpy as np

    return np.percentile(image, (1, 50, 99), method="inverted_cdf").astype(int).tolist()


def test_a_volume_that_is_not_fit_is_exit_1_and_bad_input_exit_2(check, tmp_path):
    image, far = "phantom://em?shape=4,64,64", "phantom://synapse?shape=4,64,64&offset_nm=9000,0,0"
    unfit = check("--volume", image, "--annotation", far, "--out", tmp_path / "page")
    assert (unfit.code, unfit.err) == (1, "")
    assert any(line.startswith("fix ") and "do not overlap" in line for line in unfit.lines)
    assert (tmp_path / "page" / "index.html").exists()
    for arguments, message in (
        (("--annotation", image), "--annotation: there is no volume; give the image with --volume URI"),
        (("--volume", image, "--gpus", "2"), "--gpus: not with --volume"),
        (("--volume", tmp_path / "none.zarr"), "none.zarr"),
        (("--volume", image, "--annotation", tmp_path / "none.zarr"), "none.zarr"),
    ):
        refused = check(*arguments)
        assert (refused.code, refused.out) == (2, "")
        assert message in refused.err
    assert not (tmp_path / "volume_check").exists()


def test_a_setting_that_a_check_does_not_read_is_refused(check):
    refused = check("--volume", "phantom://em?shape=4,64,64", "--set", "network.epochs=3")
    assert refused.code == 2
    assert "--set network.epochs=3: check reads no setting of the section network, only of task, check" in refused.err
    refused = check("--set", "task.threshold=true")
    assert (refused.code, refused.out) == (2, "")
    assert "--set task.threshold: there is no volume; give the image with --volume URI" in refused.err


def test_settings_of_the_task_say_what_labels_mean(check, tmp_path):
    arguments = ("--volume", "phantom://em?shape=4,64,64", "--annotation", "phantom://synapse?shape=4,64,64")
    checked = check(*arguments, "--set", "task.threshold=true", "--out", tmp_path / "page")
    assert (checked.code, checked.err) == (0, "")
    assert any("labels above 0 are foreground" in line for line in checked.lines)
    assert not any("without --task" in line for line in checked.lines)

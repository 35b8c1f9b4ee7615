"""jobs/check.py as a process: a fit machine, and one that is not."""

import subprocess
import sys
import time
from pathlib import Path

SCRIPT = "jobs/check.py"
ROOT = Path(__file__).resolve().parents[2]


def test_help_comes_without_torch_or_ray():
    script = (
        "import sys, runpy; sys.argv = ['check.py', '--help']\n"
        "try: runpy.run_path('jobs/check.py', run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert not {'torch', 'ray', 'tensorstore', 'numpy'} & sys.modules.keys()"
    )
    shown = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert shown.returncode == 0, shown.stderr
    for word in ("--address", "--storage", "--gpus", "--boss", "--wait-for-resources", "0 fit, 1 not fit"):
        assert word in shown.stdout


def test_a_fit_machine_with_its_storage_on_s3_and_a_boss_that_is_reached(start, boss_server, clean_env, tmp_path):
    import json

    import boto3
    import numpy as np

    boss_server.add("Kasthuri/ac4/em", np.ones((16, 64, 64), np.uint8))
    boss_server.token = "a-secret-token"
    (tmp_path / "boss.json").write_text(json.dumps(boss_server.options))
    given = ["--storage", "s3://lab/checked", "--boss", tmp_path / "boss.json", "--cache-size", "1MB"]
    job = start(*given, script=SCRIPT).wait()
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


def test_what_is_not_fit_is_said_with_what_to_do(start, cluster, boss_server, tmp_path):
    import json

    (tmp_path / "boss.json").write_text(json.dumps(boss_server.options))  # it has no such channel
    (tmp_path / "file").write_text("in the way")
    given = ["--address", cluster.address, "--storage", tmp_path / "file" / "runs", "--boss", tmp_path / "boss.json"]
    given += ["--cache-size", "900TB", "--gpus", "2"]
    job = start(*given, script=SCRIPT, env={"RAY_AUTH_MODE": "disabled"}).wait()
    assert job.code == 1, job.out + job.err
    mend = {line.split()[1] for line in job.lines if line.startswith("mend")}
    # A cluster without a token is open to whoever reaches it, unless it is on the loopback alone.
    assert mend | {"doors"} == {"nodes", "doors", "storage", "image", "cache"}
    assert job.lines[-1] == f"not fit: {len(mend)} of 10 to mend"
    assert "2 workers need 2 GPUs, the cluster has 0" in job.out
    assert job.err == ""


def test_bad_input_is_told_before_anything_starts(start, tmp_path):
    for arguments, words in (
        (("--storage", "ftp://lab/runs"), "expected a path or s3://bucket/prefix"),
        (("--boss", tmp_path / "none.json"), "none.json: there is no such file"),
        (("--cache-size", "much"), "not a positive number of bytes"),
        (("--address", "http://127.0.0.1:8265"), "a dashboard"),
        (("--address", "127.0.0.1:9"), "no Ray answers there"),
    ):
        begin = time.monotonic()
        job = start(*arguments, script=SCRIPT).wait()
        assert (job.code, job.out) == (2, "")
        assert words in job.err
        assert "Traceback" not in job.err
        assert time.monotonic() - begin < 60

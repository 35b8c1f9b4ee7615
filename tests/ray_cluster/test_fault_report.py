"""The file for a fault report: what it holds, and that it holds no secrets."""

import json
import os
import platform
import re
import tempfile
import time

import pytest

from kasthuri_ray import cli
from kasthuri_ray.config.settings import CheckSettings
from kasthuri_ray.errors import InputError, InputNotFound
from kasthuri_ray.ray_cluster import fault_report
from kasthuri_ray.ray_cluster.fault_report import write_fault_report

SECRETS = {
    "BOSSDB_TOKEN": "boss-secret-1",
    "AWS_SECRET_ACCESS_KEY": "aws-secret-2",
    "AWS_SESSION_TOKEN": "aws-secret-3",
    "RAY_AUTH_TOKEN": "ray-secret-4",
    "WANDB_API_KEY": "wandb-secret-5",
    "RAY_JOB_CONFIG_JSON_ENV_VAR": '{"runtime_env": {"env_vars": {"PASSWORD": "job-secret-6"}}}',
    "KASTHURI_STORAGE": "s3://user:url-secret-7@bucket/runs",
}


@pytest.fixture
def report(tmp_path, monkeypatch):
    """Return `report(**options)`: the text of a report; temporary files are in tmp_path/temp."""
    (tmp_path / "temp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temp"))

    def write(**options) -> str:
        storage = str(tmp_path / "runs")
        path = write_fault_report(CheckSettings(report=str(tmp_path / "report.txt"), storage=storage, **options))
        assert path == str(tmp_path / "report.txt")
        return (tmp_path / "report.txt").read_text()

    return write


def section(text: str, title: str) -> str:
    return re.search(rf"^\[{re.escape(title)}\]\n(.*?)\n\n(?=\[|\Z)", text, re.MULTILINE | re.DOTALL)[1]


def fail_with(error: Exception) -> None:
    def main(arguments):
        raise error

    assert cli.run_job(main, []) == cli.FAILED


def test_it_holds_versions_machine_and_environment(report, monkeypatch):
    monkeypatch.setenv("KASTHURI_THREADS", "2")
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    text = report()
    versions = section(text, "versions")
    assert f"python {platform.python_version()}" in versions
    assert re.search(r"^kasthuri_ray 0\.\d+\.\d+ [0-9a-f]{8}$", versions, re.MULTILINE)
    assert re.search(r"^torch 2\.", versions, re.MULTILINE)
    assert "pytest" not in versions
    assert re.search(r"^memory: \d+\.\d GiB$", section(text, "machine"), re.MULTILINE)
    assert {"KASTHURI_THREADS=2", "RAY_ADDRESS=10.0.0.1:6379"} <= set(section(text, "Ray and environment").splitlines())
    assert "none in" in section(text, "last traceback")


def test_it_holds_the_newest_settings_and_the_newest_traceback(report, tmp_path):
    for age, name in enumerate(("new", "old")):
        (tmp_path / "runs" / name).mkdir(parents=True)
        path = tmp_path / "runs" / name / "settings.json"
        path.write_text(json.dumps({"train": {"name": name}}))
        os.utime(path, (time.time() - age * 100,) * 2)
    fail_with(ValueError("the older failure"))
    for path in (tmp_path / "temp").iterdir():
        os.utime(path, (0, 0))
    fail_with(KeyError("the newer failure"))
    text = report()
    assert '{"train": {"name": "new"}}' in section(text, "newest settings.json in the storage")
    assert section(text, "last traceback").endswith("KeyError: 'the newer failure'\n")
    assert "the older failure" not in text


def test_it_holds_no_secrets_of_environment_options_settings_and_traceback(report, tmp_path, monkeypatch):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "boss.json").write_text(json.dumps({"host": "h", "protocol": "https", "token": "option-secret-8"}))
    (tmp_path / "runs" / "run").mkdir(parents=True)
    weights = "https://lab/w.pt?signature=settings-secret-9"
    (tmp_path / "runs" / "run" / "settings.json").write_text(json.dumps({"train": {"weights": weights}}))
    fail_with(ValueError("option-secret-8 and aws-secret-2 at https://lab/x?token=query-secret-10 are refused"))
    text = report(boss=str(tmp_path / "boss.json"))
    assert "secret-" not in text
    assert "ValueError: (hidden) and (hidden) at https://lab/x are refused" in text
    assert "AWS_SECRET_ACCESS_KEY=(hidden)" in text
    assert "KASTHURI_STORAGE=s3://bucket/runs" in text


def test_what_cannot_be_found_out_is_said_and_the_rest_is_reported(report, monkeypatch):
    def broken() -> str:
        raise ImportError("libtorch.so is missing")

    monkeypatch.setattr(fault_report, "_describe_machine", broken)
    text = report()
    assert section(text, "machine") == "unknown: ImportError: libtorch.so is missing"
    assert "python" in section(text, "versions")


def test_a_file_that_cannot_be_written_is_bad_input(tmp_path):
    with pytest.raises(InputNotFound, match="nowhere"):
        write_fault_report(CheckSettings(report=str(tmp_path / "nowhere" / "report.txt")))
    with pytest.raises(InputError, match=str(tmp_path)):
        write_fault_report(CheckSettings(report=str(tmp_path)))

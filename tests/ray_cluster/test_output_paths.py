"""Output paths: relative ones on one machine and in a Ray job, and those that cannot be written."""

import os
from pathlib import Path

import pytest

from kasthuri_ray.ray_cluster.output_paths import check_writable_path, resolve_output_path
from kasthuri_ray.ray_cluster.resources import ClusterResources

ONE_NODE, THREE_NODES = ClusterResources(2, 0, 1), ClusterResources(6, 0, 3)


def test_outside_a_ray_job_a_path_is_relative_to_the_working_directory(monkeypatch):
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    monkeypatch.setenv("KASTHURI_STORAGE", "/elsewhere")
    assert resolve_output_path("runs", THREE_NODES) == f"{os.getcwd()}/runs"
    assert resolve_output_path("file:///data/runs", THREE_NODES) == "/data/runs"
    assert resolve_output_path("~/runs", THREE_NODES) == str(Path.home() / "runs")


def test_in_a_ray_job_a_path_is_relative_to_a_folder_that_outlives_the_job(monkeypatch):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    monkeypatch.delenv("KASTHURI_STORAGE", raising=False)
    assert resolve_output_path("s3://lab/runs", THREE_NODES) == "s3://lab/runs"
    assert resolve_output_path("/data/runs", THREE_NODES) == "/data/runs"
    assert resolve_output_path("runs", ONE_NODE) == str(Path.home() / "kasthuri_ray/runs")
    with pytest.raises(
        ValueError, match=r"'runs' is relative, and this cluster has 3 nodes.*--storage s3://.*KASTHURI"
    ):
        resolve_output_path("runs", THREE_NODES)
    for base in ("/shared", "/shared/", "s3://lab"):
        monkeypatch.setenv("KASTHURI_STORAGE", base)
        assert resolve_output_path("runs", THREE_NODES) == f"{base.rstrip('/')}/runs"


def test_a_file_url_is_decoded(monkeypatch):
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    assert resolve_output_path("file:///data/my%20runs", ONE_NODE) == "/data/my runs"
    assert resolve_output_path("file://localhost/data/runs/", ONE_NODE) == "/data/runs"
    with pytest.raises(ValueError, match=r"file:// needs an absolute path"):
        resolve_output_path("file://data/runs", ONE_NODE)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    monkeypatch.setenv("KASTHURI_STORAGE", "file:///shared/my%20lab")
    assert resolve_output_path("runs", THREE_NODES) == "/shared/my lab/runs"


def test_a_path_that_cannot_become_a_folder_is_an_error_that_says_why(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=f"^{tmp_path}/file is a file, where a folder is expected; give another --st"):
        check_writable_path(str(tmp_path / "file"))
    for path in (tmp_path / "file/runs", tmp_path / "file/runs/a"):
        with pytest.raises(
            ValueError, match=f"^{path} cannot be a folder, since {tmp_path}/file is a file; give another --st"
        ):
            check_writable_path(str(path))
    with pytest.raises(
        ValueError, match=r"^/proc/runs/a cannot be written: no file can be created in /proc; give another --output"
    ):
        check_writable_path("/proc/runs/a", "--output")
    check_writable_path(str(tmp_path / "runs/a"))
    check_writable_path("s3://lab/runs")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_write_permission_is_an_error_that_says_why(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ValueError, match=r"no file can be created in .* \(Permission denied\)"):
        check_writable_path(str(tmp_path / "runs"))

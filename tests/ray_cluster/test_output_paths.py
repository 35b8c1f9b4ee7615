"""Where a relative output leads, on one machine and in a Ray job."""

import os
from pathlib import Path

import pytest

from kasthuri_ray.ray_cluster.output_paths import check_writable_path, resolve_output_path
from kasthuri_ray.ray_cluster.resources import ClusterResources

ONE, THREE = ClusterResources(2, 0, 1), ClusterResources(6, 0, 3)


def test_here_it_is_where_one_stands(monkeypatch):
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    monkeypatch.setenv("KASTHURI_STORAGE", "/elsewhere")
    assert resolve_output_path("runs", THREE) == f"{os.getcwd()}/runs"
    assert resolve_output_path("file:///data/runs", THREE) == "/data/runs"
    assert resolve_output_path("~/runs", THREE) == str(Path.home() / "runs")


def test_in_a_ray_job_it_is_where_it_outlives_the_job(monkeypatch):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    monkeypatch.delenv("KASTHURI_STORAGE", raising=False)
    assert resolve_output_path("s3://lab/runs", THREE) == "s3://lab/runs"
    assert resolve_output_path("/data/runs", THREE) == "/data/runs"
    assert resolve_output_path("runs", ONE) == str(Path.home() / "kasthuri_ray/runs")
    with pytest.raises(
        ValueError, match=r"'runs' is relative, and this cluster has 3 nodes.*--storage s3://.*KASTHURI"
    ):
        resolve_output_path("runs", THREE)
    for base in ("/shared", "/shared/", "s3://lab"):
        monkeypatch.setenv("KASTHURI_STORAGE", base)
        assert resolve_output_path("runs", THREE) == f"{base.rstrip('/')}/runs"


def test_the_address_of_a_file_is_decoded(monkeypatch):
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    assert resolve_output_path("file:///data/my%20runs", ONE) == "/data/my runs"
    assert resolve_output_path("file://localhost/data/runs/", ONE) == "/data/runs"
    with pytest.raises(ValueError, match=r"file:// wants an absolute path"):
        resolve_output_path("file://data/runs", ONE)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    monkeypatch.setenv("KASTHURI_STORAGE", "file:///shared/my%20lab")
    assert resolve_output_path("runs", THREE) == "/shared/my lab/runs"


def test_a_place_that_takes_no_files_is_said_in_words(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file/runs/a"):
        with pytest.raises(
            ValueError, match=f"^{path} cannot be a folder, since {tmp_path}/file is a file; give another --st"
        ):
            check_writable_path(str(path))
    with pytest.raises(
        ValueError, match=r"^/proc/runs/a cannot be written: /proc takes no new files; give another --output"
    ):
        check_writable_path("/proc/runs/a", "--output")
    check_writable_path(str(tmp_path / "runs/a"))
    check_writable_path("s3://lab/runs")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_of_somebody_else_is_said_in_words(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ValueError, match=r"takes no new files \(Permission denied\)"):
        check_writable_path(str(tmp_path / "runs"))

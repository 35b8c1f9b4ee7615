"""Where a relative output leads, on one machine and in a Ray job."""

import os
from pathlib import Path

import pytest

from kasthuri_ray.placement import place_output
from kasthuri_ray.resources import Cluster

ONE, THREE = Cluster(2, 0, 1), Cluster(6, 0, 3)


def test_here_it_is_where_one_stands(monkeypatch):
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    monkeypatch.setenv("KASTHURI_STORAGE", "/elsewhere")
    assert place_output("runs", THREE) == f"{os.getcwd()}/runs"
    assert place_output("file:///data/runs", THREE) == "/data/runs"
    assert place_output("~/runs", THREE) == str(Path.home() / "runs")


def test_in_a_ray_job_it_is_where_it_outlives_the_job(monkeypatch):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    monkeypatch.delenv("KASTHURI_STORAGE", raising=False)
    assert place_output("s3://lab/runs", THREE) == "s3://lab/runs"
    assert place_output("/data/runs", THREE) == "/data/runs"
    assert place_output("runs", ONE) == str(Path.home() / "kasthuri_ray/runs")
    with pytest.raises(
        ValueError, match=r"'runs' is relative, and this cluster has 3 nodes.*--storage s3://.*KASTHURI"
    ):
        place_output("runs", THREE)
    for base in ("/shared", "/shared/", "s3://lab"):
        monkeypatch.setenv("KASTHURI_STORAGE", base)
        assert place_output("runs", THREE) == f"{base.rstrip('/')}/runs"

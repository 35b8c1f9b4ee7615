"""Every node asked at once, and the package that it runs held against ours."""

import os

import pytest

from kasthuri_ray.ray_cluster import nodes
from kasthuri_ray.ray_cluster.nodes import ClusterNode, NodeAnswer, package_differences

OURS = {"kasthuri_ray": "0.1.0 3f2a9c01", "torch": "2.13.0"}


def test_a_node_with_another_package_is_told_with_both():
    same = {"anna": dict(OURS)}
    assert package_differences(OURS, same) == []
    other = {**same, "bert": {**OURS, "torch": "2.9.1"}, "cora": {"kasthuri_ray": "not installed"}}
    assert package_differences(OURS, other) == [
        "bert has torch 2.9.1 instead of 2.13.0",
        "cora has kasthuri_ray not installed instead of 0.1.0 3f2a9c01, torch not installed instead of 2.13.0",
    ]


def test_a_job_is_refused_with_the_nodes_named_and_a_silent_one_is_not_blamed(monkeypatch):
    anna, bert, cora = (ClusterNode(name, name, "10.0.0.1", {}) for name in ("anna", "bert", "cora"))
    said = [NodeAnswer(anna, nodes.package_fingerprint()), NodeAnswer(cora, error=TimeoutError("no answer in 60 s"))]
    monkeypatch.setattr(nodes, "ask_nodes", lambda *_: said)
    nodes.check_same_package([anna, cora])
    said.append(NodeAnswer(bert, {**nodes.package_fingerprint(), "torch": "0.1"}))
    with pytest.raises(
        ValueError, match=r"other packages than this job.*\n  bert has torch 0.1 instead of .*\nInstall"
    ):
        nodes.check_same_package([anna, bert, cora])


def test_the_fingerprint_changes_with_any_source(tmp_path, monkeypatch):
    (tmp_path / "inner").mkdir()
    for name, text in (("__init__.py", ""), ("inner/a.py", "x = 1\n"), ("inner/b.json", "{}")):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(nodes, "PACKAGE", tmp_path)
    before = nodes.sources_hash()
    (tmp_path / "notes.txt").write_text("not a part of it")
    assert nodes.sources_hash() == before
    for name, text in (("inner/a.py", "x = 2\n"), ("inner/b.json", "[]"), ("inner/c.py", "")):
        (tmp_path / name).write_text(text)
        assert nodes.sources_hash() != before
        before = nodes.sources_hash()


def test_releases_of_torch_for_cpus_and_gpus_are_the_same(monkeypatch):
    monkeypatch.setattr(nodes, "version", lambda name: "2.13.0+cpu")
    nodes.package_fingerprint.cache_clear()
    assert nodes.package_fingerprint()["torch"] == "2.13.0"
    nodes.package_fingerprint.cache_clear()


def test_nodes_answer_or_tell_what_went_wrong(ray_here):
    (here,) = nodes.living_nodes()
    assert here.resources["CPU"] == 2
    (pid,) = nodes.ask_nodes([here], os.getpid)
    assert pid.error is None
    assert pid.value != os.getpid()
    (described,) = nodes.ask_nodes([here], nodes.node_fingerprint())
    assert described.value == nodes.package_fingerprint()
    (failed,) = nodes.ask_nodes([here], os.listdir, "/no/such/folder")
    assert "/no/such/folder" in str(failed.error)
    (silent,) = nodes.ask_nodes([here], __import__("time").sleep, 30, seconds=0.5)
    assert isinstance(silent.error, TimeoutError)
    nodes.check_same_package([here])
    assert nodes.ask_nodes([], os.getpid) == []

"""Package versions: those of the nodes are compared with those of this process."""

import pickle
import subprocess
import sys

import pytest

from kasthuri_ray.ray_cluster import package_versions
from kasthuri_ray.ray_cluster.nodes import ClusterNode, NodeAnswer, ask_nodes, living_nodes
from kasthuri_ray.ray_cluster.package_versions import package_differences

EXPECTED = {"kasthuri_ray": "0.1.0 3f2a9c01", "torch": "2.13.0"}


def test_a_node_with_another_package_is_listed_with_both_versions():
    same = {"anna": dict(EXPECTED)}
    assert package_differences(EXPECTED, same) == []
    other = {**same, "bert": {**EXPECTED, "torch": "2.9.1"}, "cora": {"kasthuri_ray": "not installed"}}
    assert package_differences(EXPECTED, other) == [
        "bert has torch 2.9.1 instead of 2.13.0",
        "cora has kasthuri_ray not installed instead of 0.1.0 3f2a9c01, torch not installed instead of 2.13.0",
    ]


def test_a_job_is_refused_if_a_package_differs_but_not_if_a_node_does_not_answer(monkeypatch):
    anna, bert, cora = (ClusterNode(name, name, "10.0.0.1", {}) for name in ("anna", "bert", "cora"))
    answers = [
        NodeAnswer(anna, package_versions.package_fingerprint()),
        NodeAnswer(cora, error=TimeoutError("no answer in 60 s")),
    ]
    monkeypatch.setattr(package_versions, "ask_nodes", lambda *_: answers)
    package_versions.check_same_package([anna, cora])
    answers.append(NodeAnswer(bert, {**package_versions.package_fingerprint(), "torch": "0.1"}))
    with pytest.raises(
        ValueError, match=r"other packages than this job.*\n  bert has torch 0.1 instead of .*\nInstall"
    ):
        package_versions.check_same_package([anna, bert, cora])


def test_the_fingerprint_changes_with_any_source_file(tmp_path, monkeypatch):
    (tmp_path / "inner").mkdir()
    for name, text in (("__init__.py", ""), ("inner/a.py", "x = 1\n"), ("inner/b.json", "{}")):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(package_versions, "PACKAGE", tmp_path)
    before = package_versions.sources_hash()
    (tmp_path / "notes.txt").write_text("not a source file")
    assert package_versions.sources_hash() == before
    for name, text in (("inner/a.py", "x = 2\n"), ("inner/b.json", "[]"), ("inner/c.py", "")):
        (tmp_path / name).write_text(text)
        assert package_versions.sources_hash() != before
        before = package_versions.sources_hash()


def test_builds_of_torch_for_cpus_and_gpus_have_the_same_fingerprint(monkeypatch):
    monkeypatch.setattr(package_versions, "version", lambda name: "2.13.0+cpu")
    package_versions.package_fingerprint.cache_clear()
    assert package_versions.package_fingerprint()["torch"] == "2.13.0"
    package_versions.package_fingerprint.cache_clear()


def test_a_node_without_the_package_answers_that_it_is_not_installed(tmp_path):
    """Ray pickles the function; unpickling it must not import the package."""
    from ray import cloudpickle

    (tmp_path / "function.pkl").write_bytes(cloudpickle.dumps(package_versions.node_fingerprint()))
    code = (
        "import pickle, sys\n"
        "class Blocked:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] == 'kasthuri_ray': raise ImportError(name)\n"
        "sys.meta_path.insert(0, Blocked())\n"
        "print(pickle.load(open('function.pkl', 'rb'))())"
    )
    process = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert process.stdout == "{'kasthuri_ray': 'not installed'}\n", process.stderr
    function = pickle.loads((tmp_path / "function.pkl").read_bytes())
    assert function() == package_versions.package_fingerprint()


def test_a_node_of_this_machine_has_the_package_of_this_process(local_ray):
    (node,) = living_nodes()
    (fingerprint,) = ask_nodes([node], package_versions.node_fingerprint())
    assert fingerprint.value == package_versions.package_fingerprint()
    package_versions.check_same_package([node])

"""Fitness findings: from what nodes inspected to a table with fixes, and what a node inspects."""

import re

import pytest

from kasthuri_ray.ray_cluster import cluster_findings
from kasthuri_ray.ray_cluster.cluster_findings import (
    MARKER,
    Finding,
    InspectionRequest,
    NodeInspection,
    NodeReport,
    inspect_node,
    write_marker,
)
from kasthuri_ray.storage.folder import open_storage

GB = 10**9


def inspection(**changes) -> NodeInspection:
    """Return the inspection of a node that is fit, with changes."""
    fit = {
        "shm_bytes": 8 * GB,
        "gpu_names": (),
        "num_gpus": 0,
        "storage": "",
        "image": "",
        "image_seconds": 0.5,
        "cache_free_bytes": 100 * GB,
    }
    return NodeInspection(**{**fit, **changes})


def nodes(gpus: float = 0, **changes) -> dict[str, NodeReport]:
    """Return the reports of two nodes: `anna` is fit, `bert` has the changes."""
    return {"anna": NodeReport(0, 4 * GB, inspection()), "bert": NodeReport(gpus, 4 * GB, inspection(**changes))}


@pytest.mark.parametrize(
    ("finding", "result", "fix"),
    [
        (cluster_findings.size_finding(0 + 1, 0, 0, ""), "1 node, 0 CPUs, 0 GPUs", "no worker nodes"),
        (
            cluster_findings.size_finding(3, 4, 0, "2 workers need 2 GPUs, the cluster has 0"),
            "3 nodes",
            "2 workers need 2 GPUs",
        ),
        (
            cluster_findings.unanswered_finding({"bert": "no answer in 60 s"}),
            "bert: no answer in 60 s",
            "ray list nodes",
        ),
        (
            cluster_findings.package_finding(["bert has torch 2.9 instead of 2.13"], {"torch": "2.13"}),
            "bert has torch 2.9",
            "one container image",
        ),
        (
            cluster_findings.access_finding(["10.0.0.1"], "disabled"),
            "no token: anyone who reaches a port",
            "RAY_AUTH_TOKEN_PATH",
        ),
        (
            cluster_findings.access_finding(["10.0.0.1", "8.8.8.8"], "token"),
            "public addresses: 8.8.8.8",
            "private addresses",
        ),
        (cluster_findings.gpu_finding(nodes(gpus=1)), "does not see the GPUs of bert", "CUDA build"),
        (
            cluster_findings.gpu_finding(nodes(num_gpus=2, gpu_names=("L4", "L4"), gpus=1)),
            "Ray counts fewer GPUs.* bert",
            "--num-gpus",
        ),
        (
            cluster_findings.storage_finding("/data", nodes(storage="it does not see"), []),
            "bert: it does not see",
            "--storage s3://",
        ),
        (cluster_findings.storage_finding("s3://b/r", nodes(storage="access is refused"), []), "bert: access", "keys"),
        (
            cluster_findings.storage_finding("/data", nodes(), ["anna"]),
            "anna: the others do not see what it writes",
            "all nodes mount",
        ),
        (
            cluster_findings.image_finding("bossdb://a/b/c", nodes(image="no way")),
            "bossdb://a/b/c: bert: no way",
            "443",
        ),
        (
            cluster_findings.shared_memory_finding(nodes(shm_bytes=GB // 16)),
            r"/dev/shm of bert .*\(0.1 GB, 4.0 GB\)",
            "--shm-size",
        ),
        (
            cluster_findings.cache_finding(nodes(cache_free_bytes=3 * GB), 20 * GB),
            r"bert \(3 GB free\)",
            "--cache-size",
        ),
        (
            cluster_findings.bandwidth_finding({"anna to bert": 5e6, "bert to anna": 9e8}),
            r"5 MB/s .*anna to bert",
            "one node",
        ),
    ],
)
def test_a_finding_that_is_not_fit_names_the_node_and_the_fix(finding, result, fix):
    assert re.search(result, finding.result)
    assert fix in finding.fix


@pytest.mark.parametrize(
    "finding",
    [
        cluster_findings.size_finding(3, 4, 0, ""),
        cluster_findings.unanswered_finding({}),
        cluster_findings.package_finding([], {"torch": "2.13"}),
        cluster_findings.access_finding(["10.0.0.1", "10.0.0.2"], "token"),
        cluster_findings.access_finding(["127.0.0.1"], "disabled"),
        cluster_findings.gpu_finding(nodes()),
        cluster_findings.gpu_finding(nodes(num_gpus=1, gpu_names=("L4",), gpus=1)),
        cluster_findings.storage_finding("s3://b/r", nodes(), []),
        cluster_findings.image_finding(None, nodes(image="not checked")),
        cluster_findings.image_finding("phantom://em", nodes()),
        cluster_findings.shared_memory_finding(nodes()),
        cluster_findings.shared_memory_finding({"mac": NodeReport(0, GB, inspection(shm_bytes=None))}),
        cluster_findings.cache_finding(nodes(), 20 * GB),
        cluster_findings.cache_finding({"anna": NodeReport(0, GB, inspection(cache_free_bytes=None))}, 20 * GB),
        cluster_findings.bandwidth_finding({}),
        cluster_findings.bandwidth_finding({"anna to bert": 1e9}),
    ],
)
def test_a_finding_that_is_fit_has_no_fix(finding):
    assert finding.fix == ""
    assert finding.result


def test_the_last_line_of_the_table_is_the_result_of_all_findings():
    fit, unfit = Finding("nodes", "3 nodes"), Finding("storage", "bert does not see it", "share it")
    assert cluster_findings.findings_table([fit]) == ["ok    nodes  3 nodes", "fit"]
    lines = cluster_findings.findings_table([fit, unfit])
    assert lines[0] == "ok    nodes    3 nodes"
    assert lines[1] == "fix   storage  bert does not see it"
    assert lines[2].split("->")[1] == " share it"
    assert lines[3] == "not fit: 1 of 2 to fix"


def test_a_node_that_sees_another_folder_leaves_no_file_in_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="cannot read a file that another node wrote there"):
        write_marker(str(tmp_path / "other"), "bert")
    assert not list(tmp_path.iterdir())
    storage = open_storage(str(tmp_path / "shared"))
    storage.write_bytes("driver", MARKER)
    write_marker(storage.path, "bert")
    assert storage.read_bytes("bert") == MARKER


def test_an_inspection_reports_storage_image_and_cache_and_shows_no_token(tmp_path):
    open_storage(str(tmp_path)).write_bytes("driver", MARKER)
    boss = {"protocol": "http", "host": "127.0.0.1:9", "token": "a-secret-token"}
    cache = str(tmp_path / "no" / "cache")
    request = InspectionRequest(str(tmp_path), "phantom://em?shape=8,64,64", boss, cache, cache_size="20GB")
    assert "a-secret-token" not in repr(request)
    fit = inspect_node(request, "anna", has_gpus=False)
    assert (fit.storage, fit.image) == ("", "")
    assert fit.image_seconds < 30
    assert fit.cache_free_bytes > 0
    assert not (tmp_path / "no").exists()
    wrong = InspectionRequest(str(tmp_path / "x"), str(tmp_path / "no.zarr"), None, cache="none", cache_size="20GB")
    unfit = inspect_node(wrong, "anna", has_gpus=False)
    assert "cannot read a file" in unfit.storage
    assert "no.zarr" in unfit.image
    assert unfit.cache_free_bytes is None

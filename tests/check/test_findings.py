"""From what nodes saw to what a person reads."""

import pytest

from kasthuri_ray.check import findings
from kasthuri_ray.check.findings import Finding, Seen
from kasthuri_ray.check.sight import MARK, Request, Sight, leave_mark, look
from kasthuri_ray.storage import open_storage

GB = 10**9


def sight(**other) -> Sight:
    fit = {
        "shm_bytes": 8 * GB,
        "cards": (),
        "devices": 0,
        "storage": "",
        "image": "",
        "image_seconds": 0.5,
        "cache_free_bytes": 100 * GB,
    }
    return Sight(**{**fit, **other})


def nodes(gpus: float = 0, **other) -> dict[str, Seen]:
    """Two nodes, of which `bert` is as said."""
    return {"anna": Seen(0, 4 * GB, sight()), "bert": Seen(gpus, 4 * GB, sight(**other))}


@pytest.mark.parametrize(
    ("finding", "words", "mend"),
    [
        (findings.of_size(0 + 1, 0, 0, ""), "1 node, 0 CPUs, 0 GPUs", "no node takes work"),
        (findings.of_size(3, 4, 0, "2 workers need 2 GPUs, the cluster has 0"), "3 nodes", "2 workers need 2 GPUs"),
        (findings.of_silence({"bert": "no answer in 60 s"}), "bert: no answer in 60 s", "ray list nodes"),
        (
            findings.of_package(["bert has torch 2.9 instead of 2.13"], {"torch": "2.13"}),
            "bert has torch 2.9",
            "one image",
        ),
        (findings.of_doors(["10.0.0.1"], "disabled"), "no token: whoever reaches a port", "RAY_AUTH_TOKEN_PATH"),
        (findings.of_doors(["10.0.0.1", "8.8.8.8"], "token"), "public addresses: 8.8.8.8", "private addresses"),
        (findings.of_gpus(nodes(gpus=1)), "does not see the cards of bert", "CUDA build"),
        (findings.of_gpus(nodes(devices=2, cards=("L4", "L4"), gpus=1)), "Ray counts fewer.* bert", "--num-gpus"),
        (
            findings.of_storage("/data", nodes(storage="it does not see"), []),
            "bert: it does not see",
            "--storage s3://",
        ),
        (findings.of_storage("s3://b/r", nodes(storage="access is refused"), []), "bert: access", "keys"),
        (findings.of_storage("/data", nodes(), ["anna"]), "anna: what it writes is not seen", "all nodes mount"),
        (findings.of_image("bossdb://a/b/c", nodes(image="no way")), "bossdb://a/b/c: bert: no way", "443"),
        (findings.of_shared_memory(nodes(shm_bytes=GB // 16)), r"/dev/shm of bert .*\(0.1 GB, 4.0 GB\)", "--shm-size"),
        (findings.of_cache(nodes(cache_free_bytes=3 * GB), 20 * GB), r"bert \(3 GB free\)", "--cache-size"),
        (findings.of_bandwidth({"anna to bert": 5e6, "bert to anna": 9e8}), r"5 MB/s .*anna to bert", "one node"),
    ],
)
def test_what_is_not_fit_is_named_with_what_to_do(finding, words, mend):
    import re

    assert re.search(words, finding.found)
    assert mend in finding.mend


@pytest.mark.parametrize(
    "finding",
    [
        findings.of_size(3, 4, 0, ""),
        findings.of_silence({}),
        findings.of_package([], {"torch": "2.13"}),
        findings.of_doors(["10.0.0.1", "10.0.0.2"], "token"),
        findings.of_doors(["127.0.0.1"], "disabled"),
        findings.of_gpus(nodes()),
        findings.of_gpus(nodes(devices=1, cards=("L4",), gpus=1)),
        findings.of_storage("s3://b/r", nodes(), []),
        findings.of_image(None, nodes(image="not looked at")),
        findings.of_image("phantom://em", nodes()),
        findings.of_shared_memory(nodes()),
        findings.of_shared_memory({"mac": Seen(0, GB, sight(shm_bytes=None))}),
        findings.of_cache(nodes(), 20 * GB),
        findings.of_cache({"anna": Seen(0, GB, sight(cache_free_bytes=None))}, 20 * GB),
        findings.of_bandwidth({}),
        findings.of_bandwidth({"anna to bert": 1e9}),
    ],
)
def test_what_is_fit_has_nothing_to_mend(finding):
    assert finding.mend == ""
    assert finding.found


def test_the_table_ends_with_the_verdict():
    fit, unfit = Finding("nodes", "3 nodes"), Finding("storage", "bert is blind", "share it")
    assert findings.table([fit]) == ["ok    nodes  3 nodes", "fit"]
    lines = findings.table([fit, unfit])
    assert lines[0] == "ok    nodes    3 nodes"
    assert lines[1] == "mend  storage  bert is blind"
    assert lines[2].split("->")[1] == " share it"
    assert lines[3] == "not fit: 1 of 2 to mend"


def test_a_node_that_sees_another_folder_leaves_nothing_in_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not see what the other nodes write"):
        leave_mark(str(tmp_path / "other"), "bert")
    assert not list(tmp_path.iterdir())
    storage = open_storage(str(tmp_path / "shared"))
    storage.write_bytes("driver", MARK)
    leave_mark(storage.path, "bert")
    assert storage.read_bytes("bert") == MARK


def test_a_node_tells_what_it_sees_and_no_token(tmp_path):
    open_storage(str(tmp_path)).write_bytes("driver", MARK)
    secret = {"protocol": "http", "host": "127.0.0.1:9", "token": "a-secret-token"}
    request = Request(str(tmp_path), "phantom://em?shape=8,64,64", secret, cache=str(tmp_path / "no" / "cache"))
    assert "a-secret-token" not in repr(request)
    seen = look(request, "anna", has_gpus=False)
    assert (seen.storage, seen.image) == ("", "")
    assert seen.image_seconds < 30
    assert seen.cache_free_bytes > 0
    assert not (tmp_path / "no").exists()
    lost = look(Request(str(tmp_path / "x"), str(tmp_path / "no.zarr"), None, cache="none"), "anna", has_gpus=False)
    assert "does not see" in lost.storage
    assert "no.zarr" in lost.image
    assert lost.cache_free_bytes is None

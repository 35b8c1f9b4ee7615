"""Files of a run, on a disk and on S3 alike: written whole or not at all, and by one of several processes."""

import os
import pickle
import subprocess
import sys

import pytest

from kasthuri_ray.storage.folder import read_uri


def test_files_are_written_read_listed_and_deleted(storage):
    run = storage.child("a run")
    for name, data in {"metrics.json": b"{}", "checkpoint/best.pt": os.urandom(300_000), "empty": b""}.items():
        assert not run.exists(name)
        run.write_bytes(name, data)
        assert run.exists(name)
        assert run.read_bytes(name) == data
        assert pickle.loads(pickle.dumps(run)).read_bytes(name) == data
        assert read_uri(f"{run.path}/{name}") == data
    run.write_bytes("metrics.json", b"new")
    assert run.read_bytes("metrics.json") == b"new"
    assert run.list_files() == ["checkpoint/best.pt", "empty", "metrics.json"]
    assert run.list_files("checkpoint/") == ["checkpoint/best.pt"]
    assert run.list_files("me") == ["metrics.json"]
    assert storage.list_files() == [f"a run/{name}" for name in run.list_files()]
    run.delete("metrics.json")
    run.delete("metrics.json")
    run.delete("checkpoint/best.pt")
    assert run.list_files() == ["empty"]


def test_a_folder_lists_its_direct_files_and_folders_and_is_removed_with_all_of_them(storage):
    run, other = storage.child("run"), storage.child("run2")
    assert run.list_folder() == []
    for name in ("metrics.json", "checkpoint/best.pt"):
        run.write_bytes(name, b"{}")
    other.write_bytes("metrics.json", b"{}")
    assert run.list_folder() == ["checkpoint", "metrics.json"]
    run.delete("metrics.json")
    run.delete("metrics.json")
    assert run.list_folder() == ["checkpoint"]
    run.remove_folder()
    assert run.list_files() == []
    assert storage.list_files() == ["run2/metrics.json"]


def test_only_a_json_object_is_read_as_json(storage):
    for name, data in {"object": b'{"a": 1}', "list": b"[1]", "text": b"not json"}.items():
        storage.write_bytes(name, data)
    assert storage.read_json("object") == {"a": 1}
    assert [storage.read_json(name) for name in ("list", "text", "missing")] == [None] * 3


def test_a_missing_file_is_an_error_that_names_it(storage):
    assert storage.list_files() == []
    assert not storage.exists("x")
    with pytest.raises(FileNotFoundError, match=r"nothing\.json"):
        storage.read_bytes("nothing.json")
    storage.delete("nothing.json")


def test_a_new_file_is_written_once(storage):
    first = storage.write_if("lock.json", b"1", None)
    assert storage.write_if("lock.json", b"2", None) is None
    assert storage.read_version("lock.json") == (b"1", first)


def test_a_file_is_replaced_only_if_it_has_the_version_that_was_read(storage):
    first = storage.write_if("lock.json", b"1", None)
    second = storage.write_if("lock.json", b"2", first)
    assert second not in (None, first)
    assert storage.write_if("lock.json", b"3", first) is None
    assert storage.read_version("lock.json") == (b"2", second)
    storage.write_bytes("lock.json", b"1")
    assert storage.write_if("lock.json", b"4", second) is None
    storage.delete("lock.json")
    assert storage.write_if("lock.json", b"5", second) is None
    assert not storage.exists("lock.json")


def test_of_several_processes_that_replace_a_file_one_succeeds_each_time(storage):
    code = """
import os, sys
from kasthuri_ray.storage.folder import open_storage
storage, count = open_storage(sys.argv[1]), 0
while True:
    data, version = storage.read_version("counter")
    if int(data) == 30:
        break
    count += storage.write_if("counter", str(int(data) + 1).encode(), version) is not None
print(count)
"""
    storage.write_bytes("counter", b"0")
    command = [sys.executable, "-c", code, storage.path]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert sum(int(process.communicate(timeout=60)[0]) for process in processes) == 30
    assert storage.list_files() == ["counter"]


def test_records_are_listed_by_name(storage):
    assert storage.list_records("s0") == []
    for name in ("s0/a.json", "s0/b.json", "s1/c.json"):
        storage.write_record(name, b"{}\n")
    storage.write_bytes("s0/notes.txt", b"{}\n")
    assert sorted(storage.list_records("s0")) == ["a.json", "b.json"]


def test_a_folder_is_removed_only_if_it_is_empty(storage):
    storage.write_bytes("a", b"1")
    storage.remove_if_empty()
    assert storage.exists("a")
    storage.delete("a")
    storage.remove_if_empty()
    storage.remove_if_empty()
    assert storage.list_folder() == []


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../other", "a/../../b"])
def test_a_name_that_leads_out_of_the_folder_is_refused(storage, name):
    with pytest.raises(ValueError, match="is not the name of a file"):
        storage.write_bytes(name, b"")

"""Storages on a disk: full disks, file systems without links or locks, and killed writers."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time

import pytest

from kasthuri_ray.storage.folder import open_storage
from kasthuri_ray.storage.storage import ConditionsUnsupported


def test_a_new_file_is_written_once_on_a_file_system_without_links(tmp_path, monkeypatch):
    def refuse(*names):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    storage = open_storage(str(tmp_path))
    assert storage.write_if("lock.json", b"1", None) is not None
    assert storage.write_if("lock.json", b"2", None) is None
    assert storage.read_bytes("lock.json") == b"1"
    assert [path.name for path in tmp_path.iterdir()] == ["lock.json"]


def test_a_file_that_another_process_is_replacing_is_not_replaced(tmp_path):
    storage = open_storage(str(tmp_path))
    version = storage.write_if("lock.json", b"1", None)
    with open(tmp_path / "lock.json", "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert storage.write_if("lock.json", b"2", version) is None
    assert storage.write_if("lock.json", b"2", version) is not None


def test_a_process_that_is_killed_while_it_replaces_a_file_blocks_nobody(tmp_path):
    code = """
import os, sys, time
from kasthuri_ray.storage.folder import open_storage
def stop(*names):
    print("replacing", flush=True)
    time.sleep(60)
os.replace = stop
storage = open_storage(sys.argv[1])
storage.write_if("lock.json", b"2", storage.read_version("lock.json")[1])
"""
    storage = open_storage(str(tmp_path))
    version = storage.write_if("lock.json", b"1", None)
    writer = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    writer.stdout.readline()
    assert storage.write_if("lock.json", b"3", version) is None
    writer.kill()
    writer.wait()
    assert storage.write_if("lock.json", b"3", version) is not None
    assert storage.list_files() == ["lock.json"]


def test_a_file_system_without_locks_has_no_conditional_writes(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    storage = open_storage(str(tmp_path))
    version = storage.write_if("lock.json", b"1", None)
    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(ConditionsUnsupported, match="the disk has no file locks: No locks available"):
        storage.write_if("lock.json", b"2", version)


def test_a_file_in_place_of_the_folder_is_an_error(tmp_path):
    (tmp_path / "runs").write_text("a")
    storage = open_storage(str(tmp_path / "runs"))
    assert storage.read_json("settings.json") is None
    assert not storage.exists("settings.json")
    with pytest.raises(NotADirectoryError):
        storage.list_folder()


def test_the_disk_of_a_folder_that_does_not_exist_is_that_of_the_folder_above(tmp_path):
    disk = open_storage(str(tmp_path / "a/b")).disk_space()
    assert disk is not None
    assert disk.folder == tmp_path
    assert disk.free_bytes > 0
    assert disk.writable


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_the_earlier_file_whole(tmp_path, monkeypatch, number):
    storage = open_storage(str(tmp_path))
    storage.write_bytes("best.pt", b"old")

    def full(handle):
        raise OSError(number, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        OSError, match=rf"the disk is full: {tmp_path}/best.pt \(3 bytes\).* earlier file is unchanged"
    ) as error:
        storage.write_bytes("best.pt", b"new")
    assert error.value.errno == number
    with pytest.raises(OSError, match=r"new.pt \(3 bytes\) could not be written; nothing was written"):
        storage.write_bytes("new.pt", b"new")
    assert storage.read_bytes("best.pt") == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["best.pt"]


def test_a_disk_that_becomes_full_during_a_write_is_reported(tmp_path):
    """A limit of 4 kB for files stands in for the full disk."""
    code = """
import errno, os, resource, signal, sys
from kasthuri_ray import errors
from kasthuri_ray.storage.folder import open_storage
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
errors.DISK_FULL = (errno.EFBIG,)
try:
    open_storage(sys.argv[1]).write_bytes("best.pt", bytes(100_000))
except OSError as error:
    print(error)
"""
    (tmp_path / "best.pt").write_bytes(b"old")
    process = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert "the disk is full" in process.stdout, process.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["best.pt"]
    assert (tmp_path / "best.pt").read_bytes() == b"old"


def test_a_writer_that_is_killed_leaves_a_whole_file(tmp_path):
    code = """
import sys
from kasthuri_ray.storage.folder import open_storage
storage, i = open_storage(sys.argv[1]), 0
while True:
    storage.write_bytes("x", bytes([i % 256]) * 1_000_000); i += 1
    if i == 3: print("ready", flush=True)
"""
    for _ in range(3):
        writer = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(0.05)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        data = open_storage(str(tmp_path)).read_bytes("x")
        assert data == data[:1] * 1_000_000
    assert open_storage(str(tmp_path)).list_files() == ["x"]

"""The folder of a local Ray: where Ray's own choice fails, and that a folder of ours is private and removed."""

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from kasthuri_ray.errors import InputError
from kasthuri_ray.ray_cluster import temporary_folder
from kasthuri_ray.ray_cluster.temporary_folder import default_ray_folder, find_fault, private_ray_folder


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({}, "/tmp/ray"),
        ({"TMPDIR": "/scratch/me"}, "/scratch/me/ray"),
        ({"TMPDIR": "/scratch/me", "RAY_TMPDIR": "/fast"}, "/fast/ray"),
        ({"TMPDIR": ""}, "/tmp/ray"),
        ({"TMPDIR": "here"}, f"{os.getcwd()}/here/ray"),
    ],
)
def test_the_folder_that_ray_would_choose_is_known(monkeypatch, variables, folder):
    for name in ("TMPDIR", "RAY_TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert default_ray_folder() == folder
    if all(os.path.isabs(value) for value in variables.values()):
        from ray._common.utils import get_default_ray_temp_dir

        assert get_default_ray_temp_dir() == folder


@pytest.mark.parametrize("system", ["linux", "darwin"])
def test_the_longest_socket_of_ray_decides_how_long_a_path_may_be(system, monkeypatch):
    from ray._private.utils import validate_socket_filepath

    monkeypatch.setattr(sys, "platform", system)
    for length in range(30, 60):
        folder = "/" + "x" * (length - 1)
        try:
            validate_socket_filepath(f"{folder}/{temporary_folder.SOCKET}")
            is_short = True
        except OSError:
            is_short = False
        assert ("too long" not in find_fault(folder)) == is_short, length
    long = find_fault("/" + "x" * 41 + "/ü")  # a letter of two bytes
    assert f"{2 if system == 'linux' else 6} bytes too long" in long


def test_a_folder_that_is_not_ours_or_cannot_be_written_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr(temporary_folder, "_max_socket_bytes", lambda: 1000)
    assert find_fault(f"{tmp_path}/ray") == ""
    (tmp_path / "ray").mkdir()
    assert find_fault(f"{tmp_path}/ray") == ""
    (tmp_path / "file").write_text("")
    assert find_fault(f"{tmp_path}/file/ray") == f"{tmp_path}/file cannot be written"
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert find_fault(f"{tmp_path}/link") == f"{tmp_path}/link cannot be written"
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert find_fault(f"{tmp_path}/ray") == f"{tmp_path}/ray belongs to another user"
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert find_fault(f"{tmp_path}/nowhere/ray") == f"{tmp_path} cannot be written"


def test_without_any_short_folder_the_message_says_what_to_set(monkeypatch):
    monkeypatch.setattr(temporary_folder, "SHORT_FOLDERS", ("/dev/null", "/" + "x" * 90))
    with pytest.raises(InputError, match=r"/dev/null, /x+ cannot be written; set RAY_TMPDIR"):
        private_ray_folder()


MAKE_FOLDER = """
import os, select, sys
from kasthuri_ray.ray_cluster.driver import exit_on_sigterm
from kasthuri_ray.ray_cluster.temporary_folder import private_ray_folder
with exit_on_sigterm():
    folder = private_ray_folder()
    assert folder == private_ray_folder()
    os.makedirs(folder + "/session/sockets")
    if os.fork() == 0:
        sys.exit()
    os.wait()
    print(folder, flush=True)
    while not select.select([sys.stdin], [], [], 0.1)[0]:  # a signal just before a read would not end the read
        pass
"""


@pytest.mark.parametrize("end", [None, signal.SIGINT, signal.SIGTERM])
def test_a_folder_of_ours_is_short_and_private_and_removed_however_the_process_ends(end):
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", MAKE_FOLDER]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        folder = Path(process.stdout.readline().strip())
        assert find_fault(str(folder)) == ""
        assert folder.is_dir(), "a child that ends does not remove it"
        assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o700
        if end is None:
            process.stdin.close()
        else:
            process.send_signal(end)
        process.wait(timeout=30)
    assert not folder.parent.exists()

"""What of a segmentation is done, kept beside its output."""

import errno
import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kasthuri_ray.config.differences import record_differences
from kasthuri_ray.output.ledger import Ledger
from kasthuri_ray.segmentation.progress_report import write_progress


@pytest.fixture(params=["disk", "s3"])
def output(request, tmp_path):
    """The path of an output, on the disk and on S3."""
    if request.param == "s3":
        request.getfixturevalue("s3")
        return "s3://some-bucket/deep/out.zarr"
    return str(tmp_path / "deep/out.zarr")


def test_blocks_are_done_when_they_were_recorded(output):
    ledger = Ledger.beside(output)
    assert ledger.storage.path == f"{output}.ledger"
    assert ledger.done("s0") == {}
    ledger.record("s0", "0_1_2", {"voxels": 5, "box": [1, 2]})
    ledger.record("s0", "0_1_3", blank=True)
    ledger.record("s1", "0_0_0")
    again = pickle.loads(pickle.dumps(ledger))
    assert again.done("s0") == {"0_1_2": True, "0_1_3": False}
    assert again.done("s1") == {"0_0_0": True}
    assert again.read("s0", "0_1_2") == {"voxels": 5, "box": [1, 2]}
    assert again.read("s0", "0_1_3") == {}
    assert again.storage.list() == ["s0/0_1_2.json", "s0/0_1_3.blank.json", "s1/0_0_0.json"]
    with pytest.raises(FileNotFoundError, match="block 0_9_9 of s0 is not done"):
        again.read("s0", "0_9_9")


def test_a_record_is_the_same_bytes_each_time(output):
    ledger = Ledger.beside(output)
    ledger.record("s0", "0_0_0", {"b": 1, "a": 2})
    first = ledger.storage.read_bytes("s0/0_0_0.json")
    ledger.record("s0", "0_0_0", {"a": 2, "b": 1})
    assert ledger.storage.read_bytes("s0/0_0_0.json") == first == b'{"a": 2, "b": 1}\n'


def test_the_settings_that_an_output_was_started_with_are_kept(output):
    ledger = Ledger.beside(output)
    assert ledger.settings() is None
    assert ledger.begin({"tile": (1, 2, 3), "network": {"depth": 4}}) is None
    assert ledger.begin({"tile": (1, 2, 4), "network": {"depth": 5}}) == {"tile": [1, 2, 3], "network": {"depth": 4}}
    assert ledger.settings() == {"tile": [1, 2, 3], "network": {"depth": 4}}


def test_blocks_set_aside_are_kept_with_their_traceback_until_they_are_tried_again(output):
    ledger = Ledger.beside(output)
    assert ledger.aside("s0") == {}
    for name in ("0_0_2", "0_0_1"):
        ledger.set_aside("s0", name, {"traceback": f"at {name}"})
    ledger.set_aside("s1", "0_0_0", {})
    assert ledger.aside("s0") == {"0_0_1": {"traceback": "at 0_0_1"}, "0_0_2": {"traceback": "at 0_0_2"}}
    assert ledger.done("s0") == {}
    ledger.clear_aside("s0", "0_0_1")
    ledger.clear_aside("s0", "0_0_1")
    assert list(ledger.aside("s0")) == ["0_0_2"]
    ledger.clear_aside("s0")
    assert ledger.aside("s0") == {}
    assert list(ledger.aside("s1")) == ["0_0_0"]


def test_a_ledger_is_cleared_but_for_its_lock(output):
    ledger = Ledger.beside(output)
    ledger.clear()
    ledger.begin({"tile": 1})
    ledger.record("s0", "0_0_0")
    ledger.set_aside("s1", "0_0_0", {})
    ledger.storage.write_bytes("lock.json", b"{}")
    ledger.clear()
    assert ledger.storage.list() == ["lock.json"]
    assert (ledger.settings(), ledger.done("s0"), ledger.aside("s1")) == (None, {}, {})


def test_a_torn_or_an_empty_record_is_not_done(tmp_path):
    ledger = Ledger.beside(str(tmp_path / "out.zarr"))
    for name in "abc":
        ledger.record("s0", name, {"voxels": 12})
    folder = ledger.storage.folder / "s0"
    (folder / "a.json").write_bytes(b"")
    (folder / "b.json").write_bytes((folder / "b.json").read_bytes()[:-4])
    (folder / ".d.json.part").write_bytes(b"{}\n")
    assert ledger.done("s0") == {"c": True}
    with pytest.raises(FileNotFoundError, match="not done"):
        ledger.read("s0", "b")
    ledger.record("s0", "b", {"voxels": 12})
    assert ledger.done("s0") == {"b": True, "c": True}


def test_an_empty_record_on_s3_is_not_done(s3):
    ledger = Ledger.beside("s3://some-bucket/out.zarr")
    ledger.record("s0", "a")
    s3.put_object(Bucket="some-bucket", Key="out.zarr.ledger/s0/b.json", Body=b"")
    assert ledger.done("s0") == {"a": True}


def test_a_full_disk_is_said_in_words_and_the_block_is_not_done(tmp_path, monkeypatch):
    ledger = Ledger.beside(str(tmp_path / "out.zarr"))
    ledger.record("s0", "a", {"voxels": 12})

    def half(handle, data):
        if len(data) > 5:
            return write(handle, data[:5])
        raise OSError(errno.ENOSPC, "No space left on device")

    write = os.write
    monkeypatch.setattr(os, "write", half)
    with pytest.raises(
        OSError, match=r"the disk is full: .*b\.json .*could not be written; what is done is kept"
    ) as caught:
        ledger.record("s0", "b", {"voxels": 12})
    assert caught.value.errno == errno.ENOSPC
    monkeypatch.undo()
    assert ledger.done("s0") == {"a": True}


def test_a_record_waits_for_the_disk(tmp_path):
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    code = (
        "from kasthuri_ray.output.ledger import Ledger; "
        f"Ledger.beside({str(tmp_path / 'out.zarr')!r}).record('s0', '0_0_0')"
    )
    log = tmp_path / "log"
    run = subprocess.run([strace, "-f", "-e", "trace=openat,fsync", "-o", log, sys.executable, "-c", code], check=False)
    if run.returncode:
        pytest.skip("strace may not trace here")
    opened = [line for line in log.read_text().splitlines() if "0_0_0.json" in line]
    assert "O_DSYNC" in opened[-1]


def test_ten_thousand_records_are_listed_in_a_moment(tmp_path):
    ledger = Ledger.beside(str(tmp_path / "out.zarr"))
    folder = ledger.storage.folder / "s0"
    folder.mkdir(parents=True)
    for number in range(10_000):
        (folder / f"0_{number}_0.json").write_bytes(b"{}\n")
    before = time.perf_counter()
    assert len(ledger.done("s0")) == 10_000
    assert time.perf_counter() - before < 5


def test_differences_are_none_between_what_json_cannot_tell_apart():
    assert record_differences({"a": {"b": (1, 2)}, "c": {}}, {"a": {"b": [1, 2]}, "c": {}}) == []
    assert record_differences({"a": {}}, {"a": {"b": 1}}) == ["a: {} -> not there", "a.b: not there -> 1"]


def test_progress_is_written_whole_and_anew(output):
    write_progress(output, {"state": "running", "blocks": 3})
    write_progress(output, {"state": "done", "blocks": 3, "seconds_left": None})
    storage = Ledger.beside(output).storage
    folder, name = storage.path.rpartition("/")[0], "out.zarr.progress.json"
    from kasthuri_ray.storage.folder import open_storage

    assert open_storage(folder).list() == [name]
    assert json.loads(open_storage(folder).read_bytes(name)) == {"state": "done", "blocks": 3, "seconds_left": None}
    if not output.startswith("s3"):
        assert [path.name for path in Path(folder).iterdir()] == [name]

"""The ledger records which blocks of a segmentation are done."""

import errno
import os
import pickle
import shutil
import subprocess
import sys
import time

import pytest

from kasthuri_ray.output.ledger import Ledger


def test_recorded_blocks_are_done(output):
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
    assert again.storage.list_files() == ["s0/0_1_2.json", "s0/0_1_3.blank.json", "s1/0_0_0.json"]
    with pytest.raises(FileNotFoundError, match="block 0_9_9 of s0 is not done"):
        again.read("s0", "0_9_9")


def test_equal_records_have_equal_bytes(output):
    ledger = Ledger.beside(output)
    ledger.record("s0", "0_0_0", {"b": 1, "a": 2})
    first = ledger.storage.read_bytes("s0/0_0_0.json")
    ledger.record("s0", "0_0_0", {"a": 2, "b": 1})
    assert ledger.storage.read_bytes("s0/0_0_0.json") == first == b'{"a": 2, "b": 1}\n'


def test_the_settings_that_an_output_was_started_with_are_kept(output):
    ledger = Ledger.beside(output)
    assert ledger.settings() is None
    assert ledger.start({"tile": (1, 2, 3), "network": {"depth": 4}}) is None
    assert ledger.start({"tile": (1, 2, 4), "network": {"depth": 5}}) == {"tile": [1, 2, 3], "network": {"depth": 4}}
    assert ledger.settings() == {"tile": [1, 2, 3], "network": {"depth": 4}}


def test_blocks_set_aside_are_kept_with_their_traceback_until_they_are_tried_again(output):
    ledger = Ledger.beside(output)
    assert ledger.blocks_set_aside("s0") == {}
    for name in ("0_0_2", "0_0_1"):
        ledger.set_aside("s0", name, {"traceback": f"at {name}"})
    ledger.set_aside("s1", "0_0_0", {})
    assert ledger.blocks_set_aside("s0") == {"0_0_1": {"traceback": "at 0_0_1"}, "0_0_2": {"traceback": "at 0_0_2"}}
    assert ledger.done("s0") == {}
    ledger.clear_set_aside("s0", "0_0_1")
    ledger.clear_set_aside("s0", "0_0_1")
    assert list(ledger.blocks_set_aside("s0")) == ["0_0_2"]
    ledger.clear_set_aside("s0")
    assert ledger.blocks_set_aside("s0") == {}
    assert list(ledger.blocks_set_aside("s1")) == ["0_0_0"]


def test_a_ledger_is_cleared_but_for_its_lock(output):
    ledger = Ledger.beside(output)
    ledger.clear()
    ledger.start({"tile": 1})
    ledger.record("s0", "0_0_0")
    ledger.set_aside("s1", "0_0_0", {})
    ledger.storage.write_bytes("lock.json", b"{}")
    ledger.clear()
    assert ledger.storage.list_files() == ["lock.json"]
    assert (ledger.settings(), ledger.done("s0"), ledger.blocks_set_aside("s1")) == (None, {}, {})


def test_incomplete_and_empty_records_do_not_count(tmp_path):
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


def test_a_record_on_s3_counts_by_its_name(s3):
    """S3 stores a record whole; one that an earlier version left empty was begun after its voxels were written."""
    ledger = Ledger.beside("s3://some-bucket/out.zarr")
    ledger.record("s0", "a")
    ledger.set_aside("s0", "c", {"error": "broken"})
    for name in ("s0/b.json", "s0/d.blank.json", "aside/s0/e.json", "s0/"):
        s3.put_object(Bucket="some-bucket", Key=f"out.zarr.ledger/{name}", Body=b"")
    assert ledger.done("s0") == {"a": True, "b": True, "d": False}
    assert list(ledger.blocks_set_aside("s0")) == ["c"]


def test_a_full_disk_is_an_error_and_the_block_is_not_done(tmp_path, monkeypatch):
    ledger = Ledger.beside(str(tmp_path / "out.zarr"))
    ledger.record("s0", "a", {"voxels": 12})

    def write_half(handle, data):
        if len(data) > 5:
            return write(handle, data[:5])
        raise OSError(errno.ENOSPC, "No space left on device")

    write = os.write
    monkeypatch.setattr(os, "write", write_half)
    with pytest.raises(
        OSError, match=r"the disk is full: .*b\.json .*could not be written; finished blocks are kept"
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


def test_ten_thousand_records_are_listed_within_seconds(tmp_path):
    ledger = Ledger.beside(str(tmp_path / "out.zarr"))
    folder = ledger.storage.folder / "s0"
    folder.mkdir(parents=True)
    for number in range(10_000):
        (folder / f"0_{number}_0.json").write_bytes(b"{}\n")
    before = time.perf_counter()
    assert len(ledger.done("s0")) == 10_000
    assert time.perf_counter() - before < 5

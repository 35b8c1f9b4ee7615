"""Files of a run on disk and on S3 alike: whole or not at all, and errors of the right kind with words."""

import errno
import http.server
import os
import pickle
import signal
import subprocess
import sys
import threading
import time

import pytest

from kasthuri_ray.storage.folder import open_storage, read_uri
from kasthuri_ray.storage.uris import redact_secrets


@pytest.fixture(params=["disk", "s3"])
def storage(request, tmp_path):
    if request.param == "disk":
        return open_storage(str(tmp_path / "runs"))
    request.getfixturevalue("s3")
    return open_storage("s3://some-bucket/my/runs/")


def test_what_is_written_is_read(storage):
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
    assert run.list() == ["checkpoint/best.pt", "empty", "metrics.json"]
    assert run.list("checkpoint/") == ["checkpoint/best.pt"]
    assert run.list("me") == ["metrics.json"]
    assert storage.list() == [f"a run/{name}" for name in run.list()]
    run.delete("metrics.json")
    run.delete("metrics.json")
    run.delete("checkpoint/best.pt")
    assert run.list() == ["empty"]


def test_what_is_not_there_is_said(storage):
    assert storage.list() == []
    assert not storage.exists("x")
    with pytest.raises(FileNotFoundError, match=r"nothing\.json"):
        storage.read_bytes("nothing.json")
    storage.delete("nothing.json")


def test_a_new_file_is_made_once(storage):
    assert storage.write_new("lock.json", b"1")
    assert not storage.write_new("lock.json", b"2")
    assert storage.read_bytes("lock.json") == b"1"


def test_a_new_file_is_made_once_where_there_are_no_links(tmp_path, monkeypatch):
    def refuse(*names):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    test_a_new_file_is_made_once(open_storage(str(tmp_path)))
    assert [path.name for path in tmp_path.iterdir()] == ["lock.json"]


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../other", "a/../../b"])
def test_names_stay_inside(storage, name):
    with pytest.raises(ValueError, match="is no name of a file"):
        storage.write_bytes(name, b"")


def test_pyarrow_finds_the_same_files(storage):
    storage.write_bytes("a/b", b"data")
    files, path = storage.filesystem()
    with files.open_input_stream(f"{path}/a/b") as stream:
        assert stream.read() == b"data"


def test_opening_makes_nothing_and_knows_its_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    storage = open_storage("outputs")
    assert storage.path == str(tmp_path / "outputs")
    assert storage.folder == tmp_path / "outputs"
    assert storage.child("run").name == "run"
    assert open_storage(f"file://{tmp_path}/a%20b").path == f"{tmp_path}/a b"
    assert open_storage("s3://some-bucket//x/").path == "s3://some-bucket/x"
    assert open_storage("s3://some-bucket").path == "s3://some-bucket"
    assert open_storage("s3://some-bucket").folder is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("", "the storage is empty"),
        ("gs://bucket/x", r"expected a path or s3://bucket/prefix"),
        ("s3:///x", r"'' is no name of a bucket; expected s3://bucket/prefix"),
        ("file://x/y", "file:// wants an absolute path"),
    ],
)
def test_other_places_are_refused(path, message):
    with pytest.raises(ValueError, match=message):
        open_storage(path)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_the_old_file_whole(tmp_path, monkeypatch, number):
    storage = open_storage(str(tmp_path))
    storage.write_bytes("best.pt", b"old")

    def full(handle):
        raise OSError(number, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        OSError, match=rf"the disk is full: {tmp_path}/best.pt \(3 bytes\).* before is unchanged"
    ) as error:
        storage.write_bytes("best.pt", b"new")
    assert error.value.errno == number
    with pytest.raises(OSError, match=r"new.pt \(3 bytes\) could not be written; nothing was written"):
        storage.write_bytes("new.pt", b"new")
    assert storage.read_bytes("best.pt") == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["best.pt"]


def test_a_really_full_disk_is_said(tmp_path):
    """A file that may not grow past 4 kB stands in for a disk that is full in the middle of a write."""
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
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert "the disk is full" in done.stdout, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["best.pt"]
    assert (tmp_path / "best.pt").read_bytes() == b"old"


def test_a_killed_writer_leaves_whole_files(tmp_path):
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
    assert open_storage(str(tmp_path)).list() == ["x"]


def test_refused_and_missing_buckets_are_said(s3, monkeypatch):
    with pytest.raises(FileNotFoundError, match="s3://no-such-bucket/x/y: there is no such bucket"):
        open_storage("s3://no-such-bucket/x").write_bytes("y", b"")
    s3.put_object(Bucket="some-bucket", Key="private", Body=b"mine")
    s3.put_object(Bucket="some-bucket", Key="public", Body=b"ours", ACL="public-read")
    assert read_uri("s3://some-bucket/private") == b"mine"  # refused to anyone, then read with credentials
    assert read_uri("s3://some-bucket/public") == b"ours"
    with pytest.raises(FileNotFoundError, match="s3://some-bucket/none is not there"):
        read_uri("s3://some-bucket/none")
    monkeypatch.setattr("kasthuri_ray.storage.folder.s3_filesystem", lambda bucket, anonymous=False: _anonymous(bucket))
    with pytest.raises(PermissionError, match=r"s3://some-bucket/private: access is refused; check the credentials"):
        read_uri("s3://some-bucket/private")


def _anonymous(bucket):
    from kasthuri_ray.storage.kvstore import _s3_filesystem

    return _s3_filesystem("", os.environ["AWS_ENDPOINT_URL"], None, True)


def test_a_dead_endpoint_is_an_error_within_20_seconds(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    began = time.monotonic()
    with pytest.raises(ConnectionError, match=r"s3://some-bucket/run/x: S3 does not answer; check AWS_ENDPOINT_URL"):
        open_storage("s3://some-bucket/run").write_bytes("x", b"")
    assert time.monotonic() - began < 20


@pytest.fixture
def web():
    """A web server whose paths are answers: /404, /503 (once, then fine), /short (fewer bytes than it promised)."""
    asked: list[str] = []

    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            path = self.path.partition("?")[0]
            first = path not in asked
            asked.append(path)
            failing = path[1:].isdigit() and (first or path != "/503")
            self.send_response(int(path[1:]) if failing else 200)
            self.send_header("Content-Length", "4")
            self.end_headers()
            self.wfile.write(b"da" if path == "/short" and first else b"data")

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_the_web_is_read_with_patience(web):
    for path in ("fine", "503"):
        assert read_uri(f"{web}/{path}") == b"data"
    with pytest.raises(FileNotFoundError, match=r"/404 is not there \(404"):
        read_uri(f"{web}/404?token=hush")
    with pytest.raises(PermissionError, match=r"/403 refuses access \(403\)") as error:
        read_uri(f"{web}/403?token=hush")
    assert "hush" not in str(error.value)


def test_what_is_tried_again_is_said_without_secrets(web, caplog):
    assert read_uri(f"{web}/503?token=hush") == b"data"
    (record,) = caplog.records
    assert record.getMessage() == f"{web}/503: 503 Service Unavailable; trying again (2 of 3)"


def test_a_short_answer_is_never_taken_for_the_file(web):
    assert read_uri(f"{web}/short") == b"data"


def test_a_dead_server_is_an_error():
    with pytest.raises(ConnectionError, match=r"http://127.0.0.1:9/x could not be read in 3 attempts: .*refused"):
        read_uri("http://127.0.0.1:9/x")


def test_local_files_are_read_anywhere(tmp_path):
    (tmp_path / "w.pt").write_bytes(b"weights")
    assert read_uri(str(tmp_path / "w.pt")) == b"weights"
    assert read_uri(f"file://{tmp_path}/w.pt") == b"weights"
    with pytest.raises(FileNotFoundError, match=r"there is no file .*none.pt"):
        read_uri(str(tmp_path / "none.pt"))
    with pytest.raises(ValueError, match="is a folder; a file is expected"):
        read_uri(str(tmp_path))


@pytest.mark.parametrize(
    ("uri", "clean"),
    [
        ("https://me:secret@lab.org/em/|zarr3:?X-Amz-Signature=secret", "https://lab.org/em/|zarr3:"),
        ("http://lab.org/em.zarr?token=secret|zarr3:s1", "http://lab.org/em.zarr|zarr3:s1"),
        ("s3://bucket/em.zarr", "s3://bucket/em.zarr"),
        ("phantom://em?shape=4,64,64&seed=1", "phantom://em?shape=4,64,64&seed=1"),
        ("bossdb://Kasthuri/ac4/em/0", "bossdb://Kasthuri/ac4/em/0"),
        ("/data/em.zarr#mip=1", "/data/em.zarr#mip=1"),
    ],
)
def test_no_secret_of_an_address_is_kept(uri, clean):
    assert redact_secrets(uri) == clean

"""Files of a run, on disk and on S3 alike: written whole or not at all, with errors of the right kind."""

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
from kasthuri_ray.storage.s3 import s3_filesystem


@pytest.fixture(params=["disk", "s3"])
def storage(request, tmp_path):
    if request.param == "disk":
        return open_storage(str(tmp_path / "runs"))
    request.getfixturevalue("s3")
    return open_storage("s3://some-bucket/my/runs/")


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
    run.remove_file("metrics.json")
    run.remove_file("metrics.json")
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
    assert storage.write_new("lock.json", b"1")
    assert not storage.write_new("lock.json", b"2")
    assert storage.read_bytes("lock.json") == b"1"


def test_a_new_file_is_written_once_on_a_file_system_without_links(tmp_path, monkeypatch):
    def refuse(*names):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    test_a_new_file_is_written_once(open_storage(str(tmp_path)))
    assert [path.name for path in tmp_path.iterdir()] == ["lock.json"]


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../other", "a/../../b"])
def test_a_name_that_leads_out_of_the_folder_is_refused(storage, name):
    with pytest.raises(ValueError, match="is not the name of a file"):
        storage.write_bytes(name, b"")


def test_pyarrow_reads_the_same_files(storage):
    storage.write_bytes("a/b", b"data")
    files, path = storage.filesystem()
    with files.open_input_stream(f"{path}/a/b") as stream:
        assert stream.read() == b"data"


def test_opening_a_storage_resolves_its_path_and_creates_nothing(tmp_path, monkeypatch):
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
        ("", "the storage path is empty"),
        ("gs://bucket/x", r"expected a path or s3://bucket/prefix"),
        ("s3:///x", r"'' is not the name of a bucket; expected s3://bucket/prefix"),
        ("file://x/y", "file:// needs an absolute path"),
    ],
)
def test_a_path_that_is_neither_local_nor_on_s3_is_refused(path, message):
    with pytest.raises(ValueError, match=message):
        open_storage(path)


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


def test_missing_buckets_and_refused_access_are_errors_that_say_so(s3, monkeypatch):
    with pytest.raises(FileNotFoundError, match="s3://no-such-bucket/x/y: there is no such bucket"):
        open_storage("s3://no-such-bucket/x").write_bytes("y", b"")
    s3.put_object(Bucket="some-bucket", Key="private", Body=b"mine")
    s3.put_object(Bucket="some-bucket", Key="public", Body=b"ours", ACL="public-read")
    assert read_uri("s3://some-bucket/private") == b"mine"  # refused without credentials, then read with them
    assert read_uri("s3://some-bucket/public") == b"ours"
    with pytest.raises(FileNotFoundError, match="s3://some-bucket/none does not exist"):
        read_uri("s3://some-bucket/none")

    def always_anonymous(bucket, anonymous=False):
        return s3_filesystem(bucket, anonymous=True)

    monkeypatch.setattr("kasthuri_ray.storage.folder.s3_filesystem", always_anonymous)
    with pytest.raises(PermissionError, match=r"s3://some-bucket/private: access is refused; check the credentials"):
        read_uri("s3://some-bucket/private")


def test_an_s3_endpoint_that_is_down_is_an_error_within_20_seconds(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    start = time.monotonic()
    with pytest.raises(ConnectionError, match=r"s3://some-bucket/run/x: S3 does not answer; check AWS_ENDPOINT_URL"):
        open_storage("s3://some-bucket/run").write_bytes("x", b"")
    assert time.monotonic() - start < 20


@pytest.fixture
def web():
    """Yield the URL of a web server: /404 and the like answer with that code, /503 only once, /short is cut once."""
    requested: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            path = self.path.partition("?")[0]
            first = path not in requested
            requested.append(path)
            failing = path[1:].isdigit() and (first or path != "/503")
            self.send_response(int(path[1:]) if failing else 200)
            self.send_header("Content-Length", "4")
            self.end_headers()
            self.wfile.write(b"da" if path == "/short" and first else b"data")

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_a_web_server_is_retried_unless_it_refuses_the_request(web):
    for path in ("fine", "503"):
        assert read_uri(f"{web}/{path}") == b"data"
    with pytest.raises(FileNotFoundError, match=r"/404 does not exist \(404"):
        read_uri(f"{web}/404?token=hush")
    with pytest.raises(PermissionError, match=r"/403 refuses access \(403\)") as error:
        read_uri(f"{web}/403?token=hush")
    assert "hush" not in str(error.value)


def test_a_retry_is_logged_without_secrets(web, caplog):
    assert read_uri(f"{web}/503?token=hush") == b"data"
    (record,) = caplog.records
    assert record.getMessage() == f"{web}/503: 503 Service Unavailable; retrying (attempt 2 of 3)"


def test_a_truncated_response_is_not_taken_for_the_file(web):
    assert read_uri(f"{web}/short") == b"data"


def test_a_web_server_that_is_down_is_an_error():
    with pytest.raises(ConnectionError, match=r"http://127.0.0.1:9/x could not be read in 3 attempts: .*refused"):
        read_uri("http://127.0.0.1:9/x")


def test_local_files_are_read_by_path_and_by_url(tmp_path):
    (tmp_path / "w.pt").write_bytes(b"weights")
    assert read_uri(str(tmp_path / "w.pt")) == b"weights"
    assert read_uri(f"file://{tmp_path}/w.pt") == b"weights"
    with pytest.raises(FileNotFoundError, match=r"there is no file .*none.pt"):
        read_uri(str(tmp_path / "none.pt"))
    with pytest.raises(ValueError, match="is a folder; a file is expected"):
        read_uri(str(tmp_path))

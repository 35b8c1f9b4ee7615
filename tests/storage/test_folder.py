"""Paths and URLs open the storage of their kind, and single files are read by path or URL."""

import http.server
import threading

import pytest

from kasthuri_ray.storage.folder import open_storage, read_uri
from kasthuri_ray.storage.local_storage import LocalStorage
from kasthuri_ray.storage.s3_storage import S3Storage


def test_opening_a_storage_resolves_its_path_and_creates_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    storage = open_storage("outputs")
    assert storage.path == str(tmp_path / "outputs")
    assert isinstance(storage, LocalStorage)
    assert storage.folder == tmp_path / "outputs"
    assert storage.child("run").name == "run"
    assert open_storage(f"file://{tmp_path}/a%20b").path == f"{tmp_path}/a b"
    assert open_storage("s3://some-bucket//x/").path == "s3://some-bucket/x"
    assert open_storage("s3://some-bucket").path == "s3://some-bucket"
    assert isinstance(open_storage("s3://some-bucket"), S3Storage)
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
    with pytest.raises(FileNotFoundError, match=r"there is no .*none.pt"):
        read_uri(str(tmp_path / "none.pt"))
    with pytest.raises(ValueError, match="is a folder; a file is expected"):
        read_uri(str(tmp_path))

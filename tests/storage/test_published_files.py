"""Published weights: names, the cache, checksums, and a bucket that cannot be reached, against an S3 server."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from kasthuri_ray.errors import InputError, InputNotFound
from kasthuri_ray.storage import published_files
from kasthuri_ray.storage.published_files import KNOWN_NAMES, list_published, read_published


@pytest.fixture
def bucket(put_published, s3_server, monkeypatch, tmp_path):
    """Return `put(name, data)` for the public bucket of the weights; the environment points to it."""
    monkeypatch.setenv("KASTHURI_WEIGHTS_URL", s3_server["AWS_ENDPOINT_URL"])
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # nothing answers there
    monkeypatch.setenv("KASTHURI_CACHE", str(tmp_path / "cache"))
    return put_published


@pytest.fixture
def mirror(bucket, s3_server, monkeypatch):
    """Yield the status of the answers to HEAD and to GET of a mirror, which lead to the bucket at first."""
    statuses = {"HEAD": 302, "GET": 302}

    class Redirects(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(statuses[self.command])
            if statuses[self.command] == 302:
                self.send_header("Location", s3_server["AWS_ENDPOINT_URL"] + self.path)
            self.send_header("ETag", f'"{"0" * 32}"')
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Redirects)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("KASTHURI_WEIGHTS_URL", f"http://127.0.0.1:{server.server_port}")
    yield statuses
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("head", [302, 204, 300, 405])
def test_a_mirror_that_leads_to_the_bucket_is_followed_and_other_answers_say_nothing_of_the_file(bucket, mirror, head):
    mirror["HEAD"] = head
    bucket("UNet_2D_synapse.pt", b"one")
    for _ in range(2):
        assert read_published("kasthuri://UNet_2D_synapse") == (b"one", "UNet_2D_synapse")


def test_a_file_that_changes_behind_a_mirror_is_refused(bucket, mirror):
    bucket("UNet_2D_synapse.pt", b"one")
    read_published("kasthuri://UNet_2D_synapse")
    bucket("UNet_2D_synapse.pt", b"two")
    with pytest.raises(InputError, match="its checksum changed"):
        read_published("kasthuri://UNet_2D_synapse")


def test_the_list_of_the_bucket_decides_and_names_ignore_case(bucket):
    bucket("UNet_2D_synapse.pt", b"one")
    bucket("New_Net_membrane.pt", b"two")
    bucket("README.txt", b"no weights")
    assert list_published() == (["New_Net_membrane", "UNet_2D_synapse"], "")
    for path in ("kasthuri://UNet_2D_synapse", "kasthuri://unet_2d_SYNAPSE.pt", "KASTHURI://UNet_2D_synapse"):
        assert read_published(path) == (b"one", "UNet_2D_synapse")
    with pytest.raises(InputNotFound, match="there are New_Net_membrane, UNet_2D_synapse"):
        read_published("kasthuri://UNet_2D_membrane")


def test_a_file_is_downloaded_once_and_read_from_the_cache_without_network(bucket, monkeypatch):
    bucket("UNet_2D_synapse.pt", b"one")
    read_published("kasthuri://UNet_2D_synapse")
    monkeypatch.setattr(published_files, "_download", None)
    assert read_published("kasthuri://UNet_2D_synapse")[0] == b"one"
    monkeypatch.setenv("KASTHURI_WEIGHTS_URL", "http://127.0.0.1:9")
    assert read_published("kasthuri://UNet_2D_synapse")[0] == b"one"


def test_a_checksum_that_changes_later_is_refused(bucket, tmp_path):
    bucket("UNet_2D_synapse.pt", b"one")
    read_published("kasthuri://UNet_2D_synapse")
    bucket("UNet_2D_synapse.pt", b"two")
    with pytest.raises(InputError, match="its checksum changed"):
        read_published("kasthuri://UNet_2D_synapse")
    (tmp_path / "cache" / "weights" / "UNet_2D_synapse.pt").unlink()
    with pytest.raises(InputError, match="its checksum changed"):
        read_published("kasthuri://UNet_2D_synapse")
    bucket("UNet_2D_synapse.pt", b"one")
    read_published("kasthuri://UNet_2D_synapse")
    (tmp_path / "cache" / "weights" / "UNet_2D_synapse.pt").write_bytes(b"bad")
    with pytest.raises(InputError, match="its checksum changed"):
        read_published("kasthuri://UNet_2D_synapse")


def test_without_network_the_known_names_are_listed_and_a_sentence_says_so(bucket, monkeypatch):
    monkeypatch.setenv("KASTHURI_WEIGHTS_URL", "http://127.0.0.1:9")
    names, problem = list_published()
    assert names == sorted(KNOWN_NAMES)
    assert len(names) == 8
    assert "cannot be reached" in problem
    with pytest.raises(ConnectionError, match="cannot be reached"):
        read_published("kasthuri://UNet_2D_synapse")
    with pytest.raises(InputNotFound, match="those that are known"):
        read_published("kasthuri://none")


def test_new_weights_that_are_in_the_cache_are_found_without_network(bucket, monkeypatch):
    bucket("New_Net_membrane.pt", b"new")
    read_published("kasthuri://New_Net_membrane")
    monkeypatch.setenv("KASTHURI_WEIGHTS_URL", "http://127.0.0.1:9")
    assert read_published("kasthuri://new_net_MEMBRANE") == (b"new", "New_Net_membrane")


def test_without_a_cache_the_file_is_downloaded_each_time(bucket, monkeypatch, tmp_path):
    monkeypatch.setenv("KASTHURI_CACHE", "none")
    monkeypatch.chdir(tmp_path)
    bucket("UNet_2D_synapse.pt", b"one")
    assert read_published("kasthuri://UNet_2D_synapse")[0] == b"one"
    bucket("UNet_2D_synapse.pt", b"two")
    assert read_published("kasthuri://UNet_2D_synapse")[0] == b"two"
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv("KASTHURI_WEIGHTS_URL", "http://127.0.0.1:9")
    with pytest.raises(ConnectionError, match="there is no cache"):
        read_published("kasthuri://UNet_2D_synapse")


def test_a_user_without_a_home_folder_has_a_cache_among_the_temporary_files(bucket, monkeypatch, tmp_path):
    monkeypatch.delenv("KASTHURI_CACHE")
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    bucket("UNet_2D_synapse.pt", b"one")
    assert read_published("kasthuri://UNet_2D_synapse")[0] == b"one"
    assert len(list(tmp_path.glob("kasthuri_ray_cache_*/weights/UNet_2D_synapse.pt"))) == 1

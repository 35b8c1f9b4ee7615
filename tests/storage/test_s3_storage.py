"""Storages on S3: what is sent, empty marks of folders, and servers that refuse, lack a bucket or do not answer."""

import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from kasthuri_ray.storage import s3_storage
from kasthuri_ray.storage.folder import open_storage, read_uri
from kasthuri_ray.storage.s3_storage import S3Storage
from kasthuri_ray.storage.storage import ConditionsUnsupported

CALLS = {
    "GET": lambda run: run.read_bytes("x"),
    "HEAD": lambda run: run.exists("x"),
    "PUT": lambda run: run.write_bytes("x", b"1"),
    "GET of a list": lambda run: run.list_files(),
    "DELETE": lambda run: run.delete("x"),
    "GET to remove": lambda run: run.remove_folder(),
    "PUT of a new file": lambda run: run.write_if("new", b"1", None),
}


@pytest.fixture
def run(strict_s3) -> S3Storage:
    storage = open_storage("s3://some-bucket/run")
    storage.write_bytes("x", b"1")
    strict_s3.requests.clear()
    return storage


def test_a_file_is_read_and_written_in_one_request(run, strict_s3):
    run.write_bytes("y", bytes(20_000_000))
    assert run.read_bytes("y") == bytes(20_000_000)
    assert [request.method for request in strict_s3.requests] == ["PUT", "GET"]


def test_conditions_are_sent_with_the_write_itself(run, strict_s3):
    version = run.write_if("new", b"1", None)
    assert strict_s3.requests[-1].method == "PUT"
    assert strict_s3.requests[-1].headers["if-none-match"] == "*"
    run.write_if("new", b"2", version)
    assert strict_s3.requests[-1].method == "PUT"
    assert strict_s3.requests[-1].headers["if-match"].strip('"') == version[1:].decode().strip('"')


@pytest.mark.parametrize("call", CALLS)
def test_a_bucket_that_denies_a_call_is_an_error_in_time(run, strict_s3, call):
    strict_s3.refuse = lambda request: (403, "AccessDenied") if call.startswith(request.method) else None
    start = time.monotonic()
    with pytest.raises(
        PermissionError, match=r"s3://some-bucket/run.*: access is refused; check the credentials \(AWS"
    ):
        CALLS[call](run)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("code", ["SignatureDoesNotMatch", "ExpiredToken"])
def test_credentials_that_are_not_valid_are_an_access_that_is_refused(run, strict_s3, code):
    strict_s3.refuse = lambda request: (400 if code == "ExpiredToken" else 403, code)
    with pytest.raises(PermissionError, match="check the credentials"):
        run.read_bytes("x")


@pytest.mark.parametrize("call", CALLS)
def test_a_server_that_is_overloaded_is_retried_for_a_few_seconds(run, strict_s3, call, monkeypatch):
    refused: list[str] = []

    def refuse(request):
        refused.append(request.method)
        return (503, "SlowDown") if len(refused) < 3 else None

    strict_s3.refuse = refuse
    CALLS[call](run)
    assert len(refused) >= 3


def test_a_server_without_conditional_writes_is_recognized(run, strict_s3):
    strict_s3.refuse_conditional_writes()
    with pytest.raises(ConditionsUnsupported, match=r"s3://some-bucket/run/new: S3 has no conditional writes"):
        run.write_if("new", b"1", None)
    run.write_bytes("new", b"1")
    with pytest.raises(ConditionsUnsupported):
        run.write_if("new", b"2", run.read_version("new")[1])


def test_empty_objects_that_mark_folders_are_not_files(run, s3):
    for key in ("run/", "run/empty/", "run/full/", "run/full/a"):
        s3.put_object(Bucket="some-bucket", Key=key, Body=b"")
    assert run.list_files() == ["full/a", "x"]
    assert run.list_folder() == ["empty", "full", "x"]
    run.remove_folder()
    assert "Contents" not in s3.list_objects_v2(Bucket="some-bucket")


def test_no_empty_object_is_left_in_place_of_a_folder(run, s3):
    run.write_bytes("folder/a", b"1")
    run.delete("folder/a")
    assert [item["Key"] for item in s3.list_objects_v2(Bucket="some-bucket")["Contents"]] == ["run/x"]


def test_names_of_any_characters_are_kept(run):
    names = ["a b+c%20.json", "é/ü", "z~"]
    for name in names:
        run.write_bytes(name, name.encode())
    assert run.list_files() == sorted([*names, "x"])
    assert run.list_files("é/") == ["é/ü"]
    assert [run.read_bytes(name).decode() for name in names] == names


def test_a_whole_bucket_is_a_folder(run, s3):
    bucket = open_storage("s3://some-bucket")
    bucket.write_bytes("top", b"1")
    assert bucket.list_files() == ["run/x", "top"]
    assert bucket.child("run").read_bytes("x") == b"1"


def test_a_bucket_that_does_not_exist_is_an_error_that_says_so(strict_s3):
    run = open_storage("s3://no-such-bucket/run")
    for call in ("PUT", "GET of a list", "PUT of a new file"):
        with pytest.raises(FileNotFoundError, match=r"s3://no-such-bucket/run.*: there is no such bucket"):
            CALLS[call](run)
    with pytest.raises(FileNotFoundError, match=r"s3://no-such-bucket/run/x does not exist"):
        run.read_bytes("x")


def test_public_files_are_read_without_credentials_and_others_with_them(strict_s3, s3, monkeypatch):
    s3.put_object(Bucket="some-bucket", Key="private", Body=b"mine")
    s3.put_object(Bucket="some-bucket", Key="public", Body=b"ours", ACL="public-read")
    assert read_uri("s3://some-bucket/public") == b"ours"
    assert ["authorization" in request.headers for request in strict_s3.requests] == [False]
    strict_s3.requests.clear()
    assert read_uri("s3://some-bucket/private") == b"mine"
    assert ["authorization" in request.headers for request in strict_s3.requests] == [False, True]
    with pytest.raises(FileNotFoundError, match="s3://some-bucket/none does not exist"):
        read_uri("s3://some-bucket/none")
    strict_s3.refuse = lambda request: (403, "AccessDenied")
    with pytest.raises(PermissionError, match=r"s3://some-bucket/private: access is refused; check the credentials"):
        read_uri("s3://some-bucket/private")
    with pytest.raises(ValueError, match="s3://some-bucket is a bucket; a file is expected"):
        read_uri("s3://some-bucket")


def test_an_endpoint_that_is_down_is_an_error_within_20_seconds(s3, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    storage, start = open_storage("s3://some-bucket/run"), time.monotonic()
    with ThreadPoolExecutor() as threads:
        calls = [threads.submit(CALLS[call], storage) for call in ("GET", "PUT", "GET of a list")]
    for call in calls:
        with pytest.raises(ConnectionError, match=r"s3://some-bucket/run.*: S3 does not answer; check AWS_ENDPOINT_UR"):
            call.result()
    assert time.monotonic() - start < 20


def test_an_endpoint_that_accepts_requests_and_does_not_answer_is_an_error_in_time(s3, monkeypatch):
    monkeypatch.setattr(s3_storage, "ANSWER_TIMEOUT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        start = time.monotonic()
        with pytest.raises(ConnectionError, match=r"S3 does not answer; check AWS_ENDPOINT_URL.*no answer in time"):
            open_storage("s3://some-bucket/run").write_bytes("x", b"")
        assert time.monotonic() - start < 5


def test_a_slow_transfer_is_waited_for_as_long_as_s3_answers_other_requests(run, strict_s3, monkeypatch):
    monkeypatch.setattr(s3_storage, "ANSWER_TIMEOUT_S", 0.5)

    def slow(request):
        if request.method == "PUT":
            time.sleep(2)

    strict_s3.refuse = slow
    run.write_bytes("y", b"1")
    assert run.read_bytes("y") == b"1"
    assert [request.method for request in strict_s3.requests].count("PUT") == 1

"""Where there is no array on S3, the message names the folders that exist, if they can be listed in time."""

import pytest

from kasthuri_ray.volumes import store_listing
from kasthuri_ray.volumes.stores import open_store

NOTHING = r"s3://some-bucket/data/nope: nothing was found \(looked for [^;]*"


@pytest.fixture
def data(strict_s3, s3):
    for name in ("b/0/0", "a/0/0", "a/1/0", "notes.txt"):
        s3.put_object(Bucket="some-bucket", Key=f"data/{name}", Body=b"1", ACL="public-read")
    return strict_s3


def message_for_nothing() -> str:
    with pytest.raises(FileNotFoundError, match=NOTHING) as error:
        open_store("s3://some-bucket/data/nope")
    return str(error.value)


def test_a_public_bucket_is_asked_for_folders_alone_and_without_credentials(data):
    assert message_for_nothing().endswith("; data/ holds: a, b")
    (request,) = [request for request in data.requests if "list-type" in request.url]
    assert "delimiter=%2F" in request.url
    assert "authorization" not in request.headers


def test_a_private_bucket_is_listed_with_credentials(data):
    data.refuse = lambda request: None if "authorization" in request.headers else (403, "AccessDenied")
    assert message_for_nothing().endswith("; data/ holds: a, b")


def test_a_bucket_that_may_not_be_listed_or_takes_long_names_no_folders(data, monkeypatch):
    data.refuse = lambda request: (403, "AccessDenied") if "list-type" in request.url else None
    assert "holds" not in message_for_nothing()
    data.refuse = lambda request: (403, "AccessDenied") if "delimiter" in request.url else None
    monkeypatch.setattr(store_listing, "LISTING_TIMEOUT_S", 0.0)
    assert "holds" not in message_for_nothing()

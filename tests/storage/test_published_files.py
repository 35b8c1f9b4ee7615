"""Published weights: names, the cache, checksums, and a bucket that cannot be reached, against an S3 server."""

import boto3
import pytest

from kasthuri_ray.errors import InputError, InputNotFound
from kasthuri_ray.storage import published_files
from kasthuri_ray.storage.published_files import BUCKET, FOLDER, KNOWN_NAMES, list_published, read_published


@pytest.fixture
def bucket(s3_server, monkeypatch, tmp_path):
    """Return `put(name, data)` for the public bucket of the weights, and the environment to reach it."""
    monkeypatch.setenv("KASTHURI_WEIGHTS_URL", s3_server["AWS_ENDPOINT_URL"])
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # nothing answers there
    monkeypatch.setenv("KASTHURI_CACHE", str(tmp_path / "cache"))
    keys = {"aws_access_key_id": "key", "aws_secret_access_key": "secret"}
    client = boto3.client("s3", region_name="us-east-1", endpoint_url=s3_server["AWS_ENDPOINT_URL"], **keys)
    client.create_bucket(Bucket=BUCKET, ACL="public-read")

    def put(name, data):
        client.put_object(Bucket=BUCKET, Key=f"{FOLDER}{name}", Body=data, ACL="public-read")

    yield put
    for item in client.list_objects_v2(Bucket=BUCKET).get("Contents", []):
        client.delete_object(Bucket=BUCKET, Key=item["Key"])
    client.delete_bucket(Bucket=BUCKET)


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
    assert tuple(names) == KNOWN_NAMES
    assert len(names) == 8
    assert "cannot be reached" in problem
    with pytest.raises(ConnectionError, match="cannot be reached"):
        read_published("kasthuri://UNet_2D_synapse")
    with pytest.raises(InputNotFound, match="those that are known"):
        read_published("kasthuri://none")

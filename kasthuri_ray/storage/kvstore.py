"""Where a store's bytes lie: a URI becomes a tensorstore key-value store, and its small documents are read.

S3 is asked anonymously first, then with the credentials that the environment or the SDK's files hold. The endpoint
is `AWS_ENDPOINT_URL_S3` or `AWS_ENDPOINT_URL` where one is set (MinIO, Ceph). Retries are few and short, so that an
endpoint that is down is an error within seconds.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import tensorstore as ts

from kasthuri_ray.errors import VolumeError

Json = dict[str, Any]

ANSWER_TIMEOUT_S = 20.0
CACHE_BYTES = 64_000_000
DRIVERS = {
    "zarr2": "zarr",
    "zarr": "zarr",
    "zarr3": "zarr3",
    "n5": "n5",
    "neuroglancer-precomputed": "neuroglancer_precomputed",
    "auto": None,
}


S3_ATTEMPTS = 3
S3_CONNECT_TIMEOUT_S = 5


MIN_BYTES_PER_SECOND = 250_000


@lru_cache(maxsize=2)
def tensorstore_context(cache_bytes: int = CACHE_BYTES) -> ts.Context:
    """This process's limits: chunks kept decoded, threads, requests at once, and retries that end within seconds."""
    return ts.Context(
        {
            "cache_pool": {"total_bytes_limit": cache_bytes},
            "data_copy_concurrency": {"limit": 2},
            "file_io_concurrency": {"limit": 4},
            # A file is written beside its place under a name of its own, then renamed. With locks that name is fixed,
            # and what a killed writer left there is not cut off: longer than the new content, it would stay behind it.
            "file_io_locking": {"mode": "none"},
            "s3_request_concurrency": {"limit": 16},
            "http_request_concurrency": {"limit": 16},
            "s3_request_retries": {"max_retries": 5, "initial_delay": "200ms", "max_delay": "2s"},
            "http_request_retries": {"max_retries": 5, "initial_delay": "200ms", "max_delay": "2s"},
            "gcs_request_retries": {"max_retries": 5, "initial_delay": "200ms", "max_delay": "2s"},
        }
    )


@dataclass(frozen=True)
class StoreLocation:
    """A key-value store whose path ends with "/", and the format that the URI names, if it names one."""

    uri: str
    kvstore: Json
    driver: str | None = None

    @property
    def path(self) -> str:
        return self.kvstore.get("path", "")

    @property
    def folder(self) -> Path | None:
        """The folder on this machine's disk, or None."""
        return Path(self.path) if self.kvstore["driver"] == "file" else None

    @property
    def address(self) -> str | None:
        """Its real path on this machine's disk, or its `s3://bucket/key`; None where it is neither."""
        if self.kvstore["driver"] == "s3":
            return f"s3://{self.kvstore['bucket']}/{self.path}".rstrip("/")
        return None if self.folder is None else os.path.realpath(self.folder)

    @property
    def remote(self) -> bool:
        kvstore = self.kvstore
        while "base" in kvstore:
            kvstore = kvstore["base"]
        return kvstore["driver"] not in ("file", "memory")

    def at(self, name: str) -> StoreLocation:
        """The place `name` ("em", "..") from here; never above the root."""
        parts = [part for part in f"{self.path}{name}".split("/") if part not in ("", ".")]
        while ".." in parts:
            index = parts.index("..")
            del parts[max(0, index - 1) : index + 1]
        root = "/" if self.path.startswith("/") else ""
        path = root + "".join(f"{part}/" for part in parts)
        return StoreLocation(self.uri, {**self.kvstore, "path": path}, self.driver)


def locate_store(uri: str) -> StoreLocation:
    """The place that a path, a URL or a tensorstore URL pipeline names. Raises ValueError for one that is malformed."""
    base, bar, last = uri.rpartition("|")
    if not bar:
        return StoreLocation(uri, _kvstore(uri, uri)).at("")
    scheme, colon, path = last.partition(":")
    if not colon or scheme not in DRIVERS:
        raise ValueError(
            f"{uri}: {last!r} is not a format; after | is expected one of {', '.join(DRIVERS)} and a colon"
        )
    return StoreLocation(uri, _kvstore(base, uri), DRIVERS[scheme]).at("").at(unquote(path))


def _kvstore(base: str, uri: str) -> Json:
    if not re.match(r"[a-z0-9+.-]+://", base):
        return {"driver": "file", "path": f"{Path(base).expanduser().absolute()}/"}
    if base.startswith("file://") and "|" not in base:
        parts = urlsplit(base)
        if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
            raise ValueError(f"{uri}: file:// wants an absolute path, such as file:///data/x.zarr")
        return {"driver": "file", "path": unquote(parts.path)}
    try:
        return ts.KvStore.Spec(base).to_json()
    except ValueError as error:
        raise ValueError(f"{uri} is no place that can be read: {first_error_line(error)}") from None


def credential_variants(kvstore: Json) -> Iterator[Json]:
    """The ways to read `kvstore`: as it is, or for S3 first anonymously and then with credentials."""
    yield _with_s3(kvstore, "anonymous")
    if "s3" in (layer["driver"] for layer in _layers(kvstore)):
        yield _with_s3(kvstore, _credentials())


def writable_kvstore(path: str) -> Json:
    """The key-value store of a folder that is written, with credentials on S3; `path` as `open_storage` gives it."""
    if not path.startswith("s3://"):
        return {"driver": "file", "path": f"{path.rstrip('/')}/"}
    bucket, _, key = path.removeprefix("s3://").partition("/")
    return _with_s3({"driver": "s3", "bucket": bucket, "path": f"{key.strip('/')}/".lstrip("/")}, _credentials())


def _credentials() -> str:
    keys = os.environ.get("AWS_ACCESS_KEY_ID") and os.environ.get("AWS_SECRET_ACCESS_KEY")
    return "environment" if keys else "default"


def _layers(kvstore: Json) -> Iterator[Json]:
    yield kvstore
    if "base" in kvstore:
        yield from _layers(kvstore["base"])


def _with_s3(kvstore: Json, credentials: str) -> Json:
    if "base" in kvstore:
        return {**kvstore, "base": _with_s3(kvstore["base"], credentials)}
    if kvstore["driver"] != "s3":
        return kvstore
    access: Json = {"aws_credentials": {"type": credentials}}
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if endpoint:
        access |= {"endpoint": endpoint.rstrip("/"), "aws_region": region or "us-east-1"}
    return {**kvstore, **access}


def read_json_documents(location: StoreLocation, names: Iterable[str]) -> tuple[StoreLocation, dict[str, Json]]:
    """Those of the JSON documents `names` that exist at `location`, and the location as it can be read.

    Raises PermissionError where nothing may be read, SourceError where nothing answers, ValueError for a document
    that is not JSON.
    """
    for kvstore in credential_variants(location.kvstore):
        place = StoreLocation(location.uri, kvstore, location.driver)
        found, refusal = _read_all(place, list(names))
        if found or refusal is None:
            return place, {name: _parse(value, name, location) for name, value in found.items()}
    raise PermissionError(f"{location.uri} refuses access: {refusal}; check the credentials (AWS_ACCESS_KEY_ID, ...)")


def _read_all(place: StoreLocation, names: list[str]) -> tuple[dict[str, bytes], str | None]:
    """The values of those keys that exist, and why one was refused. A key may be refused because it is not there."""
    deadline = time.monotonic() + ANSWER_TIMEOUT_S
    found: dict[str, bytes] = {}
    refusal = None
    with translate_tensorstore_errors(place.uri, "opened"):
        store = ts.KvStore.open(place.kvstore, context=tensorstore_context()).result(timeout=ANSWER_TIMEOUT_S)
        futures = {name: store.read(name) for name in names}
    for name, future in futures.items():
        try:
            with translate_tensorstore_errors(place.uri, "opened"):
                result = future.result(timeout=max(0.1, deadline - time.monotonic()))
        except PermissionError as error:
            refusal = str(error)
            continue
        except NotADirectoryError:
            continue
        if result.state == "value":
            found[name] = bytes(result.value)
    return found, refusal


def _parse(value: bytes, name: str, location: StoreLocation) -> Json:
    try:
        document = json.loads(value)
    except ValueError as error:
        raise ValueError(f"{location.uri}: its {name} is not JSON ({error})") from None
    if not isinstance(document, dict):
        raise ValueError(f"{location.uri}: its {name} is not a JSON object")
    return document


class translate_tensorstore_errors:
    """Turns what tensorstore raises inside into words: who, what was tried, and why it did not go."""

    def __init__(self, uri: str, verb: str) -> None:
        self.what = f"{uri} could not be {verb}"

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, TimeoutError):
            raise VolumeError(f"{self.what}: no answer in time") from error
        if not isinstance(error, (ValueError, OSError)) or isinstance(error, VolumeError):
            return
        reason = f"{self.what}: {first_error_line(error)}"
        status = str(error).partition(":")[0]
        if status in ("PERMISSION_DENIED", "UNAUTHENTICATED"):
            raise PermissionError(reason) from error
        if status == "NOT_FOUND":
            raise FileNotFoundError(reason) from error
        if status in ("INVALID_ARGUMENT", "FAILED_PRECONDITION", "OUT_OF_RANGE", "UNIMPLEMENTED"):
            raise ValueError(reason) from error
        raise VolumeError(reason) from error


def first_error_line(error: BaseException) -> str:
    """The first line of what tensorstore says, without its trailing details in brackets."""
    text = re.sub(r"\s*\[(source locations|[a-z_-]+)=.*", "", str(error).strip(), flags=re.DOTALL)
    return text.splitlines()[0] if text else type(error).__name__


def s3_filesystem(bucket: str, anonymous: bool = False) -> Any:
    """pyarrow's S3 for a bucket: endpoint and region from the environment, else the region is asked for."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    return _s3_filesystem("" if endpoint or region else bucket, endpoint, region, anonymous)


@lru_cache(maxsize=8)
def _s3_filesystem(bucket: str, endpoint: str | None, region: str | None, anonymous: bool) -> Any:
    from pyarrow import fs

    parts = urlsplit(endpoint or "")
    where = {"endpoint_override": parts.netloc, "scheme": parts.scheme} if endpoint else {}
    return fs.S3FileSystem(
        region=region or (fs.resolve_s3_region(bucket) if bucket else "us-east-1"),
        anonymous=anonymous,
        connect_timeout=S3_CONNECT_TIMEOUT_S,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=S3_ATTEMPTS),
        allow_delayed_open=True,  # a small file is one PUT, not three requests
        **where,
    )


def _read_s3(files: Any, key: str) -> bytes:
    with files.open_input_file(key) as file:
        return bytes(file.read())


@contextlib.contextmanager
def translate_s3_errors(url: str) -> Iterator[None]:
    """Turns pyarrow's OSErrors into ones of the kind that they are, with the URL in their words."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{url} is not there") from error
    except OSError as error:
        if isinstance(error, (PermissionError, ConnectionError)):
            raise
        kinds = {
            "ACCESS_DENIED|SIGNATURE|INVALID_ACCESS_KEY|CLIENT_TOKEN|EXPIRED|HTTP status 40[13]": PermissionError,
            "NO_SUCH_BUCKET|NO_SUCH_KEY|Bucket .* not found|HTTP status 404": FileNotFoundError,
            "NETWORK_CONNECTION|curlCode|REQUEST_TIMEOUT|SLOW_DOWN|SERVICE_UNAVAILABLE|INTERNAL": ConnectionError,
        }
        kind: type[OSError] = next((kind for word, kind in kinds.items() if re.search(word, str(error))), OSError)
        advice = {
            PermissionError: "access is refused; check the credentials (AWS_ACCESS_KEY_ID, ...)",
            FileNotFoundError: "there is no such bucket or key",
            ConnectionError: "S3 does not answer; check AWS_ENDPOINT_URL and the network",
        }
        raise kind(f"{url}: {advice.get(kind, 'S3 failed')} ({error})") from error

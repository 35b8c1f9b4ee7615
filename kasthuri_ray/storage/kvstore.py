"""Key-value stores: from a URI to a tensorstore key-value store, its JSON documents, and its errors in plain words.

S3 is read anonymously first, then with the credentials of the environment or of the SDK's files. The endpoint is
`AWS_ENDPOINT_URL_S3` or `AWS_ENDPOINT_URL` where one is set (MinIO, Ceph). Retries are few and short, so that an
endpoint that is down becomes an error within seconds.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import tensorstore as ts

from kasthuri_ray.errors import InputDenied, InputError, VolumeError
from kasthuri_ray.storage.content_encoding import is_encoding_refused, read_encoded_object
from kasthuri_ray.storage.s3_access import with_s3_access
from kasthuri_ray.storage.uris import expand_home, parse_file_url

Json = dict[str, Any]

# From the format in a tensorstore URL pipeline (`...|zarr3:`) to tensorstore's driver; None finds the format.
DRIVERS = {
    "zarr2": "zarr",
    "zarr3": "zarr3",
    "zarr": None,  # Neuroglancer writes it for both
    "n5": "n5",
    "neuroglancer-precomputed": "neuroglancer_precomputed",
    "auto": None,
}

CACHE_BYTES = 64_000_000
RETRIES = {"max_retries": 5, "initial_delay": "200ms", "max_delay": "2s"}
ANSWER_TIMEOUT_S = 20.0
WHOLE = slice(None)  # all bytes of an object
MIN_BYTES_PER_SECOND = 250_000  # timeouts of large reads and writes assume that it is not slower


@lru_cache(maxsize=2)
def tensorstore_context(cache_bytes: int = CACHE_BYTES) -> ts.Context:
    """Return tensorstore's limits for this process: cache, threads, parallel requests, and short retries.

    Parameters
    ----------
    cache_bytes : int
        Size of the cache of decoded chunks.

    Returns
    -------
    tensorstore.Context
        The same object for the same size.
    """
    return ts.Context(
        {
            "cache_pool": {"total_bytes_limit": cache_bytes},
            "data_copy_concurrency": {"limit": 2},
            "file_io_concurrency": {"limit": 4},
            # Without locks tensorstore writes a temporary file of a unique name and renames it. With locks the name of
            # that file is fixed and it is not truncated: what a killed writer left longer than the new content would
            # remain behind it.
            "file_io_locking": {"mode": "none"},
            "s3_request_concurrency": {"limit": 16},
            "http_request_concurrency": {"limit": 16},
            "s3_request_retries": RETRIES,
            "http_request_retries": RETRIES,
            "gcs_request_retries": RETRIES,
        }
    )


@dataclass(frozen=True)
class StoreLocation:
    """A folder in a key-value store, and the format that its URI names.

    Parameters
    ----------
    uri : str
        As it was typed; for messages.
    kvstore : dict
        The JSON spec of tensorstore. Its path ends with "/".
    driver : str or None
        Tensorstore's driver for the format; None if the URI names no format.
    """

    uri: str
    kvstore: Json
    driver: str | None = None

    @property
    def path(self) -> str:
        """The path in the store, which ends with "/"."""
        return self.kvstore.get("path", "")

    @property
    def folder(self) -> Path | None:
        """The folder on this machine's disk, or None."""
        return Path(self.path) if self.kvstore["driver"] == "file" else None

    @property
    def address(self) -> str | None:
        """The real path on this machine's disk, or `s3://bucket/key`; None for other stores."""
        if self.kvstore["driver"] == "s3":
            return f"s3://{self.kvstore['bucket']}/{self.path}".rstrip("/")
        return None if self.folder is None else os.path.realpath(self.folder)

    @property
    def remote(self) -> bool:
        """Whether reads go over a network."""
        *_, innermost = _layers(self.kvstore)
        return innermost["driver"] not in ("file", "memory")

    def at(self, name: str) -> StoreLocation:
        """Return the location of `name` ("em", "..") relative to this one, never above the root."""
        parts = [part for part in f"{self.path}{name}".split("/") if part not in ("", ".")]
        while ".." in parts:
            index = parts.index("..")
            del parts[max(0, index - 1) : index + 1]
        root = "/" if self.path.startswith("/") else ""
        path = root + "".join(f"{part}/" for part in parts)
        return StoreLocation(self.uri, {**self.kvstore, "path": path}, self.driver)


def locate_store(uri: str) -> StoreLocation:
    """Return the location that a URI names. Nothing is accessed.

    Parameters
    ----------
    uri : str
        A path, a URL or a tensorstore URL pipeline (`...|zarr3:s0`).

    Returns
    -------
    StoreLocation
        The location.

    Raises
    ------
    InputError
        If the URI is malformed.
    """
    base, bar, last = uri.rpartition("|")
    if not bar:
        return StoreLocation(uri, _parse_kvstore(uri, uri)).at("")
    scheme, colon, path = last.partition(":")
    if not colon or scheme not in DRIVERS:
        raise InputError(
            f"{uri}: {last!r} is not a format; expected one of {', '.join(DRIVERS)} and a colon after the last |"
        )
    return StoreLocation(uri, _parse_kvstore(base, uri), DRIVERS[scheme]).at("").at(unquote(path))


def _parse_kvstore(base: str, uri: str) -> Json:
    """Return the spec of `base`, which is `uri` without its format."""
    if not re.match(r"[a-z0-9+.-]+://", base):
        return {"driver": "file", "path": f"{Path(expand_home(base)).absolute()}/"}
    if base.startswith("file://") and "|" not in base:
        return {"driver": "file", "path": parse_file_url(base)}
    try:
        return ts.KvStore.Spec(base).to_json()
    except ValueError as error:
        raise InputError(f"{uri} cannot be read: {first_error_line(error)}") from None


def credential_variants(kvstore: Json) -> Iterator[Json]:
    """Yield the specs to read a store with: as it is, or for S3 first anonymous and then with credentials.

    Parameters
    ----------
    kvstore : dict
        JSON spec of a tensorstore key-value store.

    Yields
    ------
    dict
        The spec with access to S3.
    """
    yield with_s3_access(kvstore, anonymous=True)
    if "s3" in (layer["driver"] for layer in _layers(kvstore)):
        yield with_s3_access(kvstore)


def writable_kvstore(path: str) -> Json:
    """Return the spec to write a folder with; S3 takes credentials.

    Parameters
    ----------
    path : str
        As in `Storage.path`: an absolute path or `s3://bucket/key`.

    Returns
    -------
    dict
        The JSON spec of a tensorstore key-value store.
    """
    if not path.startswith("s3://"):
        return {"driver": "file", "path": f"{path.rstrip('/')}/"}
    bucket, _, key = path.removeprefix("s3://").partition("/")
    kvstore = {"driver": "s3", "bucket": bucket, "path": f"{key.strip('/')}/".lstrip("/")}
    return with_s3_access(kvstore)


def _layers(kvstore: Json) -> Iterator[Json]:
    """Yield a spec and the specs inside it, the innermost last."""
    yield kvstore
    if "base" in kvstore:
        yield from _layers(kvstore["base"])


def read_json_documents(location: StoreLocation, names: Iterable[str]) -> tuple[StoreLocation, dict[str, Json]]:
    """Read those of several JSON documents that exist.

    Parameters
    ----------
    location : StoreLocation
        The folder of the documents.
    names : iterable of str
        Names of files in it.

    Returns
    -------
    readable : StoreLocation
        The location, with the credentials that can read it.
    documents : dict
        Each document that exists, by its name.

    Raises
    ------
    InputDenied
        If access is refused, with and without credentials.
    VolumeError
        If the store does not answer.
    InputError
        If a document is not a JSON object.
    """
    for kvstore in credential_variants(location.kvstore):
        readable = StoreLocation(location.uri, kvstore, location.driver)
        values, refusal = _read_values(readable, list(names))
        if values or refusal is None:
            return readable, {name: _parse_document(value, name, location) for name, value in values.items()}
    raise InputDenied(f"{location.uri} refuses access: {refusal}; check the credentials (AWS_ACCESS_KEY_ID, ...)")


def _read_values(location: StoreLocation, keys: list[str]) -> tuple[dict[str, bytes], str | None]:
    """Return the values of the keys that exist, and why one was refused. S3 may refuse a key that does not exist."""
    values: dict[str, bytes] = {}
    refusal = None
    for key, read in start_reads(location, keys).items():
        try:
            value = read()
        except PermissionError as error:
            refusal = str(error)
            continue
        if value is not None:
            values[key] = value
    return values, refusal


def start_reads(
    location: StoreLocation, keys: Iterable[str], timeout_s: float | None = None, part: slice = WHOLE
) -> dict[str, Callable[[], bytes | None]]:
    """Start to read several objects at once.

    Parameters
    ----------
    location : StoreLocation
        Where they are.
    keys : iterable of str
        Their names.
    timeout_s : float, optional
        For all of them together; that of an answer by default.
    part : slice
        Which bytes of each object are read; a negative start alone counts from the end.

    Returns
    -------
    dict
        For each name a function that waits for the content and returns it, None if there is no such object; it raises
        the errors of `translate_tensorstore_errors`. Content with an encoding that tensorstore refuses is read too.
    """
    deadline = time.monotonic() + (ANSWER_TIMEOUT_S if timeout_s is None else timeout_s)
    with translate_tensorstore_errors(location.uri, "opened"):
        store = ts.KvStore.open(location.kvstore, context=tensorstore_context()).result(timeout=ANSWER_TIMEOUT_S)
        futures = {key: store.read(key, byte_range=part) for key in keys}

    def wait(key: str, future: Any) -> bytes | None:
        try:
            with translate_tensorstore_errors(location.uri, "opened"):
                result = future.result(timeout=max(0.1, deadline - time.monotonic()))
        except NotADirectoryError:
            return None
        except VolumeError as error:
            if not is_encoding_refused(error):
                raise
            content = read_encoded_object(location.kvstore, key)
            return None if content is None else content[part]
        return bytes(result.value) if result.state == "value" else None

    return {key: partial(wait, key, future) for key, future in futures.items()}


def _parse_document(value: bytes, name: str, location: StoreLocation) -> Json:
    try:
        document = json.loads(value)
    except ValueError as error:
        raise InputError(f"{location.uri}: its {name} is not JSON ({error})") from None
    if not isinstance(document, dict):
        raise InputError(f"{location.uri}: its {name} is not a JSON object")
    return document


@contextlib.contextmanager
def translate_tensorstore_errors(uri: str, verb: str) -> Iterator[None]:
    """Translate the errors that tensorstore raises in the context.

    Parameters
    ----------
    uri : str
        What is accessed.
    verb : str
        A participle for the message "URI could not be VERB".

    Yields
    ------
    None

    Raises
    ------
    VolumeError
        If the store does not answer, or fails.
    PermissionError, FileNotFoundError, InputError
        If access is refused, nothing exists, or the request makes no sense.
    """
    what = f"{uri} could not be {verb}"
    try:
        yield
    except (TimeoutError, ValueError, OSError) as error:
        if isinstance(error, VolumeError):
            raise
        raise _translated(error, what) from error


def _translated(error: Exception, what: str) -> Exception:
    if isinstance(error, TimeoutError):
        return VolumeError(f"{what}: no answer in time")
    message = f"{what}: {first_error_line(error)}"
    status = str(error).partition(":")[0]
    if status in ("PERMISSION_DENIED", "UNAUTHENTICATED"):
        return PermissionError(message)
    if status == "NOT_FOUND":
        return FileNotFoundError(message)
    if status in ("INVALID_ARGUMENT", "FAILED_PRECONDITION", "OUT_OF_RANGE", "UNIMPLEMENTED"):
        return InputError(message)
    return VolumeError(message)


def first_error_line(error: BaseException) -> str:
    """Return the first line of a tensorstore error, without the details in brackets at its end.

    Parameters
    ----------
    error : BaseException
        The error.

    Returns
    -------
    str
        The line, or the name of the error's class if it has no text.
    """
    text = re.sub(r"\s*\[(source locations|[a-z_-]+)=.*", "", str(error).strip(), flags=re.DOTALL)
    return text.splitlines()[0] if text else type(error).__name__

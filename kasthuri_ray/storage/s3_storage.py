"""Files in a folder of S3, accessed with tensorstore. A file is one object, and a write one request.

Retries are few and short, so that an endpoint that is down becomes an error within seconds.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import tensorstore as ts

from kasthuri_ray.storage.kvstore import first_error_line, tensorstore_context
from kasthuri_ray.storage.s3_access import with_s3_access
from kasthuri_ray.storage.storage import ConditionsUnsupported, Storage, check_file_name

ANSWER_TIMEOUT_S = 10.0  # then another request shows whether S3 answers at all
LONGEST_REQUEST_S = 3600.0  # to remove a large folder
NO_OBJECT = b"\x02"  # what tensorstore reads as the version of an object that does not exist

# The kind of an S3 error, by a pattern in tensorstore's text, and what to do about it.
S3_ERROR_KINDS: dict[str, type[OSError]] = {
    "PERMISSION_DENIED|UNAUTHENTICATED|Signature|InvalidAccessKey|ExpiredToken|InvalidToken": PermissionError,
    "NOT_FOUND": FileNotFoundError,
    "ABORTED|UNAVAILABLE|DEADLINE_EXCEEDED|INTERNAL|CURL|no answer": ConnectionError,
}
S3_ADVICE: dict[type[OSError], str] = {
    PermissionError: "access is refused; check the credentials (AWS_ACCESS_KEY_ID, ...)",
    FileNotFoundError: "there is no such bucket or key",
    ConnectionError: "S3 does not answer; check AWS_ENDPOINT_URL and the network",
}


@dataclass(frozen=True)
class S3Storage(Storage):
    """A folder of files on S3; parameters and errors as of `Storage`.

    Parameters
    ----------
    path : str
        `s3://bucket/key`.
    anonymous : bool
        Whether to send no credentials.
    """

    anonymous: bool = False
    is_local = False

    def read_version(self, name: str) -> tuple[bytes, bytes]:
        result = self._request(name, lambda store, key: store.read(key))
        if result.state != "value":
            raise FileNotFoundError(f"{self.path}/{name} does not exist")
        return bytes(result.value), bytes(result.stamp.generation)

    def write_bytes(self, name: str, data: bytes, *, flush: bool = True) -> None:
        self._request(name, lambda store, key: store.write(key, data))

    def write_if(self, name: str, data: bytes, version: bytes | None) -> bytes | None:
        # Sent as If-Match: <ETag> or If-None-Match: *, which S3 compares and writes in one step. On a server that
        # ignores both, the last of several writers wins; the holder of a lease notices that at its next heartbeat.
        condition = NO_OBJECT if version is None else version
        stamp = self._request(name, lambda store, key: store.write(key, data, if_equal=condition))
        if stamp.generation:
            return bytes(stamp.generation)
        # Tensorstore does not tell a lack of the bucket from a condition that is not met; a list does.
        with contextlib.suppress(PermissionError):
            self._request(name, lambda store, key: store.list(_keys_with(key)))
        return None

    def list_records(self, folder: str) -> list[str]:
        """Return the names of all records: S3 stores each of them whole."""
        return [name for name in self.child(folder).list_folder() if name.endswith(".json")]

    def exists(self, name: str) -> bool:
        result = self._request(name, lambda store, key: store.read(key, byte_range=slice(0, 0)))  # HEAD
        return bool(result.state == "value")

    def list_files(self, prefix: str = "") -> list[str]:
        return sorted(name for name in self._keys(prefix) if not name.endswith("/"))  # see list_folder

    def list_folder(self) -> list[str]:
        """Return the sorted names of the files and folders directly in this folder.

        Tensorstore lists all keys below it. A key that ends with "/" is an empty folder, as some programs mark it.
        """
        return sorted({name.partition("/")[0] for name in self._keys()})

    def delete(self, name: str) -> None:
        self._request(name, lambda store, key: store.write(key, None))

    def remove_folder(self) -> None:
        self._request(None, lambda store, key: store.delete_range(_keys_with(key)))

    def _keys(self, prefix: str = "") -> list[str]:
        """Return the names of all keys in this folder that start with `prefix`, but for the mark of the folder."""
        keys = self._request(
            None, lambda store, key: store.list(_keys_with(key + prefix), strip_prefix_length=len(key.encode()))
        )
        return [key.decode() for key in keys if key]

    def _request(self, name: str | None, request: Callable[[ts.KvStore, str], ts.Future]) -> Any:
        """Return the answer to a request for a file, or for this folder.

        Parameters
        ----------
        name : str or None
            Name of the file.
        request : callable
            Takes the store of the bucket and the key of the file or folder, and returns a future.
        """
        bucket, _, key = self.path.removeprefix("s3://").partition("/")
        folder = f"{key}/" if key else ""
        suffix = "" if name is None else check_file_name(name)
        spec = json.dumps(with_s3_access({"driver": "s3", "bucket": bucket}, anonymous=self.anonymous))
        with translate_s3_errors(f"{self.path}/{suffix}".rstrip("/")):
            return _wait(request(_open_bucket(spec), folder + suffix), spec)


@lru_cache(maxsize=16)
def _open_bucket(spec: str, probing: bool = False) -> ts.KvStore:
    context = ts.Context() if probing else tensorstore_context()
    return ts.KvStore.open(json.loads(spec), context=context).result(timeout=ANSWER_TIMEOUT_S)


def _wait(future: ts.Future, spec: str) -> Any:
    """Return the result of a request, however long it takes, as long as S3 answers another one in time."""
    deadline = time.monotonic() + LONGEST_REQUEST_S
    try:
        while True:
            try:
                return future.result(timeout=ANSWER_TIMEOUT_S)
            except TimeoutError:
                if future.done() or time.monotonic() > deadline:
                    raise
                with contextlib.suppress(ValueError):  # a refusal is an answer
                    _open_bucket(spec, probing=True).read("probe", byte_range=slice(0, 0)).result(
                        timeout=ANSWER_TIMEOUT_S
                    )
    finally:
        future.cancel()


def _keys_with(prefix: str) -> ts.KvStore.KeyRange:
    """Return the range of all keys that start with a prefix."""
    start = prefix.encode()
    return ts.KvStore.KeyRange(start, start[:-1] + bytes([start[-1] + 1]) if start else b"")


@contextlib.contextmanager
def translate_s3_errors(url: str) -> Iterator[None]:
    """Raise the errors of tensorstore as OSErrors of their kind, which name the URL."""
    try:
        yield
    except NotImplementedError as error:
        raise ConditionsUnsupported(f"{url}: S3 has no conditional writes ({first_error_line(error)})") from error
    except (ValueError, OSError) as error:
        text = "no answer in time" if isinstance(error, TimeoutError) else first_error_line(error)
        kind = next((kind for pattern, kind in S3_ERROR_KINDS.items() if re.search(pattern, text)), OSError)
        raise kind(f"{url}: {S3_ADVICE.get(kind, 'S3 failed')} ({text})") from error

"""Where a run's files lie: a folder of this machine or of S3, written whole or not at all.

    run = open_storage("s3://bucket/runs").child("synapse_1")
    run.write_bytes("metrics.json", data)

S3 by pyarrow, whose SDK finds the credentials; the endpoint is `AWS_ENDPOINT_URL_S3` or `AWS_ENDPOINT_URL` where one is
set (MinIO, Ceph). `read_anywhere` reads one file by its path or URL.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import os
import re
import shutil
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import tensorstore as ts

from kasthuri_ray.errors import disk_full_error, is_disk_full
from kasthuri_ray.storage.kvstore import (
    S3_ATTEMPTS,
    _read_s3,
    s3_filesystem,
    tensorstore_context,
    translate_s3_errors,
    translate_tensorstore_errors,
    writable_kvstore,
)
from kasthuri_ray.storage.uris import _file_url_path

log = logging.getLogger(__name__)


PARTIAL_SUFFIX = ".part"  # ends the name of a file that is not whole yet


REMOVE_TIMEOUT_S = 3600.0


@dataclass(frozen=True)
class Storage:
    """A folder for files, by name; names may hold folders (`checkpoint/best.pt`). Picklable.

    path: what to print and to open it by again: an absolute path, or `s3://bucket/key`. Opening makes nothing; folders
        come with the first file.

    All methods raise PermissionError where access is refused, ConnectionError where S3 does not answer, and
    FileNotFoundError for a bucket that is not there.
    """

    path: str

    @property
    def folder(self) -> Path | None:
        """The folder of this machine, or None on S3."""
        return None if self.path.startswith("s3://") else Path(self.path)

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rstrip("/").rpartition("/")[2]

    def child(self, name: str) -> Storage:
        return Storage(f"{self.path.rstrip('/')}/{_checked(name)}")

    def filesystem(self) -> tuple[Any, str]:
        """pyarrow's file system, and the path of this folder in it."""
        if self.folder is not None:
            from pyarrow.fs import LocalFileSystem

            return LocalFileSystem(), self.path
        key = self.path.removeprefix("s3://")
        return s3_filesystem(key.partition("/")[0]), key

    def read_bytes(self, name: str) -> bytes:
        """The content of a file. Raises FileNotFoundError where there is none."""
        if self.folder is not None:
            return (self.folder / _checked(name)).read_bytes()
        with self._s3(name) as (files, key):
            return _read_s3(files, key)

    def write_bytes(self, name: str, data: bytes) -> None:
        """Writes a file so that a reader finds the old content or the new, never a part.

        Raises OSError, with the old content untouched, where the disk is full.
        """
        if self.folder is not None:
            return _write_local(self.folder / _checked(name), data, replace=True)
        with self._s3(name) as (files, key), files.open_output_stream(key) as stream:
            stream.write(data)

    def write_new(self, name: str, data: bytes) -> bool:
        """Writes a file that is not there yet, and says whether it did.

        On a disk one of several who try at once is told True. S3 as pyarrow speaks it does not promise that.
        """
        if self.folder is not None:
            try:
                _write_local(self.folder / _checked(name), data, replace=False)
            except FileExistsError:
                return False
            return True
        if self.exists(name):
            return False
        self.write_bytes(name, data)
        return True

    def exists(self, name: str) -> bool:
        """Whether there is a file of this name."""
        if self.folder is not None:
            return (self.folder / _checked(name)).is_file()
        from pyarrow.fs import FileType

        with self._s3(name) as (files, key):
            return bool(files.get_file_info(key).type == FileType.File)

    def list(self, prefix: str = "") -> list[str]:
        """The names of all files, those in folders too, that start with `prefix`; sorted."""
        if self.folder is not None:
            found = (path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file())
            return sorted(name for name in found if name.startswith(prefix) and not name.endswith(PARTIAL_SUFFIX))
        from pyarrow.fs import FileSelector, FileType

        with self._s3() as (files, key):
            below = f"{key}/{prefix.rpartition('/')[0]}".rstrip("/")
            infos = files.get_file_info(FileSelector(below, recursive=True, allow_not_found=True))
        names = (info.path.removeprefix(f"{key}/") for info in infos if info.type == FileType.File)
        return sorted(name for name in names if name.startswith(prefix))

    def delete(self, name: str) -> None:
        """Deletes a file; one that is not there is no error."""
        if self.folder is not None:
            return (self.folder / _checked(name)).unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError), self._s3(name) as (files, key):
            files.delete_file(key)

    @contextlib.contextmanager
    def _s3(self, name: str | None = None) -> Iterator[tuple[Any, str]]:
        """The file system and the key of a file or of this folder; what goes wrong inside is said in words."""
        tail = "" if name is None else f"/{_checked(name)}"
        with translate_s3_errors(self.path + tail):
            files, key = self.filesystem()
            yield files, key + tail


def open_storage(path_or_url: str) -> Storage:
    """The storage at a path, a `file://` URL or `s3://bucket/prefix`; nothing is made or looked at."""
    if path_or_url.startswith("s3://"):
        bucket, _, key = path_or_url.removeprefix("s3://").partition("/")
        if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", bucket):
            raise ValueError(f"{path_or_url!r}: {bucket!r} is no name of a bucket; expected s3://bucket/prefix")
        return Storage("/".join(["s3:/", bucket, *(part for part in key.split("/") if part)]))
    if path_or_url.startswith("file://"):
        path_or_url = _file_url_path(path_or_url)
    elif "://" in path_or_url:
        raise ValueError(f"{path_or_url!r}: files are kept on a disk or on S3; expected a path or s3://bucket/prefix")
    if not path_or_url:
        raise ValueError("the storage is empty; expected a path or s3://bucket/prefix")
    return Storage(os.path.abspath(Path(path_or_url).expanduser()))


def _checked(name: str) -> str:
    if not name or name.startswith("/") or ".." in name.split("/"):
        raise ValueError(f"{name!r} is no name of a file in a storage; expected one such as checkpoint/best.pt")
    return name


def _write_local(path: Path, data: bytes, replace: bool) -> None:
    """By a file beside it that takes its place when it is whole and on the disk."""
    part = path.parent / f".{path.name}.{uuid.uuid4().hex}{PARTIAL_SUFFIX}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            os.replace(part, path)
        else:
            _link(part, path, data)
        _sync_folder(path.parent)
    except OSError as error:
        if is_disk_full(error):
            kept = "what was there before is unchanged" if path.exists() else "nothing was written"
            raise disk_full_error(f"{path} ({len(data)} bytes)", kept, error.errno or 0) from error
        raise
    finally:
        part.unlink(missing_ok=True)


def _link(part: Path, path: Path, data: bytes) -> None:
    """Gives the whole file its name unless that is taken; where the file system has no links, writes it there."""
    try:
        os.link(part, path)
    except FileExistsError:
        raise
    except OSError:
        with open(path, "xb") as file:
            file.write(data)


def _sync_folder(folder: Path) -> None:
    """Puts the new name on the disk too, where the file system can do that."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def read_uri(path_or_url: str) -> bytes:
    """The content of one file: a path, `file://`, `https://` or `s3://` (anonymously first, then with credentials).

    Raises FileNotFoundError, PermissionError, ConnectionError where the server does not answer, and ValueError for
    what is no such name. A query in a URL, which may hold a secret, is never shown.
    """
    if path_or_url.startswith("s3://"):
        return _read_s3_uri(open_storage(path_or_url))
    if path_or_url.startswith(("http://", "https://")):
        return _read_http(path_or_url)
    path = Path(open_storage(path_or_url).path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder; a file is expected")
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    return path.read_bytes()


def _read_s3_uri(place: Storage) -> bytes:
    key = place.path.removeprefix("s3://")
    bucket, slash, _ = key.partition("/")
    if not slash:
        raise ValueError(f"{place.path} is a bucket; a file is expected")
    with contextlib.suppress(PermissionError), translate_s3_errors(place.path):
        return _read_s3(s3_filesystem(bucket, anonymous=True), key)
    with translate_s3_errors(place.path):
        return _read_s3(s3_filesystem(bucket), key)


def _read_http(url: str) -> bytes:
    shown = urlsplit(url)._replace(query="", fragment="").geturl()
    reason = ""
    for attempt in range(S3_ATTEMPTS):
        if attempt:
            log.warning("%s: %s; trying again (%d of %d)", shown, reason, attempt + 1, S3_ATTEMPTS)
        time.sleep(0.5 * attempt)
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                return bytes(answer.read())
        except urllib.error.HTTPError as error:
            if error.code in (401, 403):
                raise PermissionError(f"{shown} refuses access ({error.code})") from error
            if error.code < 500 and error.code != 429:
                raise FileNotFoundError(f"{shown} is not there ({error.code} {error.reason})") from error
            reason = f"{error.code} {error.reason}"
        except (OSError, http.client.HTTPException) as error:
            reason = str(error)
    raise ConnectionError(f"{shown} could not be read in {S3_ATTEMPTS} attempts: {reason}")


def remove_folder(place: Storage) -> None:
    """Remove a folder with all that is in it; it is there."""
    if place.folder is not None:
        shutil.rmtree(place.folder)
        return
    with translate_tensorstore_errors(place.path, "removed"):
        store = ts.KvStore.open(writable_kvstore(place.path), context=tensorstore_context()).result(timeout=60)
        store.delete_range(ts.KvStore.KeyRange()).result(timeout=REMOVE_TIMEOUT_S)


def _remove_file(storage: Storage, name: str) -> None:
    if storage.folder is not None:
        return storage.delete(name)
    with translate_tensorstore_errors(
        storage.path, "removed"
    ):  # pyarrow would leave an empty object where the folder was
        store = ts.KvStore.open(writable_kvstore(storage.path), context=tensorstore_context()).result(timeout=60)
        store.write(name, None).result(timeout=60)


def list_folder(storage: Storage) -> list[str]:
    """What lies directly in a folder, without files that were not finished; sorted."""
    if storage.folder is not None:
        try:
            found = [entry.name for entry in Path(storage.folder).iterdir()]
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(name for name in found if not name.endswith(PARTIAL_SUFFIX))
    from pyarrow.fs import FileSelector

    with translate_s3_errors(storage.path):
        files, key = storage.filesystem()
        return sorted(info.base_name for info in files.get_file_info(FileSelector(key, allow_not_found=True)))


def _document(storage: Storage, name: str) -> dict[str, Any] | None:
    """A JSON object, None where there is none."""
    try:
        found = json.loads(storage.read_bytes(name))
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) else None

"""Files by name in a folder of this machine or of S3. Every file is written whole or not at all.

    run = open_storage("s3://bucket/runs").child("synapse_1")
    run.write_bytes("metrics.json", data)

S3 is accessed with pyarrow, and its SDK finds the credentials. The endpoint is `AWS_ENDPOINT_URL_S3` or
`AWS_ENDPOINT_URL` where one is set (MinIO, Ceph). `read_uri` reads one file by its path or URL.
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

from kasthuri_ray.errors import (
    InputDenied,
    InputError,
    InputNotFound,
    disk_full_error,
    is_disk_full,
    missing_is_bad_input,
)
from kasthuri_ray.storage.kvstore import (
    tensorstore_context,
    translate_tensorstore_errors,
    writable_kvstore,
)
from kasthuri_ray.storage.s3 import S3_ATTEMPTS, s3_filesystem, translate_s3_errors
from kasthuri_ray.storage.uris import parse_file_url

PARTIAL_SUFFIX = ".part"  # of a file that is still being written
HTTP_TIMEOUT_S = 30
REMOVE_TIMEOUT_S = 60.0
REMOVE_FOLDER_TIMEOUT_S = 3600.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Storage:
    """A folder of files on a disk or on S3.

    Names of files may include folders (`checkpoint/best.pt`). Folders are created with their first file. A storage
    can be pickled.

    Parameters
    ----------
    path : str
        An absolute path or `s3://bucket/key`. `open_storage` of it returns the same storage.

    Notes
    -----
    All methods raise PermissionError if access is refused, ConnectionError if S3 does not answer, and FileNotFoundError
    for a bucket that does not exist.
    """

    path: str

    @property
    def folder(self) -> Path | None:
        """The folder on this machine, or None on S3."""
        return None if self.path.startswith("s3://") else Path(self.path)

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rstrip("/").rpartition("/")[2]

    def child(self, name: str) -> Storage:
        """Return the storage of a folder inside this one."""
        return Storage(f"{self.path.rstrip('/')}/{_check_name(name)}")

    def filesystem(self) -> tuple[Any, str]:
        """Return pyarrow's file system, and the path of this folder in it."""
        if self.folder is not None:
            from pyarrow.fs import LocalFileSystem

            return LocalFileSystem(), self.path
        key = self.path.removeprefix("s3://")
        return s3_filesystem(key.partition("/")[0]), key

    def read_bytes(self, name: str) -> bytes:
        """Return the content of a file, or raise FileNotFoundError."""
        if self.folder is not None:
            return (self.folder / _check_name(name)).read_bytes()
        with self._open_s3(name) as (files, key):
            return _read_s3_file(files, key)

    def read_json(self, name: str) -> dict[str, Any] | None:
        """Return the JSON object in a file; None if there is no such file or it holds anything else."""
        try:
            document = json.loads(self.read_bytes(name))
        except (FileNotFoundError, ValueError):
            return None
        return document if isinstance(document, dict) else None

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write a file so that a reader finds the old content or the new one, never a part.

        If the disk is full, raise OSError and leave the old content as it was.
        """
        if self.folder is not None:
            return _write_local(self.folder / _check_name(name), data, replace=True)
        with self._open_s3(name) as (files, key), files.open_output_stream(key) as stream:
            stream.write(data)

    def write_new(self, name: str, data: bytes) -> bool:
        """Write a file unless it exists, and return whether it was written.

        On a disk exactly one of several processes that try at the same time gets True. With pyarrow S3 does not
        guarantee that.
        """
        if self.folder is not None:
            try:
                _write_local(self.folder / _check_name(name), data, replace=False)
            except FileExistsError:
                return False
            return True
        if self.exists(name):
            return False
        self.write_bytes(name, data)
        return True

    def exists(self, name: str) -> bool:
        """Return whether there is a file of this name."""
        if self.folder is not None:
            return (self.folder / _check_name(name)).is_file()
        from pyarrow.fs import FileType

        with self._open_s3(name) as (files, key):
            return bool(files.get_file_info(key).type == FileType.File)

    def list_files(self, prefix: str = "") -> list[str]:
        """Return the sorted names of all files, in subfolders too, that start with `prefix`."""
        if self.folder is not None:
            names = (path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file())
            return sorted(name for name in names if name.startswith(prefix) and not name.endswith(PARTIAL_SUFFIX))
        from pyarrow.fs import FileSelector, FileType

        with self._open_s3() as (files, key):
            parent = f"{key}/{prefix.rpartition('/')[0]}".rstrip("/")
            infos = files.get_file_info(FileSelector(parent, recursive=True, allow_not_found=True))
        names = (info.path.removeprefix(f"{key}/") for info in infos if info.type == FileType.File)
        return sorted(name for name in names if name.startswith(prefix))

    def list_folder(self) -> list[str]:
        """Return the sorted names of the files and folders directly in this folder, without unfinished files."""
        if self.folder is not None:
            try:
                names = [entry.name for entry in self.folder.iterdir()]
            except (FileNotFoundError, NotADirectoryError):
                return []
            return sorted(name for name in names if not name.endswith(PARTIAL_SUFFIX))
        from pyarrow.fs import FileSelector

        with self._open_s3() as (files, key):
            return sorted(info.base_name for info in files.get_file_info(FileSelector(key, allow_not_found=True)))

    def delete(self, name: str) -> None:
        """Delete a file if it exists. On S3 pyarrow leaves an empty object in place of an emptied folder."""
        if self.folder is not None:
            return (self.folder / _check_name(name)).unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError), self._open_s3(name) as (files, key):
            files.delete_file(key)

    def remove_file(self, name: str) -> None:
        """Delete a file if it exists, and leave no empty object on S3."""
        if self.folder is not None:
            return self.delete(name)
        with self._open_kvstore() as store:
            store.write(name, None).result(timeout=REMOVE_TIMEOUT_S)

    def remove_folder(self) -> None:
        """Remove this folder with everything in it. On a disk it must exist."""
        if self.folder is not None:
            return shutil.rmtree(self.folder)
        with self._open_kvstore() as store:
            store.delete_range(ts.KvStore.KeyRange()).result(timeout=REMOVE_FOLDER_TIMEOUT_S)

    @contextlib.contextmanager
    def _open_s3(self, name: str | None = None) -> Iterator[tuple[Any, str]]:
        """Yield pyarrow's file system and the key of a file, or of this folder."""
        suffix = "" if name is None else f"/{_check_name(name)}"
        with translate_s3_errors(self.path + suffix):
            files, key = self.filesystem()
            yield files, key + suffix

    @contextlib.contextmanager
    def _open_kvstore(self) -> Iterator[Any]:
        """Yield the key-value store of this folder on S3, to remove keys from it."""
        with translate_tensorstore_errors(self.path, "removed"):
            opened = ts.KvStore.open(writable_kvstore(self.path), context=tensorstore_context())
            yield opened.result(timeout=REMOVE_TIMEOUT_S)


def open_storage(path_or_url: str) -> Storage:
    """Return the storage at a path or URL. Nothing is created or accessed.

    Parameters
    ----------
    path_or_url : str
        A path, a `file://` URL or `s3://bucket/prefix`.

    Returns
    -------
    Storage
        Its `path` is absolute and has no slash at its end.

    Raises
    ------
    InputError
        If the path is empty, or a URL of another kind, or if the name of the bucket is malformed.
    """
    if path_or_url.startswith("s3://"):
        bucket, _, key = path_or_url.removeprefix("s3://").partition("/")
        if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", bucket):
            raise InputError(f"{path_or_url!r}: {bucket!r} is not the name of a bucket; expected s3://bucket/prefix")
        return Storage("/".join(["s3:/", bucket, *(part for part in key.split("/") if part)]))
    if path_or_url.startswith("file://"):
        path_or_url = parse_file_url(path_or_url)
    elif "://" in path_or_url:
        raise InputError(f"{path_or_url!r}: files are stored on a disk or on S3; expected a path or s3://bucket/prefix")
    if not path_or_url:
        raise InputError("the storage path is empty; expected a path or s3://bucket/prefix")
    return Storage(os.path.abspath(Path(path_or_url).expanduser()))


@missing_is_bad_input()
def read_uri(path_or_url: str) -> bytes:
    """Return the content of one file.

    Parameters
    ----------
    path_or_url : str
        A path, or a URL with `file://`, `http://`, `https://` or `s3://`. S3 is read anonymously first, then with
        credentials.

    Returns
    -------
    bytes
        The whole content.

    Raises
    ------
    InputNotFound
        If there is no such file.
    InputDenied
        If access is refused.
    ConnectionError
        If the server does not answer.
    InputError
        If the path is a folder, or the URL is malformed.

    Notes
    -----
    No message shows the query of a URL, which may hold a secret.
    """
    if path_or_url.startswith("s3://"):
        return _read_s3_uri(open_storage(path_or_url))
    if path_or_url.startswith(("http://", "https://")):
        return _read_http(path_or_url)
    path = Path(open_storage(path_or_url).path)
    if path.is_dir():
        raise InputError(f"{path} is a folder; a file is expected")
    if not path.exists():
        raise InputNotFound(f"there is no file {path}")
    return path.read_bytes()


def _read_s3_uri(location: Storage) -> bytes:
    key = location.path.removeprefix("s3://")
    bucket, slash, _ = key.partition("/")
    if not slash:
        raise InputError(f"{location.path} is a bucket; a file is expected")
    with contextlib.suppress(PermissionError), translate_s3_errors(location.path):
        return _read_s3_file(s3_filesystem(bucket, anonymous=True), key)
    with translate_s3_errors(location.path):
        return _read_s3_file(s3_filesystem(bucket), key)


def _read_s3_file(files: Any, key: str) -> bytes:
    with files.open_input_file(key) as file:
        return bytes(file.read())


def _read_http(url: str) -> bytes:
    shown = urlsplit(url)._replace(query="", fragment="").geturl()
    reason = ""
    for attempt in range(S3_ATTEMPTS):
        if attempt:
            log.warning("%s: %s; retrying (attempt %d of %d)", shown, reason, attempt + 1, S3_ATTEMPTS)
        time.sleep(0.5 * attempt)
        try:
            with urllib.request.urlopen(url, timeout=HTTP_TIMEOUT_S) as response:
                return bytes(response.read())
        except urllib.error.HTTPError as error:
            if error.code in (401, 403):
                raise InputDenied(f"{shown} refuses access ({error.code})") from error
            if error.code < 500 and error.code != 429:
                raise InputNotFound(f"{shown} does not exist ({error.code} {error.reason})") from error
            reason = f"{error.code} {error.reason}"
        except (OSError, http.client.HTTPException) as error:
            reason = str(error)
    raise ConnectionError(f"{shown} could not be read in {S3_ATTEMPTS} attempts: {reason}")


def _check_name(name: str) -> str:
    if not name or name.startswith("/") or ".." in name.split("/"):
        raise InputError(f"{name!r} is not the name of a file in a storage; expected one such as checkpoint/best.pt")
    return name


def _write_local(path: Path, data: bytes, replace: bool) -> None:
    """Write a temporary file beside `path`, and rename it once it is whole and on the disk."""
    partial = path.parent / f".{path.name}.{uuid.uuid4().hex}{PARTIAL_SUFFIX}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            os.replace(partial, path)
        else:
            _link(partial, path, data)
        _sync_folder(path.parent)
    except OSError as error:
        if is_disk_full(error):
            kept = "the earlier file is unchanged" if path.exists() else "nothing was written"
            raise disk_full_error(f"{path} ({len(data)} bytes)", kept, error.errno or 0) from error
        raise
    finally:
        partial.unlink(missing_ok=True)


def _link(partial: Path, path: Path, data: bytes) -> None:
    """Link the finished file to `path`, or write it there if the file system has no links; never replace a file."""
    try:
        os.link(partial, path)
    except FileExistsError:
        raise
    except OSError:
        with open(path, "xb") as file:
            file.write(data)


def _sync_folder(folder: Path) -> None:
    """Flush the new name to the disk, on file systems that can do that."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

"""Where a run's files lie: a folder of this machine or of S3, written whole or not at all.

    run = open_storage("s3://bucket/runs").child("synapse_1")
    run.write_bytes("metrics.json", data)

S3 by pyarrow, whose SDK finds the credentials; the endpoint is `AWS_ENDPOINT_URL_S3` or `AWS_ENDPOINT_URL` where one is
set (MinIO, Ceph). `read_anywhere` reads one file by its path or URL.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import logging
import os
import re
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

log = logging.getLogger(__name__)

ATTEMPTS = 3
CONNECT_SECONDS = 5
PART = ".part"  # ends the name of a file that is not whole yet


def in_ray_job() -> bool:
    """Whether this process is the driver of a submitted Ray job, whose working directory is a temporary copy."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def without_secrets(text: str) -> str:
    """A web address without what may be secret in it: its query, a signature, and who asks. Other text as it is."""
    bare = re.sub(r"((?:https?|s3|gs)://[^?\s]*)\?[^\s|]*", r"\1", text)
    return re.sub(r"((?:https?|s3|gs)://)[^/@\s]*@", r"\1", bare)


def lies_in(path: str, folder: str) -> bool:
    """Whether a path or URL, as `open_storage` gives them, is a folder or lies in it."""
    return f"{path}/".startswith(f"{folder}/")


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
            return sorted(name for name in found if name.startswith(prefix) and not name.endswith(PART))
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
        with s3_errors(self.path + tail):
            files, key = self.filesystem()
            yield files, key + tail


def whole_uri(uri: str) -> str:
    """The URI of a volume of this machine by its whole path, which names the same one from any folder; a URL stays.

    A Ray job looks for relative paths in its copy of the working directory, which is another one each time: they stay.
    """
    if in_ray_job() or "://" in uri or "|" in uri:
        return uri
    return os.path.abspath(os.path.expanduser(uri))


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


def _file_url_path(url: str) -> str:
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
        raise ValueError(f"{url}: file:// wants an absolute path, such as file:///data/runs")
    return unquote(parts.path)


def _checked(name: str) -> str:
    if not name or name.startswith("/") or ".." in name.split("/"):
        raise ValueError(f"{name!r} is no name of a file in a storage; expected one such as checkpoint/best.pt")
    return name


def _write_local(path: Path, data: bytes, replace: bool) -> None:
    """By a file beside it that takes its place when it is whole and on the disk."""
    part = path.parent / f".{path.name}.{uuid.uuid4().hex}{PART}"
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
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            was = "what was there before is unchanged" if path.exists() else "nothing was written"
            reason = f"the disk is full: {path} ({len(data)} bytes) could not be written; {was}. Free some space"
            raise OSError(error.errno, reason) from error
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
        connect_timeout=CONNECT_SECONDS,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
        allow_delayed_open=True,  # a small file is one PUT, not three requests
        **where,
    )


def _read_s3(files: Any, key: str) -> bytes:
    with files.open_input_file(key) as file:
        return bytes(file.read())


@contextlib.contextmanager
def s3_errors(url: str) -> Iterator[None]:
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


def read_anywhere(path_or_url: str) -> bytes:
    """The content of one file: a path, `file://`, `https://` or `s3://` (anonymously first, then with credentials).

    Raises FileNotFoundError, PermissionError, ConnectionError where the server does not answer, and ValueError for
    what is no such name. A query in a URL, which may hold a secret, is never shown.
    """
    if path_or_url.startswith("s3://"):
        return _read_s3_anyhow(open_storage(path_or_url))
    if path_or_url.startswith(("http://", "https://")):
        return _read_http(path_or_url)
    path = Path(open_storage(path_or_url).path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder; a file is expected")
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    return path.read_bytes()


def _read_s3_anyhow(place: Storage) -> bytes:
    key = place.path.removeprefix("s3://")
    bucket, slash, _ = key.partition("/")
    if not slash:
        raise ValueError(f"{place.path} is a bucket; a file is expected")
    with contextlib.suppress(PermissionError), s3_errors(place.path):
        return _read_s3(s3_filesystem(bucket, anonymous=True), key)
    with s3_errors(place.path):
        return _read_s3(s3_filesystem(bucket), key)


def _read_http(url: str) -> bytes:
    shown = urlsplit(url)._replace(query="", fragment="").geturl()
    reason = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            log.warning("%s: %s; trying again (%d of %d)", shown, reason, attempt + 1, ATTEMPTS)
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
    raise ConnectionError(f"{shown} could not be read in {ATTEMPTS} attempts: {reason}")

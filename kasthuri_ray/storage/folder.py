"""Open the storage at a path or URL, and read one file by its path or URL.

    run = open_storage("s3://bucket/runs").child("synapse_1")
    run.write_bytes("metrics.json", data)

The methods of a storage are described in `Storage`.
"""

from __future__ import annotations

import contextlib
import http.client
import logging
import os
import re
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from kasthuri_ray.errors import InputDenied, InputError, InputNotFound, missing_is_bad_input
from kasthuri_ray.storage.local_paths import describe_missing
from kasthuri_ray.storage.local_storage import LocalStorage
from kasthuri_ray.storage.s3_storage import S3Storage
from kasthuri_ray.storage.storage import Storage
from kasthuri_ray.storage.uris import expand_home, parse_file_url

HTTP_TIMEOUT_S = 30
HTTP_ATTEMPTS = 3

log = logging.getLogger(__name__)


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
        return S3Storage("/".join(["s3:/", bucket, *(part for part in key.split("/") if part)]))
    if path_or_url.startswith("file://"):
        path_or_url = parse_file_url(path_or_url)
    elif "://" in path_or_url:
        raise InputError(f"{path_or_url!r}: files are stored on a disk or on S3; expected a path or s3://bucket/prefix")
    if not path_or_url:
        raise InputError("the storage path is empty; expected a path or s3://bucket/prefix")
    return LocalStorage(os.path.abspath(expand_home(path_or_url)))


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
        return _read_s3(open_storage(path_or_url).path)
    if path_or_url.startswith(("http://", "https://")):
        return _read_http(path_or_url)
    path = Path(open_storage(path_or_url).path)
    if path.is_dir():
        raise InputError(f"{path} is a folder; a file is expected")
    if not path.exists():
        raise InputNotFound(describe_missing(path))
    return path.read_bytes()


def _read_s3(url: str) -> bytes:
    folder, _, name = url.rpartition("/")
    if folder == "s3:/":
        raise InputError(f"{url} is a bucket; a file is expected")
    with contextlib.suppress(PermissionError):
        return S3Storage(folder, anonymous=True).read_bytes(name)
    return S3Storage(folder).read_bytes(name)


def _read_http(url: str) -> bytes:
    shown = urlsplit(url)._replace(query="", fragment="").geturl()
    reason = ""
    for attempt in range(HTTP_ATTEMPTS):
        if attempt:
            log.warning("%s: %s; retrying (attempt %d of %d)", shown, reason, attempt + 1, HTTP_ATTEMPTS)
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
    raise ConnectionError(f"{shown} could not be read in {HTTP_ATTEMPTS} attempts: {reason}")

"""The weights that the Kasthuri Challenge published: names, download without credentials, cache, checksums.

The bucket has an endpoint of its own, `KASTHURI_WEIGHTS_URL` or Amazon's, and never that of `AWS_ENDPOINT_URL`, where
volumes and outputs may be.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import requests

from kasthuri_ray.errors import InputError, InputNotFound
from kasthuri_ray.storage.local_paths import user_cache_folder
from kasthuri_ray.storage.local_storage import LocalStorage
from kasthuri_ray.storage.uris import expand_home

SCHEME = "kasthuri://"
ENDPOINT_VARIABLE, ENDPOINT = "KASTHURI_WEIGHTS_URL", "https://s3.amazonaws.com"
BUCKET, FOLDER = "bossdb-datalake", "public/kasthuri-challenge-pretrained-weights/"
ENDING = ".pt"
TIMEOUT_S = 30
# What the bucket held in November 2026; its own list counts where it can be reached.
KNOWN_NAMES = tuple(
    f"UNet_2D{kind}_{task}" for kind in ("", "_attention", "_depth", "_residual") for task in ("membrane", "synapse")
)


def is_published(path: str) -> bool:
    """Return whether a path names published weights: `kasthuri://NAME`.

    Parameters
    ----------
    path : str
        What `--weights` holds.

    Returns
    -------
    bool
        True also for `kasthuri://` alone, which asks for their names.
    """
    return path.lower().startswith(SCHEME)


def list_published() -> tuple[list[str], str]:
    """Return the names of the published weights.

    Returns
    -------
    names : list of str
        Those in the bucket; those that are known or in the cache if it cannot be reached.
    problem : str
        Why it cannot be reached; "" if it can.
    """
    try:
        answer = requests.get(f"{_endpoint()}/{BUCKET}", params={"list-type": "2", "prefix": FOLDER}, timeout=TIMEOUT_S)
        answer.raise_for_status()
        keys = [each.text or "" for each in ElementTree.fromstring(answer.content).iter() if each.tag.endswith("Key")]
    except (requests.RequestException, ElementTree.ParseError) as error:
        problem = f"the bucket of the published weights cannot be reached ({_reason(error)})"
        return sorted({*KNOWN_NAMES, *_cached_names()}), problem
    names = [key.removeprefix(FOLDER).removesuffix(ENDING) for key in keys if key.endswith(ENDING)]
    return sorted(names), ""


def read_published(path: str) -> tuple[bytes, str]:
    """Return published weights, from the cache if they are there and are still the ones in the bucket.

    Parameters
    ----------
    path : str
        `kasthuri://NAME`, in upper or lower case, with or without `.pt`.

    Returns
    -------
    data : bytes
        The file.
    name : str
        Its name as it is published, without its ending.

    Raises
    ------
    InputNotFound
        If there is no such name; the message lists the names.
    InputError
        If the file in the cache or in the bucket is not the one that was first downloaded.
    ConnectionError
        If the bucket cannot be reached and the file is not in the cache.
    """
    names, problem = list_published()
    name = _find_name(path, names, problem)
    folder = _cache_folder()
    cached = None if folder is None else folder / f"{name}{ENDING}"
    data = None if cached is None else _read_cached(cached)
    if cached is not None and data is not None and (problem or _is_unchanged(name, data, cached)):
        return data, name
    if problem:
        where = "there is no cache (KASTHURI_CACHE)" if folder is None else f"it is not in the cache, {folder}"
        raise ConnectionError(f"{path}: {problem}, and {where}")
    data = _download(path, name)
    if cached is not None:
        _check_first_checksum(cached, data, path)
        _write_cached(cached, data)
    return data, name


def _find_name(path: str, names: list[str], problem: str) -> str:
    asked = path[len(SCHEME) :].strip("/").lower().removesuffix(ENDING)
    found = next((name for name in names if name.lower() == asked), None)
    if found is None:
        where = f"; {problem}, and these are those that are known" if problem else ""
        raise InputNotFound(f"{path}: no such weights; there are {', '.join(names)}{where}")
    return found


def _endpoint() -> str:
    return os.environ.get(ENDPOINT_VARIABLE, ENDPOINT).rstrip("/")


def _url(name: str) -> str:
    return f"{_endpoint()}/{BUCKET}/{FOLDER}{name}{ENDING}"


def _cache_folder() -> Path | None:
    """Return the folder of downloaded weights; None without a cache."""
    folder = user_cache_folder()
    return None if folder.lower() == "none" else Path(expand_home(folder)) / "weights"


def _cached_names() -> list[str]:
    folder = _cache_folder()
    return [] if folder is None else [each.stem for each in folder.glob(f"*{ENDING}")]


def _checksum_file(cached: Path) -> Path:
    return cached.with_suffix(".sha256")


def _checksum(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _known_checksum(cached: Path) -> str | None:
    try:
        return _checksum_file(cached).read_text().strip()
    except OSError:
        return None


def _read_cached(cached: Path) -> bytes | None:
    """Return the file in the cache; None if there is none. Raise an InputError if it is another one than was stored."""
    try:
        data = cached.read_bytes()
    except OSError:
        return None
    if _known_checksum(cached) not in (None, _checksum(data)):
        raise InputError(f"{cached} is not what was downloaded: its checksum changed. Delete it to download it again")
    return data


def _is_unchanged(name: str, data: bytes, cached: Path) -> bool:
    """Return whether the file in the bucket may be the one in the cache: it has its size and MD5, as far as it says.

    Raise an InputError if it is another one.
    """
    try:
        answer = requests.head(_url(name), timeout=TIMEOUT_S, allow_redirects=True)
    except requests.RequestException:
        return True
    if answer.status_code != 200:
        return True  # it says nothing of the file
    size, tag = answer.headers.get("Content-Length"), answer.headers.get("ETag", "").strip('"')
    is_md5 = len(tag) == 32  # not of an upload in parts
    other_sum = is_md5 and tag != hashlib.md5(data, usedforsecurity=False).hexdigest()
    if other_sum or (size is not None and int(size) != len(data)):
        raise InputError(_changed_text(f"{SCHEME}{name}", cached))
    return True


def _download(path: str, name: str) -> bytes:
    try:
        answer = requests.get(_url(name), timeout=TIMEOUT_S)
        answer.raise_for_status()
    except requests.RequestException as error:
        raise ConnectionError(f"{path} could not be downloaded ({_reason(error)})") from None
    return answer.content


def _check_first_checksum(cached: Path, data: bytes, path: str) -> None:
    """Raise an InputError if the weights are not those that this user downloaded first."""
    if _known_checksum(cached) not in (None, _checksum(data)):
        raise InputError(_changed_text(path, cached))


def _changed_text(path: str, cached: Path) -> str:
    return (
        f"{path}: the published file is not the one that was downloaded before: its checksum changed. To use the new "
        f"one, delete {cached} and {_checksum_file(cached)}"
    )


def _write_cached(cached: Path, data: bytes) -> None:
    """Keep the weights and their checksum; without a place to write they are downloaded each time."""
    storage = LocalStorage(str(cached.parent))
    with contextlib.suppress(OSError):
        storage.write_bytes(cached.name, data)
        storage.write_bytes(_checksum_file(cached).name, f"{_checksum(data)}\n".encode())


def _reason(error: Exception) -> str:
    response = getattr(error, "response", None)
    return f"HTTP {response.status_code}" if response is not None else type(error).__name__

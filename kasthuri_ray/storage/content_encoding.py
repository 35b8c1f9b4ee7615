"""Objects with a `Content-Encoding` that tensorstore refuses, such as `aws-chunked,gzip` (CloudFiles writes it).

They are read with one HTTP request of the standard library and decoded here.
"""

from __future__ import annotations

import configparser
import datetime
import gzip
import hashlib
import hmac
import os
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, urlsplit

from kasthuri_ray.errors import InputError
from kasthuri_ray.storage.s3_access import public_address

TIMEOUT_S = 60.0
REFUSED = "Unrecognized content encoding"  # in the error of tensorstore's HTTP library


def is_encoding_refused(error: BaseException) -> bool:
    """Return whether an error says that tensorstore does not know an object's Content-Encoding.

    Parameters
    ----------
    error : BaseException
        Any error.

    Returns
    -------
    bool
        True for the error that tensorstore's HTTP library raises.
    """
    return REFUSED in str(error)


def read_encoded_object(kvstore: dict[str, Any], key: str) -> bytes | None:
    """Return the decoded content of an object.

    Parameters
    ----------
    kvstore : dict
        Spec of a tensorstore key-value store, of driver `s3` or `http`, with its credentials.
    key : str
        Name of the object below the path of the store.

    Returns
    -------
    bytes or None
        None if there is no such object.

    Raises
    ------
    InputError
        If an encoding is not known, or if there are no keys for a private bucket.
    OSError
        If the server does not answer, or refuses.
    """
    request = _make_request(kvstore, f"{kvstore.get('path', '')}{key}")
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            return decode_content(answer.read(), answer.headers.get("Content-Encoding", ""))
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise


def decode_content(content: bytes, encodings: str) -> bytes:
    """Return content that was encoded several times, decoded.

    Parameters
    ----------
    content : bytes
        The content.
    encodings : str
        Names of encodings, in the order in which they were applied, separated by commas. `aws-chunked` is one of the
        transfer alone.

    Returns
    -------
    bytes
        The content before it was encoded.

    Raises
    ------
    InputError
        If an encoding is not known.
    """
    for name in reversed([part.strip().lower() for part in encodings.split(",")]):
        if name not in DECODERS:
            raise InputError(f"an object has the Content-Encoding {encodings!r}; known are {', '.join(DECODERS)}")
        content = DECODERS[name](content)
    return content


def _decode_brotli(content: bytes) -> bytes:
    import brotli

    return bytes(brotli.decompress(content))


def _decode_zstd(content: bytes) -> bytes:
    from numcodecs.zstd import Zstd

    return bytes(Zstd().decode(content))


DECODERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    "identity": bytes,
    "aws-chunked": bytes,
    "gzip": gzip.decompress,
    "deflate": zlib.decompress,
    "br": _decode_brotli,
    "zstd": _decode_zstd,
}


def _make_request(kvstore: dict[str, Any], path: str) -> urllib.request.Request:
    if kvstore["driver"] == "http":
        headers = dict(header.split(": ", 1) for header in kvstore.get("headers", []))
        server, mark, query = kvstore["base_url"].partition("?")
        url = f"{server.rstrip('/')}/{quote(path.lstrip('/'))}{mark}{query}"
        return urllib.request.Request(url, headers=headers)
    url = f"{public_address(kvstore)}/{quote(path)}"
    if kvstore.get("aws_credentials", {}).get("type") == "anonymous":
        return urllib.request.Request(url)
    return urllib.request.Request(url, headers=_signature(kvstore, url))


def _signature(kvstore: dict[str, Any], url: str) -> dict[str, str]:
    """Return the headers that sign a GET request to S3 (AWS signature version 4)."""
    access_key, secret, token = _read_credentials(kvstore["bucket"])
    parts, now = urlsplit(url), datetime.datetime.now(datetime.UTC)
    date, time = now.strftime("%Y%m%d"), now.strftime("%Y%m%dT%H%M%SZ")
    scope = f"{date}/{_region(kvstore)}/s3/aws4_request"
    headers = {"host": parts.netloc, "x-amz-content-sha256": "UNSIGNED-PAYLOAD", "x-amz-date": time}
    if token:
        headers["x-amz-security-token"] = token
    names = ";".join(sorted(headers))
    lines = "".join(f"{name}:{headers[name]}\n" for name in sorted(headers))
    canonical = f"GET\n{parts.path}\n{parts.query}\n{lines}\n{names}\nUNSIGNED-PAYLOAD"
    text = f"AWS4-HMAC-SHA256\n{time}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    signing_key = f"AWS4{secret}".encode()
    for part in scope.split("/"):
        signing_key = hmac.digest(signing_key, part.encode(), "sha256")
    signature = hmac.digest(signing_key, text.encode(), "sha256").hex()
    del headers["host"]  # urllib sends it
    credential = f"Credential={access_key}/{scope}, SignedHeaders={names}, Signature={signature}"
    return {**headers, "Authorization": f"AWS4-HMAC-SHA256 {credential}"}


def _read_credentials(bucket: str) -> tuple[str, str, str | None]:
    """Return access key, secret key and session token, from the environment or the SDK's file."""
    names = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")
    found = {name: os.environ.get(name.upper()) for name in names}
    if not found["aws_access_key_id"]:
        path = os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials"
        file = configparser.RawConfigParser()
        file.read(os.path.expanduser(path))
        profile = os.environ.get("AWS_PROFILE", "default")
        found = {name: file.get(profile, name, fallback=None) for name in names}
    key, secret = found["aws_access_key_id"], found["aws_secret_access_key"]
    if not key or not secret:
        raise InputError(
            f"s3://{bucket} holds objects with the Content-Encoding aws-chunked; to read those of a private bucket, "
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    return key, secret, found["aws_session_token"]


def _region(kvstore: dict[str, Any]) -> str:
    """Return the region of a bucket: that of the spec or the environment, else the one that S3 states."""
    region = kvstore.get("aws_region") or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if region:
        return str(region)
    request = urllib.request.Request(public_address(kvstore), method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            headers = answer.headers
    except urllib.error.HTTPError as error:
        headers = error.headers
    return headers.get("x-amz-bucket-region", "us-east-1")

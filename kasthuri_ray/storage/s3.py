"""S3 with pyarrow: the file system of a bucket, and errors by their kind.

The endpoint is `AWS_ENDPOINT_URL_S3` or `AWS_ENDPOINT_URL` where one is set (MinIO, Ceph). Retries are few and short,
so that an endpoint that is down becomes an error within seconds.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

S3_ATTEMPTS = 3
S3_CONNECT_TIMEOUT_S = 5

# The kind of an S3 error, by a pattern in pyarrow's text.
S3_ERROR_KINDS: dict[str, type[OSError]] = {
    "ACCESS_DENIED|SIGNATURE|INVALID_ACCESS_KEY|CLIENT_TOKEN|EXPIRED|HTTP status 40[13]": PermissionError,
    "NO_SUCH_BUCKET|NO_SUCH_KEY|Bucket .* not found|HTTP status 404": FileNotFoundError,
    "NETWORK_CONNECTION|curlCode|REQUEST_TIMEOUT|SLOW_DOWN|SERVICE_UNAVAILABLE|INTERNAL": ConnectionError,
}
S3_ADVICE: dict[type[OSError], str] = {
    PermissionError: "access is refused; check the credentials (AWS_ACCESS_KEY_ID, ...)",
    FileNotFoundError: "there is no such bucket or key",
    ConnectionError: "S3 does not answer; check AWS_ENDPOINT_URL and the network",
}


def s3_filesystem(bucket: str, anonymous: bool = False) -> Any:
    """Return pyarrow's S3 file system for a bucket.

    Endpoint and region are those of the environment. If neither is set, S3 is asked for the region of the bucket.

    Parameters
    ----------
    bucket : str
        Name of the bucket.
    anonymous : bool
        Whether to send no credentials.

    Returns
    -------
    pyarrow.fs.S3FileSystem
        Its paths begin with the bucket.
    """
    endpoint, region = s3_endpoint_and_region()
    return _make_s3_filesystem("" if endpoint or region else bucket, endpoint, region, anonymous)


def s3_endpoint_and_region() -> tuple[str | None, str | None]:
    """Return the endpoint and the region that the environment sets; None where it sets none."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return endpoint, os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")


@lru_cache(maxsize=8)
def _make_s3_filesystem(bucket: str, endpoint: str | None, region: str | None, anonymous: bool) -> Any:
    from pyarrow import fs

    parts = urlsplit(endpoint or "")
    server = {"endpoint_override": parts.netloc, "scheme": parts.scheme} if endpoint else {}
    return fs.S3FileSystem(
        region=region or (fs.resolve_s3_region(bucket) if bucket else "us-east-1"),
        anonymous=anonymous,
        connect_timeout=S3_CONNECT_TIMEOUT_S,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=S3_ATTEMPTS),
        allow_delayed_open=True,  # a small file is one PUT, not three requests
        **server,
    )


@contextlib.contextmanager
def translate_s3_errors(url: str) -> Iterator[None]:
    """Translate the OSErrors that pyarrow raises in the context, and name the URL in them.

    Parameters
    ----------
    url : str
        What is accessed.

    Yields
    ------
    None

    Raises
    ------
    FileNotFoundError, PermissionError, ConnectionError, OSError
        The kind that fits pyarrow's text.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{url} does not exist") from error
    except OSError as error:
        if isinstance(error, (PermissionError, ConnectionError)):
            raise
        kind = next((kind for pattern, kind in S3_ERROR_KINDS.items() if re.search(pattern, str(error))), OSError)
        raise kind(f"{url}: {S3_ADVICE.get(kind, 'S3 failed')} ({error})") from error

"""Access to S3: endpoint, region and credentials in the specs of tensorstore, which accesses all of S3.

The endpoint is `AWS_ENDPOINT_URL_S3` or `AWS_ENDPOINT_URL` where one is set (MinIO, Ceph). Credentials are those of the
environment, of the SDK's files, or of the machine.
"""

from __future__ import annotations

import os
from typing import Any


def with_s3_access(kvstore: dict[str, Any], *, anonymous: bool = False) -> dict[str, Any]:
    """Return the spec of a key-value store with credentials, endpoint and region for every S3 store in it."""
    if "base" in kvstore:
        return {**kvstore, "base": with_s3_access(kvstore["base"], anonymous=anonymous)}
    if kvstore["driver"] != "s3":
        return kvstore
    access: dict[str, Any] = {"aws_credentials": {"type": "anonymous" if anonymous else _credentials()}}
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint:
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
        access |= {"endpoint": endpoint.rstrip("/"), "aws_region": region}
    return {**kvstore, **access}


def public_address(kvstore: dict[str, Any]) -> str:
    """Return the URL of a bucket for requests without credentials.

    Parameters
    ----------
    kvstore : dict
        Spec of an S3 store, from `with_s3_access`.

    Returns
    -------
    str
        Without a slash at its end.
    """
    if "endpoint" in kvstore:
        return f"{kvstore['endpoint']}/{kvstore['bucket']}"
    return f"https://{kvstore['bucket']}.s3.amazonaws.com"


def _credentials() -> str:
    keys = os.environ.get("AWS_ACCESS_KEY_ID") and os.environ.get("AWS_SECRET_ACCESS_KEY")
    return "environment" if keys else "default"

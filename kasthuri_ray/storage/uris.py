"""Where a run's files lie: a folder of this machine or of S3, written whole or not at all.

    run = open_storage("s3://bucket/runs").child("synapse_1")
    run.write_bytes("metrics.json", data)

S3 by pyarrow, whose SDK finds the credentials; the endpoint is `AWS_ENDPOINT_URL_S3` or `AWS_ENDPOINT_URL` where one is
set (MinIO, Ceph). `read_anywhere` reads one file by its path or URL.
"""

from __future__ import annotations

import os
import re
from urllib.parse import unquote, urlsplit


def in_ray_job() -> bool:
    """Whether this process is the driver of a submitted Ray job, whose working directory is a temporary copy."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def redact_secrets(text: str) -> str:
    """A web address without what may be secret in it: its query, a signature, and who asks. Other text as it is."""
    bare = re.sub(r"((?:https?|s3|gs)://[^?\s]*)\?[^\s|]*", r"\1", text)
    return re.sub(r"((?:https?|s3|gs)://)[^/@\s]*@", r"\1", bare)


def is_inside(path: str, folder: str) -> bool:
    """Whether a path or URL, as `open_storage` gives them, is a folder or lies in it."""
    return f"{path}/".startswith(f"{folder}/")


def absolute_uri(uri: str) -> str:
    """The URI of a volume of this machine by its whole path, which names the same one from any folder; a URL stays.

    A Ray job looks for relative paths in its copy of the working directory, which is another one each time: they stay.
    """
    if in_ray_job() or "://" in uri or "|" in uri:
        return uri
    return os.path.abspath(os.path.expanduser(uri))


def _file_url_path(url: str) -> str:
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
        raise ValueError(f"{url}: file:// wants an absolute path, such as file:///data/runs")
    return unquote(parts.path)

"""Paths and URLs as text: secrets removed, made absolute, compared. Nothing is accessed."""

from __future__ import annotations

import os
import re
from urllib.parse import unquote, urlsplit

from kasthuri_ray.errors import InputError

VOLUME_OPTIONS = ("axes", "voxel_size_nm", "offset_nm", "dtype")  # that may end the URI of a volume


def in_ray_job() -> bool:
    """Return whether this process is the driver of a submitted Ray job.

    Returns
    -------
    bool
        True in a Ray job, whose working directory is a temporary copy.
    """
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def redact_secrets(text: str) -> str:
    """Remove from URLs what may be secret: query, signature, user and password. Options of a volume are kept.

    Parameters
    ----------
    text : str
        A URL, or text with URLs in it.

    Returns
    -------
    str
        The text; what is not a URL is unchanged.
    """
    without_query = re.sub(r"((?:https?|s3|gs)://[^?\s]*)\?([^\s|#]*)(#mip=\d+)?[^\s|]*", _keep_volume_options, text)
    return re.sub(r"((?:https?|s3|gs)://)[^/@\s]*@", r"\1", without_query)


def _keep_volume_options(url: re.Match[str]) -> str:
    kept = [part for part in url[2].split("&") if part.partition("=")[0] in VOLUME_OPTIONS]
    return f"{url[1]}{'?' if kept else ''}{'&'.join(kept)}{url[3] or ''}"


def is_inside(path: str, folder: str) -> bool:
    """Return whether a path is a folder or lies in it.

    Parameters
    ----------
    path, folder : str
        Paths or URLs as in `Storage.path`.

    Returns
    -------
    bool
        True if `path` is `folder` or is below it.
    """
    return f"{path}/".startswith(f"{folder}/")


def expand_home(path: str) -> str:
    """Replace `~` at the start of a path by the home folder.

    Parameters
    ----------
    path : str
        Any path.

    Returns
    -------
    str
        The path; unchanged if it does not begin with `~`.

    Raises
    ------
    InputError
        If there is no such home folder: HOME is not set, and the user is not in the list of users, as in a container.
    """
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        raise InputError(f"{path}: there is no home folder for the ~; give an absolute path, or set HOME")
    return expanded


def absolute_uri(uri: str) -> str:
    """Make the path of a volume absolute, so that it names the same volume from any folder.

    Parameters
    ----------
    uri : str
        A path, a URL or a tensorstore URL pipeline.

    Returns
    -------
    str
        The absolute path. URLs and pipelines are unchanged.

    Notes
    -----
    In a Ray job relative paths are unchanged: they are relative to its copy of the working directory, which has another
    path in every job.
    """
    if in_ray_job() or "://" in uri or "|" in uri:
        return uri
    return os.path.abspath(expand_home(uri))


def parse_file_url(url: str) -> str:
    """Return the path of a `file://` URL, or raise an InputError if it is not absolute."""
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
        raise InputError(f"{url}: file:// needs an absolute path, such as file:///data/runs")
    return unquote(parts.path)

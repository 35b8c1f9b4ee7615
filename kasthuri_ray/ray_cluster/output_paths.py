"""Output paths on a cluster: in a folder that every node shares, and that is kept after a Ray job."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from kasthuri_ray.errors import InputError
from kasthuri_ray.ray_cluster.nodes import ask_nodes, living_nodes
from kasthuri_ray.ray_cluster.resources import ClusterResources
from kasthuri_ray.storage.folder import open_storage
from kasthuri_ray.storage.local_paths import nearest_existing
from kasthuri_ray.storage.uris import expand_home, in_ray_job

# For callers that do not know the cluster yet. If it has more nodes, the path differs and is an error.
SINGLE_NODE = ClusterResources(0, 0, 1)


def resolve_output_path(path: str, cluster: ClusterResources, flag: str = "--storage") -> str:
    """Return the absolute path of an output.

    In a Ray job, whose working directory is temporary, a relative path is relative to `KASTHURI_STORAGE`, or, on a
    cluster of one node, to ~/kasthuri_ray.

    Parameters
    ----------
    path : str
        A path or URL, as typed.
    cluster : ClusterResources
        The cluster; its number of nodes matters.
    flag : str
        The flag that `path` was given by; for the message.

    Returns
    -------
    str
        An absolute path, or the URL unchanged.

    Raises
    ------
    InputError
        If the path is relative in a Ray job on several nodes without `KASTHURI_STORAGE`: all nodes must share it.
    """
    path = open_storage(path).path if path.startswith("file://") else expand_home(path)
    if "://" in path or os.path.isabs(path):
        return path
    if not in_ray_job():
        return os.path.abspath(path)
    base = os.environ.get("KASTHURI_STORAGE")
    if base:
        return f"{open_storage(base).path}/{path}"
    if cluster.nodes == 1:
        return expand_home(f"~/kasthuri_ray/{path}")
    raise InputError(
        f"the output {path!r} is relative, and this cluster has {cluster.nodes} nodes, which must all share it: give "
        f"{flag} s3://bucket/folder or {flag} /a/shared/folder, or set KASTHURI_STORAGE for the job "
        '(--runtime-env-json \'{"env_vars": {"KASTHURI_STORAGE": "/a/shared/folder"}}\')'
    )


def check_writable_path(path: str, flag: str = "--storage") -> None:
    """Raise an InputError if a local path cannot become a folder of files.

    The check creates a file in the nearest existing folder above the path, and removes it.

    Parameters
    ----------
    path : str
        An absolute path; URLs are not checked.
    flag : str
        The flag that `path` was given by; for the message.

    Raises
    ------
    InputError
        If the path is a file or below a file, or no file can be created.
    """
    if "://" in path:
        return
    existing = nearest_existing(path)
    if str(existing) == path and not existing.is_dir():
        raise InputError(f"{path} is a file, where a folder is expected; give another {flag}")
    if not existing.is_dir():
        raise InputError(f"{path} cannot be a folder, since {existing} is a file; give another {flag}")
    try:
        _create_probe(existing).unlink()
    except OSError as error:
        reason = "" if isinstance(error, FileNotFoundError) else f" ({error.strerror})"  # /proc raises the former
        raise InputError(
            f"{path} cannot be written: no file can be created in {existing}{reason}; give another {flag}"
        ) from None


def check_shared_path(path: str, cluster: ClusterResources, flag: str = "--storage") -> None:
    """Raise an InputError if a local path is not the same folder on every node of the cluster.

    A node that does not answer is ignored: it is shutting down, or the work will find it out.

    Parameters
    ----------
    path : str
        An absolute path; URLs are not checked.
    cluster : ClusterResources
        The cluster; one node is not checked.
    flag : str
        The flag that `path` was given by; for the message.

    Raises
    ------
    InputError
        If a node does not see a file that this process creates; the message names the nodes.
    """
    if "://" in path or cluster.nodes == 1:
        return
    probe = _create_probe(nearest_existing(path))
    try:
        answers = ask_nodes(living_nodes(), os.path.exists, str(probe))
    finally:
        probe.unlink()
    blind = [answer.node.name for answer in answers if answer.error is None and not answer.value]
    if blind:
        raise InputError(
            f"{path} is not a folder that all {len(answers)} nodes share: {', '.join(blind)} cannot see it; give "
            f"{flag} s3://bucket/folder or a shared folder"
        )


def _create_probe(folder: Path) -> Path:
    """Create an empty file of a unique name."""
    probe = folder / f".kasthuri_ray_probe_{uuid.uuid4().hex}"
    probe.touch()
    return probe

"""Where outputs lie on a cluster: in a folder that outlives a Ray job, and that every node sees."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from kasthuri_ray.ray_cluster.nodes import ask_nodes, living_nodes
from kasthuri_ray.ray_cluster.resources import ClusterResources
from kasthuri_ray.storage.folder import open_storage
from kasthuri_ray.storage.uris import in_ray_job

SINGLE_NODE = ClusterResources(
    0, 0, 1
)  # for who asks before the cluster is known: where there are more, another path is an error


def resolve_output_path(path: str, cluster: ClusterResources, flag: str = "--storage") -> str:
    """Where a relative output path, given by `flag`, leads: as it is, but inside a Ray job, whose folder is temporary.

    There it is taken relative to `KASTHURI_STORAGE`, or on a cluster of one node to ~/kasthuri_ray. Raises ValueError
    on several nodes without it, since all of them must see it.
    """
    path = open_storage(path).path if path.startswith("file://") else os.path.expanduser(path)
    if "://" in path or os.path.isabs(path):
        return path
    if not in_ray_job():
        return os.path.abspath(path)
    base = os.environ.get("KASTHURI_STORAGE")
    if base:
        return f"{open_storage(base).path}/{path}"
    if cluster.nodes == 1:
        return str(Path.home() / "kasthuri_ray" / path)
    raise ValueError(
        f"the output {path!r} is relative, and this cluster has {cluster.nodes} nodes, which must all see it: give "
        f"{flag} s3://bucket/folder or {flag} /a/shared/folder, or set KASTHURI_STORAGE for the job "
        '(--runtime-env-json \'{"env_vars": {"KASTHURI_STORAGE": "/a/shared/folder"}}\')'
    )


def check_writable_path(path: str, flag: str = "--storage") -> None:
    """Raise a ValueError in words if a local path cannot become a folder of files.

    Found out by a file in the nearest folder that there is, which is gone again afterwards.
    """
    if "://" in path:
        return
    there = _existing(path)
    if not there.is_dir():
        raise ValueError(f"{path} cannot be a folder, since {there} is a file; give another {flag}")
    try:
        _make_probe(there).unlink()
    except OSError as error:
        why = "" if isinstance(error, FileNotFoundError) else f" ({error.strerror})"  # as /proc has it
        raise ValueError(f"{path} cannot be written: {there} takes no new files{why}; give another {flag}") from None


def _existing(path: str) -> Path:
    """The path, or the nearest folder above it that is there."""
    return next(parent for parent in [Path(path), *Path(path).parents] if os.path.lexists(parent))


def _make_probe(folder: Path) -> Path:
    """A new empty file with a name that nobody else uses."""
    probe = folder / f".kasthuri_ray_probe_{uuid.uuid4().hex}"
    probe.touch()
    return probe


def check_shared_path(path: str, cluster: ClusterResources, flag: str = "--storage") -> None:
    """Raise a ValueError if a local path is not the same folder on every node of the cluster.

    A node that does not answer is on its way out, or will be found by the work.
    """
    if "://" in path or cluster.nodes == 1:
        return
    probe = _make_probe(_existing(path))
    try:
        answers = ask_nodes(living_nodes(), os.path.exists, str(probe))
    finally:
        probe.unlink()
    blind = [each.node.name for each in answers if each.error is None and not each.value]
    if blind:
        raise ValueError(
            f"{path} is not a folder that all {len(answers)} nodes share: {', '.join(blind)} cannot see it; give "
            f"{flag} s3://bucket/folder or a shared folder"
        )

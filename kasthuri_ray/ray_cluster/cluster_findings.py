"""Findings of the cluster check: what each node reports, and how to fix what is wrong.

`inspect_node` runs on every node. The functions that return a `Finding` are pure.
"""

from __future__ import annotations

import ipaddress
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kasthuri_ray.geometry import Box
from kasthuri_ray.storage.folder import open_storage
from kasthuri_ray.volumes.chunk_cache import open_cache
from kasthuri_ray.volumes.opening import open_volume
from kasthuri_ray.volumes.parallel_calls import call_with_timeout

GB = 1e9
SHM = Path("/dev/shm")
MARKER = b"kasthuri_ray was here\n"

IMAGE_TIMEOUT_S = 45.0  # for one voxel of the image, from a server that may be busy
SLOW_BYTES_PER_SECOND = 50e6  # a step of UNet_2D sums 31 MB of gradients over its workers


@dataclass(frozen=True)
class InspectionRequest:
    """What every node has to inspect.

    Parameters
    ----------
    storage : str
        A folder made for this check, in which the driver has left a file named `driver`.
    image : str or None
        URI of the volume to read; None reads none.
    boss : mapping or None
        Options of BossDB. Their token is in no repr.
    cache : str or None
        Folder of the chunk cache, as typed.
    cache_size : str
        Size of the chunk cache, as typed.
    """

    storage: str
    image: str | None
    boss: Mapping[str, Any] | None = field(repr=False)
    cache: str | None
    cache_size: str


@dataclass(frozen=True)
class NodeInspection:
    """What a node found out about itself.

    Parameters
    ----------
    shm_bytes : int or None
        Size of shared memory; None on a system without /dev/shm.
    gpu_names : tuple of str
        The GPUs that torch sees.
    num_gpus : int
        GPUs that the machine has.
    storage, image : str
        What went wrong with the storage and with the image; empty if nothing did.
    image_seconds : float
        Time until the first voxel was read.
    cache_free_bytes : int or None
        Free bytes of the disk of the chunk cache; None without a cache.
    """

    shm_bytes: int | None
    gpu_names: tuple[str, ...]
    num_gpus: int
    storage: str
    image: str
    image_seconds: float
    cache_free_bytes: int | None


@dataclass(frozen=True)
class NodeReport:
    """An inspection beside what Ray counts on that node.

    Parameters
    ----------
    gpus : float
        GPUs that Ray counts.
    store_bytes : float
        Size of Ray's object store.
    inspection : NodeInspection
        What the node found out.
    """

    gpus: float
    store_bytes: float
    inspection: NodeInspection


NodeReports = Mapping[str, NodeReport]  # by the name of the node


def inspect_node(request: InspectionRequest, name: str, has_gpus: bool) -> NodeInspection:
    """Inspect this node.

    Parameters
    ----------
    request : InspectionRequest
        What to inspect.
    name : str
        Name of the file to leave in the storage.
    has_gpus : bool
        Whether Ray counts GPUs on this node.
    """
    num_gpus = len(list(Path("/dev").glob("nvidia[0-9]*")))
    begin = time.perf_counter()
    image = _error_text(lambda: read_first_voxel(request))
    seconds = time.perf_counter() - begin
    return NodeInspection(
        shm_bytes=shutil.disk_usage(SHM).total if SHM.is_dir() else None,
        gpu_names=_torch_gpu_names() if has_gpus or num_gpus else (),
        num_gpus=num_gpus,
        storage=_error_text(lambda: write_marker(request.storage, name)),
        image=image,
        image_seconds=seconds,
        cache_free_bytes=_cache_free_bytes(request),
    )


def read_first_voxel(request: InspectionRequest) -> None:
    """Open the image and read its first voxel."""
    if request.image is None:
        return
    image = request.image

    def read() -> None:
        volume = open_volume(image, boss=request.boss)
        volume.read(Box.at(volume.bounds.start, (1, 1, 1)))

    call_with_timeout(IMAGE_TIMEOUT_S, read)


def write_marker(storage: str, name: str) -> None:
    """Read the driver's file in the storage, and write one beside it that the driver will look for."""
    folder = open_storage(storage)
    try:
        folder.read_bytes("driver")
    except FileNotFoundError:
        raise FileNotFoundError("this node cannot read a file that another node wrote there") from None
    folder.write_bytes(name, MARKER)


def _error_text(action: Callable[[], None]) -> str:
    """Return what goes wrong, in one line; empty if nothing does."""
    try:
        action()
    except Exception as error:
        return next(iter(str(error).splitlines()), "") or type(error).__name__
    return ""


def _torch_gpu_names() -> tuple[str, ...]:
    import torch

    return tuple(torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count()))


def _cache_free_bytes(request: InspectionRequest) -> int | None:
    cache = open_cache(request.cache, request.cache_size)
    if cache is None:
        return None
    folder = next(parent for parent in [cache.folder, *cache.folder.parents] if parent.exists())
    return shutil.disk_usage(folder).free


@dataclass(frozen=True)
class Finding:
    """One line of the result.

    Parameters
    ----------
    topic : str
        What was checked.
    result : str
        What was found.
    fix : str
        What to do about it; empty if it is fit.
    """

    topic: str
    result: str
    fix: str = ""


def findings_table(findings: Sequence[Finding]) -> list[str]:
    """Return the findings as lines of a table, each followed by its fix, and a last line with the result of all."""
    width = max(len(finding.topic) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{'fix' if finding.fix else 'ok':<4}  {finding.topic:<{width}}  {finding.result}")
        if finding.fix:
            lines.append(f"{'':<4}  {'':<{width}}  -> {finding.fix}")
    num_fixes = sum(bool(finding.fix) for finding in findings)
    return [*lines, f"not fit: {num_fixes} of {len(findings)} to fix" if num_fixes else "fit"]


def size_finding(nodes: int, cpus: float, gpus: float, shortage: str) -> Finding:
    """Report the size of the cluster; `shortage` is what it lacks of the requested resources."""
    size = f"{nodes} node{'s' * (nodes != 1)}, {cpus:g} CPUs, {gpus:g} GPUs"
    if not shortage and cpus == 0:
        shortage = "no worker nodes (the head has 0 CPUs): start worker nodes, or add --wait-for-resources"
    return Finding("nodes", size, shortage)


def unanswered_finding(reasons: Mapping[str, str]) -> Finding:
    """Report the living nodes that did not answer, and why."""
    if not reasons:
        return Finding("answers", "every node answers")
    fix = "inspect these nodes (ray list nodes, and the logs of their raylets), or terminate them"
    return Finding("answers", _join_by_node(reasons), fix)


def package_finding(differences: Sequence[str], expected: Mapping[str, str]) -> Finding:
    """Report the nodes that have another package; `differences` are lines of `package_differences`."""
    versions = ", ".join(f"{name} {release}" for name, release in expected.items())
    if not differences:
        return Finding("package", f"{versions} on every node")
    result = f"this process has {versions}; " + "; ".join(differences)
    fix = "install the same package versions on every node, for instance from one container image"
    return Finding("package", result, fix)


def access_finding(addresses: Sequence[str], auth_mode: str) -> Finding:
    """Report whether strangers can use the cluster, from the addresses of the nodes and RAY_AUTH_MODE."""
    is_local = all(ipaddress.ip_address(address).is_loopback for address in addresses)
    public = [address for address in addresses if ipaddress.ip_address(address).is_global]
    token = "token" if auth_mode == "token" else "no token"
    if public:
        return Finding(
            "access",
            f"{token}, nodes at public addresses: {', '.join(public)}",
            "give the nodes private addresses (--node-ip-address), and close all ports to the outside except SSH",
        )
    if auth_mode != "token" and not is_local:
        return Finding(
            "access",
            f"{token}: anyone who reaches a port of this cluster can run programs on it",
            "start Ray on every node with RAY_AUTH_MODE=token and one RAY_AUTH_TOKEN_PATH (see cluster/README.md)",
        )
    return Finding("access", "this machine alone" if is_local else f"{token}, private addresses")


def gpu_finding(nodes: NodeReports) -> Finding:
    """Report whether torch sees the GPUs that Ray counts, and whether Ray counts all that the machines have."""
    gpu_names = sorted({name for report in nodes.values() for name in report.inspection.gpu_names})
    unseen = [name for name, report in nodes.items() if len(report.inspection.gpu_names) < report.gpus]
    uncounted = [name for name, report in nodes.items() if report.inspection.num_gpus > report.gpus]
    if unseen:
        return Finding(
            "GPUs",
            f"torch does not see the GPUs of {', '.join(unseen)}",
            "install torch's CUDA build and a driver that supports it; in a container, the GPU runtime",
        )
    if uncounted:
        result = f"Ray counts fewer GPUs than there are on {', '.join(uncounted)}"
        return Finding("GPUs", result, "start Ray on these nodes with --num-gpus")
    return Finding("GPUs", ", ".join(gpu_names) or "none: jobs compute on CPUs")


def storage_finding(path: str, nodes: NodeReports, lost: Sequence[str]) -> Finding:
    """Report whether all nodes write to one storage; `lost` are nodes whose file the driver does not see."""
    errors = {name: report.inspection.storage for name, report in nodes.items() if report.inspection.storage}
    errors |= {name: "the others do not see what it writes" for name in lost if name not in errors}
    if not errors:
        return Finding("storage", f"{path}: written and read by every node")
    fix = (
        "set its keys in the environment of these nodes, and check their network access to it"
        if path.startswith("s3://")
        else "give --storage s3://bucket/folder, or a folder that all nodes mount at this path"
    )
    return Finding("storage", f"{path}: {_join_by_node(errors)}", fix)


def image_finding(uri: str | None, nodes: NodeReports) -> Finding:
    """Report whether every node reads the volume, and how soon."""
    if uri is None:
        return Finding("image", "not checked (--image none)")
    errors = {name: report.inspection.image for name, report in nodes.items() if report.inspection.image}
    if errors:
        fix = (
            "allow outgoing connections (port 443) from these nodes, or test another volume with --image, pass "
            "credentials with --boss, or copy the data to storage that the nodes can reach"
            if "://" in uri
            else "give the path of a volume in a folder that all nodes share, or another volume with --image"
        )
        return Finding("image", f"{uri}: {_join_by_node(errors)}", fix)
    slowest = max((report.inspection.image_seconds for report in nodes.values()), default=0.0)
    return Finding("image", f"{uri}: read by every node, the first voxel within {slowest:.1f} s")


def shared_memory_finding(nodes: NodeReports) -> Finding:
    """Report whether the object stores fit in shared memory; if one does not, Ray puts it on a disk."""
    sizes = {
        name: (report.inspection.shm_bytes, report.store_bytes)
        for name, report in nodes.items()
        if report.inspection.shm_bytes is not None
    }
    small = {name: size for name, size in sizes.items() if size[0] < size[1]}
    if small:
        shm_bytes, store_bytes = next(iter(small.values()))
        return Finding(
            "shared memory",
            f"/dev/shm of {', '.join(small)} is smaller than the object store "
            f"({shm_bytes / GB:.1f} GB, {store_bytes / GB:.1f} GB)",
            "make it larger (docker --shm-size; Kubernetes: an emptyDir of medium Memory at /dev/shm), or start Ray "
            "with a smaller --object-store-memory",
        )
    if not sizes:
        return Finding("shared memory", "not used by this system")
    smallest = min(shm_bytes for shm_bytes, _ in sizes.values())
    return Finding("shared memory", f"{smallest / GB:.1f} GB or more for object stores")


def cache_finding(nodes: NodeReports, cache_bytes: int) -> Finding:
    """Report whether the disks have space for a chunk cache of `cache_bytes`."""
    free = {
        name: report.inspection.cache_free_bytes
        for name, report in nodes.items()
        if report.inspection.cache_free_bytes is not None
    }
    small = [f"{name} ({left / GB:.0f} GB free)" for name, left in free.items() if left < cache_bytes]
    if small:
        return Finding(
            "cache",
            f"no space for {cache_bytes / GB:.0f} GB on {', '.join(small)}",
            "give a smaller --cache-size to the jobs, another --cache, or --cache none",
        )
    return Finding("cache", f"{min(free.values()) / GB:.0f} GB or more free" if free else "none")


def bandwidth_finding(bytes_per_second: Mapping[str, float]) -> Finding:
    """Report how fast objects move between nodes; the keys name both nodes."""
    if not bytes_per_second:
        return Finding("bandwidth", "one node, no network")
    slowest, rate = min(bytes_per_second.items(), key=lambda item: item[1])
    result = f"{rate / 1e6:.0f} MB/s or more between nodes (slowest {slowest})"
    if rate < SLOW_BYTES_PER_SECOND:
        fix = "train on the GPUs of one node (--num-workers), or put the nodes on one faster network"
        return Finding("bandwidth", result, fix)
    return Finding("bandwidth", result)


def _join_by_node(texts: Mapping[str, str]) -> str:
    return "; ".join(f"{name}: {text}" for name, text in texts.items())

"""From what the nodes saw to what a person reads: each finding is fit, or says what to mend. Pure."""

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
from kasthuri_ray.volumes.threads import call_with_timeout

GB = 1e9
SLOW_BYTES_PER_SECOND = 50e6  # a step of UNet_2D sums 31 MB of gradients over its workers


SHM = Path("/dev/shm")
IMAGE_TIMEOUT_S = 45.0  # for one voxel of the image, from a server that may be busy
MARKER = b"kasthuri_ray was here\n"


@dataclass(frozen=True)
class Finding:
    """What was looked at, and what was found. mend: what to do about it; empty where it is fit."""

    what: str
    found: str
    mend: str = ""


def findings_table(findings: Sequence[Finding]) -> list[str]:
    """The findings as lines of a table, each followed by what to mend; then the verdict."""
    width = max(len(each.what) for each in findings)
    lines = []
    for each in findings:
        lines.append(f"{'mend' if each.mend else 'ok':<4}  {each.what:<{width}}  {each.found}")
        if each.mend:
            lines.append(f"{'':<4}  {'':<{width}}  -> {each.mend}")
    num = sum(bool(each.mend) for each in findings)
    return [*lines, f"not fit: {num} of {len(findings)} to mend" if num else "fit"]


def size_finding(nodes: int, cpus: float, gpus: float, lack: str) -> Finding:
    """The nodes and what they hold. lack: what of that which was asked for is missing."""
    found = f"{nodes} node{'s' * (nodes != 1)}, {cpus:g} CPUs, {gpus:g} GPUs"
    if not lack and cpus == 0:
        lack = "no node takes work: start nodes beside the head, or give --wait-for-resources where they come by demand"
    return Finding("nodes", found, lack)


def unanswered_finding(silent: Mapping[str, str]) -> Finding:
    """Nodes that are counted as alive and did not answer, and why not."""
    if not silent:
        return Finding("answers", "every node answers")
    words = "; ".join(f"{name}: {why}" for name, why in silent.items())
    return Finding("answers", words, "look at these nodes (ray list nodes, and the log of their raylets), or end them")


def package_finding(differ: Sequence[str], ours: Mapping[str, str]) -> Finding:
    """differ: a line for each node that has another package."""
    found = ", ".join(f"{name} {release}" for name, release in ours.items())
    if not differ:
        return Finding("package", f"{found} on every node")
    return Finding(
        "package", f"here {found}; " + "; ".join(differ), "install the same on every node: one image for all"
    )


def access_finding(addresses: Sequence[str], mode: str) -> Finding:
    """Whether strangers are kept out. addresses: of the nodes. mode: RAY_AUTH_MODE."""
    own = all(ipaddress.ip_address(each).is_loopback for each in addresses)
    public = [each for each in addresses if ipaddress.ip_address(each).is_global]
    found = "token" if mode == "token" else "no token"
    if public:
        return Finding(
            "doors",
            f"{found}, nodes at public addresses: {', '.join(public)}",
            "give the nodes private addresses (--node-ip-address), and close all ports to the outside but SSH",
        )
    if mode != "token" and not own:
        return Finding(
            "doors",
            f"{found}: whoever reaches a port of this cluster runs programs on it",
            "start Ray on every node with RAY_AUTH_MODE=token and one RAY_AUTH_TOKEN_PATH (see cluster/README.md)",
        )
    return Finding("doors", f"{found}, private addresses" if not own else "this machine alone")


def gpu_finding(nodes: Nodes) -> Finding:
    """Whether torch sees the cards that Ray counts, and Ray those that the machines have."""
    cards = sorted({card for seen in nodes.values() for card in seen.sight.cards})
    blind = [name for name, seen in nodes.items() if len(seen.sight.cards) < seen.gpus]
    idle = [name for name, seen in nodes.items() if seen.sight.devices > seen.gpus]
    if blind:
        return Finding(
            "GPUs",
            f"torch does not see the cards of {', '.join(blind)}",
            "install torch's CUDA build and a driver that it takes; in a container, its GPU runtime",
        )
    if idle:
        return Finding(
            "GPUs", f"Ray counts fewer than there are on {', '.join(idle)}", "start Ray there with --num-gpus"
        )
    return Finding("GPUs", ", ".join(cards) or "none: jobs compute on CPUs")


def storage_finding(path: str, nodes: Nodes, lost: Sequence[str]) -> Finding:
    """Whether all nodes write to one storage. lost: nodes whose file the driver does not see."""
    wrong = {name: seen.sight.storage for name, seen in nodes.items() if seen.sight.storage}
    wrong |= {name: "what it writes is not seen by the others" for name in lost if name not in wrong}
    if not wrong:
        return Finding("storage", f"{path}: written and read by every node")
    words = "; ".join(f"{name}: {why}" for name, why in wrong.items())
    mend = (
        "give its keys to these nodes' environment, and a way to it"
        if path.startswith("s3://")
        else "give --storage s3://bucket/folder, or a folder that all nodes mount at this path"
    )
    return Finding("storage", f"{path}: {words}", mend)


def image_finding(uri: str | None, nodes: Nodes) -> Finding:
    """Whether every node reads the volume, and how soon."""
    if uri is None:
        return Finding("image", "not looked at (--image none)")
    wrong = {name: seen.sight.image for name, seen in nodes.items() if seen.sight.image}
    if wrong:
        words = "; ".join(f"{name}: {why}" for name, why in wrong.items())
        return Finding(
            "image", f"{uri}: {words}", "open the way out (443) from these nodes, or give --image, --boss, or a copy"
        )
    slowest = max((seen.sight.image_seconds for seen in nodes.values()), default=0.0)
    return Finding("image", f"{uri}: read by every node, the first voxel within {slowest:.1f} s")


def shared_memory_finding(nodes: Nodes) -> Finding:
    """Whether the object stores fit in shared memory; Ray puts them on a disk where they do not."""
    known = {name: seen for name, seen in nodes.items() if seen.sight.shm_bytes is not None}
    small = {name: seen for name, seen in known.items() if (seen.sight.shm_bytes or 0) < seen.store_bytes}
    if small:
        seen = next(iter(small.values()))
        return Finding(
            "shared memory",
            f"/dev/shm of {', '.join(small)} is smaller than the object store "
            f"({(seen.sight.shm_bytes or 0) / GB:.1f} GB, {seen.store_bytes / GB:.1f} GB)",
            "make it larger (docker --shm-size; Kubernetes: an emptyDir of medium Memory at /dev/shm), or start Ray "
            "with a smaller --object-store-memory",
        )
    least = min((seen.sight.shm_bytes or 0 for seen in known.values()), default=0)
    return Finding("shared memory", f"{least / GB:.1f} GB or more for object stores" if known else "not of this system")


def cache_finding(nodes: Nodes, wanted_bytes: int) -> Finding:
    """Whether the disks have room for the chunks that are kept of remote volumes."""
    free = {
        name: seen.sight.cache_free_bytes for name, seen in nodes.items() if seen.sight.cache_free_bytes is not None
    }
    tight = [f"{name} ({left / GB:.0f} GB free)" for name, left in free.items() if left < wanted_bytes]
    if tight:
        return Finding(
            "cache",
            f"no room for {wanted_bytes / GB:.0f} GB on {', '.join(tight)}",
            "give a smaller --cache-size to the jobs, another --cache, or --cache none",
        )
    return Finding("cache", f"{min(free.values()) / GB:.0f} GB or more free" if free else "none")


def bandwidth_finding(bytes_per_second: Mapping[str, float]) -> Finding:
    """How fast objects cross from node to node; by the names of both."""
    if not bytes_per_second:
        return Finding("bandwidth", "one node, no network")
    slowest, rate = min(bytes_per_second.items(), key=lambda each: each[1])
    found = f"{rate / 1e6:.0f} MB/s or more between nodes (slowest {slowest})"
    if rate < SLOW_BYTES_PER_SECOND:
        return Finding(
            "bandwidth", found, "train on the GPUs of one node (--num-workers), or put the nodes on one faster network"
        )
    return Finding("bandwidth", found)


@dataclass(frozen=True)
class InspectionRequest:
    """What every node is asked to look at.

    storage: a folder made for this check, in which the driver has left a file named `driver`. image: a URI, None leaves
    it out. boss: options of BossDB, whose token is in no repr.
    """

    storage: str
    image: str | None
    boss: Mapping[str, Any] | None = field(repr=False)
    cache: str | None = None
    cache_size: str = "20GB"


@dataclass(frozen=True)
class NodeInspection:
    """What a node saw. Where something was wrong, `storage` and `image` are what, else empty.

    cards: names of the GPUs that torch sees. devices: GPUs that the machine has. image_seconds: for the first voxel.
    cache_free_bytes: of the disk that will hold the cache; None without one.
    """

    shm_bytes: int | None
    cards: tuple[str, ...]
    devices: int
    storage: str
    image: str
    image_seconds: float
    cache_free_bytes: int | None


@dataclass(frozen=True)
class NodeReport:
    """A node's sight beside what Ray says of it. store_bytes: of its object store."""

    gpus: float
    store_bytes: float
    sight: NodeInspection


Nodes = Mapping[str, NodeReport]


def inspect_node(request: InspectionRequest, name: str, has_gpus: bool) -> NodeInspection:
    """What this node sees. name: of the file that it leaves in the storage. has_gpus: whether Ray says so."""
    devices = len(list(Path("/dev").glob("nvidia[0-9]*")))
    begin = time.perf_counter()
    image = _error_text(lambda: read_first_voxel(request))
    seconds = time.perf_counter() - begin
    return NodeInspection(
        shm_bytes=shutil.disk_usage(SHM).total if SHM.is_dir() else None,
        cards=_gpu_names() if has_gpus or devices else (),
        devices=devices,
        storage=_error_text(lambda: write_marker(request.storage, name)),
        image=image,
        image_seconds=seconds,
        cache_free_bytes=_free_of_cache(request),
    )


def _error_text(look: Callable[[], None]) -> str:
    """What goes wrong, in one line; empty if nothing does."""
    try:
        look()
    except Exception as error:
        return next(iter(str(error).splitlines()), "") or type(error).__name__
    return ""


def write_marker(storage: str, name: str) -> None:
    """See the driver's file in the storage, and write one beside it, which the driver will look for."""
    folder = open_storage(storage)
    try:
        folder.read_bytes("driver")
    except FileNotFoundError:
        raise FileNotFoundError("it does not see what the other nodes write there") from None
    folder.write_bytes(name, MARKER)


def read_first_voxel(request: InspectionRequest) -> None:
    """Open the image and read its first voxel."""
    if request.image is None:
        return
    image = request.image

    def read() -> None:
        volume = open_volume(image, boss=request.boss)
        volume.read(Box.at(volume.bounds.start, (1, 1, 1)))

    call_with_timeout(IMAGE_TIMEOUT_S, read)


def _gpu_names() -> tuple[str, ...]:
    import torch

    return tuple(torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count()))


def _free_of_cache(request: InspectionRequest) -> int | None:
    cache = open_cache(request.cache, request.cache_size)
    if cache is None:
        return None
    folder = next(parent for parent in [cache.folder, *cache.folder.parents] if parent.exists())
    return shutil.disk_usage(folder).free

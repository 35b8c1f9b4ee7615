"""From what the nodes saw to what a person reads: each finding is fit, or says what to mend. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kasthuri_ray.check.sight import Sight

GB = 1e9
SLOW_BYTES_PER_SECOND = 50e6  # a step of UNet_2D sums 31 MB of gradients over its workers


@dataclass(frozen=True)
class Finding:
    """What was looked at, and what was found. mend: what to do about it; empty where it is fit."""

    what: str
    found: str
    mend: str = ""


@dataclass(frozen=True)
class Seen:
    """A node's sight beside what Ray says of it. store_bytes: of its object store."""

    gpus: float
    store_bytes: float
    sight: Sight


Nodes = Mapping[str, Seen]


def table(findings: Sequence[Finding]) -> list[str]:
    """The findings as lines of a table, each followed by what to mend; then the verdict."""
    width = max(len(each.what) for each in findings)
    lines = []
    for each in findings:
        lines.append(f"{'mend' if each.mend else 'ok':<4}  {each.what:<{width}}  {each.found}")
        if each.mend:
            lines.append(f"{'':<4}  {'':<{width}}  -> {each.mend}")
    num = sum(bool(each.mend) for each in findings)
    return [*lines, f"not fit: {num} of {len(findings)} to mend" if num else "fit"]


def of_size(nodes: int, cpus: float, gpus: float, lack: str) -> Finding:
    """The nodes and what they hold. lack: what of that which was asked for is missing."""
    found = f"{nodes} node{'s' * (nodes != 1)}, {cpus:g} CPUs, {gpus:g} GPUs"
    if not lack and cpus == 0:
        lack = "no node takes work: start nodes beside the head, or give --wait-for-resources where they come by demand"
    return Finding("nodes", found, lack)


def of_silence(silent: Mapping[str, str]) -> Finding:
    """Nodes that are counted as alive and did not answer, and why not."""
    if not silent:
        return Finding("answers", "every node answers")
    words = "; ".join(f"{name}: {why}" for name, why in silent.items())
    return Finding("answers", words, "look at these nodes (ray list nodes, and the log of their raylets), or end them")


def of_package(differ: Sequence[str], ours: Mapping[str, str]) -> Finding:
    """differ: a line for each node that has another package."""
    found = ", ".join(f"{name} {release}" for name, release in ours.items())
    if not differ:
        return Finding("package", f"{found} on every node")
    return Finding(
        "package", f"here {found}; " + "; ".join(differ), "install the same on every node: one image for all"
    )


def of_doors(addresses: Sequence[str], mode: str) -> Finding:
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


def of_gpus(nodes: Nodes) -> Finding:
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


def of_storage(path: str, nodes: Nodes, lost: Sequence[str]) -> Finding:
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


def of_image(uri: str | None, nodes: Nodes) -> Finding:
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


def of_shared_memory(nodes: Nodes) -> Finding:
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


def of_cache(nodes: Nodes, wanted_bytes: int) -> Finding:
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


def of_bandwidth(bytes_per_second: Mapping[str, float]) -> Finding:
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

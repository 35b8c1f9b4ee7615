"""Is this cluster fit? Every node is asked what it sees, and what is wrong is said with what to do about it."""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Sequence
from typing import Any

from kasthuri_ray.config.settings import DEFAULT_CHECK_IMAGE, CheckSettings
from kasthuri_ray.ray_cluster import fitness_findings
from kasthuri_ray.ray_cluster.connection import RAY_ENVIRONMENT, attach_ray
from kasthuri_ray.ray_cluster.fitness_findings import MARKER, Finding, InspectionRequest, NodeReport, inspect_node
from kasthuri_ray.ray_cluster.nodes import (
    ClusterNode,
    NodeAnswer,
    ask_nodes,
    living_nodes,
    node_fingerprint,
    package_differences,
    package_fingerprint,
)
from kasthuri_ray.ray_cluster.output_paths import resolve_output_path
from kasthuri_ray.ray_cluster.ray_errors import root_cause
from kasthuri_ray.ray_cluster.resources import ResourceDemand, cluster_resources, require_resources
from kasthuri_ray.storage.folder import Storage, open_storage
from kasthuri_ray.storage.uris import redact_secrets
from kasthuri_ray.volumes.chunk_cache import parse_byte_size
from kasthuri_ray.volumes.opening import read_boss_options

OBJECT_BYTES = 32_000_000  # that crosses the network; fits the smallest object store
LOOK_S = 120.0  # torch is imported, S3 and BossDB are asked


def check_cluster(options: CheckSettings) -> bool:
    """Look at the cluster and print what was found.

    Parameters
    ----------
    options : CheckSettings
        What to look at.

    Returns
    -------
    bool
        Whether the cluster is fit for the jobs.

    Raises
    ------
    ValueError
        If an option is wrong.
    """
    boss, wanted = read_boss_options(options.boss), parse_byte_size(options.cache_size)
    open_storage(options.storage)
    if options.address:
        os.environ["RAY_ADDRESS"] = options.address
    attach_ray(options.verbose)
    lack = _wait(options)
    held, nodes = cluster_resources(), living_nodes()
    storage = resolve_output_path(options.storage, held)
    image = None if options.image == "none" else redact_secrets(options.image or DEFAULT_CHECK_IMAGE)
    found = [fitness_findings.size_finding(held.nodes, held.cpus, held.gpus, lack)]
    with _Marked(storage) as marked:
        request = InspectionRequest(
            marked.path,
            options.image or DEFAULT_CHECK_IMAGE if image else None,
            boss,
            options.cache,
            options.cache_size,
        )
        seen, silent = _sights(nodes, request)
        lost = [node.name for node in nodes if node.name in seen and not marked.holds(node.id)]
    found += [
        fitness_findings.unanswered_finding(silent),
        _package(nodes),
        fitness_findings.access_finding([node.address for node in nodes], os.environ.get("RAY_AUTH_MODE", "")),
        fitness_findings.gpu_finding(seen),
        Finding("storage", f"{storage}: {marked.wrong}", "give --storage a place that this job can write to")
        if marked.wrong
        else fitness_findings.storage_finding(storage, seen, lost),
        fitness_findings.image_finding(image, seen),
        fitness_findings.shared_memory_finding(seen),
        fitness_findings.cache_finding(seen, wanted),
        _bandwidth([node for node in nodes if node.name in seen]),
    ]
    for line in fitness_findings.findings_table(found):
        print(line, flush=True)
    return not any(each.mend for each in found)


def _wait(options: CheckSettings) -> str:
    """Wait for what the cluster must hold; gives what is missing, in words."""
    if not options.gpus and options.wait_for_resources is None:
        return ""
    each = ResourceDemand(
        options.gpus or 1, 0.5, 1.0 if options.gpus else 0.0, noun="workers", flag="--gpus", cards="--gpus"
    )
    try:
        require_resources(each, options.wait_for_resources, lambda line: print(line, flush=True))
    except ValueError as error:
        return str(error)
    return ""


class _Marked:
    """A folder in the storage for the time of the check; `wrong` says why there is none."""

    def __init__(self, storage: str) -> None:
        self.storage: Storage = open_storage(storage).child(f".kasthuri_ray_check_{uuid.uuid4().hex}")
        self.path, self.wrong = self.storage.path, ""

    def __enter__(self) -> _Marked:
        try:
            self.storage.write_bytes("driver", MARKER)
        except OSError as error:
            self.wrong = str(error)
        return self

    def holds(self, name: str) -> bool:
        """Whether a node's file is there, as it was written."""
        try:
            return self.storage.read_bytes(name) == MARKER
        except OSError:
            return False

    def __exit__(self, *_: object) -> None:
        from kasthuri_ray.storage.folder import remove_folder

        with contextlib.suppress(OSError, ValueError):
            remove_folder(self.storage)


def _sights(nodes: Sequence[ClusterNode], request: InspectionRequest) -> tuple[dict[str, NodeReport], dict[str, str]]:
    """By name what each node saw, and of those that did not answer why not."""
    seen, silent = {}, {}
    for answer in _look(nodes, request):
        node = answer.node
        if answer.error is None:
            held = node.resources
            seen[node.name] = NodeReport(held.get("GPU", 0.0), held.get("object_store_memory", 0.0), answer.value)
        else:
            silent[node.name] = next(iter(root_cause(answer.error).splitlines()), "")
    return seen, silent


def _look(nodes: Sequence[ClusterNode], request: InspectionRequest) -> list[NodeAnswer]:
    def question(names: dict[str, bool]) -> Any:
        import ray

        own = ray.get_runtime_context().get_node_id()
        return inspect_node(request, own, names[own])

    has_gpus = {node.id: node.resources.get("GPU", 0.0) > 0 for node in nodes}
    return ask_nodes(nodes, question, has_gpus, seconds=LOOK_S, runtime_env={"env_vars": RAY_ENVIRONMENT})


def _package(nodes: Sequence[ClusterNode]) -> Finding:
    ours = package_fingerprint()
    theirs = {each.node.name: each.value for each in ask_nodes(nodes, node_fingerprint()) if each.error is None}
    return fitness_findings.package_finding(package_differences(ours, theirs), ours)


def _bandwidth(nodes: Sequence[ClusterNode]) -> Finding:
    """From each node to the next, in a ring, one after the other."""
    if len(nodes) < 2:
        return fitness_findings.bandwidth_finding({})
    rates = {}
    for source, target in zip(nodes, [*nodes[1:], nodes[0]], strict=True):
        rate = _rate(source, target)
        if rate is not None:
            rates[f"{source.name} to {target.name}"] = rate
    if not rates:
        return Finding("bandwidth", "no object came across", "let the nodes reach each other at all ports")
    return fitness_findings.bandwidth_finding(rates)


def _rate(source: ClusterNode, target: ClusterNode) -> float | None:
    """Bytes a second that an object takes from one node to the other; None where it does not arrive."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def make() -> bytes:
        return os.urandom(OBJECT_BYTES)

    def fetch(box: list[Any]) -> float:
        begin = time.perf_counter()
        ray.get(box[0], timeout=60)
        return time.perf_counter() - begin

    def on(node: ClusterNode, work: Any) -> Any:
        strategy = NodeAffinitySchedulingStrategy(node.id, soft=False)
        task: Any = ray.remote(num_cpus=0, max_retries=0)(work)
        return task.options(scheduling_strategy=strategy)

    try:
        made = on(source, make).remote()
        ray.wait([made], timeout=60, fetch_local=False)  # what is timed is its way alone
        return OBJECT_BYTES / ray.get(on(target, fetch).remote([made]), timeout=90)
    except (ray.exceptions.RayError, TimeoutError):
        return None

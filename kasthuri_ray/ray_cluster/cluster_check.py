"""The fitness check of a cluster: inspect every node, and show what is wrong and how to fix it (`jobs/check.py`)."""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Sequence
from typing import Any

from kasthuri_ray.config.settings import CheckSettings
from kasthuri_ray.progress import Reporter
from kasthuri_ray.ray_cluster import cluster_findings
from kasthuri_ray.ray_cluster.cluster_findings import MARKER, Finding, InspectionRequest, NodeReport, inspect_node
from kasthuri_ray.ray_cluster.connection import attach_ray
from kasthuri_ray.ray_cluster.nodes import ClusterNode, ask_nodes, living_nodes
from kasthuri_ray.ray_cluster.output_paths import resolve_output_path
from kasthuri_ray.ray_cluster.package_versions import node_fingerprint, package_differences, package_fingerprint
from kasthuri_ray.ray_cluster.ray_errors import root_cause
from kasthuri_ray.ray_cluster.resources import ResourceDemand, cluster_resources, require_resources
from kasthuri_ray.storage.folder import open_storage
from kasthuri_ray.storage.uris import redact_secrets
from kasthuri_ray.volumes.chunk_cache import parse_byte_size
from kasthuri_ray.volumes.opening import read_boss_options

INSPECTION_TIMEOUT_S = 120.0  # a node imports torch, and accesses S3 and BossDB
OBJECT_BYTES = 32_000_000  # of the object that crosses the network; fits into the smallest object store
OBJECT_TIMEOUT_S = 60.0  # to create the object, and to transfer it
TRANSFER_TIMEOUT_S = 90.0  # for the process that receives it


def check_cluster(options: CheckSettings, reporter: Reporter) -> bool:
    """Check the cluster and show what was found.

    Parameters
    ----------
    options : CheckSettings
        What to check.
    reporter : Reporter
        Shows the findings.

    Returns
    -------
    bool
        Whether the cluster is fit for the jobs.

    Raises
    ------
    InputError
        If an option is wrong.
    """
    boss, cache_bytes = read_boss_options(options.boss), parse_byte_size(options.cache_size)
    open_storage(options.storage)
    if options.address:
        os.environ["RAY_ADDRESS"] = options.address
    attach_ray(reporter, options.verbose)
    shortage = _wait_for_size(options, reporter)
    total, nodes = cluster_resources(), living_nodes()
    storage = resolve_output_path(options.storage, total)
    uri = None if options.image == "none" else options.image
    findings = [cluster_findings.size_finding(total.nodes, total.cpus, total.gpus, shortage)]
    with _MarkerFolder(storage) as folder:
        request = InspectionRequest(folder.storage.path, uri, boss, options.cache, options.cache_size)
        reports, unanswered = _inspect_nodes(nodes, request)
        lost = [node.name for node in nodes if node.name in reports and not folder.holds(node.id)]
    findings += [
        cluster_findings.unanswered_finding(unanswered),
        _check_packages(nodes),
        cluster_findings.access_finding([node.address for node in nodes], os.environ.get("RAY_AUTH_MODE", "")),
        cluster_findings.gpu_finding(reports),
        Finding("storage", f"{storage}: {folder.error}", "give a --storage that this job can write to")
        if folder.error
        else cluster_findings.storage_finding(storage, reports, lost),
        cluster_findings.image_finding(None if uri is None else redact_secrets(uri), reports),
        cluster_findings.shared_memory_finding(reports),
        cluster_findings.cache_finding(reports, cache_bytes),
        _measure_bandwidth([node for node in nodes if node.name in reports]),
    ]
    for line in cluster_findings.findings_table(findings):
        reporter.print_line(line)
    return not any(finding.fix for finding in findings)


def _wait_for_size(options: CheckSettings, reporter: Reporter) -> str:
    """Wait for the requested resources, and return what is missing."""
    if not options.gpus and options.wait_for_resources is None:
        return ""
    gpus_each = 1.0 if options.gpus else 0.0
    demand = ResourceDemand(options.gpus or 1, 0.5, gpus_each, noun="workers", flag="--gpus", gpu_flag="--gpus")
    try:
        require_resources(demand, options.wait_for_resources, reporter.print_line)
    except ValueError as error:
        return str(error)
    return ""


class _MarkerFolder:
    """A folder in the storage that exists during the check; `error` says why it could not be written."""

    def __init__(self, storage: str) -> None:
        self.storage = open_storage(storage).child(f".kasthuri_ray_check_{uuid.uuid4().hex}")
        self.error = ""

    def __enter__(self) -> _MarkerFolder:
        try:
            self.storage.write_bytes("driver", MARKER)
        except OSError as error:
            self.error = str(error)
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError, ValueError):
            self.storage.remove_folder()

    def holds(self, name: str) -> bool:
        """Return whether the file of a node exists and is whole."""
        try:
            return self.storage.read_bytes(name) == MARKER
        except OSError:
            return False


def _inspect_nodes(
    nodes: Sequence[ClusterNode], request: InspectionRequest
) -> tuple[dict[str, NodeReport], dict[str, str]]:
    """Return the report of each node, and why others did not answer, by the names of the nodes."""

    def inspect(has_gpus: dict[str, bool]) -> Any:
        import ray

        own_id = ray.get_runtime_context().get_node_id()
        return inspect_node(request, own_id, has_gpus[own_id])

    reports, unanswered = {}, {}
    has_gpus = {node.id: node.resources.get("GPU", 0.0) > 0 for node in nodes}
    for answer in ask_nodes(nodes, inspect, has_gpus, timeout_s=INSPECTION_TIMEOUT_S):
        name, resources = answer.node.name, answer.node.resources
        if answer.error is None:
            store_bytes = resources.get("object_store_memory", 0.0)
            reports[name] = NodeReport(resources.get("GPU", 0.0), store_bytes, answer.value)
        else:
            unanswered[name] = next(iter(root_cause(answer.error).splitlines()), "")
    return reports, unanswered


def _check_packages(nodes: Sequence[ClusterNode]) -> Finding:
    expected = package_fingerprint()
    answers = [answer for answer in ask_nodes(nodes, node_fingerprint()) if answer.error is None]
    differences = package_differences(expected, {answer.node.name: answer.value for answer in answers})
    return cluster_findings.package_finding(differences, expected)


def _measure_bandwidth(nodes: Sequence[ClusterNode]) -> Finding:
    """Measure the transfer from each node to the next, in a ring, one after the other."""
    if len(nodes) < 2:
        return cluster_findings.bandwidth_finding({})
    rates = {}
    for source, target in zip(nodes, [*nodes[1:], nodes[0]], strict=True):
        rate = _measure_rate(source, target)
        if rate is not None:
            rates[f"{source.name} to {target.name}"] = rate
    if not rates:
        return Finding("bandwidth", "no object was transferred", "let the nodes reach each other at all ports")
    return cluster_findings.bandwidth_finding(rates)


def _measure_rate(source: ClusterNode, target: ClusterNode) -> float | None:
    """Return the bytes per second of an object from one node to the other; None if it does not arrive."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def create() -> bytes:
        return os.urandom(OBJECT_BYTES)

    def receive(references: list[Any]) -> float:
        begin = time.perf_counter()
        ray.get(references[0], timeout=OBJECT_TIMEOUT_S)
        return time.perf_counter() - begin

    def on_node(node: ClusterNode, function: Any) -> Any:
        strategy = NodeAffinitySchedulingStrategy(node.id, soft=False)
        task: Any = ray.remote(num_cpus=0, max_retries=0)(function)
        return task.options(scheduling_strategy=strategy)

    try:
        created = on_node(source, create).remote()
        ray.wait([created], timeout=OBJECT_TIMEOUT_S, fetch_local=False)  # so that only the transfer is timed
        return OBJECT_BYTES / ray.get(on_node(target, receive).remote([created]), timeout=TRANSFER_TIMEOUT_S)
    except (ray.exceptions.RayError, TimeoutError):
        return None

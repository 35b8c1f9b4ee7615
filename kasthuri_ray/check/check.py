"""Is this cluster fit? Every node is asked what it sees, and what is wrong is said with what to do about it."""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kasthuri_ray.check import findings
from kasthuri_ray.check.findings import Finding, Seen
from kasthuri_ray.check.sight import MARK, Request, look
from kasthuri_ray.cli import FAILED
from kasthuri_ray.nodes import Answer, Node, ask, describe_package, living_nodes, other_packages
from kasthuri_ray.package import fingerprint
from kasthuri_ray.placement import place_output
from kasthuri_ray.resources import ENVIRONMENT, Demand, attach, check_demand, cluster, root_cause
from kasthuri_ray.storage import Storage, open_storage, without_secrets
from kasthuri_ray.volumes.cache import parse_size
from kasthuri_ray.volumes.opener import read_boss

IMAGE = "bossdb://Kasthuri/ac4/em"
OBJECT_BYTES = 32_000_000  # that crosses the network; fits the smallest object store
LOOK_S = 120.0  # torch is imported, S3 and BossDB are asked


@dataclass(frozen=True)
class Options:
    """What `jobs/check.py` was told. image: None is BossDB's, "none" leaves it out. gpus: that there must be."""

    address: str | None = None
    storage: str = "outputs"
    image: str | None = None
    boss: str | None = None
    cache: str | None = None
    cache_size: str = "20GB"
    gpus: int = 0
    wait_for_resources: float | None = None
    verbose: bool = False


def check(options: Options) -> int:
    """Look at the cluster, print what was found, and give the exit code. ValueError for what is no such option."""
    boss, wanted = read_boss(options.boss), parse_size(options.cache_size)
    open_storage(options.storage)
    if options.address:
        os.environ["RAY_ADDRESS"] = options.address
    attach(options.verbose)
    lack = _wait(options)
    held, nodes = cluster(), living_nodes()
    storage = place_output(options.storage, held)
    image = None if options.image == "none" else without_secrets(options.image or IMAGE)
    found = [findings.of_size(held.nodes, held.cpus, held.gpus, lack)]
    with _Marked(storage) as marked:
        request = Request(
            marked.path, options.image or IMAGE if image else None, boss, options.cache, options.cache_size
        )
        seen, silent = _sights(nodes, request)
        lost = [node.name for node in nodes if node.name in seen and not marked.holds(node.id)]
    found += [
        findings.of_silence(silent),
        _package(nodes),
        findings.of_doors([node.address for node in nodes], os.environ.get("RAY_AUTH_MODE", "")),
        findings.of_gpus(seen),
        Finding("storage", f"{storage}: {marked.wrong}", "give --storage a place that this job can write to")
        if marked.wrong
        else findings.of_storage(storage, seen, lost),
        findings.of_image(image, seen),
        findings.of_shared_memory(seen),
        findings.of_cache(seen, wanted),
        _bandwidth([node for node in nodes if node.name in seen]),
    ]
    for line in findings.table(found):
        print(line, flush=True)
    return FAILED if any(each.mend for each in found) else 0


def _wait(options: Options) -> str:
    """Wait for what the cluster must hold; gives what is missing, in words."""
    if not options.gpus and options.wait_for_resources is None:
        return ""
    each = Demand(options.gpus or 1, 0.5, 1.0 if options.gpus else 0.0, noun="workers", flag="--gpus", cards="--gpus")
    try:
        check_demand(each, options.wait_for_resources, lambda line: print(line, flush=True))
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
            self.storage.write_bytes("driver", MARK)
        except OSError as error:
            self.wrong = str(error)
        return self

    def holds(self, name: str) -> bool:
        """Whether a node's file is there, as it was written."""
        try:
            return self.storage.read_bytes(name) == MARK
        except OSError:
            return False

    def __exit__(self, *_: object) -> None:
        from kasthuri_ray.segmentation.existing import remove_folder

        with contextlib.suppress(OSError, ValueError):
            remove_folder(self.storage)


def _sights(nodes: Sequence[Node], request: Request) -> tuple[dict[str, Seen], dict[str, str]]:
    """By name what each node saw, and of those that did not answer why not."""
    seen, silent = {}, {}
    for answer in _look(nodes, request):
        node = answer.node
        if answer.error is None:
            held = node.resources
            seen[node.name] = Seen(held.get("GPU", 0.0), held.get("object_store_memory", 0.0), answer.value)
        else:
            silent[node.name] = next(iter(root_cause(answer.error).splitlines()), "")
    return seen, silent


def _look(nodes: Sequence[Node], request: Request) -> list[Answer]:
    def question(names: dict[str, bool]) -> Any:
        import ray

        own = ray.get_runtime_context().get_node_id()
        return look(request, own, names[own])

    has_gpus = {node.id: node.resources.get("GPU", 0.0) > 0 for node in nodes}
    return ask(nodes, question, has_gpus, seconds=LOOK_S, runtime_env={"env_vars": ENVIRONMENT})


def _package(nodes: Sequence[Node]) -> Finding:
    ours = fingerprint()
    theirs = {each.node.name: each.value for each in ask(nodes, describe_package()) if each.error is None}
    return findings.of_package(other_packages(ours, theirs), ours)


def _bandwidth(nodes: Sequence[Node]) -> Finding:
    """From each node to the next, in a ring, one after the other."""
    if len(nodes) < 2:
        return findings.of_bandwidth({})
    rates = {}
    for source, target in zip(nodes, [*nodes[1:], nodes[0]], strict=True):
        rate = _rate(source, target)
        if rate is not None:
            rates[f"{source.name} to {target.name}"] = rate
    if not rates:
        return Finding("bandwidth", "no object came across", "let the nodes reach each other at all ports")
    return findings.of_bandwidth(rates)


def _rate(source: Node, target: Node) -> float | None:
    """Bytes a second that an object takes from one node to the other; None where it does not arrive."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def make() -> bytes:
        return os.urandom(OBJECT_BYTES)

    def fetch(box: list[Any]) -> float:
        begin = time.perf_counter()
        ray.get(box[0], timeout=60)
        return time.perf_counter() - begin

    def on(node: Node, work: Any) -> Any:
        strategy = NodeAffinitySchedulingStrategy(node.id, soft=False)
        task: Any = ray.remote(num_cpus=0, max_retries=0)(work)
        return task.options(scheduling_strategy=strategy)

    try:
        made = on(source, make).remote()
        ray.wait([made], timeout=60, fetch_local=False)  # what is timed is its way alone
        return OBJECT_BYTES / ray.get(on(target, fetch).remote([made]), timeout=90)
    except (ray.exceptions.RayError, TimeoutError):
        return None

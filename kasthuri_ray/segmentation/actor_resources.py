"""Resources of the actors: the kind of machine they run on, how many there are, and how fast a few tiles are there."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import nn

from kasthuri_ray.config.settings import SegmentSettings
from kasthuri_ray.errors import InputError, WorkFailed
from kasthuri_ray.geometry import Box, Zyx, ceil_div, per_axis
from kasthuri_ray.hardware import Machine
from kasthuri_ray.inference.inference_settings import (
    InferenceSettings,
    InferenceWork,
    RequestedInference,
    choose_inference_settings,
)
from kasthuri_ray.inference.tiling import pooling_phase
from kasthuri_ray.ray_cluster.connection import check_local_cpus, is_own_ray, worker_runtime_env
from kasthuri_ray.ray_cluster.ray_errors import root_cause
from kasthuri_ray.ray_cluster.resources import ClusterResources, ResourceDemand, count_fitting_actors, require_resources
from kasthuri_ray.segmentation.actor_plan import ActorPlan
from kasthuri_ray.segmentation.actors import MakeActor
from kasthuri_ray.segmentation.block_worker import BlockWorker
from kasthuri_ray.segmentation.plan import TileTiming, planned_actor_memory
from kasthuri_ray.segmentation.segmentation_job import SegmentationInputs, SegmentationJob

GPU_ACTOR_CPUS = 0.5
MIN_ACTOR_CPUS = 0.25  # of an actor that shares CPUs with others
UNLIMITED_ACTORS = 10_000  # where the cluster decides

# If each actor has very many blocks before it, these are small. It then holds more at once, so that it need not wait
# for the driver: a fourth faster, and the last blocks take hardly any time.
VERY_MANY_BLOCKS, IN_FLIGHT_MANY_BLOCKS = 10_000, 8

PROBE_CPUS = 0.1  # of the task that describes a machine
PROBE_TIMEOUT_S = 300

SAMPLE_VOXELS = {"cpu": 4_000_000, "cuda": 64_000_000}  # of the sample that a plan times, so that it takes seconds


def actor_class(worker_class: type) -> Any:
    """Return Ray's class of actors that run a worker."""
    import ray

    return ray.remote(runtime_env=worker_runtime_env())(worker_class)


def make_actors(worker_class: type[BlockWorker], job: SegmentationJob) -> MakeActor:
    """Return what starts an actor for a job with given options of Ray."""
    import ray

    actor, job_ref = actor_class(worker_class), ray.put(job)
    return lambda options: actor.options(**options).remote(job_ref)


def choose_settings_on_cluster(
    inputs: SegmentationInputs, network: nn.Module, cluster: ClusterResources, report: Callable[[str], None]
) -> tuple[InferenceSettings, Machine]:
    """Return how blocks are computed on the kind of machine that the cluster has, and that machine.

    Raises InputError if the cluster has no such machine, or for a tile that the network cannot work with.
    """
    requested = inputs.settings.segment
    use_gpu = requested.device == "cuda" or (requested.device == "auto" and cluster.gpus >= 1)
    num_gpus = requested.gpus_per_actor if use_gpu else 0.0
    num_cpus = GPU_ACTOR_CPUS if use_gpu else PROBE_CPUS
    one_actor = ResourceDemand(1, num_cpus, num_gpus, noun="actors", flag="--actors")
    require_resources(one_actor, requested.wait_for_resources, report)
    machine = actor_machine(use_gpu, num_gpus)
    inference = choose_inference_settings(
        network,
        inputs.settings.network.dim,
        inputs.receptive_field,
        machine,
        InferenceWork(
            inputs.largest_block,
            inputs.box.num_voxels,
            pooling_phase(inputs.box.start, inputs.image.bounds.start, inputs.receptive_field.factors),
            inputs.halo,
        ),
        RequestedInference(
            precision=requested.precision,
            compile=requested.compile,
            tile=per_axis(int, requested.tile) if requested.tile else None,
            batch=requested.batch,
            tta=requested.tta,
            gpu_share=requested.gpus_per_actor if use_gpu else 1.0,
            fold=requested.fold,
        ),
    )
    return inference, machine


def actor_machine(use_gpu: bool, num_gpus: float) -> Machine:
    """Return the kind of machine that actors will run on: this one, or as a process there describes it."""
    import ray

    if is_own_ray() and not use_gpu:  # a GPU would be held by this process too
        return Machine.detect("cpu")
    describe: Any = ray.remote(num_cpus=PROBE_CPUS, num_gpus=num_gpus)(_describe_machine)
    return ray.get(describe.remote("cuda" if use_gpu else "cpu"), timeout=PROBE_TIMEOUT_S)


def _describe_machine(device: str) -> Machine:
    return Machine.detect(device)


def check_actor_memory(job: SegmentationJob, network: nn.Module, machine: Machine, num_actors: int) -> None:
    """Raise InputError if so many actors do not fit in the memory of one machine."""
    if machine.device != "cpu":
        return  # its memory is the GPU's, for which tile and batch were chosen
    bytes_per_actor = planned_actor_memory(job, network)
    if bytes_per_actor * num_actors > machine.memory_bytes:
        is_one, needed_gb = num_actors == 1, bytes_per_actor * num_actors / 1e9
        raise InputError(
            f"{'an actor' if is_one else f'{num_actors} actors'} with blocks of {job.largest_block} and tiles of "
            f"{job.inference.tile} (z,y,x) need{'s' if is_one else ''} {needed_gb:.1f} GB, and the "
            f"machine has {machine.memory_bytes / 1e9:.1f} GB; give a smaller --block, or --tile"
            f"{'' if is_one else ', or fewer --actors'}"
        )


def plan_actors(
    requested: SegmentSettings, inference: InferenceSettings, cluster: ClusterResources, num_blocks: int
) -> ActorPlan:
    """Return how many actors there are, and what each holds."""
    plan = _plan_resources(requested, inference, cluster)
    total = {"CPU": cluster.cpus, "GPU": cluster.gpus}
    num_actors = min(plan.max_actors, max(plan.min_actors, count_fitting_actors(plan.resources, total)))
    if num_blocks >= VERY_MANY_BLOCKS * num_actors:
        return replace(plan, in_flight=IN_FLIGHT_MANY_BLOCKS)
    return plan


def _plan_resources(requested: SegmentSettings, inference: InferenceSettings, cluster: ClusterResources) -> ActorPlan:
    """Return the plan; more actors on CPUs than fit with all their threads share the CPUs."""
    min_actors, max_actors = requested.actor_range or (1, UNLIMITED_ACTORS)
    autoscale = min_actors < max_actors < UNLIMITED_ACTORS
    if inference.device == "cuda":
        return ActorPlan(min_actors, max_actors, GPU_ACTOR_CPUS, requested.gpus_per_actor, autoscale=autoscale)
    num_cpus: float = inference.threads
    if min_actors * num_cpus > cluster.cpus and requested.wait_for_resources is None:
        num_cpus = max(MIN_ACTOR_CPUS, math.floor(100 * cluster.cpus / min_actors) / 100)
    return ActorPlan(min_actors, max_actors, num_cpus, autoscale=autoscale)


def check_local_actors(requested: SegmentSettings) -> None:
    """Refuse, before Ray starts on this machine alone, more actors than its CPUs can hold."""
    fewest, _ = requested.actor_range or (1, UNLIMITED_ACTORS)
    demand = ResourceDemand(fewest, MIN_ACTOR_CPUS, noun="actors", flag="--actors")
    check_local_cpus(demand, requested.wait_for_resources, requested.device)


def wait_for_actors(plan: ActorPlan, wait_seconds: float | None, report: Callable[[str], None]) -> None:
    """Return once the cluster has room for the least number of actors; InputError, with both numbers, if it has not."""
    demand = ResourceDemand(plan.min_actors, plan.num_cpus, plan.num_gpus, noun="actors", flag="--actors")
    require_resources(demand, wait_seconds, report)


def count_working_actors(plan: ActorPlan, num_blocks: int) -> int:
    """Return how many actors will run on the cluster as it is."""
    import ray

    num_fitting = max(1, count_fitting_actors(plan.resources, ray.cluster_resources()))
    return min(plan.max_actors, max(plan.min_actors, num_fitting), num_blocks)


def time_tiles(job: SegmentationJob, plan: ActorPlan, worker_class: type[BlockWorker]) -> TileTiming:
    """Return how fast one actor computes a few tiles. They are not compiled: that takes longer than a plan may."""
    import ray

    uncompiled = replace(job, inference=replace(job.inference, compile=False))
    options = {"num_cpus": plan.num_cpus, "num_gpus": plan.num_gpus}
    actor = actor_class(worker_class).options(**options).remote(uncompiled)
    try:
        ray.get(actor.ready.remote())
        return TileTiming.from_plain(ray.get(actor.time_tiles.remote(sample_block(uncompiled))))
    except ray.exceptions.RayError as error:
        raise WorkFailed(f"the sample could not be segmented: {root_cause(error)}") from error
    finally:
        ray.kill(actor)


def sample_block(job: SegmentationJob) -> Box:
    """Return a block of a few tiles in the middle of the box, with so many voxels that it takes seconds."""
    factors = job.receptive_field.factors
    shape = per_axis(min, _sample_shape(job), job.box.shape)
    offset = per_axis(lambda whole, n, f: (whole - n) // 2 // f * f, job.box.shape, shape, factors)
    return Box.at(job.box.start, shape).shifted(offset)


def _sample_shape(job: SegmentationJob) -> Zyx:
    """Return the core of a tile, halved along its longest axes until tile and halo have few enough voxels."""
    inference, factors = job.inference, job.receptive_field.factors
    max_voxels = SAMPLE_VOXELS[inference.device] // (8 if inference.tta else 1)
    core = list(per_axis(lambda n, h, f: max(f, n - 2 * h), inference.tile, job.halo, factors))
    while math.prod(n + 2 * h for n, h in zip(core, job.halo, strict=True)) > max_voxels:
        axis = max(range(3), key=lambda axis: core[axis] / factors[axis])
        if core[axis] == factors[axis]:
            break
        core[axis] = ceil_div(core[axis] // 2, factors[axis]) * factors[axis]
    if job.settings.network.dim == 2:
        core[0] = max(1, min(2, max_voxels // math.prod(inference.tile)))
    z, y, x = core
    return z, y, x

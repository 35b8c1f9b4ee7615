"""Who will work, and how: on what kind of machine, how many actors, and what a few tiles take there."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from kasthuri_ray.config.settings import SegmentSettings
from kasthuri_ray.errors import WorkFailed
from kasthuri_ray.geometry import Box
from kasthuri_ray.hardware import Machine
from kasthuri_ray.inference import inference_settings, memory
from kasthuri_ray.inference.memory import InferenceSettings
from kasthuri_ray.inference.tiling import pooling_phase
from kasthuri_ray.ray_cluster.connection import RAY_ENVIRONMENT
from kasthuri_ray.ray_cluster.ray_errors import root_cause
from kasthuri_ray.ray_cluster.resources import ClusterResources, ResourceDemand, count_fitting_actors, require_resources
from kasthuri_ray.segmentation.actors import ActorPlan
from kasthuri_ray.segmentation.block_worker import BlockWorker
from kasthuri_ray.segmentation.plan import TileTiming
from kasthuri_ray.segmentation.segmentation_inputs import SegmentationInputs
from kasthuri_ray.segmentation.segmentation_job import SegmentationJob

GPU_ACTOR_CPUS = 0.5
MIN_ACTOR_CPUS = 0.25  # of an actor that shares CPUs with others
PROBE_CPUS = 0.1  # of who looks at a machine
UNLIMITED_ACTORS = 10_000  # of actors, where the cluster decides
# Where an actor has very many blocks before it, and so small ones, it has more in hand, so that it need not wait for
# the driver: a fourth faster, and the last ones take no time to speak of.
VERY_MANY_BLOCKS, IN_FLIGHT_MANY_BLOCKS = 10_000, 8
PROBE_TIMEOUT_S = 300  # for a machine's answer
SAMPLE_VOXELS = {"cpu": 4_000_000, "cuda": 64_000_000}  # of a plan's timing, so that it takes seconds


def actor_class() -> Any:
    """Ray's class of actors."""
    import ray

    return ray.remote(runtime_env={"env_vars": RAY_ENVIRONMENT})(BlockWorker)


def choose_settings_on_cluster(
    prepared: SegmentationInputs, cluster: ClusterResources, say: Callable[[str], None]
) -> tuple[InferenceSettings, Machine]:
    """How blocks are computed on the kind of machine that the cluster has, and that machine.

    Raises ValueError where it has none, and for tiles that the network cannot work with.
    """
    asked, network = prepared.settings.segment, prepared.network
    gpu = asked.device == "cuda" or (asked.device == "auto" and cluster.gpus >= 1)
    gpus = asked.gpus_per_actor if gpu else 0.0
    one = ResourceDemand(1, GPU_ACTOR_CPUS if gpu else PROBE_CPUS, gpus, noun="actors", flag="--actors")
    require_resources(one, asked.wait_for_resources, say)
    machine = actor_machine(gpu, gpus)
    arithmetic = inference_settings.choose_inference_settings(
        network,
        prepared.settings.network.dim,
        replace(prepared.reach, margin=prepared.halo),
        machine,
        block=prepared.whole_block,
        voxels=prepared.box.num_voxels,
        phase=pooling_phase(prepared.box.start, prepared.image.bounds.start, prepared.reach.factors),
        precision=asked.precision,
        compile=asked.compile,
        tile=tuple(asked.tile) if asked.tile else None,  # type: ignore[arg-type]
        batch=asked.batch,
        tta=asked.tta,
        share=asked.gpus_per_actor if gpu else 1.0,
    )
    return arithmetic, machine


def actor_machine(gpu: bool, gpus: float) -> Machine:
    """The kind of machine that actors will be on, seen from one of them."""
    import ray

    look: Any = ray.remote(num_cpus=PROBE_CPUS, num_gpus=gpus)(_machine)
    return ray.get(look.remote("cuda" if gpu else "cpu"), timeout=PROBE_TIMEOUT_S)


def _machine(device: str) -> Machine:
    return Machine.here(device)


def check_actor_memory(
    prepared: SegmentationInputs, arithmetic: InferenceSettings, machine: Machine, actors: int
) -> None:
    """Raise a ValueError where so many actors do not fit in the memory of one machine, if that is known."""
    if machine.device != "cpu":
        return  # what is known is the card's memory, by which tile and batch were chosen
    needs = memory.actor_memory_bytes(
        prepared.network,
        prepared.settings.network.dim,
        arithmetic,
        prepared.whole_block,
        prepared.halo,
        prepared.classes,
        prepared.image.dtype.itemsize,
    )
    if needs * actors > machine.memory_bytes:
        many = f"{actors} actors" if actors > 1 else "an actor"
        raise ValueError(
            f"{many} with blocks of {prepared.whole_block} and tiles of {arithmetic.tile} (z,y,x) "
            f"need{'s' * (actors == 1)} {needs * actors / 1e9:.1f} GB, and a machine here has "
            f"{machine.memory_bytes / 1e9:.1f} GB; give a smaller --block, or --tile"
            f"{', or fewer --actors' * (actors > 1)}"
        )


def plan_actors(
    asked: SegmentSettings, arithmetic: InferenceSettings, cluster: ClusterResources, blocks: int
) -> ActorPlan:
    """How many actors, and what each holds. More on a CPU than it has cores for their threads share them."""
    crew = _plan_for(asked, arithmetic, cluster)
    there = {"CPU": cluster.cpus, "GPU": cluster.gpus}
    actors = min(crew.most, max(crew.fewest, count_fitting_actors(crew.needs, there)))
    return replace(crew, in_flight=IN_FLIGHT_MANY_BLOCKS) if blocks >= VERY_MANY_BLOCKS * actors else crew


def _plan_for(asked: SegmentSettings, arithmetic: InferenceSettings, cluster: ClusterResources) -> ActorPlan:
    fewest, most = asked.crew or (1, UNLIMITED_ACTORS)
    ask = fewest < most < UNLIMITED_ACTORS
    if arithmetic.device == "cuda":
        return ActorPlan(fewest, most, GPU_ACTOR_CPUS, asked.gpus_per_actor, ask=ask)
    cpus: float = arithmetic.threads
    if fewest * cpus > cluster.cpus and asked.wait_for_resources is None:
        cpus = max(MIN_ACTOR_CPUS, math.floor(100 * cluster.cpus / fewest) / 100)
    return ActorPlan(fewest, most, cpus, ask=ask)


def wait_for_actors(crew: ActorPlan, wait_seconds: float | None, say: Callable[[str], None]) -> None:
    """Come back once the cluster has room for the fewest; ValueError, with both numbers, where it has not."""
    require_resources(
        ResourceDemand(crew.fewest, crew.num_cpus, crew.num_gpus, noun="actors", flag="--actors"), wait_seconds, say
    )


def count_working_actors(crew: ActorPlan, blocks: int) -> int:
    """How many actors there will be on the cluster as it is."""
    import ray

    room = max(1, count_fitting_actors(crew.needs, ray.cluster_resources()))
    return min(crew.most, max(crew.fewest, room), blocks)


def time_tiles(job: SegmentationJob, crew: ActorPlan) -> TileTiming:
    """What a few tiles take, on one actor. Uncompiled: compiling takes longer than a plan may."""
    import ray

    told = replace(job, arithmetic=replace(job.arithmetic, compile=False))
    actor = actor_class().options(num_cpus=crew.num_cpus, num_gpus=crew.num_gpus).remote(told)
    try:
        ray.get(actor.ready.remote())
        return TileTiming(**ray.get(actor.time_tiles.remote(sample_blocks(told))))
    except ray.exceptions.RayError as error:
        raise WorkFailed(f"the sample could not be segmented: {root_cause(error)}") from error
    finally:
        ray.kill(actor)


def sample_blocks(job: SegmentationJob) -> Box:
    """A few tiles in the middle of the box, placed as a block would be, of so many voxels that they take seconds."""
    arithmetic, factors = job.arithmetic, job.reach.factors
    most = SAMPLE_VOXELS[arithmetic.device] // (8 if arithmetic.tta else 1)
    core = [max(f, n - 2 * h) for n, h, f in zip(arithmetic.tile, job.halo, factors, strict=True)]
    while math.prod(n + 2 * h for n, h in zip(core, job.halo, strict=True)) > most:
        axis = max(range(3), key=lambda axis: core[axis] / factors[axis])
        if core[axis] == factors[axis]:
            break
        core[axis] = -(-core[axis] // 2 // factors[axis]) * factors[axis]
    if job.network["dim"] == 2:
        core[0] = max(1, min(2, most // math.prod(arithmetic.tile)))
    shape = [min(n, whole) for n, whole in zip(core, job.box.shape, strict=True)]
    middle = zip(job.box.start, job.box.shape, shape, factors, strict=True)
    return Box.at([a + (whole - n) // 2 // f * f for a, whole, n, f in middle], shape)

"""Who will work, and how: on what kind of machine, how many actors, and what a few tiles take there."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from kasthuri_ray.cli import WorkFailed
from kasthuri_ray.config import Segment
from kasthuri_ray.geometry import Box
from kasthuri_ray.resources import ENVIRONMENT, Cluster, Demand, check_demand, root_cause
from kasthuri_ray.segmentation import predictor
from kasthuri_ray.segmentation.actor import Segmenter
from kasthuri_ray.segmentation.job import Job
from kasthuri_ray.segmentation.plan import Timing
from kasthuri_ray.segmentation.predictor import Arithmetic, Machine
from kasthuri_ray.segmentation.prepare import Prepared
from kasthuri_ray.segmentation.staffing import Crew, num_that_fit
from kasthuri_ray.segmentation.tiling import phase_of

GPU_ACTOR_CPUS = 0.5
LEAST_CPUS = 0.25  # of an actor that shares CPUs with others
LOOK_CPUS = 0.1  # of who looks at a machine
ANY_NUMBER = 10_000  # of actors, where the cluster decides
# Where an actor has very many blocks before it, and so small ones, it has more in hand, so that it need not wait for
# the driver: a fourth faster, and the last ones take no time to speak of.
VERY_MANY_BLOCKS, IN_FLIGHT_THEN = 10_000, 8
MACHINE_SECONDS = 300  # for a machine's answer
SAMPLE_VOXELS = {"cpu": 4_000_000, "cuda": 64_000_000}  # of a plan's timing, so that it takes seconds


def actor_class() -> Any:
    """Ray's class of actors."""
    import ray

    return ray.remote(runtime_env={"env_vars": ENVIRONMENT})(Segmenter)


def choose_arithmetic(prepared: Prepared, cluster: Cluster, say: Callable[[str], None]) -> tuple[Arithmetic, Machine]:
    """How blocks are computed on the kind of machine that the cluster has, and that machine.

    Raises ValueError where it has none, and for tiles that the network cannot work with.
    """
    asked, network = prepared.settings.segment, prepared.network
    gpu = asked.device == "cuda" or (asked.device == "auto" and cluster.gpus >= 1)
    gpus = asked.gpus_per_actor if gpu else 0.0
    one = Demand(1, GPU_ACTOR_CPUS if gpu else LOOK_CPUS, gpus, noun="actors", flag="--actors")
    check_demand(one, asked.wait_for_resources, say)
    machine = machine_of_actors(gpu, gpus)
    arithmetic = predictor.decide(
        network,
        prepared.settings.network.dim,
        replace(prepared.reach, margin=prepared.halo),
        machine,
        block=prepared.whole_block,
        voxels=prepared.box.num_voxels,
        phase=phase_of(prepared.box.start, prepared.image.bounds.start, prepared.reach.factors),
        precision=asked.precision,
        compile=asked.compile,
        tile=tuple(asked.tile) if asked.tile else None,  # type: ignore[arg-type]
        batch=asked.batch,
        tta=asked.tta,
        share=asked.gpus_per_actor if gpu else 1.0,
    )
    return arithmetic, machine


def machine_of_actors(gpu: bool, gpus: float) -> Machine:
    """The kind of machine that actors will be on, seen from one of them."""
    import ray

    look: Any = ray.remote(num_cpus=LOOK_CPUS, num_gpus=gpus)(_machine)
    return ray.get(look.remote("cuda" if gpu else "cpu"), timeout=MACHINE_SECONDS)


def _machine(device: str) -> Machine:
    return Machine.here(device)


def check_memory(prepared: Prepared, arithmetic: Arithmetic, machine: Machine, actors: int) -> None:
    """Raise a ValueError where so many actors do not fit in the memory of one machine, if that is known."""
    if machine.device != "cpu":
        return  # what is known is the card's memory, by which tile and batch were chosen
    needs = predictor.actor_bytes(
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


def plan_crew(asked: Segment, arithmetic: Arithmetic, cluster: Cluster, blocks: int) -> Crew:
    """How many actors, and what each holds. More on a CPU than it has cores for their threads share them."""
    crew = _crew_of(asked, arithmetic, cluster)
    there = {"CPU": cluster.cpus, "GPU": cluster.gpus}
    actors = min(crew.most, max(crew.fewest, num_that_fit(crew.needs, there)))
    return replace(crew, in_flight=IN_FLIGHT_THEN) if blocks >= VERY_MANY_BLOCKS * actors else crew


def _crew_of(asked: Segment, arithmetic: Arithmetic, cluster: Cluster) -> Crew:
    fewest, most = asked.crew or (1, ANY_NUMBER)
    ask = fewest < most < ANY_NUMBER
    if arithmetic.device == "cuda":
        return Crew(fewest, most, GPU_ACTOR_CPUS, asked.gpus_per_actor, ask=ask)
    cpus: float = arithmetic.threads
    if fewest * cpus > cluster.cpus and asked.wait_for_resources is None:
        cpus = max(LEAST_CPUS, math.floor(100 * cluster.cpus / fewest) / 100)
    return Crew(fewest, most, cpus, ask=ask)


def check_crew(crew: Crew, wait_seconds: float | None, say: Callable[[str], None]) -> None:
    """Come back once the cluster has room for the fewest; ValueError, with both numbers, where it has not."""
    check_demand(Demand(crew.fewest, crew.num_cpus, crew.num_gpus, noun="actors", flag="--actors"), wait_seconds, say)


def num_at_work(crew: Crew, blocks: int) -> int:
    """How many actors there will be on the cluster as it is."""
    import ray

    room = max(1, num_that_fit(crew.needs, ray.cluster_resources()))
    return min(crew.most, max(crew.fewest, room), blocks)


def time_tiles(job: Job, crew: Crew) -> Timing:
    """What a few tiles take, on one actor. Uncompiled: compiling takes longer than a plan may."""
    import ray

    told = replace(job, arithmetic=replace(job.arithmetic, compile=False))
    actor = actor_class().options(num_cpus=crew.num_cpus, num_gpus=crew.num_gpus).remote(told)
    try:
        ray.get(actor.ready.remote())
        return Timing(**ray.get(actor.time_tiles.remote(sample_of(told))))
    except ray.exceptions.RayError as error:
        raise WorkFailed(f"the sample could not be segmented: {root_cause(error)}") from error
    finally:
        ray.kill(actor)


def sample_of(job: Job) -> Box:
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

"""Plan of a segmentation before it starts: voxels, bytes, memory, hours and cost. Pure arithmetic."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from kasthuri_ray.geometry import Box, Zyx
from kasthuri_ray.inference.inference_settings import actor_memory_bytes
from kasthuri_ray.inference.tiling import count_computed_voxels
from kasthuri_ray.progress import format_count, format_duration
from kasthuri_ray.segmentation.io_rates import reading_rate, writing_rate
from kasthuri_ray.segmentation.segmentation_job import SegmentationJob
from kasthuri_ray.segmentation.stage_rates import StageRates, describe_stages

MAX_COMPRESSION = 25.0  # of probabilities by zstd: a sample without structure would promise more


SUM_BYTES = 6  # of a probability, while several are averaged: uint16, then uint32
JOIN_BYTES = 500  # of the process that joins objects, at its peak, for each component of a block


@dataclass(frozen=True)
class ObjectTiming:
    """Measurement of the objects of a sample on one actor.

    Parameters
    ----------
    seconds : float
        Time that finding them took.
    voxels : int
        Voxels of the sample.
    num_components : int
        Connected pieces.
    compression : float
        How many times smaller their label image is once compressed.
    """

    seconds: float
    voxels: int
    num_components: int
    compression: float


@dataclass(frozen=True)
class TileTiming:
    """Measurement of a few tiles on one actor.

    Parameters
    ----------
    seconds : float
        Time that the network took.
    computed_voxels : int
        Voxels that went through it, margins included.
    compression : float
        How many times smaller the probabilities are once compressed.
    halo_error : float or None
        Largest difference in probability, 0 to 1, that a smaller halo makes; None if the halo is not smaller.
    read_seconds : float or None
        How long the sample took to read.
    read_voxels : int
        Voxels of the chunks that were read for it.
    objects : ObjectTiming or None
        Measurement of its objects, if objects are found.
    """

    seconds: float
    computed_voxels: int
    compression: float
    halo_error: float | None = None
    read_seconds: float | None = None
    read_voxels: int = 0
    objects: ObjectTiming | None = None

    @classmethod
    def from_plain(cls, measured: dict[str, Any]) -> TileTiming:
        """Return what an actor measured."""
        objects = measured["objects"]
        return cls(**{**measured, "objects": None if objects is None else ObjectTiming(**objects)})


@dataclass(frozen=True)
class SegmentationPlan:
    """What a segmentation will take: the content of `<output>.plan.json`.

    Parameters
    ----------
    blocks, done : int
        Number of blocks, and of those that are finished.
    voxels : int
        Voxels of the box, each once.
    bytes_read : int
        Decoded bytes of the image chunks that overlap any block or halo, each once.
    bytes_written : int
        Bytes of all levels, compressed as a sample was; uncompressed, and so an upper limit, if nothing was timed.
    computed_twice : float
        Voxels computed in addition, in margins and halos, as a share of `voxels`.
    memory_per_actor_bytes : int
        Memory of an actor's process at its peak, without its cache of decoded chunks.
    actors : int
        Number of actors.
    mvoxels_per_second : float or None
        Million voxels of the box that all actors segment in a second; None, as below, if nothing was timed.
    hours, gpu_hours, cost : float or None
        What the blocks that are not finished take; the cost is None without a price.
    cost_per_teravoxel : float or None
        What 10^12 voxels of the box cost.
    stages : StageRates or None
        What network, decoding, computing and writing get through, each alone.
    waits_for : str or None
        The stage that the others wait for.
    halo_error : float or None
        Largest difference in probability, 0 to 1, that a smaller halo made on the sample.
    object_hours : float or None
        Time in addition to `hours` that all objects take; None if there are none, or nothing was timed.
    object_memory_bytes : int or None
        Memory of the process that joins them, at its peak.
    """

    blocks: int
    done: int
    voxels: int
    bytes_read: int
    bytes_written: int
    computed_twice: float
    memory_per_actor_bytes: int
    actors: int
    mvoxels_per_second: float | None = None
    hours: float | None = None
    gpu_hours: float | None = None
    cost: float | None = None
    cost_per_teravoxel: float | None = None
    stages: StageRates | None = None
    waits_for: str | None = None
    halo_error: float | None = None
    object_hours: float | None = None
    object_memory_bytes: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the plan as a JSON object."""
        return asdict(self)


def plan_segmentation(
    job: SegmentationJob,
    network: nn.Module,
    num_done: int,
    num_actors: int,
    gpus_per_actor: float,
    timing: TileTiming | None,
    cores: float | None = None,
) -> SegmentationPlan:
    """Return the plan of what is left of a job.

    Parameters
    ----------
    job : SegmentationJob
        The job; its setting `price_per_hour` is the price of a GPU or, without GPUs, of an actor's share of a machine.
    network : nn.Module
        Its network, whose memory is counted.
    num_done : int
        Number of finished blocks.
    num_actors : int
        Number of actors.
    gpus_per_actor : float
        GPUs of each.
    timing : TileTiming or None
        Measurement of a sample.
    cores : float or None
        Cores of all actors' machines; None for the threads of the actors.

    Returns
    -------
    SegmentationPlan
        The plan.
    """
    num_blocks = len(job.grid)
    voxels, computed = job.box.num_voxels, computed_voxels(job)
    rates = rate = hours = gpu_hours = cost = cost_per_teravoxel = None
    if timing is not None:
        rates = stage_rates(job, timing, num_actors, cores or num_actors * job.inference.threads)
        rate = rates.mvoxels_per_second
        hours = voxels * (1 - num_done / num_blocks) / (rate * 1e6 * 3600)
        gpu_hours = hours * num_actors * gpus_per_actor
        price_per_hour = job.settings.segment.price_per_hour
        if price_per_hour is not None:
            price = price_per_hour * num_actors * (gpus_per_actor or 1)  # of an hour of all actors
            cost, cost_per_teravoxel = price * hours, price * 1e6 / (rate * 3600)
    return SegmentationPlan(
        blocks=num_blocks,
        done=num_done,
        voxels=voxels,
        bytes_read=read_voxels(job) * job.image.dtype.itemsize,
        bytes_written=bytes_written(job, min(timing.compression, MAX_COMPRESSION) if timing else 1.0)
        + _object_image_bytes(job, timing.objects if timing else None),
        computed_twice=computed / voxels - 1,
        memory_per_actor_bytes=planned_actor_memory(job, network),
        actors=num_actors,
        mvoxels_per_second=rate,
        hours=hours,
        gpu_hours=gpu_hours,
        cost=cost,
        cost_per_teravoxel=cost_per_teravoxel,
        stages=rates,
        waits_for=rates.waits_for if rates else None,
        halo_error=timing.halo_error if timing else None,
        **_object_costs(job, timing.objects if timing else None, num_actors),
    )


def stage_rates(job: SegmentationJob, timing: TileTiming, num_actors: int, cores: float) -> StageRates:
    """Return how fast each stage of a job is, from the sample and from the rates of `io_rates`."""
    voxels = job.box.num_voxels
    decoding = reading_rate(job.image.format, job.image.dtype.itemsize)
    network = None
    if job.image.remote and timing.read_seconds:
        network = num_actors * timing.read_voxels / timing.read_seconds * voxels / read_voxels(job) / 1e6
    return StageRates(
        computing=num_actors * timing.computed_voxels / timing.seconds * voxels / computed_voxels(job) / 1e6,
        network=network,
        decoding=None if decoding is None else cores * decoding * voxels / decoded_voxels(job),
        writing=cores * writing_rate(job.classes - 1),
        cores=cores,
        shares_cores=job.inference.device == "cpu",
    )


def decoded_voxels(job: SegmentationJob) -> int:
    """Return how many voxels the chunks hold that blocks with their halos meet, once for each block."""
    kinds = job.grid.representative_blocks()
    return sum(number * job.chunks_around(block).num_voxels for number, block in kinds)


def _object_costs(job: SegmentationJob, timing: ObjectTiming | None, num_actors: int) -> dict[str, Any]:
    """Return the fields of the plan about objects. For a label image, blocks are labelled twice."""
    if timing is None:
        return {}
    times, whole = 1 + job.settings.segment.save_objects, job.box.num_voxels / timing.voxels
    return {
        "object_hours": times * timing.seconds * whole / num_actors / 3600,
        "object_memory_bytes": round(JOIN_BYTES * timing.num_components * whole),
    }


def computed_voxels(job: SegmentationJob) -> int:
    """Return how many voxels go through the network, blank ones included."""
    tiling = (job.image.bounds.start, job.halo, job.receptive_field.factors, job.inference.tile)
    kinds = job.grid.representative_blocks()
    return sum(number * count_computed_voxels(block, *tiling) for number, block in kinds)


def read_voxels(job: SegmentationJob) -> int:
    """Return how many voxels the chunks hold that the box and its halo meet."""
    return job.chunks_around(job.box).num_voxels


def bytes_written(job: SegmentationJob, compression: float = 1.0) -> int:
    """Return the bytes of all levels: channels and label image, compressed, and a precomputed copy, uncompressed."""
    voxels = sum(math.prod(level.shape) for level in job.levels)
    channels = job.classes - 1
    copy = voxels * channels if job.precomputed else 0
    return round(voxels * (channels + job.settings.segment.save_mask) / compression) + copy


def _object_image_bytes(job: SegmentationJob, timing: ObjectTiming | None) -> int:
    """Return the bytes of the label image of objects, uint32, at all levels."""
    if not job.settings.segment.save_objects:
        return 0
    voxels = sum(math.prod(level.shape) for level in job.levels)
    return round(4 * voxels / (timing.compression if timing else 1.0))


def planned_actor_memory(job: SegmentationJob, network: nn.Module) -> int:
    """Return the bytes that an actor's process takes at its peak, without its cache of decoded chunks."""
    block, itemsize = Box((0, 0, 0), job.largest_block), job.image.dtype.itemsize
    num_ranges = len({job.intensity, *(each.intensity for each in job.trained.others)})
    as_uint8 = num_ranges if num_ranges > 1 else int(itemsize > 1)
    read = block.grown(job.halo).num_voxels * (itemsize + as_uint8)  # as it is stored, and as uint8
    written = block.num_voxels * (job.classes - 1)
    one = actor_memory_bytes(network, job.settings.network.dim, job.inference, read, written)
    return one + (_ensemble_memory(job, written) if job.trained.others else 0)


def _ensemble_memory(job: SegmentationJob, written: int) -> int:
    """Return the bytes that the other networks of a mean take: their weights, and the sums of a block."""
    weights = (tensor for each in job.trained.others for tensor in each.weights.values())
    return sum(tensor.numel() * tensor.element_size() for tensor in weights) + SUM_BYTES * written


def describe_plan(plan: SegmentationPlan, job: SegmentationJob) -> list[str]:
    """Return the plan in a few lines for people."""
    inference = job.inference
    mode = f"{inference.precision} on {inference.device}{', compiled' if inference.compile else ''}"
    lines = [
        f"{format_count(plan.blocks, 'block')} of {_shape_text(job.block)} (z,y,x), {plan.done:,} done; "
        f"{plan.voxels / 1e6:,.{1 if plan.voxels >= 1e5 else 3}f} Mvoxels; reads {_byte_size(plan.bytes_read)}, "
        f"writes {'at most' if plan.hours is None else 'about'} {_byte_size(plan.bytes_written)}",
        f"tiles of {_shape_text(inference.tile)} in {mode}, halo {_shape_text(job.halo)}: "
        f"{plan.computed_twice:.1%} overhead for overlapping margins; "
        f"{_byte_size(plan.memory_per_actor_bytes)} of memory per actor",
    ]
    if plan.hours is not None and plan.mvoxels_per_second is not None:
        lines.append(_describe_timing(plan, plan.hours, plan.mvoxels_per_second, inference.compile))
    if plan.stages is not None:
        lines.append(describe_stages(plan.stages))
    if plan.object_hours is not None and plan.object_memory_bytes is not None:
        lines.append(
            f"objects: about {format_duration(plan.object_hours * 3600)} more, and "
            f"{_byte_size(plan.object_memory_bytes)} of memory to join them"
        )
    if plan.halo_error is not None:
        lines.append(f"the smaller halo changes probabilities of a sample by up to {plan.halo_error:.3f}")
    return lines


def _describe_timing(plan: SegmentationPlan, hours: float, mvoxels_per_second: float, is_compiled: bool) -> str:
    parts = [f"{mvoxels_per_second:.2f} Mvoxels/s", format_duration(hours * 3600)]
    if plan.gpu_hours:
        parts.append(f"{plan.gpu_hours:,.1f} GPU-hours")
    if plan.cost is not None:
        per_teravoxel = f" ({plan.cost_per_teravoxel:,.2f} a teravoxel)" if plan.cost_per_teravoxel else ""
        parts.append(
            f"{plan.cost:,.2f}{per_teravoxel} at the given price per {'GPU' if plan.gpu_hours else 'actor'}-hour"
        )
    faster = "; measured without torch.compile; the job itself will be faster" if is_compiled else ""
    return f"with {format_count(plan.actors, 'actor')}: about {', '.join(parts)}{faster}"


def _shape_text(shape: Zyx) -> str:
    return " x ".join(map(str, shape))


def _byte_size(num_bytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if num_bytes < 1000 or unit == "TB":
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    raise AssertionError

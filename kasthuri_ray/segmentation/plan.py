"""What a segmentation will take, before it begins: voxels, bytes, memory, hours, money. Pure arithmetic."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from kasthuri_ray.geometry import Zyx
from kasthuri_ray.inference.memory import actor_memory_bytes
from kasthuri_ray.inference.tiling import count_computed_voxels
from kasthuri_ray.output.block_grid import BlockGrid
from kasthuri_ray.progress import format_count, format_duration
from kasthuri_ray.segmentation.segmentation_job import SegmentationJob

MAX_COMPRESSION = 25.0  # of probabilities by zstd: a sample that shows nothing would promise more


@dataclass(frozen=True)
class TileTiming:
    """What a few tiles took. seconds: one actor's, for `computed` voxels. compression: of their probabilities.

    halo_error: of 1, the largest that a smaller halo made on the sample; None where the halo is whole.
    """

    seconds: float
    computed: int
    compression: float
    halo_error: float | None = None


@dataclass(frozen=True)
class SegmentationPlan:
    """What `<output>.plan.json` holds.

    voxels: of the box, each once. bytes_read: of the image's chunks that blocks and halos meet, each once, as they are
    decoded. bytes_written: of all levels, as a sample's probabilities compress; uncompressed, and so the most that
    there can be, where nothing was timed. computed_twice: the share of voxels that are computed on top, in margins and
    halos. mvoxels_per_second: voxels of the box, by all actors. hours, gpu_hours, cost: of the blocks that are not
    done; None where nothing was timed.
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
    halo_error: float | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def plan_segmentation(
    job: SegmentationJob,
    network: nn.Module,
    done: int,
    actors: int,
    gpus_per_actor: float,
    price_per_hour: float | None,
    timing: TileTiming | None,
) -> SegmentationPlan:
    """The plan of what is left of a job. done: its finished blocks.

    price_per_hour: of a GPU; without GPUs of one actor's share of a machine.
    """
    grid = BlockGrid(job.box, job.block)
    unique, computed = job.box.num_voxels, computed_voxels(job)
    rate = hours = gpu_hours = cost = None
    if timing is not None:
        rate = actors * timing.computed / timing.seconds * unique / computed / 1e6
        hours = unique * (1 - done / len(grid)) / (rate * 1e6 * 3600)
        gpu_hours = hours * actors * gpus_per_actor
        if price_per_hour is not None:
            cost = price_per_hour * (gpu_hours if gpus_per_actor else hours * actors)
    return SegmentationPlan(
        blocks=len(grid),
        done=done,
        voxels=unique,
        bytes_read=read_voxels(job) * job.image.dtype.itemsize,
        bytes_written=bytes_written(job, min(timing.compression, MAX_COMPRESSION) if timing else 1.0),
        computed_twice=computed / unique - 1,
        memory_per_actor_bytes=planned_actor_memory(job, network),
        actors=actors,
        mvoxels_per_second=rate,
        hours=hours,
        gpu_hours=gpu_hours,
        cost=cost,
        halo_error=timing.halo_error if timing else None,
    )


def computed_voxels(job: SegmentationJob) -> int:
    """How many voxels go through the network, blank ones included."""
    how = (job.image.bounds.start, job.halo, job.reach.factors, job.arithmetic.tile)
    return sum(number * count_computed_voxels(block, *how) for number, block in BlockGrid(job.box, job.block).kinds())


def read_voxels(job: SegmentationJob) -> int:
    """Voxels of the chunks that the box and its halo meet."""
    chunks = job.grown(job.box).grown_to_grid(job.image.chunk, job.image.chunk_origin)
    return chunks.intersect(job.image.bounds).num_voxels


def bytes_written(job: SegmentationJob, compression: float = 1.0) -> int:
    """Of all levels: the channels and the mask, compressed, and a precomputed copy, which is not."""
    voxels = sum(math.prod(level.shape) for level in job.levels)
    channels = job.classes - 1
    raw = voxels * channels if job.precomputed else 0
    return round(voxels * (channels + job.save_mask) / compression) + raw


def planned_actor_memory(job: SegmentationJob, network: nn.Module) -> int:
    """What an actor's process takes at most, its cache of decoded chunks aside."""
    shape: Zyx = tuple(min(b, n) for b, n in zip(job.block, job.box.shape, strict=True))  # type: ignore[assignment]
    return actor_memory_bytes(
        network,
        job.network["dim"],
        job.arithmetic,
        shape,
        job.halo,
        job.classes,
        job.image.dtype.itemsize,
    )


def describe_plan(plan: SegmentationPlan, job: SegmentationJob) -> list[str]:
    """The plan in a few lines."""
    arithmetic = job.arithmetic
    how = f"{arithmetic.precision} on {arithmetic.device}{', compiled' if arithmetic.compile else ''}"
    lines = [
        f"{format_count(plan.blocks, 'block')} of {_zyx(job.block)} (z,y,x), {plan.done:,} done; "
        f"{plan.voxels / 1e6:,.1f} Mvoxels; reads {_byte_size(plan.bytes_read)}, "
        f"writes {'at most' if plan.hours is None else 'about'} {_byte_size(plan.bytes_written)}",
        f"tiles of {_zyx(arithmetic.tile)} in {how}, halo {_zyx(job.halo)}: {plan.computed_twice:.1%} computed twice; "
        f"{_byte_size(plan.memory_per_actor_bytes)} of memory an actor",
    ]
    if plan.hours is not None and plan.mvoxels_per_second is not None:
        took = [f"{plan.mvoxels_per_second:.2f} Mvoxels/s", format_duration(plan.hours * 3600)]
        took += [f"{plan.gpu_hours:,.1f} GPU-hours"] if plan.gpu_hours else []
        each = "GPU" if plan.gpu_hours else "actor"
        took += [f"{plan.cost:,.2f} at the price given for an hour of each {each}"] if plan.cost is not None else []
        faster = "; timed uncompiled, compiled it is faster" if arithmetic.compile else ""
        lines.append(f"with {format_count(plan.actors, 'actor')}: about {', '.join(took)}{faster}")
    if plan.halo_error is not None:
        lines.append(f"the smaller halo changes probabilities of a sample by up to {plan.halo_error:.3f}")
    return lines


def _zyx(values: tuple[int, ...]) -> str:
    return " x ".join(map(str, values))


def _byte_size(num_bytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if num_bytes < 1000 or unit == "TB":
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    raise AssertionError

"""Phases of a segmentation: the network, the pyramid, the table of objects and the precomputed copy.

A phase is named after the array that it writes: `s0` by the network, `s1` and coarser levels by the pyramid,
`precomputed-s0` and coarser ones by the copy. `objects` writes no array. The ledger keeps a folder for each.
"""

from __future__ import annotations

from kasthuri_ray.output.block_grid import BlockGrid
from kasthuri_ray.output.pyramid import level_name, level_number
from kasthuri_ray.segmentation.segmentation_job import SegmentationJob

SEGMENT = level_name(0)
OBJECTS = "objects"
COPY_PREFIX = "precomputed-"


def job_phases(job: SegmentationJob) -> list[str]:
    """Return the phases of a job in their order: network, pyramid, table of objects, copy."""
    levels = [level.name for level in job.levels]
    copies = [f"{COPY_PREFIX}{name}" for name in levels] if job.precomputed else []
    return [*levels, *([OBJECTS] if job.objects else []), *copies]


def phase_level(phase: str) -> int:
    """Return the pyramid level that a phase of the network, the pyramid or the copy writes."""
    return level_number(phase.removeprefix(COPY_PREFIX))


def phase_grid(job: SegmentationJob, phase: str) -> BlockGrid:
    """Return the blocks of a phase: of `SEGMENT` in voxels of the image, of all others in voxels of the level."""
    if phase == SEGMENT:
        return BlockGrid(job.box, job.block)
    return level_grid(job, 0 if phase == OBJECTS else phase_level(phase))


def level_grid(job: SegmentationJob, number: int) -> BlockGrid:
    """Return the blocks of a pyramid level, in voxels of the level."""
    block = job.block if number == 0 else job.spec.level_layout(number).shard
    return BlockGrid(job.levels[number].box, block)


def phase_label(phase: str) -> str:
    """Return what people read for a phase."""
    if phase == SEGMENT:
        return "segmenting"
    if phase == OBJECTS:
        return OBJECTS
    if phase.startswith(COPY_PREFIX):
        return f"precomputed {phase.removeprefix(COPY_PREFIX)}"
    return f"pyramid {phase}"

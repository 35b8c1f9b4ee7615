"""Phases of a segmentation: the network, the pyramid, the table of objects and the precomputed copy.

A phase says which blocks there are, what each is made from, and how it is made. To add one, write a class and name it
in `job_phases`. The ledger keeps a folder for each phase, of its name.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import numpy as np

from kasthuri_ray.geometry import Box, Zyx
from kasthuri_ray.metrics.class_map import classes_at
from kasthuri_ray.output.precomputed import PrecomputedCopy
from kasthuri_ray.output.pyramid import PyramidLevel, level_name
from kasthuri_ray.segmentation.block_segmenter import BlockSegmenter
from kasthuri_ray.segmentation.object_phases import ObjectImagePhase, ObjectPyramidPhase, ObjectsPhase
from kasthuri_ray.segmentation.phase import BlockInfo, Phase, level_grid
from kasthuri_ray.segmentation.segmentation_job import SegmentationJob


class NetworkPhase(Phase):
    """The network segments the image, in blocks of its voxels, and writes the finest level.

    Parameters
    ----------
    job : SegmentationJob
        The job.
    """

    NAME: ClassVar[str] = level_name(0)

    def __init__(self, job: SegmentationJob) -> None:
        super().__init__(job, self.NAME, "segmenting", job.grid, None)

    def make_block(self, index: Zyx, segmenter: BlockSegmenter) -> tuple[BlockInfo, bool]:
        """Segment a block."""
        block = self.grid.box(index)
        inside = block.relative_to(self.job.box.start)
        return segmenter.segment(block, lambda probabilities: self.write(inside, probabilities))

    def write(self, block: Box, probabilities: np.ndarray) -> bool:
        """Write a block, in voxels of the output, and its label image; return whether any voxel is not 0."""
        output = self.job.output_zarr
        wrote = output.probabilities.write_block(0, block, probabilities)
        if output.labels is not None:
            wrote |= output.labels.write_block(0, block, classes_at(probabilities, self.job.thresholds))
        return wrote

    def overlapping(self, box: Box) -> Iterator[Zyx]:
        """Yield the blocks that overlap a box of the output."""
        return self.grid.overlapping(box.shifted(self.job.box.start))


class PyramidPhase(Phase):
    """A coarser level is computed from the level before."""

    def __init__(self, job: SegmentationJob, level: PyramidLevel, source: Phase) -> None:
        super().__init__(job, level.name, f"pyramid {level.name}", level_grid(job, level), source)
        self.level = level

    def source_box(self, box: Box) -> Box:
        """Return the voxels of the level before that a block is made from."""
        return self.level.source(box)

    def make_block(self, index: Zyx, segmenter: BlockSegmenter) -> tuple[BlockInfo, bool]:
        """Downsample a block, of the probabilities and of the label image."""
        number, box = self.level.number, self.grid.box(index)
        wrote = [array.downsample_block(number, box) for array in self.job.output_zarr.arrays]
        return {}, not any(wrote)


class CopyPhase(Phase):
    """A level of the probabilities is copied to the precomputed copy."""

    def __init__(self, job: SegmentationJob, level: PyramidLevel, source: Phase) -> None:
        name, label = f"precomputed-{level.name}", f"precomputed {level.name}"
        super().__init__(job, name, label, level_grid(job, level), source)
        self.level = level

    def make_block(self, index: Zyx, segmenter: BlockSegmenter) -> tuple[BlockInfo, bool]:
        """Copy a block."""
        job = self.job
        assert job.precomputed is not None
        copy = PrecomputedCopy(job.precomputed, job.spec)
        return {}, not copy.copy_block(job.output_zarr.probabilities, self.level.number, self.grid.box(index))


def job_phases(job: SegmentationJob) -> list[Phase]:
    """Return the phases of a job in their order; the first is that of the network."""
    writers: list[Phase] = [NetworkPhase(job)]  # of each level
    for level in job.levels[1:]:
        writers.append(PyramidPhase(job, level, writers[-1]))
    phases = list(writers)
    objects = ObjectsPhase(job, writers[0])
    if job.finds_objects:
        phases.append(objects)
    if job.settings.segment.save_objects:
        phases.append(ObjectImagePhase(job, objects))
        for level in job.levels[1:]:
            phases.append(ObjectPyramidPhase(job, level, phases[-1]))
    if job.precomputed:
        phases += [CopyPhase(job, level, writer) for level, writer in zip(job.levels, writers, strict=True)]
    return phases

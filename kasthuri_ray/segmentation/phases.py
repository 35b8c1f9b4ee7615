"""Phases of a segmentation: the network, the pyramid, the table of objects and the precomputed copy.

A phase says which blocks there are, what each is made from, and how it is made. To add one, write a class and name it
in `job_phases`. The ledger keeps a folder for each phase, of its name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

import numpy as np

from kasthuri_ray.geometry import Box, Zyx
from kasthuri_ray.metrics.class_map import classes_at
from kasthuri_ray.metrics.components import label_block_components
from kasthuri_ray.metrics.object_density import describe_objects
from kasthuri_ray.metrics.objects import join_objects
from kasthuri_ray.output.block_grid import BlockGrid, block_name
from kasthuri_ray.output.ledger import Ledger, read_components, write_components
from kasthuri_ray.output.object_labels import block_with_shell, read_classes
from kasthuri_ray.output.precomputed import PrecomputedCopy
from kasthuri_ray.output.pyramid import PyramidLevel, level_name
from kasthuri_ray.output.side_files import object_table_path, write_object_table
from kasthuri_ray.segmentation.block_segmenter import BlockSegmenter
from kasthuri_ray.segmentation.segmentation_job import SegmentationJob

BlockInfo = dict[str, Any]  # what the ledger records with a block


class Phase(ABC):
    """A stage of a segmentation, in which blocks of one kind are made.

    Parameters
    ----------
    job : SegmentationJob
        The job.
    name : str
        Name of its folder in the ledger.
    label : str
        What people read.
    grid : BlockGrid
        Its blocks.
    source : Phase or None
        Phase that makes what its blocks are made from; None for the image.
    """

    postponed: ClassVar[str] = ""  # what people read if it waits until its source is complete; "": it does not wait

    def __init__(self, job: SegmentationJob, name: str, label: str, grid: BlockGrid, source: Phase | None) -> None:
        self.job, self.name, self.label, self.grid, self.source = job, name, label, grid, source

    @abstractmethod
    def make_block(self, index: Zyx, segmenter: BlockSegmenter) -> tuple[BlockInfo, bool]:
        """Make and write a block; return what the ledger records, and whether nothing was written: all is 0."""

    def overlapping(self, box: Box) -> Iterator[Zyx]:
        """Yield the blocks that overlap a box of the array that the phase writes."""
        return self.grid.overlapping(box)

    def source_box(self, box: Box) -> Box:
        """Return the voxels of the source that a block is made from."""
        return box

    def source_blocks(self, index: Zyx) -> list[str]:
        """Return the names of the blocks of the source that a block is made from."""
        if self.source is None:
            return []
        return [block_name(each) for each in self.source.overlapping(self.source_box(self.grid.box(index)))]

    def finish(self, written: Iterable[str]) -> str:
        """Complete the phase when all its blocks are done; return lines for people, or nothing.

        written: names of the blocks that wrote any voxel, z slowest.
        """
        return ""


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


class ObjectsPhase(Phase):
    """Objects of each class are labelled in each block, joined across blocks, and listed in a table."""

    NAME: ClassVar[str] = "objects"

    postponed = "the object table is not written yet: some blocks were set aside; run the same command again"

    def __init__(self, job: SegmentationJob, source: Phase) -> None:
        super().__init__(job, self.NAME, "objects", level_grid(job, job.levels[0]), source)
        self.ledger = Ledger.beside(job.output)

    def source_box(self, box: Box) -> Box:
        """Return a block and one voxel beyond its upper ends: with these its components are joined."""
        return block_with_shell(box, self.grid.bounds)

    def make_block(self, index: Zyx, segmenter: BlockSegmenter) -> tuple[BlockInfo, bool]:
        """Label the components of a block and write them to the ledger."""
        block = self.grid.box(index)
        classes, probability = read_classes(
            self.job.output_zarr.probabilities, self.source_box(block), self.job.thresholds
        )
        components, _ = label_block_components(classes, block, probability)
        write_components(self.ledger, block_name(index), components)
        return {}, False

    def finish(self, written: Iterable[str]) -> str:
        """Write the table; return how many objects of each class it lists, and warnings."""
        job = self.job
        path, finest = object_table_path(job.output, job.class_names), job.levels[0]
        table = join_objects(read_components(self.ledger, name) for name in written)
        voxel_size_nm = finest.scale if job.spec.nanometers else None
        write_object_table(table, path, voxel_size_nm, finest.translation, job.box.start, job.class_names)
        counts, warnings = describe_objects(table, job.class_names)
        return "\n".join([f"{counts}: {path}", *(f"warning: {warning}" for warning in warnings)])


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


def level_grid(job: SegmentationJob, level: PyramidLevel) -> BlockGrid:
    """Return the blocks of a pyramid level, in its voxels: those of the network for the finest, else one shard each."""
    return job.output_zarr.probabilities.grid(level.number, job.block if level.number == 0 else None)


def job_phases(job: SegmentationJob) -> list[Phase]:
    """Return the phases of a job in their order; the first is that of the network."""
    writers: list[Phase] = [NetworkPhase(job)]  # of each level
    for level in job.levels[1:]:
        writers.append(PyramidPhase(job, level, writers[-1]))
    phases = list(writers)
    if job.settings.segment.objects:
        phases.append(ObjectsPhase(job, writers[0]))
    if job.precomputed:
        phases += [CopyPhase(job, level, writer) for level, writer in zip(job.levels, writers, strict=True)]
    return phases

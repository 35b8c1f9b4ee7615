"""What a phase of a segmentation is; `phases` lists those that there are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

from kasthuri_ray.geometry import Box, Zyx
from kasthuri_ray.output.block_grid import BlockGrid, block_name
from kasthuri_ray.output.pyramid import PyramidLevel
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

    def prepare(self, written: Iterable[str]) -> None:  # noqa: B027
        """Prepare the first block; called of a phase that waits, once its source is complete.

        written: names of the blocks of the source that wrote any voxel, z slowest.
        """

    def finish(self, written: Iterable[str]) -> str:
        """Complete the phase when all its blocks are done; return a line for people, or nothing.

        written: names of the blocks that wrote any voxel, z slowest.
        """
        return ""


def level_grid(job: SegmentationJob, level: PyramidLevel) -> BlockGrid:
    """Return the blocks of a pyramid level, in its voxels: those of the network for the finest, else one shard each."""
    return job.output_zarr.probabilities.grid(level.number, job.block if level.number == 0 else None)

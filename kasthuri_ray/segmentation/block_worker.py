"""Worker that makes the blocks of a job, in any phase: what an actor runs. Knows nothing of Ray."""

from __future__ import annotations

from typing import Any, ClassVar

from kasthuri_ray.errors import NodeUnsuitable
from kasthuri_ray.geometry import Box, Zyx
from kasthuri_ray.output.block_grid import block_name
from kasthuri_ray.output.ledger import Ledger
from kasthuri_ray.segmentation.block_segmenter import UNSUITABLE_ERRORS, BlockSegmenter
from kasthuri_ray.segmentation.phases import job_phases
from kasthuri_ray.segmentation.segmentation_job import SegmentationJob


class BlockWorker:
    """Worker that makes the blocks of a job, after one call of `ready`.

    Parameters
    ----------
    job : SegmentationJob
        The job.
    """

    segmenter_class: ClassVar[type[BlockSegmenter]] = BlockSegmenter

    def __init__(self, job: SegmentationJob) -> None:
        self.ledger = Ledger.beside(job.output)
        self.segmenter = self.segmenter_class(job)
        self.phases = {phase.name: phase for phase in job_phases(job)}

    def ready(self) -> dict[str, Any]:
        """Build the network, as `BlockSegmenter.set_up`."""
        return self.segmenter.set_up()

    def work(self, phase: str, index: Zyx) -> dict[str, Any]:
        """Make a block, write it, and then record in the ledger that it is done.

        Parameters
        ----------
        phase : str
            Name of the phase.
        index : tuple of int
            Index of the block in the phase's grid, z, y, x.

        Returns
        -------
        dict
            What the ledger records, and `blank`: whether nothing was written.

        Raises
        ------
        NodeUnsuitable
            If this machine cannot run the network.
        OSError
            If voxels cannot be read or written; VolumeError for the image.
        RuntimeError
            For any other error; the message names the block.
        """
        stage = self.phases[phase]
        try:
            info, blank = stage.make_block(index, self.segmenter)
        except UNSUITABLE_ERRORS as error:
            raise NodeUnsuitable(str(error)) from error
        except OSError:
            raise  # its message names what was read or written
        except Exception as error:
            what = f"{phase} of block {stage.grid.box(index)} (z,y,x)"
            raise RuntimeError(f"{what}: {type(error).__name__}: {error}") from error
        self.ledger.record(phase, block_name(index), info, blank=blank)
        return info | {"blank": blank}

    def time_tiles(self, block: Box) -> dict[str, Any]:
        """Measure how long the network takes for a small block, as `BlockSegmenter.time_tiles`."""
        return self.segmenter.time_tiles(block)

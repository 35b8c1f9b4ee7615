"""Which blocks of each phase are done, and which can be done now."""

from __future__ import annotations

from collections.abc import Iterator

from kasthuri_ray.geometry import Box, Zyx
from kasthuri_ray.output.block_grid import block_name
from kasthuri_ray.output.ledger import Ledger
from kasthuri_ray.segmentation.phases import COPY_PREFIX, OBJECTS, SEGMENT, level_grid, phase_grid, phase_level
from kasthuri_ray.segmentation.segmentation_job import SegmentationJob


class FinishedBlocks:
    """Finished blocks of a job: those in the ledger when a phase is first asked for, and those of `note_done`.

    Parameters
    ----------
    job : SegmentationJob
        The job.
    ledger : Ledger
        Ledger of its output.
    """

    def __init__(self, job: SegmentationJob, ledger: Ledger) -> None:
        self.job, self.ledger = job, ledger
        self._done: dict[str, dict[str, bool]] = {}
        self._num_blank: dict[str, int] = {}

    def done(self, phase: str) -> dict[str, bool]:
        """Return the names of a phase's finished blocks, and whether each wrote any voxel."""
        if phase not in self._done:
            self._done[phase] = self.ledger.done(phase)
            self._num_blank[phase] = sum(not wrote for wrote in self._done[phase].values())
        return self._done[phase]

    def num_blank(self, phase: str) -> int:
        """Return how many of a phase's finished blocks wrote nothing."""
        self.done(phase)
        return self._num_blank[phase]

    def note_done(self, phase: str, index: Zyx, wrote: bool) -> None:
        """Note that a block is finished, and whether it wrote any voxel; a second time changes no count."""
        done, name = self.done(phase), block_name(index)
        if name not in done:
            self._num_blank[phase] += not wrote
        done[name] = wrote

    def is_complete(self, phase: str) -> bool:
        """Return whether every block of a phase is finished."""
        return len(self.done(phase)) == len(phase_grid(self.job, phase))

    def pending(self, phase: str) -> Iterator[Zyx]:
        """Yield the unfinished blocks of a phase whose sources are finished.

        A block whose sources are all blank is noted as done instead: there is nothing to read.
        """
        grid, done = phase_grid(self.job, phase), self.done(phase)
        for index in (grid[number] for number in range(len(grid))):
            if block_name(index) in done:
                continue
            wrote = self._sources_wrote(phase, grid.box(index))
            if wrote is None:
                continue  # a source is missing
            if any(wrote):
                yield index
            else:
                self.note_done(phase, index, wrote=False)

    def written(self, phase: str) -> Iterator[str]:
        """Yield the names of the blocks of a phase that wrote any voxel, z slowest."""
        grid, done = phase_grid(self.job, phase), self.done(phase)
        return (name for name in map(block_name, grid.overlapping(grid.bounds)) if done.get(name))

    def _sources_wrote(self, phase: str, box: Box) -> list[bool] | None:
        """Return whether each block that a block is made from wrote any voxel; None if one is not finished."""
        if phase == SEGMENT:
            return [True]
        levels = self.job.levels
        if phase == OBJECTS:  # components are joined with those one voxel beyond the upper ends
            source, box = levels[0], Box(box.start, box.shifted((1, 1, 1)).stop)
        elif phase.startswith(COPY_PREFIX):
            source = levels[phase_level(phase)]
        else:
            level = levels[phase_level(phase)]
            source, box = levels[level.number - 1], level.source(box)
        done = self.done(source.name)
        names = [block_name(index) for index in level_grid(self.job, source.number).overlapping(box)]
        return [done[name] for name in names] if done.keys() >= set(names) else None

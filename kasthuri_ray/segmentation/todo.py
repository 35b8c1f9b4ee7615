"""Which blocks of a segmentation are done and which can be done now, phase by phase. Knows nothing of Ray."""

from __future__ import annotations

from collections.abc import Iterator

from kasthuri_ray.geometry import Box, Zyx
from kasthuri_ray.segmentation.actor import COPY, OBJECTS, SEGMENT, grid_of
from kasthuri_ray.segmentation.grid import BlockGrid, name_of
from kasthuri_ray.segmentation.job import Job
from kasthuri_ray.segmentation.ledger import Ledger


class Todo:
    """What is done, as the ledger has it when a phase is first asked for, and as news come in by `note_done`."""

    def __init__(self, job: Job, ledger: Ledger) -> None:
        self.job, self.ledger = job, ledger
        self._done: dict[str, dict[str, bool]] = {}
        self._blank: dict[str, int] = {}

    def done(self, phase: str) -> dict[str, bool]:
        """The names of the finished blocks, and whether each wrote anything."""
        if phase not in self._done:
            self._done[phase] = self.ledger.done(phase)
            self._blank[phase] = sum(not wrote for wrote in self._done[phase].values())
        return self._done[phase]

    def num_blank(self, phase: str) -> int:
        """How many of the finished blocks wrote nothing."""
        self.done(phase)
        return self._blank[phase]

    def note_done(self, phase: str, index: Zyx, wrote: bool) -> None:
        done, name = self.done(phase), name_of(index)
        if name not in done:
            self._blank[phase] += not wrote
        done[name] = wrote

    def is_whole(self, phase: str) -> bool:
        return len(self.done(phase)) == len(grid_of(self.job, phase))

    def pending(self, phase: str) -> Iterator[Zyx]:
        """The blocks of a phase that can be done now and are not, as they are needed.

        Those that are made of nothing but blank blocks are done by that: nobody has to read what is not there.
        """
        grid, done = grid_of(self.job, phase), self.done(phase)
        for index in (grid[number] for number in range(len(grid))):
            if name_of(index) in done:
                continue
            wrote = self._sources_wrote(phase, grid.box(index))
            if wrote is None:
                continue  # a block that it is made of is not there
            if any(wrote):
                yield index
            else:
                self.note_done(phase, index, wrote=False)

    def written(self, phase: str) -> Iterator[str]:
        """The names of the blocks of a phase that wrote something, z slowest."""
        grid, done = grid_of(self.job, phase), self.done(phase)
        return (name for name in map(name_of, grid.covering(grid.box_of_all)) if done.get(name))

    def _sources_wrote(self, phase: str, box: Box) -> list[bool] | None:
        """Of the blocks that a block is made of, whether each wrote anything; None where one is not done."""
        if phase == SEGMENT:
            return [True]
        levels = self.job.levels
        if phase == OBJECTS:  # neighbours too: what is beyond the upper ends is joined here
            source, box = levels[0], Box(box.start, tuple(b + 1 for b in box.stop))  # type: ignore[arg-type]
        elif phase.startswith(COPY):
            source = levels[level_of(phase)]
        else:
            here = levels[level_of(phase)]
            source, box = levels[here.number - 1], here.source(box)
        before, grid = self.done(source.name), self._grid_in_output(source.number)
        found = [before.get(name_of(each)) for each in grid.covering(box)]
        return None if None in found else found  # type: ignore[return-value]

    def _grid_in_output(self, level: int) -> BlockGrid:
        """The blocks of a level in voxels of the output."""
        if level == 0:
            return BlockGrid(self.job.levels[0].box, self.job.block)
        return grid_of(self.job, self.job.levels[level].name)


def level_of(phase: str) -> int:
    """The number of the level that a phase of the pyramid or of the copy makes."""
    return int(phase.removeprefix(COPY).removeprefix("s"))

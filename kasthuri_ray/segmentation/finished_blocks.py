"""Which blocks of each phase are done, and which can be made now."""

from __future__ import annotations

from collections.abc import Iterator

from kasthuri_ray.geometry import Zyx
from kasthuri_ray.output.block_grid import block_name
from kasthuri_ray.output.ledger import Ledger
from kasthuri_ray.segmentation.phase import Phase


class FinishedBlocks:
    """Finished blocks of a job: those in the ledger when a phase is first asked for, and those of `note_done`.

    Parameters
    ----------
    ledger : Ledger
        Ledger of the output.
    """

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self._done: dict[str, dict[str, bool]] = {}
        self._num_blank: dict[str, int] = {}

    def done(self, phase: Phase) -> dict[str, bool]:
        """Return the names of a phase's finished blocks, and whether each wrote any voxel."""
        name = phase.name
        if name not in self._done:
            self._done[name] = self.ledger.done(name)
            self._num_blank[name] = sum(not wrote for wrote in self._done[name].values())
        return self._done[name]

    def num_blank(self, phase: Phase) -> int:
        """Return how many of a phase's finished blocks wrote nothing."""
        self.done(phase)
        return self._num_blank[phase.name]

    def note_done(self, phase: Phase, index: Zyx, wrote: bool) -> None:
        """Note that a block is finished, and whether it wrote any voxel; a second time changes no count."""
        done, name = self.done(phase), block_name(index)
        if name not in done:
            self._num_blank[phase.name] += not wrote
        done[name] = wrote

    def is_complete(self, phase: Phase) -> bool:
        """Return whether every block of a phase is finished."""
        return len(self.done(phase)) == len(phase.grid)

    def pending(self, phase: Phase) -> Iterator[Zyx]:
        """Yield the unfinished blocks of a phase whose sources are finished.

        A block whose sources are all blank is noted as done instead: there is nothing to read.
        """
        done = self.done(phase)
        for number in range(len(phase.grid)):
            index = phase.grid[number]
            if block_name(index) in done:
                continue
            wrote = self._sources_wrote(phase, index)
            if wrote is None:
                continue  # a source is missing
            if any(wrote):
                yield index
            else:
                self.note_done(phase, index, wrote=False)

    def written(self, phase: Phase) -> Iterator[str]:
        """Yield the names of the blocks of a phase that wrote any voxel, z slowest."""
        done = self.done(phase)
        return (name for name in map(block_name, phase.grid.overlapping(phase.grid.bounds)) if done.get(name))

    def _sources_wrote(self, phase: Phase, index: Zyx) -> list[bool] | None:
        """Return whether each block that a block is made from wrote any voxel; None if one is not finished."""
        if phase.source is None:
            return [True]  # of the image
        done, names = self.done(phase.source), phase.source_blocks(index)
        return [done[name] for name in names] if done.keys() >= set(names) else None

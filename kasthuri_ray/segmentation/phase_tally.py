"""Counts of a phase's blocks, and whether so many are set aside that the cause is not in the blocks."""

from __future__ import annotations

from dataclasses import dataclass, field

from kasthuri_ray.errors import ActorPoolStopped
from kasthuri_ray.segmentation.block_failures import SetAsideBlock

# The cause is not in the blocks if so many were set aside and none was done, out of at least so many tried,
MAX_SET_ASIDE_IF_NONE_DONE, MIN_TRIED = 3, 8
# or if so many were set aside, and more than twice as many as were done, or so many in a row.
MANY_SET_ASIDE, MAX_SET_ASIDE_IN_A_ROW = 10, 50


@dataclass
class PhaseTally:
    """Counts of a phase's blocks.

    Parameters
    ----------
    num_done : int
        Blocks that are done.
    set_aside : list of SetAsideBlock
        Blocks that were set aside.
    """

    num_done: int = 0
    set_aside: list[SetAsideBlock] = field(default_factory=list)
    _new: list[SetAsideBlock] = field(default_factory=list)  # those that no earlier run set aside
    _num_in_a_row: int = 0  # of these, since a block was done

    def note_done(self) -> None:
        """Count a block that is done."""
        self.num_done, self._num_in_a_row = self.num_done + 1, 0

    def note_set_aside(self, block: SetAsideBlock, known_bad: bool) -> None:
        """Count a block that is set aside; one that an earlier run set aside is no sign of a bug."""
        self.set_aside.append(block)
        if not known_bad:
            self._new.append(block)
            self._num_in_a_row += 1

    def looks_like_a_bug(self, num_tried: int, all_tried: bool) -> bool:
        """Return whether so many blocks were set aside that the cause is probably not in them."""
        num = len(self._new)
        if num >= MAX_SET_ASIDE_IF_NONE_DONE and not self.num_done:
            return num_tried >= MIN_TRIED or all_tried
        is_majority = num >= MANY_SET_ASIDE and num > 2 * self.num_done
        return is_majority or self._num_in_a_row >= MAX_SET_ASIDE_IN_A_ROW

    def bug_error(self) -> ActorPoolStopped:
        """Return the error that says so, with the first of these blocks."""
        first = self._new[0]
        done = f"{self.num_done or 'none'} {'was' if self.num_done < 2 else 'were'} done"
        return ActorPoolStopped(
            f"{len(self._new)} blocks were set aside and {done}, so the cause is probably not in the blocks. "
            f"The first, {first.block}: {first.reason}",
            first.traceback,
        )

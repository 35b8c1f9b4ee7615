"""Turns of what a benchmark compares: everything once, then again what there is time for. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def next_candidate(
    order: Sequence[str], seconds: Mapping[str, Sequence[float]], left_s: float, max_turns: int
) -> str | None:
    """Return what is measured next, or None at the end.

    Every candidate has one turn, however long it takes. After that the one with the fewest turns is next, the first of
    equals, if a turn as long as its longest so far fits into the time that is left.

    Parameters
    ----------
    order : sequence of str
        Names of the candidates, the most important first.
    seconds : mapping
        How long each turn of a candidate took.
    left_s : float
        Seconds that are left.
    max_turns : int
        Most turns of a candidate.

    Returns
    -------
    str or None
        Name of a candidate.
    """
    if new := [name for name in order if not seconds.get(name)]:
        return new[0]
    fitting = [name for name in order if len(seconds[name]) < max_turns and max(seconds[name]) <= left_s]
    return min(fitting, key=lambda name: len(seconds[name]), default=None)


def count_job_blocks(rate: float, seconds: float, block_voxels: int, multiple: int, most: int) -> int:
    """Return how many blocks a job segments, so that it takes about `seconds`: a multiple of `multiple`.

    Parameters
    ----------
    rate : float
        Voxels/s of the network alone.
    seconds : float
        How long the blocks should take.
    block_voxels : int
        Voxels that are computed for a block.
    multiple, most : int
        The least number, of which it is a multiple, and the largest.

    Returns
    -------
    int
        Number of blocks.
    """
    wanted = rate * seconds / block_voxels
    return min(most, multiple * max(1, round(wanted / multiple)))

"""Where the time of a segmentation goes, from the times that `SegmenterWithTimes` wrote down. Pure.

A row is a step of a block: `what` is read, compute or block (all of it), with `start` and `stop` in seconds, and for
the network `tiles`: when each was done, and its voxels.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]


def summarize_times(by_actor: Sequence[Sequence[Row]]) -> dict[str, Any]:
    """Return what the times of the actors add up to; voxels are those that the network computed, with margins.

    working_seconds: from the start of the first block to the end of the last, without compile_seconds.
    compile_seconds: what the first tile took longer than the others, on the slowest actor: it included compiling.
    rate: voxels/s of the working seconds.
    steady_rate: voxels/s from when all actors had done their first tile to when one had done its last.
    read_seconds, write_seconds: by block. spent: as `spent_seconds`, of all actors together.
    """
    rows = [row for rows in by_actor for row in rows]
    blocks, reads, computed = (_select(rows, what) for what in ("block", "read", "compute"))
    computed_by_actor = [sorted(_select(rows, "compute"), key=lambda row: row["start"]) for rows in by_actor]
    first_tiles = [rows[0]["tiles"][0][0] for rows in computed_by_actor]
    last_tiles = [rows[-1]["tiles"][-1][0] for rows in computed_by_actor]
    tile_seconds = [_tile_seconds(rows) for rows in computed_by_actor]
    compiling = [_compile_seconds(*each) for each in zip(computed_by_actor, tile_seconds, strict=True)]
    start, stop = max(first_tiles), min(last_tiles)
    voxels = sum(voxels for row in computed for _, voxels in row["tiles"])
    steady = sum(voxels for row in computed for at, voxels in row["tiles"] if start < at <= stop)
    working = max(row["stop"] for row in blocks) - min(row["start"] for row in blocks) - max(compiling)
    ends = {tuple(row["block"]): row["stop"] for row in computed}
    spent = [spent_seconds(*each) for each in zip(by_actor, compiling, strict=True)]
    return {
        "voxels": voxels,
        "working_seconds": working,
        "compile_seconds": max(compiling),
        "rate": voxels / working,
        "steady_rate": steady / (stop - start) if stop > start else None,
        "tile_seconds": [seconds for each in tile_seconds for seconds in each],
        "read_seconds": [row["stop"] - row["start"] for row in reads],
        "write_seconds": [row["stop"] - ends[tuple(row["block"])] for row in blocks],
        "spent": {step: sum(each[step] for each in spent) for step in spent[0]},
        "actors": len(by_actor),
    }


def spent_seconds(rows: Sequence[Row], compile_seconds: float) -> dict[str, float]:
    """Return on what an actor spent its time from its first block to its last.

    network: it computed, without compiling. reading: the network waited for voxels of the next block, or of the first.
    writing: after the network's last block. between: what else passed between two blocks of the network.
    """
    computed = sorted(_select(rows, "compute"), key=lambda row: row["start"])
    blocks = _select(rows, "block")
    read_at = {tuple(row["block"]): row["stop"] for row in _select(rows, "read")}
    reading, between = computed[0]["start"] - min(row["start"] for row in blocks), 0.0
    for before, after in itertools.pairwise(computed):
        gap = max(0.0, after["start"] - before["stop"])
        waited = min(gap, max(0.0, read_at[tuple(after["block"])] - before["stop"]))
        reading, between = reading + waited, between + gap - waited
    return {
        "network": sum(row["stop"] - row["start"] for row in computed) - compile_seconds,
        "reading": reading,
        "writing": max(row["stop"] for row in blocks) - computed[-1]["stop"],
        "between": between,
    }


def _select(rows: Sequence[Row], what: str) -> list[Row]:
    return [row for row in rows if row["what"] == what]


def _compile_seconds(computed: Sequence[Row], tile_seconds: Sequence[float]) -> float:
    """Return what the first tile of an actor took longer than is usual."""
    usual = statistics.median(tile_seconds) if len(tile_seconds) > 1 else 0.0
    return float(max(0.0, computed[0]["tiles"][0][0] - computed[0]["start"] - usual))


def _tile_seconds(computed: Sequence[Row]) -> list[float]:
    """Return the seconds of each tile except for the first one of each block."""
    return [b[0] - a[0] for row in computed for a, b in itertools.pairwise(row["tiles"])]

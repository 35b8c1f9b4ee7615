"""Actors of a segmentation that write down what they do and when, or do nothing; and what their notes come to."""

from __future__ import annotations

import itertools
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from kasthuri_ray.geometry import Box
from kasthuri_ray.segmentation.actor import Cutout, Segmenter

TIMES = "times"  # a folder beside the output, a file of JSON lines an actor


class SegmenterWithTimes(Segmenter):
    """Writes down when each step of its blocks began and ended, and when each of its tiles was done."""

    def _segment(self, block: Box) -> tuple[dict[str, Any], bool]:
        with self._noted("block", block):
            return super()._segment(block)

    def _fetch(self, block: Box) -> Cutout:
        with self._noted("read", block):
            return super()._fetch(block)

    def _predict(
        self, cutout: Cutout, block: Box, on_voxels: Callable[[int], None] = lambda voxels: None
    ) -> np.ndarray:
        tiles: list[tuple[float, int]] = []

        def note(voxels: int) -> None:
            tiles.append((time.time(), voxels))
            on_voxels(voxels)

        with self._noted("compute", block, tiles):
            return super()._predict(cutout, block, note)

    @contextmanager
    def _noted(self, what: str, block: Box, tiles: list[tuple[float, int]] | None = None) -> Iterator[None]:
        start = time.time()
        yield
        row = {"what": what, "block": block.start, "start": start, "stop": time.time(), "tiles": tiles or []}
        file = Path(f"{self.job.output}.{TIMES}", f"{os.getpid()}.jsonl")
        file.parent.mkdir(exist_ok=True)
        with file.open("a") as target:
            target.write(json.dumps(row) + "\n")  # one write: threads do not come between


class SegmenterOfNothing(Segmenter):
    """Has no network, reads nothing and writes nothing but the ledger."""

    def _set_up(self) -> dict[str, Any]:
        return {"machine": ""}

    def _segment(self, block: Box) -> tuple[dict[str, Any], bool]:
        return {}, False


def work_of(by_actor: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """What actors' notes come to; voxels are those that went through the network, margins included.

    working_seconds: from the first block begun to the last written, less what the first tile took beyond the others:
    it was compiled meanwhile (compile_seconds, of the actor that took longest). rate: voxels/s of that time.
    steady_rate: voxels/s from when every actor had its first tile to when one had its last. By block: read, compute and
    write; waits: between one block's last tile and the next one's computing.
    """
    rows = [row for rows in by_actor for row in rows]
    blocks, reads, computed = ([row for row in rows if row["what"] == what] for what in ("block", "read", "compute"))
    firsts, lasts, slowest, waits = [], [], 0.0, []
    for mine in by_actor:
        in_order = sorted((row for row in mine if row["what"] == "compute"), key=lambda row: row["start"])
        waits += [after["start"] - row["stop"] for row, after in itertools.pairwise(in_order)]
        firsts.append(in_order[0]["tiles"][0][0])
        lasts.append(in_order[-1]["tiles"][-1][0])
        usual = statistics.median(_tile_seconds(in_order)) if len(_tile_seconds(in_order)) > 1 else 0.0
        slowest = max(slowest, firsts[-1] - in_order[0]["start"] - usual)
    start, stop = max(firsts), min(lasts)
    voxels = sum(voxels for row in computed for _, voxels in row["tiles"])
    steady = sum(voxels for row in computed for at, voxels in row["tiles"] if start < at <= stop)
    compiled = max(0.0, slowest)
    working = max(row["stop"] for row in blocks) - min(row["start"] for row in blocks) - compiled
    ends = {tuple(row["block"]): row["stop"] for row in computed}
    return {
        "voxels": voxels,
        "working_seconds": working,
        "compile_seconds": compiled,
        "rate": voxels / working,
        "steady_rate": steady / (stop - start) if stop > start else None,
        "tile_seconds": [s for mine in by_actor for s in _tile_seconds([r for r in mine if r["what"] == "compute"])],
        "read_seconds": [row["stop"] - row["start"] for row in reads],
        "write_seconds": [row["stop"] - ends[tuple(row["block"])] for row in blocks],
        "wait_seconds": waits,
        "actors": len(by_actor),
    }


def _tile_seconds(computed: list[dict[str, Any]]) -> list[float]:
    """What tiles took, but for the first of each block."""
    return [b[0] - a[0] for row in computed for a, b in itertools.pairwise(row["tiles"])]

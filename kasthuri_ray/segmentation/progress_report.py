"""How a segmentation is told: a live line, `<output>.progress.json`, and Ray's metrics for dashboards."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from kasthuri_ray.geometry import Zyx
from kasthuri_ray.output.block_grid import block_name
from kasthuri_ray.progress import Reporter, format_count, format_duration
from kasthuri_ray.segmentation.actor_pool import PhaseProgress
from kasthuri_ray.segmentation.segmentation_job import SEGMENT, BlockTracker, SegmentationJob, phase_grid, phase_label
from kasthuri_ray.storage.folder import PARTIAL_SUFFIX, open_storage

FILE_PERIOD_S = 5.0


class SegmentationProgress:
    """Tells how far a job is: `begin` each phase, `tick` about once a second, then `finish`, or `fail`.

    state: what `<output>.progress.json` holds. blocks, done, skipped: of the network's phase; skipped are those of
    which nothing is stored. set_aside: names of blocks, those of other phases as `phase/name`.
    """

    def __init__(self, job: SegmentationJob, todo: BlockTracker, reporter: Reporter) -> None:
        self.job, self.todo, self.reporter = job, todo, reporter
        self.state: dict[str, Any] = {"state": "running", "blocks": len(phase_grid(job, SEGMENT))}
        self.state |= {"done": len(todo.done(SEGMENT)), "skipped": todo.num_blank(SEGMENT), "set_aside": []}
        self.state |= {"mvoxels_per_second": None, "seconds_left": None}
        self._metrics = _metrics()
        self._voxels = 0
        self._written = 0.0

    def begin(self, phase: str) -> None:
        """A phase begins."""
        self.phase, self.blocks = phase, len(phase_grid(self.job, phase))
        self.before = len(self.todo.done(phase))
        self._phase_began = time.monotonic()
        self.began: float | None = None
        if phase != SEGMENT and self.before < self.blocks:
            self.reporter.line(
                f"{phase_label(phase)}: {self.blocks - self.before:,} of {format_count(self.blocks, 'block')} to do"
            )
        self._write()

    def note_done(self, index: Zyx, computed: bool) -> None:
        """A block is done. computed: whether the network ran on it."""
        if computed and self.phase == SEGMENT:
            self._voxels += phase_grid(self.job, self.phase).box(index).num_voxels
            self.state["mvoxels_per_second"] = self._rate()

    def note_aside(self, index: Zyx) -> None:
        """A block is set aside."""
        name = block_name(index)
        self.state["set_aside"].append(name if self.phase == SEGMENT else f"{self.phase}/{name}")
        self._write()

    def tick(self, progress: PhaseProgress) -> None:
        """Where the phase stands."""
        now = time.monotonic()
        if progress.actors and self.began is None:
            self.began = now
        seconds = now - self.began if self.began is not None else 0.0
        done = len(self.todo.done(self.phase))
        left = self._seconds_left(progress, done, seconds)
        if self.phase == SEGMENT:
            self.state.update(done=done, skipped=self.todo.num_blank(SEGMENT), mvoxels_per_second=self._rate())
        self.state.update(seconds_left=left)
        self.reporter.live(self.line(progress, done, left))
        self._measure(progress, done)
        if now - self._written >= FILE_PERIOD_S:
            self._write()

    def line(self, progress: PhaseProgress, done: int, left: float | None) -> str:
        """The live line."""
        words = [f"{phase_label(self.phase)}: {done:,}/{format_count(self.blocks, 'block')}"]
        words.append(format_count(progress.actors, "actor"))
        rate = self.state["mvoxels_per_second"]
        if self.phase == SEGMENT and rate is not None:
            words.append(f"{rate:.2f} Mvoxels/s")
        if left is not None:
            words.append(f"{format_duration(left)} left")
        if self.state["set_aside"]:
            words.append(f"{len(self.state['set_aside'])} set aside")
        return "  ".join(words)

    def finish(self) -> None:
        """The job has ended by itself."""
        self._end("set aside" if self.state["set_aside"] else "done", 0.0)

    def fail(self) -> None:
        """The job has ended before its time."""
        self._end("failed", None)

    def _end(self, state: str, seconds_left: float | None) -> None:
        self.reporter.end()
        done = len(self.todo.done(SEGMENT))
        self.state.update(state=state, done=done, skipped=self.todo.num_blank(SEGMENT), seconds_left=seconds_left)
        self._write()

    def _seconds_left(self, progress: PhaseProgress, done: int, seconds: float) -> float | None:
        here = done - self.before
        return seconds / here * (self.blocks - done - progress.set_aside) if here > 0 and seconds else None

    def _rate(self) -> float | None:
        """Million voxels a second, since an actor was seen, or the phase began where blocks are done before that."""
        seconds = time.monotonic() - (self._phase_began if self.began is None else self.began)
        return self._voxels / seconds / 1e6 if self._voxels and seconds else None

    def _measure(self, progress: PhaseProgress, done: int) -> None:
        values: dict[str, float] = {"blocks_done": done, "set_aside": progress.set_aside, "actors": progress.actors}
        values["mvoxels_per_second"] = self.state["mvoxels_per_second"] or 0.0
        for name, value in values.items():
            self._metrics[name].set(value, tags={"phase": self.phase})

    def _write(self) -> None:
        self._written = time.monotonic()
        with suppress(OSError):  # for people to watch; the work does not depend on it
            write_progress(self.job.output, self.state)


def _metrics() -> dict[str, Any]:
    from ray.util.metrics import Gauge

    words = {
        "blocks_done": "finished blocks of the phase",
        "set_aside": "blocks of the phase that failed for good",
        "mvoxels_per_second": "million voxels segmented in a second, by all actors",
        "actors": "actors that are ready",
    }
    return {name: Gauge(f"kasthuri_ray_segment_{name}", text, tag_keys=("phase",)) for name, text in words.items()}


def write_progress(output: str, progress: Mapping[str, Any]) -> None:
    """Writes `<output>.progress.json`, whole or not at all; the disk is not waited for."""
    place = open_storage(f"{open_storage(output).path}.progress.json")
    data = (json.dumps(progress, allow_nan=False) + "\n").encode()
    if place.folder is None:
        folder, _, name = place.path.rpartition("/")
        return open_storage(folder).write_bytes(name, data)
    part = place.folder.parent / f".{place.name}.{uuid.uuid4().hex}{PARTIAL_SUFFIX}"
    try:
        place.folder.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(data)
        os.replace(part, place.folder)
    finally:
        part.unlink(missing_ok=True)

"""How a segmentation is told: a live line, `<output>.progress.json`, and Ray's metrics for dashboards."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from kasthuri_ray.progress import Reporter, duration
from kasthuri_ray.segmentation.actor import COPY, OBJECTS, SEGMENT
from kasthuri_ray.segmentation.grid import name_of
from kasthuri_ray.segmentation.job import Job
from kasthuri_ray.segmentation.ledger import write_progress
from kasthuri_ray.segmentation.pool import Progress
from kasthuri_ray.segmentation.verdicts import Aside

FILE_PERIOD_S = 5.0


class Telling:
    """Tells how far a job is. `begin` a phase, then `tick` about once a second, then `finish`."""

    def __init__(self, job: Job, reporter: Reporter) -> None:
        self.job, self.reporter = job, reporter
        self.state: dict[str, Any] = {"state": "running", "blocks": 0, "done": 0, "skipped": 0, "set_aside": []}
        self._metrics = _metrics()
        self._written = 0.0
        self._rate: float | None = None
        self._asides = 0

    def begin(self, phase: str, blocks: int, done: int) -> None:
        """A phase begins, of so many blocks, of which some are done."""
        self.phase, self.blocks, self.before = phase, blocks, done
        self.began: float | None = None
        if phase == SEGMENT:
            self.state.update(blocks=blocks, done=done)
        elif done < blocks:
            self.reporter.line(f"{_phase_words(phase)}: {blocks - done} blocks")
        self._write()

    def tick(self, progress: Progress) -> None:
        """Where the phase stands."""
        now = time.monotonic()
        if progress.actors and self.began is None:
            self.began = now
        seconds = now - self.began if self.began is not None else 0.0
        left = self._seconds_left(progress, seconds)
        if self.phase == SEGMENT:
            self._rate = progress.done * self._block_voxels() / seconds / 1e6 if progress.done and seconds else None
            self.state.update(done=self.before + progress.done)
        self.state.update(mvoxels_per_second=self._rate, seconds_left=left)
        self.reporter.live(self.line(progress, left))
        for name, value in (("blocks_done", self.before + progress.done), ("set_aside", progress.set_aside)):
            self._metrics[name].set(value, tags={"phase": self.phase})
        self._metrics["mvoxels_per_second"].set(self._rate or 0.0, tags={"phase": self.phase})
        self._metrics["actors"].set(progress.actors, tags={"phase": self.phase})
        if now - self._written >= FILE_PERIOD_S or progress.set_aside != self._asides:
            self._asides = progress.set_aside
            self._write()

    def line(self, progress: Progress, left: float | None) -> str:
        """The live line."""
        words = [f"{_phase_words(self.phase)}: {self.before + progress.done}/{self.blocks} blocks"]
        words.append(f"{progress.actors} actor{'s' * (progress.actors != 1)}")
        if self.phase == SEGMENT and self._rate is not None:
            words.append(f"{self._rate:.2f} Mvoxels/s")
        if left is not None:
            words.append(f"{duration(left)} left")
        if progress.set_aside:
            words.append(f"{progress.set_aside} set aside")
        return "  ".join(words)

    def skip(self, chunks_or_block: bool) -> None:
        """A block was recorded without running the network."""
        self.state["skipped"] += chunks_or_block

    def finish(self, asides: Sequence[Aside]) -> None:
        """The job has ended by itself."""
        self.reporter.end()
        names = [name_of(aside.block) for aside in asides]  # type: ignore[arg-type]
        self.state.update(state="set aside" if asides else "done", set_aside=names, seconds_left=0.0)
        self._write()

    def _seconds_left(self, progress: Progress, seconds: float) -> float | None:
        left = self.blocks - self.before - progress.done - progress.set_aside
        return seconds / progress.done * left if progress.done else None

    def _block_voxels(self) -> float:
        """Of a block on average: the last ones are smaller."""
        return self.job.box.num_voxels / self.blocks

    def _write(self) -> None:
        self._written = time.monotonic()
        with suppress(OSError):  # for people to watch; the work does not depend on it
            write_progress(self.job.output, self.state)


def _phase_words(phase: str) -> str:
    if phase == SEGMENT:
        return "segmenting"
    if phase == OBJECTS:
        return "objects"
    return f"precomputed {phase.removeprefix(COPY)}" if phase.startswith(COPY) else f"pyramid {phase}"


def _metrics() -> dict[str, Any]:
    from ray.util.metrics import Gauge

    words = {
        "blocks_done": "finished blocks of the phase",
        "set_aside": "blocks of the phase that failed for good",
        "mvoxels_per_second": "million voxels segmented in a second, by all actors",
        "actors": "actors that are ready",
    }
    return {name: Gauge(f"kasthuri_ray_segment_{name}", text, tag_keys=("phase",)) for name, text in words.items()}

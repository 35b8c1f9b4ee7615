"""Progress of a segmentation: a live line, `<output>.progress.json`, and Ray's metrics for dashboards."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

from kasthuri_ray.geometry import Zyx
from kasthuri_ray.output.block_grid import block_name
from kasthuri_ray.output.side_files import write_progress
from kasthuri_ray.progress import Reporter, format_count, format_duration
from kasthuri_ray.segmentation.actor_pool import PhaseProgress
from kasthuri_ray.segmentation.finished_blocks import FinishedBlocks
from kasthuri_ray.segmentation.phases import SEGMENT, phase_grid, phase_label
from kasthuri_ray.segmentation.segmentation_job import SegmentationJob

FILE_PERIOD_S = 5.0  # between two writes of the progress file


class SegmentationProgress:
    """Progress of a job: call `start_phase` for each phase, `tick` about once a second, then `finish` or `fail`.

    `state` is the content of the progress file. Its `blocks`, `done` and `skipped` are of the network's phase; skipped
    blocks are those that stored nothing. Its `set_aside` holds names of blocks, of other phases as `phase/name`.

    Parameters
    ----------
    job : SegmentationJob
        The job.
    finished : FinishedBlocks
        Its finished blocks.
    reporter : Reporter
        Shows lines of text.
    """

    def __init__(self, job: SegmentationJob, finished: FinishedBlocks, reporter: Reporter) -> None:
        self.job, self.finished, self.reporter = job, finished, reporter
        self.state: dict[str, Any] = {
            "state": "running",
            "blocks": len(phase_grid(job, SEGMENT)),
            "done": len(finished.done(SEGMENT)),
            "skipped": finished.num_blank(SEGMENT),
            "set_aside": [],
            "mvoxels_per_second": None,
            "seconds_left": None,
        }
        self._metrics = _make_metrics()
        self._num_voxels = 0
        self._written_at = 0.0

    def start_phase(self, phase: str) -> None:
        """Note that a phase starts."""
        self.phase, self.num_blocks = phase, len(phase_grid(self.job, phase))
        self.num_done_before = len(self.finished.done(phase))
        self._phase_started_at = time.monotonic()
        self._actors_since: float | None = None
        num_left = self.num_blocks - self.num_done_before
        if phase != SEGMENT and num_left > 0:
            total = format_count(self.num_blocks, "block")
            self.reporter.print_line(f"{phase_label(phase)}: {num_left:,} of {total} to do")
        self._write()

    def note_done(self, index: Zyx, computed: bool) -> None:
        """Note that a block is done, and whether the network ran on it."""
        if computed and self.phase == SEGMENT:
            self._num_voxels += phase_grid(self.job, self.phase).box(index).num_voxels
            self.state["mvoxels_per_second"] = self._mvoxels_per_second()

    def note_set_aside(self, index: Zyx) -> None:
        """Note that a block is set aside."""
        name = block_name(index)
        self.state["set_aside"].append(name if self.phase == SEGMENT else f"{self.phase}/{name}")
        self._write()

    def tick(self, progress: PhaseProgress) -> None:
        """Show the progress of the phase, and write it from time to time."""
        now = time.monotonic()
        if progress.actors and self._actors_since is None:
            self._actors_since = now
        seconds = now - self._actors_since if self._actors_since is not None else 0.0
        num_done = len(self.finished.done(self.phase))
        seconds_left = self._seconds_left(progress, num_done, seconds)
        if self.phase == SEGMENT:
            self.state.update(
                done=num_done,
                skipped=self.finished.num_blank(SEGMENT),
                mvoxels_per_second=self._mvoxels_per_second(),
            )
        self.state.update(seconds_left=seconds_left)
        self.reporter.show_live(self.line(progress, num_done, seconds_left))
        self._set_metrics(progress, num_done)
        if now - self._written_at >= FILE_PERIOD_S:
            self._write()

    def line(self, progress: PhaseProgress, num_done: int, seconds_left: float | None) -> str:
        """Return the live line."""
        parts = [f"{phase_label(self.phase)}: {num_done:,}/{format_count(self.num_blocks, 'block')}"]
        parts.append(format_count(progress.actors, "actor"))
        rate = self.state["mvoxels_per_second"]
        if self.phase == SEGMENT and rate is not None:
            parts.append(f"{rate:.2f} Mvoxels/s")
        if seconds_left is not None:
            parts.append(f"{format_duration(seconds_left)} left")
        if self.state["set_aside"]:
            parts.append(f"{len(self.state['set_aside'])} set aside")
        return "  ".join(parts)

    def finish(self) -> None:
        """Note that the job has reached its end."""
        self._end("set aside" if self.state["set_aside"] else "done", 0.0)

    def fail(self) -> None:
        """Note that the job has stopped early."""
        self._end("failed", None)

    def _end(self, state: str, seconds_left: float | None) -> None:
        self.reporter.end()
        num_done, num_blank = len(self.finished.done(SEGMENT)), self.finished.num_blank(SEGMENT)
        self.state.update(state=state, done=num_done, skipped=num_blank, seconds_left=seconds_left)
        self._write()

    def _seconds_left(self, progress: PhaseProgress, num_done: int, seconds: float) -> float | None:
        num_new = num_done - self.num_done_before
        if num_new <= 0 or not seconds:
            return None
        return seconds / num_new * (self.num_blocks - num_done - progress.set_aside)

    def _mvoxels_per_second(self) -> float | None:
        """Return the rate since an actor was ready, or since the phase started if blocks are done before that."""
        start = self._phase_started_at if self._actors_since is None else self._actors_since
        seconds = time.monotonic() - start
        return self._num_voxels / seconds / 1e6 if self._num_voxels and seconds else None

    def _set_metrics(self, progress: PhaseProgress, num_done: int) -> None:
        values = {
            "blocks_done": num_done,
            "set_aside": progress.set_aside,
            "actors": progress.actors,
            "mvoxels_per_second": self.state["mvoxels_per_second"] or 0.0,
        }
        for name, value in values.items():
            self._metrics[name].set(value, tags={"phase": self.phase})

    def _write(self) -> None:
        self._written_at = time.monotonic()
        with suppress(OSError):  # for people to watch; the work does not depend on it
            write_progress(self.job.output, self.state)


def _make_metrics() -> dict[str, Any]:
    from ray.util.metrics import Gauge

    descriptions = {
        "blocks_done": "finished blocks of the phase",
        "set_aside": "blocks that failed three times and were set aside",
        "mvoxels_per_second": "million voxels segmented in a second, by all actors",
        "actors": "actors that are ready",
    }
    return {
        name: Gauge(f"kasthuri_ray_segment_{name}", text, tag_keys=("phase",)) for name, text in descriptions.items()
    }

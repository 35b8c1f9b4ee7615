"""Progress of a segmentation: a live line, `<output>.progress.json`, and Ray's metrics for dashboards."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from kasthuri_ray.geometry import Zyx
from kasthuri_ray.output.block_grid import block_name
from kasthuri_ray.output.side_files import read_progress, write_progress
from kasthuri_ray.progress import Reporter, format_count, format_duration
from kasthuri_ray.segmentation.actor_pool import PhaseProgress
from kasthuri_ray.segmentation.finished_blocks import FinishedBlocks
from kasthuri_ray.segmentation.phase import Phase

COUNTS = ("absent_chunks", "nan_voxels")  # of the image, which add up over blocks
FILE_PERIOD_S = 5.0  # between two writes of the progress file


@dataclass
class _PhaseClock:
    """A phase that runs, and since when."""

    phase: Phase
    num_done_before: int
    started_at: float
    actors_since: float | None = None

    def seconds_left(self, num_done: int, num_set_aside: int, now: float) -> float | None:
        """Return how long the rest of the blocks takes; None while that is unknown."""
        num_new = num_done - self.num_done_before
        seconds = now - self.actors_since if self.actors_since is not None else 0.0
        if num_new <= 0 or not seconds:
            return None
        return seconds / num_new * (len(self.phase.grid) - num_done - num_set_aside)

    def mvoxels_per_second(self, num_voxels: int, now: float) -> float | None:
        """Return the rate since an actor was ready, or since the phase started if blocks are done before that."""
        seconds = now - (self.started_at if self.actors_since is None else self.actors_since)
        return num_voxels / seconds / 1e6 if num_voxels and seconds else None


class SegmentationProgress:
    """Progress of a job: call `start_phase` for each phase, `tick` about once a second, then `finish` or `fail`.

    `state` is the content of the progress file. Its `blocks`, `done` and `skipped` are of the network's phase; skipped
    blocks are those that stored nothing. Its `set_aside` holds names of blocks, of other phases as `phase/name`.

    Parameters
    ----------
    output : str
        Path or URL of the output.
    network : Phase
        The phase of the network.
    finished : FinishedBlocks
        Its finished blocks, and those of the later phases.
    reporter : Reporter
        Shows lines of text.
    """

    def __init__(self, output: str, network: Phase, finished: FinishedBlocks, reporter: Reporter) -> None:
        self.output, self.network, self.finished, self.reporter = output, network, finished, reporter
        self.state: dict[str, Any] = {
            "state": "running",
            "blocks": len(network.grid),
            "done": len(finished.done(network)),
            "skipped": finished.num_blank(network),
            "set_aside": [],
            **self._counts_before(),
            "chunks": network.job.image.count_chunks(network.job.box),
            "mvoxels_per_second": None,
            "seconds_left": None,
        }
        self._clock = _PhaseClock(network, 0, time.monotonic())
        self._gauges = _make_gauges()
        self._num_voxels = 0
        self._written_at = 0.0

    @property
    def metrics(self) -> dict[str, Any]:
        """Numbers of blocks of the network, and its rate."""
        names = {"num_blocks": "blocks", "num_done": "done", "num_skipped": "skipped"}
        numbers = {name: self.state[key] for name, key in names.items()}
        return {**numbers, "mvoxels_per_second": self.state["mvoxels_per_second"]}

    def _counts_before(self) -> dict[str, int]:
        """Return what was counted of the blocks that are done, as the progress file says."""
        before: dict[str, Any] = {}
        if self.finished.done(self.network):
            with suppress(OSError, ValueError):
                before = read_progress(self.output)
        return {name: int(before.get(name, 0)) for name in COUNTS}

    def start_phase(self, phase: Phase) -> None:
        """Note that a phase starts."""
        self._clock = _PhaseClock(phase, len(self.finished.done(phase)), time.monotonic())
        num_left = len(phase.grid) - self._clock.num_done_before
        if phase is not self.network and num_left > 0:
            total = format_count(len(phase.grid), "block")
            self.reporter.print_line(f"{phase.label}: {num_left:,} of {total} to do")
        self._write()

    def note_done(self, index: Zyx, computed: bool, info: Mapping[str, Any] | None = None) -> None:
        """Note that a block is done, whether the network ran on it, and what its record counts."""
        clock = self._clock
        for name in COUNTS:
            self.state[name] += (info or {}).get(name, 0)
        if computed and clock.phase is self.network:
            self._num_voxels += clock.phase.grid.box(index).num_voxels
            self.state["mvoxels_per_second"] = clock.mvoxels_per_second(self._num_voxels, time.monotonic())

    def note_set_aside(self, index: Zyx) -> None:
        """Note that a block is set aside."""
        phase, name = self._clock.phase, block_name(index)
        self.state["set_aside"].append(name if phase is self.network else f"{phase.name}/{name}")
        self._write()

    def tick(self, progress: PhaseProgress) -> None:
        """Show the progress of the phase, and write it from time to time."""
        now, clock = time.monotonic(), self._clock
        if progress.actors and clock.actors_since is None:
            clock.actors_since = now
        num_done = len(self.finished.done(clock.phase))
        seconds_left = clock.seconds_left(num_done, progress.set_aside, now)
        if clock.phase is self.network:
            self.state.update(
                done=num_done,
                skipped=self.finished.num_blank(self.network),
                mvoxels_per_second=clock.mvoxels_per_second(self._num_voxels, now),
            )
        self.state.update(seconds_left=seconds_left)
        self.reporter.show_live(self.line(progress, num_done, seconds_left))
        self._set_gauges(progress, num_done)
        if now - self._written_at >= FILE_PERIOD_S:
            self._write()

    def line(self, progress: PhaseProgress, num_done: int, seconds_left: float | None) -> str:
        """Return the live line."""
        phase = self._clock.phase
        parts = [f"{phase.label}: {num_done:,}/{format_count(len(phase.grid), 'block')}"]
        parts.append(format_count(progress.actors, "actor"))
        rate = self.state["mvoxels_per_second"]
        if phase is self.network and rate is not None:
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
        num_done, num_blank = len(self.finished.done(self.network)), self.finished.num_blank(self.network)
        self.state.update(state=state, done=num_done, skipped=num_blank, seconds_left=seconds_left)
        self._write()

    def _set_gauges(self, progress: PhaseProgress, num_done: int) -> None:
        values = {
            "blocks_done": num_done,
            "set_aside": progress.set_aside,
            "actors": progress.actors,
            "mvoxels_per_second": self.state["mvoxels_per_second"] or 0.0,
        }
        for name, value in values.items():
            self._gauges[name].set(value, tags={"phase": self._clock.phase.name})

    def _write(self) -> None:
        self._written_at = time.monotonic()
        with suppress(OSError):  # for people to watch; the work does not depend on it
            write_progress(self.output, self.state)


def _make_gauges() -> dict[str, Any]:
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

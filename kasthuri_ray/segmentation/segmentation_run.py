"""A run of a job's phases, from the metadata of the output to the last lines: Ray actors make the blocks."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

from kasthuri_ray.geometry import Zyx
from kasthuri_ray.output.block_grid import block_index, block_name
from kasthuri_ray.output.ledger import Ledger
from kasthuri_ray.output.ome_zarr import OmeZarrOutput
from kasthuri_ray.output.precomputed import PrecomputedCopy
from kasthuri_ray.output.side_files import object_table_path, read_object_table
from kasthuri_ray.progress import Reporter, Throttle
from kasthuri_ray.ray_cluster.process_priority import lower_helper_priority
from kasthuri_ray.segmentation import resume
from kasthuri_ray.segmentation.actor_plan import ActorPlan
from kasthuri_ray.segmentation.actor_pool import ActorPool, PhaseProgress
from kasthuri_ray.segmentation.actor_resources import make_actors
from kasthuri_ray.segmentation.block_failures import SetAsideBlock
from kasthuri_ray.segmentation.block_worker import BlockWorker
from kasthuri_ray.segmentation.finished_blocks import FinishedBlocks
from kasthuri_ray.segmentation.object_phases import ObjectsPhase
from kasthuri_ray.segmentation.phase import Phase
from kasthuri_ray.segmentation.phases import job_phases
from kasthuri_ray.segmentation.progress_report import SegmentationProgress
from kasthuri_ray.segmentation.segmentation_job import SegmentationJob
from kasthuri_ray.storage.lease import Lease
from kasthuri_ray.volumes.absent_chunks import absent_text

PRIORITY_PERIOD_S = 15.0  # between two searches for new helper processes of Ray


@dataclass(frozen=True)
class SegmentResult:
    """Result of a segmentation.

    Parameters
    ----------
    path : str
        Path or URL of the output.
    num_set_aside : int
        Blocks that failed and were set aside; 0 if the output is complete.
    metrics : dict
        `num_blocks`, `num_done` and `num_skipped` blocks of the network, those of earlier runs included; of this run
        its `seconds` and `mvoxels_per_second`, None if it segmented nothing. For a dry run what `<output>.plan.json`
        holds.
    table_path : str or None
        Path or URL of the table of objects; None if there is none.
    export_path : str or None
        Path of the exported file; None if nothing was exported.
    """

    path: str
    num_set_aside: int = 0
    metrics: dict[str, Any] = field(default_factory=dict)
    table_path: str | None = None
    export_path: str | None = None

    @cached_property
    def table(self) -> list[dict[str, Any]] | None:
        """The table of objects, a row for each, by the names of the columns; None if there is none."""
        return None if self.table_path is None else read_object_table(self.table_path)


class SegmentationRun:
    """A run of a job.

    Parameters
    ----------
    job : SegmentationJob
        The job.
    reporter : Reporter
        Shows lines of text.
    lease : Lease
        The lease of the output.
    """

    def __init__(self, job: SegmentationJob, reporter: Reporter, lease: Lease) -> None:
        self.job, self.reporter, self.lease = job, reporter, lease
        self.phases, self.ledger = job_phases(job), Ledger.beside(job.output)
        self.finished = FinishedBlocks(self.ledger)
        self.progress: SegmentationProgress | None = None
        self.set_aside: list[tuple[Phase, SetAsideBlock]] = []

    def run(self, actor_plan: ActorPlan, worker_class: type[BlockWorker]) -> SegmentResult:
        """Create the output or complete it, make all blocks, and report what was set aside.

        Parameters
        ----------
        actor_plan : ActorPlan
            How many actors, and what each holds.
        worker_class : type of BlockWorker
            What the actors run.

        Returns
        -------
        SegmentResult
            Where the output is.

        Raises
        ------
        ActorPoolStopped
            If it is no use to continue.
        LeaseLost
            If another run writes the output now.
        """
        start = time.monotonic()
        self._start_output()
        self.progress = SegmentationProgress(self.job.output, self.phases[0], self.finished, self.reporter)
        tick = self._make_tick(self.progress, worker_class)
        with ActorPool(make_actors(worker_class, self.job), actor_plan, self.reporter.print_line) as pool:
            for phase in self.phases:
                if phase.postponed and phase.source is not None and not self.finished.is_complete(phase.source):
                    self.reporter.print_line(phase.postponed)
                else:
                    if phase.postponed and phase.source is not None and not self.finished.is_complete(phase):
                        phase.prepare(self.finished.written(phase.source))
                    self._run_phase(phase, pool, self.progress, tick)
        self.lease.check()
        return self._finish(self.progress, start)

    def fail(self) -> None:
        """Note that the run has stopped early."""
        self.reporter.end()
        if self.progress is not None and not self.lease.lost.is_set():
            self.progress.fail()

    def _start_output(self) -> None:
        """Create the output and its ledger, or complete those of a segmentation that is resumed."""
        job = self.job
        if job.settings.segment.overwrite:
            resume.remove_segmentation(job)
        for line in resume.restart_objects(job, self.ledger):
            self.reporter.print_line(line)
        self.ledger.start(job.record)
        OmeZarrOutput.create(job.output, job.spec)
        if job.precomputed:
            resume.prepare_copy_ledger(job, self.ledger)
            PrecomputedCopy.create(job.precomputed, job.spec)

    def _run_phase(
        self,
        phase: Phase,
        pool: ActorPool,
        progress: SegmentationProgress,
        tick: Callable[[PhaseProgress], None],
    ) -> None:
        ledger, finished = self.ledger, self.finished
        progress.start_phase(phase)
        known_bad = {block_index(name) for name in ledger.blocks_set_aside(phase.name)}

        def on_done(index: Any, info: dict[str, Any]) -> None:
            finished.note_done(phase, index, not info["blank"])
            progress.note_done(index, info.get("computed", False), info)
            if index in known_bad:
                ledger.clear_set_aside(phase.name, block_name(index))

        def on_set_aside(block: SetAsideBlock) -> None:
            index = cast(Zyx, block.block)
            info = {"box": str(phase.grid.box(index)), "reason": block.reason, "traceback": block.traceback}
            ledger.set_aside(phase.name, block_name(index), info)
            progress.note_set_aside(index)

        pending = finished.pending(phase)
        outcome = pool.run(
            phase.name, pending, known_bad=known_bad, on_done=on_done, on_set_aside=on_set_aside, tick=tick
        )
        self.set_aside += [(phase, each) for each in outcome.set_aside]

    def _make_tick(
        self, progress: SegmentationProgress, worker_class: type[BlockWorker]
    ) -> Callable[[PhaseProgress], None]:
        """Return what is called about once a second while a phase runs."""
        priority = Throttle(PRIORITY_PERIOD_S)

        def tick(phase_progress: PhaseProgress) -> None:
            self.lease.check()
            progress.tick(phase_progress)
            if priority.due():
                lower_helper_priority(actors=[worker_class])

        return tick

    def _finish(self, progress: SegmentationProgress, start: float) -> SegmentResult:
        """Complete the phases whose blocks are all done, and report what is left."""
        job, reporter, num_set_aside = self.job, self.reporter, len(self.set_aside)
        reporter.end()
        for phase in self.phases:
            if self.finished.is_complete(phase):
                for line in phase.finish(self.finished.written(phase)).splitlines():
                    reporter.print_line(line)
            if isinstance(phase, ObjectsPhase):
                progress.state.update(phase.summary)
        progress.finish()
        if num_absent := progress.state["absent_chunks"]:
            reporter.print_line(absent_text(job.image.uri, num_absent, progress.state["chunks"]))
        if num_nan := progress.state["nan_voxels"]:
            reporter.print_line(f"{num_nan:,} voxels of {job.image.uri} are nan: not imaged, written as 0")
        for phase, each in self.set_aside:
            name, box = block_name(cast(Zyx, each.block)), phase.grid.box(cast(Zyx, each.block))
            reporter.print_line(f"set aside, {phase.label}: block {name} ({box}): {each.reason}")
        if num_set_aside:
            are, them = ("s are", "them") if num_set_aside > 1 else (" is", "it")
            reporter.print_line(
                f"{num_set_aside} block{are} set aside, with tracebacks in {self.ledger.set_aside_path}; the same "
                f"command retries {them}"
            )
        has_table = any(isinstance(each, ObjectsPhase) and self.finished.is_complete(each) for each in self.phases)
        table_path = object_table_path(job.output, job.class_names) if has_table else None
        metrics = {**progress.metrics, "seconds": time.monotonic() - start}
        return SegmentResult(job.output, num_set_aside, metrics, table_path)

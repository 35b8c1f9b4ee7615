"""Segmentation of a volume from settings to the last phase: prepare, plan, run the phases, report.

Ray actors make the blocks. Whatever process dies, the same command resumes where the segmentation stopped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, cast

from kasthuri_ray.config.loading import explicit_value, override_layers, resolve_settings
from kasthuri_ray.config.settings import Settings
from kasthuri_ray.errors import ActorPoolStopped, InputError, WorkFailed, missing_is_bad_input
from kasthuri_ray.geometry import Zyx
from kasthuri_ray.metrics.objects import join_objects
from kasthuri_ray.output.block_grid import block_index, block_name
from kasthuri_ray.output.ledger import LOCK_FILE, Ledger, read_components
from kasthuri_ray.output.ome_zarr import OmeZarrOutput
from kasthuri_ray.output.precomputed import PrecomputedCopy
from kasthuri_ray.output.side_files import object_table_path, write_object_table, write_plan
from kasthuri_ray.progress import Reporter, Throttle, format_count
from kasthuri_ray.ray_cluster.connection import connect_ray
from kasthuri_ray.ray_cluster.driver import exit_on_sigterm
from kasthuri_ray.ray_cluster.output_paths import check_shared_path, check_writable_path, resolve_output_path
from kasthuri_ray.ray_cluster.process_priority import lower_helper_priority
from kasthuri_ray.ray_cluster.resources import ClusterResources
from kasthuri_ray.segmentation import output_checks, resume
from kasthuri_ray.segmentation.actor_plan import ActorPlan
from kasthuri_ray.segmentation.actor_pool import ActorPool, PhaseProgress
from kasthuri_ray.segmentation.actor_resources import (
    actor_class,
    check_actor_memory,
    choose_settings_on_cluster,
    count_working_actors,
    plan_actors,
    time_tiles,
    wait_for_actors,
)
from kasthuri_ray.segmentation.block_failures import SetAsideBlock
from kasthuri_ray.segmentation.finished_blocks import FinishedBlocks
from kasthuri_ray.segmentation.phases import OBJECTS, SEGMENT, job_phases, phase_grid, phase_label
from kasthuri_ray.segmentation.plan import SegmentationPlan, describe_plan, plan_segmentation
from kasthuri_ray.segmentation.progress_report import SegmentationProgress
from kasthuri_ray.segmentation.segmentation_inputs import SegmentationInputs, prepare_segmentation
from kasthuri_ray.segmentation.segmentation_job import SegmentationJob
from kasthuri_ray.segmentation.trained_network import TrainedNetwork, read_trained_network
from kasthuri_ray.storage.folder import open_storage
from kasthuri_ray.storage.lease import Lease

PLAIN_PERIOD_S = 60.0  # between lines of progress outside a terminal
PRIORITY_PERIOD_S = 15.0  # between two searches for new helper processes of Ray
RESUME_COMMAND = "the same command"  # if the caller passes none


@dataclass(frozen=True)
class SegmentResult:
    """Result of a segmentation.

    Parameters
    ----------
    path : str
        Path or URL of the output.
    num_set_aside : int
        Blocks that failed and were set aside; 0 if the output is complete.
    """

    path: str
    num_set_aside: int = 0


@missing_is_bad_input()
def segment_from_flags(
    task: str | None, network: str | None, layers: Mapping[str, Any], resume_command: str = RESUME_COMMAND
) -> SegmentResult:
    """Resolve the settings of a command line, and segment.

    Parameters
    ----------
    task, network : str or None
        Values of `--task` and `--network`.
    layers : mapping
        `config`, `assignments` and `flags`, as `config.loading.resolve_settings` takes them.
    resume_command : str
        Command that resumes the segmentation, shown to people.

    Returns
    -------
    SegmentResult
        Where the output is, and how many blocks were set aside.

    Raises
    ------
    InputError
        If weights or output are missing, or if `segment` raises it.
    WorkFailed
        If `segment` raises it.
    """
    above = override_layers(**layers)
    path, output = (explicit_value("segment", key, above) for key in ("weights", "output"))
    if not path:
        raise InputError("no weights: give --weights with the folder of a run, or with a file of weights")
    if not output:
        raise InputError("no output: give --output with a path or s3://bucket/name.zarr for the probabilities")
    trained = read_trained_network(path)
    if trained.settings is None and (network is None or task is None):
        raise InputError(
            f"{trained.where} holds only weights, without the settings of their network and task: give --network and "
            "--task, or the folder of a run"
        )
    base = (trained.where, trained.settings) if trained.settings else None
    return segment(resolve_settings(task, network, base=base, **layers), trained, resume_command)


@missing_is_bad_input()
def segment(settings: Settings, trained: TrainedNetwork, resume_command: str = RESUME_COMMAND) -> SegmentResult:
    """Segment a volume, or only plan it if `segment.dry_run` is set.

    Parameters
    ----------
    settings : Settings
        All settings of the job.
    trained : TrainedNetwork
        The network's weights and what is known about them.
    resume_command : str
        Command that resumes the segmentation, shown to people.

    Returns
    -------
    SegmentResult
        Where the output is; no block counts as set aside in a dry run.

    Raises
    ------
    InputError
        If a setting or an input does not fit; nothing was written then.
    WorkFailed
        If the segmentation stops after it started; the message shows `resume_command`.
    """
    requested, reporter, notes = settings.segment, Reporter(plain_period_s=PLAIN_PERIOD_S), list[str]()
    output_checks.check_output_paths(str(requested.output), requested.precomputed)
    inputs = prepare_segmentation(settings, trained, notes.append)
    volumes = {"image": inputs.image, "mask": inputs.mask}
    output_checks.check_outside_volumes(str(requested.output), requested.precomputed, volumes)
    cluster = connect_ray(requested.verbose)
    output = _resolve_path(str(requested.output), "--output", cluster, requested.dry_run)
    copy = requested.precomputed and _resolve_path(requested.precomputed, "--precomputed", cluster, requested.dry_run)
    record = resume.read_existing_record(output, requested.overwrite)
    print(output, flush=True)  # the first line, for scripts
    with exit_on_sigterm(), ExitStack() as stack:
        lease = None
        if not requested.dry_run and Ledger.beside(output).is_locked():  # fails at once if the other run is alive
            lease = stack.enter_context(_acquire_lease(output, reporter))
        job, actor_plan = _plan_job(inputs, output, copy, record, cluster, reporter)
        for note in notes:
            reporter.print_line(note)
        plan = _plan_work(job, inputs, actor_plan, record is not None, reporter)
        if requested.dry_run:
            return _finish_dry_run(job, plan, reporter)
        output_checks.check_free_space(job, plan)
        reporter.print_line(f"to resume after a stop: {resume_command}")
        lease = lease or stack.enter_context(_acquire_lease(output, reporter))
        if not requested.overwrite:  # another run may have started and ended meanwhile
            resume.check_same_settings(resume.read_existing_record(output, False), job)
        return _run_segmentation(job, actor_plan, reporter, lease, resume_command, requested.overwrite)


def _resolve_path(path: str, flag: str, cluster: ClusterResources, dry_run: bool) -> str:
    """Return the absolute path or URL of an output, after a check that all nodes can write to it."""
    resolved = open_storage(resolve_output_path(path, cluster, flag)).path
    if not dry_run:
        check_writable_path(resolved.rpartition("/")[0] or "/", flag)
        check_shared_path(resolved, cluster, flag)
    return resolved


def _acquire_lease(output: str, reporter: Reporter) -> Lease:
    return Lease.acquire(
        Ledger.beside(output).storage, LOCK_FILE, report=reporter.print_line, alternative="another --output"
    )


def _plan_job(
    inputs: SegmentationInputs,
    output: str,
    copy: str | None,
    record: dict[str, Any] | None,
    cluster: ClusterResources,
    reporter: Reporter,
) -> tuple[SegmentationJob, ActorPlan]:
    """Return the job and the plan of its actors, once the cluster has room for them; InputError if it never has."""
    requested, machine = inputs.settings.segment, None
    if record is not None:
        inference = resume.restore_inference_settings(record, inputs)
    else:
        inference, machine = choose_settings_on_cluster(inputs, cluster, reporter.print_line)
    job = inputs.make_job(output, inference, copy)
    resume.check_same_settings(record, job)
    resume.check_precomputed_copy(job, requested.overwrite)
    actor_plan = plan_actors(requested, inference, cluster, len(phase_grid(job, SEGMENT)))
    wait_for_actors(actor_plan, requested.wait_for_resources, reporter.print_line)
    if machine is not None:
        check_actor_memory(inputs, inference, machine, math.ceil(actor_plan.min_actors / cluster.nodes))
    return job, actor_plan


def _plan_work(
    job: SegmentationJob, inputs: SegmentationInputs, actor_plan: ActorPlan, is_started: bool, reporter: Reporter
) -> SegmentationPlan:
    """Return the plan, and report it.

    A sample is timed in a dry run, if the halo is smaller than it should be, for the error that this makes, and if the
    disk has no room for uncompressed probabilities, for their compression.
    """
    requested, grid = inputs.settings.segment, phase_grid(job, SEGMENT)
    is_halo_smaller = job.halo != job.receptive_field.margin
    needs_sample = requested.dry_run or is_halo_smaller or not output_checks.fits_uncompressed(job)
    plan = plan_segmentation(
        job,
        inputs.network,
        num_done=len(Ledger.beside(job.output).done(SEGMENT)) if is_started else 0,
        num_actors=count_working_actors(actor_plan, len(grid)),
        gpus_per_actor=actor_plan.num_gpus,
        price_per_hour=requested.price_per_hour,
        timing=time_tiles(job, actor_plan) if needs_sample else None,
    )
    for line in describe_plan(plan, job):
        reporter.print_line(line)
    return plan


def _finish_dry_run(job: SegmentationJob, plan: SegmentationPlan, reporter: Reporter) -> SegmentResult:
    """Write the plan, and report whether the disk has room for the output."""
    try:
        text = output_checks.check_free_space(job, plan)
    except (ValueError, PermissionError) as error:
        text = f"the segmentation could not start: {error}"
    if text:
        reporter.print_line(text)
    write_plan(job.output, plan.to_json())
    print(job.output, flush=True)
    return SegmentResult(job.output)


def _run_segmentation(
    job: SegmentationJob,
    actor_plan: ActorPlan,
    reporter: Reporter,
    lease: Lease,
    resume_command: str,
    overwrite: bool,
) -> SegmentResult:
    """Run all phases, from the metadata of the output to the last lines. Raise WorkFailed if the work stops."""
    progress = None
    try:
        finished = _start_output(job, overwrite)
        progress = SegmentationProgress(job, finished, reporter)
        set_aside = _run_phases(job, actor_plan, finished, progress, reporter, lease)
        return _finish(job, finished, set_aside, progress, reporter)
    except BaseException as error:
        reporter.end()
        if progress is not None and not lease.lost.is_set():
            progress.fail()
        if not isinstance(error, Exception):  # Ctrl-C, or SIGTERM
            reporter.print_line(f"to resume: {resume_command}")
            raise
        is_expected = isinstance(error, ActorPoolStopped | OSError | WorkFailed) or lease.lost.is_set()
        text = str(error) if is_expected else f"{type(error).__name__}: {error} (--verbose shows where)"
        raise WorkFailed(f"{text}\nto resume: {resume_command}") from error


def _start_output(job: SegmentationJob, overwrite: bool) -> FinishedBlocks:
    """Create the output and its ledger, or complete those of a segmentation that is resumed."""
    if overwrite:
        resume.remove_segmentation(job)
    ledger = Ledger.beside(job.output)
    ledger.start(job.record)
    OmeZarrOutput.create(job.output, job.spec)
    if job.precomputed:
        resume.prepare_copy_ledger(job, ledger)
        PrecomputedCopy.create(job.precomputed, job.spec)
    return FinishedBlocks(job, ledger)


def _run_phases(
    job: SegmentationJob,
    actor_plan: ActorPlan,
    finished: FinishedBlocks,
    progress: SegmentationProgress,
    reporter: Reporter,
    lease: Lease,
) -> list[tuple[str, SetAsideBlock]]:
    """Run the phases one after the other; return the blocks that were set aside, each with its phase."""
    import ray

    job_ref, actor, set_aside = ray.put(job), actor_class(), list[tuple[str, SetAsideBlock]]()
    tick = _make_tick(progress, lease)
    with ActorPool(lambda options: actor.options(**options).remote(job_ref), actor_plan, reporter.print_line) as pool:
        for phase in job_phases(job):
            if phase == OBJECTS and not finished.is_complete(SEGMENT):
                reporter.print_line(
                    "the object table is not written yet: some blocks were set aside; run the same command again"
                )
                continue
            progress.start_phase(phase)
            set_aside += [(phase, each) for each in _run_phase(pool, phase, finished, progress, tick)]
    lease.check()
    return set_aside


def _run_phase(
    pool: ActorPool,
    phase: str,
    finished: FinishedBlocks,
    progress: SegmentationProgress,
    tick: Callable[[PhaseProgress], None],
) -> list[SetAsideBlock]:
    ledger, grid = finished.ledger, phase_grid(finished.job, phase)
    known_bad = {block_index(name) for name in ledger.blocks_set_aside(phase)}

    def on_done(index: Any, info: dict[str, Any]) -> None:
        finished.note_done(phase, index, not info["blank"])
        progress.note_done(index, info.get("computed", False))
        if index in known_bad:
            ledger.clear_set_aside(phase, block_name(index))

    def on_set_aside(block: SetAsideBlock) -> None:
        index = cast(Zyx, block.block)
        info = {"box": str(grid.box(index)), "reason": block.reason, "traceback": block.traceback}
        ledger.set_aside(phase, block_name(index), info)
        progress.note_set_aside(index)

    pending = finished.pending(phase)
    outcome = pool.run(phase, pending, known_bad=known_bad, on_done=on_done, on_set_aside=on_set_aside, tick=tick)
    return outcome.set_aside


def _make_tick(progress: SegmentationProgress, lease: Lease) -> Callable[[PhaseProgress], None]:
    """Return what is called about once a second while a phase runs."""
    priority = Throttle(PRIORITY_PERIOD_S)

    def tick(phase_progress: PhaseProgress) -> None:
        lease.check()
        progress.tick(phase_progress)
        if priority.due():
            lower_helper_priority()

    return tick


def _finish(
    job: SegmentationJob,
    finished: FinishedBlocks,
    set_aside: list[tuple[str, SetAsideBlock]],
    progress: SegmentationProgress,
    reporter: Reporter,
) -> SegmentResult:
    """Write the table of objects, and report the last lines."""
    reporter.end()
    if job.objects and finished.is_complete(OBJECTS):
        reporter.print_line(_write_objects(job, finished))
    progress.finish()
    for phase, each in set_aside:
        index = cast(Zyx, each.block)
        name, box = block_name(index), phase_grid(job, phase).box(index)
        reporter.print_line(f"set aside, {phase_label(phase)}: block {name} ({box}): {each.reason}")
    if set_aside:
        are, them = ("s are", "them") if len(set_aside) > 1 else (" is", "it")
        reporter.print_line(
            f"{len(set_aside)} block{are} set aside, with tracebacks in {finished.ledger.set_aside_path}; the same "
            f"command retries {them}"
        )
    print(job.output, flush=True)
    return SegmentResult(job.output, len(set_aside))


def _write_objects(job: SegmentationJob, finished: FinishedBlocks) -> str:
    """Write the table of objects; return a line about it."""
    path, finest = object_table_path(job.output, job.task_type), job.levels[0]
    table = join_objects(read_components(finished.ledger, name) for name in finished.written(OBJECTS))
    voxel_size_nm = finest.scale if job.spec.nanometers else None
    write_object_table(table, path, voxel_size_nm, finest.translation, start=job.box.start)
    return f"{format_count(len(table), 'object')}: {path}"

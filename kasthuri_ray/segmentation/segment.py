"""Segment a volume: actors of Ray make its blocks, whatever dies, and the same command goes on where it stopped."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from kasthuri_ray.config.loading import explicit_value, layers_above, resolve_settings
from kasthuri_ray.config.settings import Settings
from kasthuri_ray.errors import ActorPoolStopped, WorkFailed
from kasthuri_ray.geometry import Zyx
from kasthuri_ray.metrics.objects import ObjectTable, join_objects
from kasthuri_ray.output.block_grid import block_index, block_name
from kasthuri_ray.output.ledger import Ledger, read_components
from kasthuri_ray.output.ome_zarr import OmeZarrOutput
from kasthuri_ray.output.precomputed import PrecomputedCopy
from kasthuri_ray.progress import Reporter, Throttle, format_count
from kasthuri_ray.ray_cluster.connection import connect_ray
from kasthuri_ray.ray_cluster.driver import exit_on_sigterm
from kasthuri_ray.ray_cluster.output_paths import check_shared_path, check_writable_path, resolve_output_path
from kasthuri_ray.ray_cluster.process_priority import lower_helper_priority
from kasthuri_ray.ray_cluster.resources import ClusterResources
from kasthuri_ray.segmentation import resume
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
from kasthuri_ray.segmentation.actors import ActorPlan
from kasthuri_ray.segmentation.block_scheduler import SetAsideBlock
from kasthuri_ray.segmentation.plan import SegmentationPlan, describe_plan, plan_segmentation
from kasthuri_ray.segmentation.progress_report import SegmentationProgress
from kasthuri_ray.segmentation.segmentation_inputs import SegmentationInputs, prepare_segmentation
from kasthuri_ray.segmentation.segmentation_job import (
    OBJECTS,
    SEGMENT,
    BlockTracker,
    SegmentationJob,
    job_phases,
    phase_grid,
    phase_label,
)
from kasthuri_ray.segmentation.trained_network import TrainedNetwork, read_trained_network
from kasthuri_ray.storage.folder import open_storage
from kasthuri_ray.storage.lease import Lease

PLAIN_PERIOD_S = 60.0
RESUME_COMMAND = "the same command"  # where nobody passed the words
PRIORITY_PERIOD_S = 15.0  # how often Ray's new helpers are told to give way


@dataclass(frozen=True)
class SegmentResult:
    """What a segmentation left.

    Parameters
    ----------
    path : str
        The output.
    num_set_aside : int
        Blocks that failed and were set aside; 0 if all of the output is written.
    """

    path: str
    num_set_aside: int = 0


def segment_from_flags(
    task: str | None, network: str | None, layers: Mapping[str, Any], resume_command: str = RESUME_COMMAND
) -> SegmentResult:
    """Segment as a command line asks; `segment` has the rest.

    Parameters
    ----------
    task, network : str or None
        Values of `--task` and `--network`.
    layers : mapping
        `config`, `assignments` and `flags`, as `config.loading.resolve_settings` takes them.
    resume_command : str
        The command that resumes, for people to type.

    Returns
    -------
    SegmentResult

    Raises
    ------
    ValueError
        If weights or output are missing, or as for `segment`.
    """
    above = layers_above(**layers)
    path, output = (explicit_value("segment", key, above) for key in ("weights", "output"))
    if not path:
        raise ValueError("say which network: --weights with a run's folder, or with a file of weights")
    if not output:
        raise ValueError("say where the probabilities go: --output with a path or s3://bucket/name.zarr")
    trained = read_trained_network(path)
    if trained.settings is None and (network is None or task is None):
        raise ValueError(
            f"{trained.where} holds weights alone, and nothing says of which network and task: give --network and "
            "--task, or the folder of a run"
        )
    base = (trained.where, trained.settings) if trained.settings else None
    return segment(resolve_settings(task, network, base=base, **layers), trained, resume_command)


def segment(settings: Settings, trained: TrainedNetwork, resume_command: str = RESUME_COMMAND) -> SegmentResult:
    """Segment a volume, or only plan it where `segment.dry_run` is set.

    Parameters
    ----------
    settings : Settings
        All settings of the job.
    trained : TrainedNetwork
        The network's weights and what is known about them.
    resume_command : str
        The command that resumes, for people to type.

    Returns
    -------
    SegmentResult

    Raises
    ------
    ValueError
        For bad input, before anything is written.
    WorkFailed
        If the work stops after it began.
    """
    asked, reporter, notes = settings.segment, Reporter(plain_period_s=PLAIN_PERIOD_S), list[str]()
    resume.check_output_places(str(asked.output), asked.precomputed)
    prepared = prepare_segmentation(settings, trained, notes.append)
    read = {"image": prepared.image, "mask": prepared.mask}
    resume.check_output_outside_volumes(str(asked.output), asked.precomputed, read)
    cluster = connect_ray(asked.verbose)
    output = _resolve_place(str(asked.output), "--output", cluster, asked.dry_run)
    copy = asked.precomputed and _resolve_place(asked.precomputed, "--precomputed", cluster, asked.dry_run)
    begun = resume.read_begun_record(output, asked.overwrite)
    print(output, flush=True)  # the first line, for scripts
    with exit_on_sigterm(), ExitStack() as held:
        lease = None
        if not asked.dry_run and Ledger.beside(output).storage.exists("lock.json"):
            lease = held.enter_context(_lease(output, reporter))  # refused at once where another run is alive
        job, crew = _plan_job(prepared, output, copy, begun, cluster, reporter)
        for note in notes:
            reporter.line(note)
        plan = _plan(job, prepared, crew, begun is not None, reporter)
        if asked.dry_run:
            return _write_dry_run(job, plan, reporter)
        resume.check_free_space(job, plan)
        reporter.line(f"to go on after a stop: {resume_command}")
        lease = lease or held.enter_context(_lease(output, reporter))
        if not asked.overwrite:
            resume.check_same_settings(
                resume.read_begun_record(output, False), job
            )  # whoever held it may have ended by now
        return _run_segmentation(job, crew, reporter, lease, resume_command, asked.overwrite)


def _resolve_place(path: str, flag: str, cluster: ClusterResources, dry_run: bool) -> str:
    place = resume.absolute_path(resolve_output_path(path, cluster, flag))
    if not dry_run:
        check_writable_path(place.rpartition("/")[0] or "/", flag)
        check_shared_path(place, cluster, flag)
    return place


def _lease(output: str, reporter: Reporter) -> Lease:
    return Lease.acquire(Ledger.beside(output).storage, say=reporter.line, instead="another --output")


def _plan_job(
    prepared: SegmentationInputs,
    output: str,
    copy: str | None,
    begun: dict[str, Any] | None,
    cluster: ClusterResources,
    reporter: Reporter,
) -> tuple[SegmentationJob, ActorPlan]:
    """What is to be done, and by whom, once the cluster has room for it. Raises ValueError for what cannot be."""
    asked, machine = prepared.settings.segment, None
    if begun is not None:
        arithmetic = resume.resumed_inference_settings(begun, prepared)
    else:
        arithmetic, machine = choose_settings_on_cluster(prepared, cluster, reporter.line)
    job = prepared.job(output, arithmetic, copy)
    resume.check_same_settings(begun, job)
    resume.check_precomputed_copy(job, asked.overwrite)
    crew = plan_actors(asked, arithmetic, cluster, len(phase_grid(job, SEGMENT)))
    wait_for_actors(crew, asked.wait_for_resources, reporter.line)
    if machine is not None:
        check_actor_memory(prepared, arithmetic, machine, math.ceil(crew.fewest / cluster.nodes))
    return job, crew


def _plan(
    job: SegmentationJob, prepared: SegmentationInputs, crew: ActorPlan, begun: bool, reporter: Reporter
) -> SegmentationPlan:
    """The plan, said in a few lines; a sample is timed for it where hours are wanted, or something else depends on it.

    That is how far a smaller halo is off, and, where the disk is not large enough for all of it as it is, how well it
    compresses.
    """
    asked = prepared.settings.segment
    sample = asked.dry_run or job.halo != job.reach.margin or not resume.fits_uncompressed(job)
    plan = plan_segmentation(
        job,
        prepared.network,
        done=len(Ledger.beside(job.output).done(SEGMENT)) if begun else 0,
        actors=count_working_actors(crew, len(phase_grid(job, SEGMENT))),
        gpus_per_actor=crew.num_gpus,
        price_per_hour=asked.price_per_hour,
        timing=time_tiles(job, crew) if sample else None,
    )
    for line in describe_plan(plan, job):
        reporter.line(line)
    return plan


def _write_dry_run(job: SegmentationJob, plan: SegmentationPlan, reporter: Reporter) -> SegmentResult:
    """Write the plan, and say whether the disk has room for the output."""
    try:
        words = resume.check_free_space(job, plan)
    except (ValueError, PermissionError) as error:
        words = f"it could not begin: {error}"
    if words:
        reporter.line(words)
    resume.write_plan(job.output, plan)
    print(job.output, flush=True)
    return SegmentResult(job.output)


def _run_segmentation(
    job: SegmentationJob, crew: ActorPlan, reporter: Reporter, lease: Lease, resume_command: str, overwrite: bool
) -> SegmentResult:
    """Do all phases, from an empty output to the last lines. Raise WorkFailed if the work stops."""
    telling = None
    try:
        if overwrite:
            resume.remove_segmentation(job)
        ledger = Ledger.beside(job.output)
        ledger.begin(job.record)
        OmeZarrOutput.create(job.output, job.spec)
        if job.precomputed:
            resume.prepare_copy_ledger(job, ledger)
            PrecomputedCopy.create(job.precomputed, job.spec)
        todo = BlockTracker(job, ledger)
        telling = SegmentationProgress(job, todo, reporter)
        aside = _run_phases(job, crew, todo, telling, reporter, lease)
        return _finish(job, todo, aside, telling, reporter)
    except BaseException as error:
        reporter.end()
        if telling is not None and not lease.lost.is_set():
            telling.fail()
        if not isinstance(error, Exception):  # Ctrl-C, or SIGTERM
            reporter.line(f"to go on: {resume_command}")
            raise
        known = isinstance(error, ActorPoolStopped | OSError | WorkFailed) or lease.lost.is_set()
        words = str(error) if known else f"{type(error).__name__}: {error} (--verbose shows where)"
        raise WorkFailed(f"{words}\nto go on: {resume_command}") from error


def _run_phases(
    job: SegmentationJob,
    crew: ActorPlan,
    todo: BlockTracker,
    telling: SegmentationProgress,
    reporter: Reporter,
    lease: Lease,
) -> list[tuple[str, SetAsideBlock]]:
    """All phases, one after the other; gives what was set aside, each with its phase."""
    import ray

    reference, actor, aside = ray.put(job), actor_class(), list[tuple[str, SetAsideBlock]]()
    tick = _tick(telling, lease)
    with ActorPool(lambda options: actor.options(**options).remote(reference), crew, reporter.line) as pool:
        for phase in job_phases(job):
            if phase == OBJECTS and not todo.is_whole(SEGMENT):
                reporter.line("objects are joined once every block is done")
                continue
            telling.begin(phase)
            outcome = _run_phase(pool, phase, todo, telling, tick)
            aside += [(phase, each) for each in outcome]
    lease.check()
    return aside


def _run_phase(
    pool: ActorPool,
    phase: str,
    todo: BlockTracker,
    telling: SegmentationProgress,
    tick: Callable[[PhaseProgress], None],
) -> list[SetAsideBlock]:
    ledger = todo.ledger
    bad = {block_index(name) for name in ledger.aside(phase)}

    def on_done(index: Any, info: dict[str, Any]) -> None:
        todo.note_done(phase, index, not info["blank"])
        telling.note_done(index, info.get("computed", False))
        if index in bad:
            ledger.clear_aside(phase, block_name(index))

    def on_aside(aside: SetAsideBlock) -> None:
        index: Zyx = aside.block  # type: ignore[assignment]
        box = phase_grid(todo.job, phase).box(index)
        about = {"box": str(box), "reason": aside.reason, "traceback": aside.traceback}
        ledger.set_aside(phase, block_name(index), about)
        telling.note_aside(index)

    pending = todo.pending(phase)
    return pool.run(phase, pending, known_bad=bad, on_done=on_done, on_aside=on_aside, tick=tick).set_aside


def _tick(telling: SegmentationProgress, lease: Lease) -> Callable[[PhaseProgress], None]:
    """What is done about once a second."""
    priority = Throttle(PRIORITY_PERIOD_S)

    def tick(progress: PhaseProgress) -> None:
        lease.check()
        telling.tick(progress)
        if priority.due():
            lower_helper_priority()

    return tick


def _finish(
    job: SegmentationJob,
    todo: BlockTracker,
    aside: list[tuple[str, SetAsideBlock]],
    telling: SegmentationProgress,
    reporter: Reporter,
) -> SegmentResult:
    """Write the table of objects and the last lines."""
    reporter.end()
    if job.objects and todo.is_whole(OBJECTS):
        path, finest = resume.table_path(job), job.levels[0]
        table = join_objects(read_components(todo.ledger, name) for name in todo.written(OBJECTS))
        size = finest.scale if job.spec.nanometers else None
        write_object_table(table, path, size, finest.translation, start=job.box.start)
        reporter.line(f"{format_count(len(table), 'object')}: {path}")
    telling.finish()
    for phase, each in aside:
        box = phase_grid(job, phase).box(each.block)  # type: ignore[arg-type]
        reporter.line(f"set aside, {phase_label(phase)}: block {block_name(each.block)} ({box}): {each.reason}")  # type: ignore[arg-type]
    if aside:
        num = f"{len(aside)} block{'s are' if len(aside) > 1 else ' is'}"
        reporter.line(
            f"{num} set aside, with tracebacks in {todo.ledger.storage.path}/aside; the same command tries "
            f"{'them' if len(aside) > 1 else 'it'} again"
        )
    print(job.output, flush=True)
    return SegmentResult(job.output, len(aside))


def write_object_table(
    table: ObjectTable,
    path: str,
    voxel_size_nm: Sequence[float] | None,
    translation_nm: Sequence[float] = (0.0, 0.0, 0.0),
    start: Zyx = (0, 0, 0),
) -> None:
    """Write the table as CSV to a path or `s3://` URL, whole or not at all.

    Centroids are index * voxel size + translation in nm; in voxels, and the header says so, where no size is known.
    Boxes are half-open, in voxels; `start` is added to them: of an output, where it begins in its image. Probabilities
    are from 0 to 1.
    """
    folder, _, name = path.rpartition("/")
    lines = table.rows(voxel_size_nm, translation_nm, start)
    open_storage(folder or ".").write_bytes(name, "".join(f"{line}\n" for line in lines).encode())

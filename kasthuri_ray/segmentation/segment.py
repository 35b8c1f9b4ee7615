"""Segmentation of a volume from settings to the last phase: prepare, plan, run the phases, report.

Ray actors make the blocks. Whatever process dies, the same command resumes where the segmentation stopped.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

from torch import nn

from kasthuri_ray.config.loading import GivenSettings, resolve_settings
from kasthuri_ray.config.settings import SegmentSettings, Settings
from kasthuri_ray.errors import ActorPoolStopped, InputError, UnforeseenFailure, WorkFailed, missing_is_bad_input
from kasthuri_ray.hardware import Machine
from kasthuri_ray.inference.inference_settings import InferenceSettings
from kasthuri_ray.output.ledger import LOCK_FILE, Ledger
from kasthuri_ray.output.side_files import write_plan
from kasthuri_ray.progress import Reporter
from kasthuri_ray.ray_cluster.connection import check_local_gpu, connect_ray
from kasthuri_ray.ray_cluster.driver import exit_on_sigterm
from kasthuri_ray.ray_cluster.output_paths import (
    SINGLE_NODE,
    check_shared_path,
    check_writable_path,
    resolve_output_path,
)
from kasthuri_ray.ray_cluster.resources import ClusterResources
from kasthuri_ray.segmentation import output_checks, resume
from kasthuri_ray.segmentation.actor_plan import ActorPlan
from kasthuri_ray.segmentation.actor_resources import (
    check_actor_memory,
    check_local_actors,
    choose_settings_on_cluster,
    count_working_actors,
    plan_actors,
    time_tiles,
    wait_for_actors,
)
from kasthuri_ray.segmentation.block_worker import BlockWorker
from kasthuri_ray.segmentation.ensemble import read_trained_networks
from kasthuri_ray.segmentation.export import (
    ExportRequest,
    check_export_place,
    export_finished_output,
    export_output,
    read_export_request,
    resolve_export,
)
from kasthuri_ray.segmentation.phases import NetworkPhase
from kasthuri_ray.segmentation.plan import SegmentationPlan, describe_plan, plan_segmentation
from kasthuri_ray.segmentation.segmentation_inputs import prepare_segmentation
from kasthuri_ray.segmentation.segmentation_job import SegmentationInputs, SegmentationJob
from kasthuri_ray.segmentation.segmentation_run import SegmentationRun, SegmentResult
from kasthuri_ray.segmentation.trained_network import TrainedNetwork, build_trained_network
from kasthuri_ray.storage.folder import open_storage
from kasthuri_ray.storage.lease import Lease


@missing_is_bad_input()
def segment_from_flags(
    given: GivenSettings,
    reporter: Reporter,
    resume_command: str,
    worker_class: type[BlockWorker] = BlockWorker,
) -> SegmentResult:
    """Resolve what a person gave to settings, and segment.

    Parameters
    ----------
    given : GivenSettings
        What a person gave.
    reporter, resume_command, worker_class : Reporter, str, type of BlockWorker
        As for `segment`.

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
    path, output = (given.value("segment", key) for key in ("weights", "output"))
    more = given.value("segment", "more_weights") or []
    if not path and output and given.value("segment", "export"):
        return export_finished_output(given, reporter)
    if not path:
        raise InputError("no weights: give --weights with the folder of a run, or with a file of weights")
    if not output:
        raise InputError("no output: give --output with a path or s3://bucket/name.zarr for the probabilities")
    trained = read_trained_networks([path, *([more] if isinstance(more, str) else more)])
    if trained.settings is None and (given.network is None or given.task is None):
        raise InputError(
            f"{trained.where} holds only weights, without the settings of their network and task: give --network and "
            "--task, or the folder of a run"
        )
    base = (trained.where, trained.settings) if trained.settings else None
    return segment(resolve_settings(given, base), trained, reporter, resume_command, worker_class)


@missing_is_bad_input()
def segment(
    settings: Settings,
    trained: TrainedNetwork,
    reporter: Reporter,
    resume_command: str,
    worker_class: type[BlockWorker] = BlockWorker,
) -> SegmentResult:
    """Segment a volume, or only plan it if `segment.dry_run` is set.

    Parameters
    ----------
    settings : Settings
        All settings of the job.
    trained : TrainedNetwork
        The network's weights and what is known about them.
    reporter : Reporter
        Shows lines and progress.
    resume_command : str
        Command that resumes the segmentation, shown to people.
    worker_class : type of BlockWorker
        What the actors run.

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
    requested, notes = settings.segment, list[str]()
    output_checks.check_output_paths(str(requested.output), requested.precomputed)
    network = build_trained_network(settings, trained)
    inputs = prepare_segmentation(settings, trained, network, notes.append)
    export = read_export_request(requested, inputs.box, trained.where)
    volumes = {"image": inputs.image, "mask": inputs.mask}
    output_checks.check_outside_volumes(str(requested.output), requested.precomputed, volumes)
    _check_without_cluster(requested, inputs, export)
    cluster = connect_ray(reporter, requested.verbose)
    output = _resolve_path(str(requested.output), "--output", cluster, requested.dry_run)
    copy = requested.precomputed and _resolve_path(requested.precomputed, "--precomputed", cluster, requested.dry_run)
    record = resume.read_existing_record(output, requested.overwrite)
    reporter.print_result(output)  # the first line, for scripts
    with exit_on_sigterm(), ExitStack() as stack:
        lease = None
        if not requested.dry_run and Ledger.beside(output).is_locked():  # fails at once if the other run is alive
            lease = stack.enter_context(_acquire_lease(output, reporter))
        inference, machine = _choose_inference(inputs, network, record, cluster, reporter)
        job = inputs.make_job(output, inference, copy)
        if export is not None and not requested.dry_run:
            export = resolve_export(export, cluster, output, job.record)
        actor_plan = _plan_actors(job, record, cluster, reporter)
        if machine is not None:
            check_actor_memory(job, network, machine, math.ceil(actor_plan.min_actors / cluster.nodes))
        for note in notes:
            reporter.print_line(note)
        timing = time_tiles(job, actor_plan, worker_class) if _needs_sample(job) else None
        num_done = len(Ledger.beside(output).done(NetworkPhase.NAME)) if record is not None else 0
        num_actors = count_working_actors(actor_plan, len(job.grid))
        cores = cluster.cpus if inference.device == "cuda" else None
        plan = plan_segmentation(job, network, num_done, num_actors, actor_plan.num_gpus, timing, cores)
        for line in describe_plan(plan, job):
            reporter.print_line(line)
        if requested.dry_run:
            return _finish_dry_run(job, plan, reporter)
        output_checks.check_free_space(job, plan)
        reporter.print_line(f"to resume after a stop: {resume_command}")
        lease = lease or stack.enter_context(_acquire_lease(output, reporter))
        if not requested.overwrite:  # another run may have started and ended meanwhile
            resume.check_same_settings(resume.read_existing_record(output, False), job)
        run = SegmentationRun(job, reporter, lease)
        with _stop_with_command(run, resume_command):
            result = run.run(actor_plan, worker_class)
        if export is not None:
            result = _export(export, result, reporter, resume_command)
        reporter.print_result(output)
        return result


def _export(export: ExportRequest, result: SegmentResult, reporter: Reporter, resume_command: str) -> SegmentResult:
    """Export a segmentation that has ended; if blocks of it were set aside, only say so."""
    try:
        export_output(export, result.path, reporter)
    except (InputError, OSError) as error:
        if not (result.num_set_aside and isinstance(error, InputError)):
            raise WorkFailed(f"{error}\nto export: {resume_command}") from error
        reporter.print_line(f"not exported: {error}")
        return result
    return replace(result, export_path=export.path)


def _check_without_cluster(segment: SegmentSettings, inputs: SegmentationInputs, export: ExportRequest | None) -> None:
    """Refuse, before Ray starts, files that cannot be written, are something else, or of other settings, and actors."""
    check_local_gpu(segment.device, segment.precision)
    check_local_actors(segment)
    assert inputs.object_settings  # raises for another number of thresholds than of classes
    paths = {"--output": segment.output, "--precomputed": segment.precomputed}
    output, copy = (path and _resolve_path(path, flag, SINGLE_NODE, segment.dry_run) for flag, path in paths.items())
    if export is not None and not segment.dry_run:
        check_export_place(export, SINGLE_NODE, str(output))
    record = resume.read_existing_record(str(output), segment.overwrite)
    if record is None:
        return
    job = inputs.make_job(str(output), resume.restore_inference_settings(record, inputs), copy)
    resume.check_same_settings(record, job)
    resume.check_precomputed_copy(job, segment.overwrite)


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


def _choose_inference(
    inputs: SegmentationInputs,
    network: nn.Module,
    record: dict[str, Any] | None,
    cluster: ClusterResources,
    reporter: Reporter,
) -> tuple[InferenceSettings, Machine | None]:
    """Return how the network is run, as recorded or as suits the cluster's machines, and such a machine then."""
    if record is not None:
        return resume.restore_inference_settings(record, inputs), None
    return choose_settings_on_cluster(inputs, network, cluster, reporter.print_line)


def _plan_actors(
    job: SegmentationJob, record: dict[str, Any] | None, cluster: ClusterResources, reporter: Reporter
) -> ActorPlan:
    """Return the plan of the actors, once the cluster has room for them; InputError if it never has.

    The output is checked before.
    """
    requested = job.settings.segment
    resume.check_same_settings(record, job)
    if changes := resume.version_changes(record, job):
        reporter.print_line(changes)
    resume.check_precomputed_copy(job, requested.overwrite)
    actor_plan = plan_actors(requested, job.inference, cluster, len(job.grid))
    wait_for_actors(actor_plan, requested.wait_for_resources, reporter.print_line)
    return actor_plan


def _needs_sample(job: SegmentationJob) -> bool:
    """Return whether a sample is timed.

    It is in a dry run; if the halo is smaller than it should be, for the error that this makes; and if the disk has no
    room for uncompressed probabilities, for their compression.
    """
    is_halo_smaller = job.halo != job.receptive_field.margin
    return job.settings.segment.dry_run or is_halo_smaller or not output_checks.fits_uncompressed(job)


def _finish_dry_run(job: SegmentationJob, plan: SegmentationPlan, reporter: Reporter) -> SegmentResult:
    """Write the plan, and report whether the disk has room for the output."""
    try:
        text = output_checks.check_free_space(job, plan)
    except InputError as error:
        text = f"the segmentation could not start: {error}"
    if text:
        reporter.print_line(text)
    write_plan(job.output, plan.to_json())
    reporter.print_result(job.output)
    return SegmentResult(job.output, metrics=plan.to_json())


@contextmanager
def _stop_with_command(run: SegmentationRun, resume_command: str) -> Iterator[None]:
    """Note that a run stops early, and say how it is resumed: raise WorkFailed, or report it on Ctrl-C and SIGTERM."""
    try:
        yield
    except BaseException as error:
        run.fail()
        if not isinstance(error, Exception):  # Ctrl-C, or SIGTERM
            run.reporter.print_line(f"to resume: {resume_command}")
            raise
        is_expected = isinstance(error, ActorPoolStopped | OSError | WorkFailed) or run.lease.lost.is_set()
        failure = WorkFailed if is_expected else UnforeseenFailure
        text = str(error) if is_expected else f"{type(error).__name__}: {error}"
        raise failure(f"{text}\nto resume: {resume_command}") from error

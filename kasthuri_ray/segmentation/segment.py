"""Segment a volume: actors of Ray make its blocks, whatever dies, and the same command goes on where it stopped."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from kasthuri_ray.cli import SET_ASIDE, WorkFailed, ending_on_sigterm
from kasthuri_ray.config import Settings
from kasthuri_ray.evaluation.objects import join, write_table
from kasthuri_ray.geometry import Zyx
from kasthuri_ray.layers import given_value, layers_above, resolve
from kasthuri_ray.lease import Lease
from kasthuri_ray.placement import check_seen_everywhere, check_writable, place_output
from kasthuri_ray.priority import let_helpers_give_way
from kasthuri_ray.progress import Reporter, counted
from kasthuri_ray.resources import Cluster, attach_or_start
from kasthuri_ray.segmentation import beginning
from kasthuri_ray.segmentation.actor import OBJECTS, SEGMENT, grid_of, phases, read_components
from kasthuri_ray.segmentation.crew import (
    actor_class,
    check_crew,
    check_memory,
    choose_arithmetic,
    num_at_work,
    plan_crew,
    time_tiles,
)
from kasthuri_ray.segmentation.grid import index_of, name_of
from kasthuri_ray.segmentation.job import Job
from kasthuri_ray.segmentation.ledger import Ledger
from kasthuri_ray.segmentation.output import Output
from kasthuri_ray.segmentation.plan import Plan, describe_plan, make_plan
from kasthuri_ray.segmentation.pool import Pool, Progress
from kasthuri_ray.segmentation.precomputed import Precomputed
from kasthuri_ray.segmentation.prepare import Prepared, prepare
from kasthuri_ray.segmentation.staffing import Crew
from kasthuri_ray.segmentation.telling import Telling, phase_words
from kasthuri_ray.segmentation.todo import Todo
from kasthuri_ray.segmentation.trained import Trained, read_trained
from kasthuri_ray.segmentation.trouble import Aside, PoolStopped

PLAIN_PERIOD_S = 60.0
QUIET_S = 15.0  # how often Ray's new helpers are told to give way


def segment_as_told(
    task: str | None, network: str | None, layers: Mapping[str, Any], program: str, given: Sequence[str]
) -> int:
    """Segment as a command line says; gives the exit code.

    task, network: of `--task` and `--network`. layers: config, assignments and flags, as `layers.resolve` takes them.
    """
    above = layers_above(**layers)
    path, output = (given_value("segment", key, above) for key in ("weights", "output"))
    if not path:
        raise ValueError("say which network: --weights with a run's folder, or with a file of weights")
    if not output:
        raise ValueError("say where the probabilities go: --output with a path or s3://bucket/name.zarr")
    trained = read_trained(path)
    if trained.settings is None and (network is None or task is None):
        raise ValueError(
            f"{trained.where} holds weights alone, and nothing says of which network and task: give --network and "
            "--task, or the folder of a run"
        )
    base = (trained.where, trained.settings) if trained.settings else None
    return segment(resolve(task, network, base=base, **layers), trained, program, given)


def segment(settings: Settings, trained: Trained, program: str = "jobs/segment.py", given: Sequence[str] = ()) -> int:
    """Segment, or with `segment.dry_run` only plan; gives the exit code.

    program, given: the command line, for the command that goes on. Raises ValueError before anything is written, and
    WorkFailed once the work has begun.
    """
    asked, reporter, notes = settings.segment, Reporter(plain_period_s=PLAIN_PERIOD_S), list[str]()
    beginning.check_places(str(asked.output), asked.precomputed)
    prepared = prepare(settings, trained, notes.append)
    read = {"image": prepared.image, "mask": prepared.mask}
    beginning.check_apart(str(asked.output), asked.precomputed, read)
    cluster = attach_or_start(asked.verbose)
    output = _placed(str(asked.output), "--output", cluster, asked.dry_run)
    copy = asked.precomputed and _placed(asked.precomputed, "--precomputed", cluster, asked.dry_run)
    begun = beginning.begun_with(output, asked.overwrite)
    again = beginning.command_again(program, given)
    print(output, flush=True)  # the first line, for scripts
    with ending_on_sigterm(), ExitStack() as held:
        lease = None
        if not asked.dry_run and Ledger.beside(output).storage.exists("lock.json"):
            lease = held.enter_context(_lease(output, reporter))  # refused at once where another run is alive
        job, crew = _plan_job(prepared, output, copy, begun, cluster, reporter)
        for note in notes:
            reporter.line(note)
        plan = _plan(job, prepared, crew, begun is not None, reporter)
        if asked.dry_run:
            return _leave_plan(job, plan, reporter)
        beginning.check_room(job, plan)
        reporter.line(f"to go on after a stop: {again}")
        lease = lease or held.enter_context(_lease(output, reporter))
        if not asked.overwrite:
            beginning.check_same(beginning.begun_with(output, False), job)  # whoever held it may have ended by now
        return _work(job, crew, reporter, lease, again, asked.overwrite)


def _placed(path: str, flag: str, cluster: Cluster, dry_run: bool) -> str:
    place = beginning.absolute(place_output(path, cluster, flag))
    if not dry_run:
        check_writable(place.rpartition("/")[0] or "/", flag)
        check_seen_everywhere(place, cluster, flag)
    return place


def _lease(output: str, reporter: Reporter) -> Lease:
    return Lease.acquire(Ledger.beside(output).storage, say=reporter.line, instead="another --output")


def _plan_job(
    prepared: Prepared,
    output: str,
    copy: str | None,
    begun: dict[str, Any] | None,
    cluster: Cluster,
    reporter: Reporter,
) -> tuple[Job, Crew]:
    """What is to be done, and by whom, once the cluster has room for it. Raises ValueError for what cannot be."""
    asked, machine = prepared.settings.segment, None
    if begun is not None:
        arithmetic = beginning.arithmetic_of(begun, prepared)
    else:
        arithmetic, machine = choose_arithmetic(prepared, cluster, reporter.line)
    job = prepared.job(output, arithmetic, copy)
    beginning.check_same(begun, job)
    beginning.check_copy(job, asked.overwrite)
    crew = plan_crew(asked, arithmetic, cluster, len(grid_of(job, SEGMENT)))
    check_crew(crew, asked.wait_for_resources, reporter.line)
    if machine is not None:
        check_memory(prepared, arithmetic, machine, math.ceil(crew.fewest / cluster.nodes))
    return job, crew


def _plan(job: Job, prepared: Prepared, crew: Crew, begun: bool, reporter: Reporter) -> Plan:
    """The plan, said in a few lines; a sample is timed for it where hours are wanted, or something else depends on it.

    That is how far a smaller halo is off, and, where the disk is not large enough for all of it as it is, how well it
    compresses.
    """
    asked = prepared.settings.segment
    sample = asked.dry_run or job.halo != job.reach.margin or not beginning.has_room_for_all(job)
    plan = make_plan(
        job,
        prepared.network,
        done=len(Ledger.beside(job.output).done(SEGMENT)) if begun else 0,
        actors=num_at_work(crew, len(grid_of(job, SEGMENT))),
        gpus_per_actor=crew.num_gpus,
        price_per_hour=asked.price_per_hour,
        timing=time_tiles(job, crew) if sample else None,
    )
    for line in describe_plan(plan, job):
        reporter.line(line)
    return plan


def _leave_plan(job: Job, plan: Plan, reporter: Reporter) -> int:
    """Write the plan, and say whether there is room; gives the exit code."""
    try:
        words = beginning.check_room(job, plan)
    except (ValueError, PermissionError) as error:
        words = f"it could not begin: {error}"
    if words:
        reporter.line(words)
    beginning.write_plan(job.output, plan)
    print(job.output, flush=True)
    return 0


def _work(job: Job, crew: Crew, reporter: Reporter, lease: Lease, again: str, overwrite: bool) -> int:
    """All of it, from an empty output to the last words; gives the exit code. Raises WorkFailed."""
    telling = None
    try:
        if overwrite:
            beginning.remove_all(job)
        ledger = Ledger.beside(job.output)
        ledger.begin(job.record)
        Output.create(job.output, job.spec)
        if job.precomputed:
            beginning.begin_copy(job, ledger)
            Precomputed.create(job.precomputed, job.spec)
        todo = Todo(job, ledger)
        telling = Telling(job, todo, reporter)
        aside = _run(job, crew, todo, telling, reporter, lease)
        return _finish(job, todo, aside, telling, reporter)
    except BaseException as error:
        reporter.end()
        if telling is not None and not lease.lost.is_set():
            telling.fail()
        if not isinstance(error, Exception):  # Ctrl-C, or SIGTERM
            reporter.line(f"to go on: {again}")
            raise
        known = isinstance(error, PoolStopped | OSError | WorkFailed) or lease.lost.is_set()
        words = str(error) if known else f"{type(error).__name__}: {error} (--verbose shows where)"
        raise WorkFailed(f"{words}\nto go on: {again}") from error


def _run(
    job: Job, crew: Crew, todo: Todo, telling: Telling, reporter: Reporter, lease: Lease
) -> list[tuple[str, Aside]]:
    """All phases, one after the other; gives what was set aside, each with its phase."""
    import ray

    reference, actor, aside = ray.put(job), actor_class(), list[tuple[str, Aside]]()
    tick = _tick(telling, lease)
    with Pool(lambda options: actor.options(**options).remote(reference), crew, reporter.line) as pool:
        for phase in phases(job):
            if phase == OBJECTS and not todo.is_whole(SEGMENT):
                reporter.line("objects are joined once every block is done")
                continue
            telling.begin(phase)
            outcome = _run_phase(pool, phase, todo, telling, tick)
            aside += [(phase, each) for each in outcome]
    lease.check()
    return aside


def _run_phase(pool: Pool, phase: str, todo: Todo, telling: Telling, tick: Callable[[Progress], None]) -> list[Aside]:
    ledger = todo.ledger
    bad = {index_of(name) for name in ledger.aside(phase)}

    def on_done(index: Any, info: dict[str, Any]) -> None:
        todo.note_done(phase, index, not info["blank"])
        telling.note_done(index, info.get("computed", False))
        if index in bad:
            ledger.clear_aside(phase, name_of(index))

    def on_aside(aside: Aside) -> None:
        index: Zyx = aside.block  # type: ignore[assignment]
        box = grid_of(todo.job, phase).box(index)
        about = {"box": str(box), "reason": aside.reason, "traceback": aside.traceback}
        ledger.set_aside(phase, name_of(index), about)
        telling.note_aside(index)

    pending = todo.pending(phase)
    return pool.run(phase, pending, known_bad=bad, on_done=on_done, on_aside=on_aside, tick=tick).set_aside


def _tick(telling: Telling, lease: Lease) -> Callable[[Progress], None]:
    """What is done about once a second."""
    last = float("-inf")

    def tick(progress: Progress) -> None:
        nonlocal last
        lease.check()
        telling.tick(progress)
        if time.monotonic() - last > QUIET_S:
            last = time.monotonic()
            let_helpers_give_way()

    return tick


def _finish(job: Job, todo: Todo, aside: list[tuple[str, Aside]], telling: Telling, reporter: Reporter) -> int:
    """The table of objects, the last words and the exit code."""
    reporter.end()
    if job.objects and todo.is_whole(OBJECTS):
        path, finest = beginning.table_path(job), job.levels[0]
        table = join(read_components(todo.ledger, name) for name in todo.written(OBJECTS))
        size = finest.scale if job.spec.nanometers else None
        write_table(table, path, size, finest.translation, start=job.box.start)
        reporter.line(f"{counted(len(table), 'object')}: {path}")
    telling.finish()
    for phase, each in aside:
        box = grid_of(job, phase).box(each.block)  # type: ignore[arg-type]
        reporter.line(f"set aside, {phase_words(phase)}: block {name_of(each.block)} ({box}): {each.reason}")  # type: ignore[arg-type]
    if aside:
        num = f"{len(aside)} block{'s are' if len(aside) > 1 else ' is'}"
        reporter.line(
            f"{num} set aside, with tracebacks in {todo.ledger.storage.path}/aside; the same command tries "
            f"{'them' if len(aside) > 1 else 'it'} again"
        )
    print(job.output, flush=True)
    return SET_ASIDE if aside else 0

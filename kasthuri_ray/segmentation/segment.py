"""Segment a volume: actors of Ray make its blocks, whatever dies, and the same command goes on where it stopped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from kasthuri_ray.cli import SET_ASIDE, WorkFailed, ending_on_sigterm
from kasthuri_ray.config import Settings
from kasthuri_ray.evaluation.objects import join, write_table
from kasthuri_ray.geometry import Box, Zyx
from kasthuri_ray.layers import given_value, layers_above, resolve
from kasthuri_ray.lease import Lease, LeaseLost
from kasthuri_ray.placement import check_seen_everywhere, place_output
from kasthuri_ray.progress import Reporter
from kasthuri_ray.resources import ENVIRONMENT, Cluster, Demand, attach_or_start, check_demand, root_cause
from kasthuri_ray.segmentation import beginning
from kasthuri_ray.segmentation.actor import OBJECTS, SEGMENT, Segmenter, grid_of, phases, read_components
from kasthuri_ray.segmentation.grid import BlockGrid, name_of
from kasthuri_ray.segmentation.job import Job
from kasthuri_ray.segmentation.ledger import Ledger, write_progress
from kasthuri_ray.segmentation.output import Output
from kasthuri_ray.segmentation.plan import Plan, Timing, describe_plan, make_plan
from kasthuri_ray.segmentation.pool import Pool
from kasthuri_ray.segmentation.precomputed import Precomputed
from kasthuri_ray.segmentation.prepare import Prepared, prepare
from kasthuri_ray.segmentation.staffing import Crew
from kasthuri_ray.segmentation.telling import Telling
from kasthuri_ray.segmentation.trained import Trained, read_trained
from kasthuri_ray.segmentation.verdicts import Aside, PoolStopped

PLAIN_PERIOD_S = 60.0
GPU_ACTOR_CPUS = 0.5
ANY_NUMBER = 10_000  # of actors, where the cluster decides


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


def segment(settings: Settings, trained: Trained, program: str, given: Sequence[str]) -> int:
    """Segment, or with `segment.dry_run` only plan; gives the exit code. Raises ValueError before anything is written."""
    asked, reporter, notes = settings.segment, Reporter(plain_period_s=PLAIN_PERIOD_S), list[str]()
    prepared = prepare(settings, trained, notes.append)
    cluster = attach_or_start(asked.verbose)
    output = beginning.absolute(place_output(str(asked.output), cluster, "--output"))
    ledger = Ledger.beside(output)
    if not asked.dry_run:
        check_seen_everywhere(output, cluster, "--output")
    gpu = asked.device == "cuda" or (asked.device == "auto" and cluster.gpus >= 1)
    begun = None if asked.overwrite else beginning.begun_with(output, ledger)
    if begun is None:
        check_demand(_least_demand(settings, gpu), asked.wait_for_resources, reporter.line)
    arithmetic = beginning.arithmetic_of(begun, prepared) if begun else beginning.decide(prepared, gpu)
    job = prepared.job(output, arithmetic)
    if asked.precomputed:
        job = beginning.with_copy(job, beginning.absolute(place_output(asked.precomputed, cluster, "--precomputed")))
    beginning.check_same(begun, job, output)
    crew = plan_crew(settings, job, cluster)
    check_demand(_demand(crew), asked.wait_for_resources, reporter.line)
    print(output, flush=True)  # the first line, for scripts
    for note in notes:
        reporter.line(note)
    plan = _plan(job, ledger if begun else None, crew, settings, prepared, reporter)
    if asked.dry_run:
        beginning.write_plan(output, plan)
        print(output, flush=True)
        return 0
    beginning.check_room(output, plan)
    again = beginning.command_again(program, given)
    reporter.line(f"to go on after a stop: {again}")
    with ending_on_sigterm(), Lease.acquire(ledger.storage, say=reporter.line, instead="another --output") as lease:
        try:
            if asked.overwrite:
                beginning.remove_all(output, job)
            else:
                # Whoever held it may have ended by now.
                beginning.check_same(beginning.begun_with(output, ledger), job, output)
            return _run(job, ledger, crew, reporter, lease)
        except (PoolStopped, LeaseLost, OSError) as error:
            _tell_failed(output)
            raise WorkFailed(f"{error}\nto go on: {again}") from error
        except (KeyboardInterrupt, SystemExit):
            reporter.line(f"to go on: {again}")
            raise
        finally:
            reporter.end()


def plan_crew(settings: Settings, job: Job, cluster: Cluster) -> Crew:
    """How many actors, and what each holds. More on a CPU than it has cores for its threads share them."""
    asked, arithmetic = settings.segment, job.arithmetic
    fewest, most = asked.crew or (1, ANY_NUMBER)
    if arithmetic.device == "cuda":
        return Crew(fewest, most, GPU_ACTOR_CPUS, asked.gpus_per_actor, ask=fewest < most < ANY_NUMBER)
    cpus: float = arithmetic.threads
    if fewest * cpus > cluster.cpus and not asked.wait_for_resources:
        cpus = max(0.1, int(100 * cluster.cpus / fewest) / 100)
    return Crew(fewest, most, cpus, ask=fewest < most < ANY_NUMBER)


def _least_demand(settings: Settings, gpu: bool) -> Demand:
    """One actor, as far as is known before its arithmetic is."""
    if gpu:
        return Demand(1, GPU_ACTOR_CPUS, settings.segment.gpus_per_actor, noun="actors", flag="--actors")
    return Demand(1, 0.1, noun="actors", flag="--actors")


def _demand(crew: Crew) -> Demand:
    return Demand(crew.fewest, crew.num_cpus, crew.num_gpus, noun="actors", flag="--actors")


def _plan(
    job: Job, ledger: Ledger | None, crew: Crew, settings: Settings, prepared: Prepared, reporter: Reporter
) -> Plan:
    """The plan, with hours where it is all that is wanted, and said in a few lines."""
    asked, timing = settings.segment, None
    actors = min(crew.most, max(crew.fewest, beginning.room_for(crew)), len(grid_of(job, SEGMENT)))
    if asked.dry_run or job.halo != job.reach.margin:
        timing = _time_tiles(job, crew)
    done = len(ledger.done(SEGMENT)) if ledger else 0
    plan = make_plan(job, prepared.network, done, actors, crew.num_gpus, asked.price_per_hour, timing)
    for line in describe_plan(plan, job):
        reporter.line(line)
    return plan


def _time_tiles(job: Job, crew: Crew) -> Timing:
    """What a few tiles take, on one actor."""
    import ray

    actor = _actor_class().options(num_cpus=crew.num_cpus, num_gpus=crew.num_gpus).remote(job)
    try:
        ray.get(actor.ready.remote())
        return Timing(**ray.get(actor.time_tiles.remote(_sample(job))))
    except ray.exceptions.RayError as error:
        raise WorkFailed(f"the sample could not be segmented: {root_cause(error)}") from error
    finally:
        ray.kill(actor)


def _sample(job: Job) -> Box:
    """A few tiles in the middle of the box, placed as a block would be: of 2D networks two sections."""
    core = [n - 2 * h for n, h in zip(job.arithmetic.tile, job.halo, strict=True)]
    core[0] = 2 if job.network["dim"] == 2 else core[0]
    shape = [min(n, whole) for n, whole in zip(core, job.box.shape, strict=True)]
    middle = zip(job.box.start, job.box.shape, shape, job.reach.factors, strict=True)
    return Box.at([a + (whole - n) // 2 // f * f for a, whole, n, f in middle], shape)


def _actor_class() -> Any:
    import ray

    return ray.remote(runtime_env={"env_vars": ENVIRONMENT})(Segmenter)


def _run(job: Job, ledger: Ledger, crew: Crew, reporter: Reporter, lease: Lease) -> int:
    """All phases, one after the other; gives the exit code."""
    import ray

    ledger.begin(job.record)
    Output.create(job.output, job.spec)
    if job.precomputed:
        Precomputed.create(job.precomputed, job.spec)
    reference, actor = ray.put(job), _actor_class()
    telling, run = Telling(job, reporter), _Run(job, ledger)

    def tick(progress: Any) -> None:
        lease.check()
        telling.tick(progress)

    with Pool(lambda options: actor.options(**options).remote(reference), crew, reporter.line) as pool:
        for phase in phases(job):
            if (why := run.why_not(phase)) is not None:
                reporter.line(why)
                continue
            telling.begin(phase, len(grid_of(job, phase)), len(run.done(phase)))
            aside = ledger.aside(phase)
            outcome = pool.run(
                phase,
                run.pending(phase),
                known_bad={index for index in run.pending(phase) if name_of(index) in aside} if aside else (),
                on_done=lambda index, info, phase=phase: run.note_done(phase, index, info),  # type: ignore[misc]
                on_aside=lambda aside, phase=phase: run.note_aside(phase, aside),  # type: ignore[misc]
                tick=tick,
            )
            run.aside += outcome.set_aside
    lease.check()
    return _finish(job, ledger, run, telling, reporter)


def _finish(job: Job, ledger: Ledger, run: _Run, telling: Telling, reporter: Reporter) -> int:
    """The table of objects, the last words and the exit code."""
    if job.objects and run.is_whole(OBJECTS):
        path = beginning.table_path(job)
        names = (name_of(index) for index in _in_cells_order(grid_of(job, OBJECTS)))
        table = join(read_components(ledger, name) for name in names)
        finest = job.levels[0]
        write_table(table, path, finest.scale if job.spec.nanometers else None, finest.translation)
        reporter.line(f"{len(table)} objects: {path}")
    telling.finish(run.aside)
    for aside in run.aside:
        reporter.line(f"set aside: block {aside.block}: {aside.reason}")
    if run.aside:
        reporter.line(f"{len(run.aside)} blocks are set aside; the same command tries them again")
    print(job.output, flush=True)
    return SET_ASIDE if run.aside else 0


def _in_cells_order(grid: BlockGrid) -> Iterator[Zyx]:
    return grid.covering(grid.box_of_all)


class _Run:
    """What is done and what is not, phase by phase, as the ledger has it and as news come in."""

    def __init__(self, job: Job, ledger: Ledger) -> None:
        self.job, self.ledger = job, ledger
        self.aside: list[Aside] = []
        self._done: dict[str, dict[str, bool]] = {}

    def done(self, phase: str) -> dict[str, bool]:
        """The finished blocks, and whether each wrote anything."""
        if phase not in self._done:
            self._done[phase] = self.ledger.done(phase)
        return self._done[phase]

    def is_whole(self, phase: str) -> bool:
        return len(self.done(phase)) == len(grid_of(self.job, phase))

    def why_not(self, phase: str) -> str | None:
        """Why a phase is not begun, in words; None if it is."""
        if phase == OBJECTS and not self.is_whole(SEGMENT):
            return "objects are joined once every block is done"
        return None

    def pending(self, phase: str) -> Iterator[Zyx]:
        """The blocks of a phase that can be done now and are not. Those that have nothing to read are recorded."""
        grid, done = grid_of(self.job, phase), self.done(phase)
        for index in (grid[number] for number in range(len(grid))):
            if name_of(index) in done:
                continue
            wrote = self._sources_wrote(phase, grid, index)
            if wrote is None:
                continue  # a block that it is made of is not there
            if any(wrote) or phase == OBJECTS:
                yield index
            else:
                self.ledger.record(phase, name_of(index), blank=True)
                done[name_of(index)] = False

    def _sources_wrote(self, phase: str, grid: BlockGrid, index: Zyx) -> list[bool] | None:
        """Of the blocks that one is made of, whether each wrote anything; None where one is not done."""
        if phase == SEGMENT:
            return [True]
        level = self.job.levels[0 if phase == OBJECTS else int(phase.rpartition("s")[2])]
        if phase in (OBJECTS, f"precomputed-{level.name}"):
            source, box = level, grid.box(index)
        else:
            source, box = self.job.levels[level.number - 1], level.source(grid.box(index))
        before = self.done(source.name)
        blocks = BlockGrid(source.box, self.job.block) if source.number == 0 else grid_of(self.job, source.name)
        found = [before.get(name_of(each)) for each in blocks.covering(box)]
        return None if None in found else found  # type: ignore[return-value]

    def note_done(self, phase: str, index: Zyx, info: dict[str, Any]) -> None:
        name = name_of(index)
        self.done(phase)[name] = not info["blank"]
        self.ledger.clear_aside(phase, name)

    def note_aside(self, phase: str, aside: Aside) -> None:
        self.ledger.set_aside(phase, name_of(aside.block), {"reason": aside.reason, "traceback": aside.traceback})  # type: ignore[arg-type]


def _tell_failed(output: str) -> None:
    with suppress(OSError):
        write_progress(output, {"state": "failed"})

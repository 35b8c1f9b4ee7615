"""Plan a sweep before any trial runs: its search space, its concurrent trials, and whether it resumes."""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, replace
from typing import Any

from kasthuri_ray.config import defaults
from kasthuri_ray.config.config_files import read_json_file
from kasthuri_ray.config.differences import (
    refuse_differences,
    section_differences,
    setting_differences,
    value_differences,
)
from kasthuri_ray.config.settings import Settings, TuneSettings
from kasthuri_ray.config.sweep_settings import SweepSettings
from kasthuri_ray.errors import AlreadyFinished, InputError
from kasthuri_ray.progress import Reporter
from kasthuri_ray.ray_cluster.connection import check_local_cpus, check_local_gpu, connect_ray
from kasthuri_ray.ray_cluster.output_paths import SINGLE_NODE, check_shared_path
from kasthuri_ray.ray_cluster.resources import ClusterResources, ResourceDemand
from kasthuri_ray.storage.folder import open_storage
from kasthuri_ray.storage.storage import Storage
from kasthuri_ray.training.preflight import PreparedTraining, check_run_location, prepare_training, run_path
from kasthuri_ray.training.run_folder import run_description
from kasthuri_ray.training.worker_plan import WorkerPlan, plan_workers, uses_gpus
from kasthuri_ray.tuning.leaderboard import Leaderboard
from kasthuri_ray.tuning.sampler import check_grid
from kasthuri_ray.tuning.search_space import (
    NETWORK_KEY,
    SearchDomain,
    SearchSpace,
    check_not_fixed,
    default_space,
    grid_size,
    parse_space,
)
from kasthuri_ray.tuning.trial_record import OUT_OF_TIME, RUNNING

JobCommand = Callable[[str], str]
DEFAULT_SPACE_NAME = "the default space"

TILE_NORM_NOTE = (
    "network.normalization is searched: a winner that uses instance or group normalization, whose statistics depend on "
    "the tile, segments a little differently with another --block or --tile"
)


@dataclass(frozen=True)
class SweepPlan:
    """A sweep that is ready to run.

    Parameters
    ----------
    bases : dict of str to Settings
        Settings of each network, by its name, before a trial overrides some.
    space : dict of str to SearchDomain
        What is searched.
    path : str
        Folder of the sweep.
    num_trials : int, optional
        Trials in all; None for as many as `--hours` allow.
    num_concurrent : int
        Trials that run at the same time.
    workers : WorkerPlan
        The workers of each trial.
    description : dict
        Content of settings.json.
    notes : tuple of str
        Lines that a person should read.
    job_command : callable
        Returns what a person types for a job such as "train"; for the commands that use the winner.
    """

    bases: dict[str, Settings]
    space: SearchSpace
    path: str
    num_trials: int | None
    num_concurrent: int
    workers: WorkerPlan
    description: dict[str, Any]
    notes: tuple[str, ...]
    job_command: JobCommand

    @property
    def settings(self) -> Settings:
        """Return the settings of the first network; the sections task, train and tune are the same for all."""
        return next(iter(self.bases.values()))

    @property
    def tune(self) -> TuneSettings:
        return self.settings.tune

    @property
    def metric(self) -> str:
        return self.settings.network.metric

    @property
    def storage(self) -> Storage:
        return open_storage(self.path)

    @property
    def demand(self) -> ResourceDemand:
        """Return what the concurrent trials need together."""
        noun = "workers" if self.num_concurrent == 1 else f"workers of {self.num_concurrent} trials"
        flag = "--concurrent" if self.workers.fewest == 1 else "--concurrent or --num-workers"
        return replace(self.workers.demand(self.num_concurrent), noun=noun, flag=flag)


def plan_sweep(sweep: SweepSettings, reporter: Reporter, job_command: JobCommand) -> SweepPlan:
    """Plan a sweep, and connect to Ray.

    Raise an InputError for every mistake that can be found before the work starts.
    """
    settings = next(iter(sweep.networks.values()))
    if settings.train.folds is not None:
        raise InputError("train.folds is set: a sweep trains single runs; train the winner by folds (train.py --folds)")
    check_run_location(settings)
    check_comparable(sweep.networks)
    space = read_search_space(sweep)
    prepared = {name: prepare_training(base) for name, base in sweep.networks.items()}
    check_local_gpu(settings.train.device, settings.network.precision)
    planned = _make_plan(sweep, prepared, space, SINGLE_NODE, job_command)  # a refusal needs no cluster
    check_local_cpus(planned.demand, settings.train.wait_for_resources, settings.train.device)
    if settings.train.name is not None:
        check_sweep_resumable(planned)
    cluster = connect_ray(reporter, settings.train.verbose)
    plan = _make_plan(sweep, prepared, space, cluster, job_command)
    check_shared_path(plan.path, cluster)
    return plan


def _make_plan(
    sweep: SweepSettings,
    prepared: Mapping[str, PreparedTraining],
    space: SearchSpace,
    cluster: ClusterResources,
    job_command: JobCommand,
) -> SweepPlan:
    settings = next(iter(sweep.networks.values()))
    name = settings.train.name or f"{settings.task.name.removesuffix('_task')}_sweep_{time.strftime('%Y%m%d-%H%M%S')}"
    path = open_storage(run_path(settings, name, cluster)).path
    use_gpu = uses_gpus(settings, cluster)
    planned = {name: plan_workers(each.settings, use_gpu) for name, each in prepared.items()}
    bases = {name: base for name, (base, _) in planned.items()}
    _, workers = next(iter(planned.values()))  # the same for all networks
    num_trials = choose_num_trials(settings.tune, space)
    num_concurrent = choose_num_concurrent(settings.tune, workers, cluster)
    num_concurrent = min(num_concurrent, num_trials or num_concurrent)
    ranges_note = [note for note in [settings.notes.get("task.ranges")] if note]
    notes = dict.fromkeys([*ranges_note, *itertools.chain.from_iterable(each.notes for each in prepared.values())])
    return SweepPlan(
        bases=bases,
        space=space,
        path=path,
        num_trials=num_trials,
        num_concurrent=num_concurrent,
        workers=replace(workers, per_node=math.ceil(num_concurrent * workers.most / cluster.nodes)),
        description=sweep_description(bases, space, sweep.begun),
        notes=(*notes, *_normalization_notes(space)),
        job_command=job_command,
    )


def _normalization_notes(space: SearchSpace) -> list[str]:
    values = getattr(space.get("network.normalization"), "values", ())
    return [TILE_NORM_NOTE] if {"instance", "group"} & set(values) else []


def check_comparable(bases: Mapping[str, Settings]) -> None:
    """Raise an InputError for networks whose trials cannot be compared epoch by epoch."""
    for key in ("epochs", "metric"):
        values = {name: getattr(base.network, key) for name, base in bases.items()}
        if len(set(values.values())) > 1:
            shown = ", ".join(f"{value} for {name}" for name, value in values.items())
            raise InputError(
                f"network.{key} is {shown}: trials are compared by it; --set network.{key}=... sets it for all"
            )
    settings = next(iter(bases.values()))
    grace, epochs = settings.tune.grace, settings.network.epochs
    if grace is not None and grace >= epochs and settings.tune.scheduler != "none":
        raise InputError(
            f"--grace {grace}: a trial has {epochs} epochs (network.epochs), so none would be stopped early; give a "
            "smaller number, or --scheduler none"
        )


def read_search_space(sweep: SweepSettings) -> SearchSpace:
    """Return the space that is given, or the default space; and the networks where there are several."""
    bases = list(sweep.networks.values())
    settings = bases[0]
    content, origin = _read_space(bases, sweep.fixed)
    check_not_fixed(content, sweep.fixed, origin)
    space = parse_space(content, settings, origin)
    if len(bases) > 1:
        space = {NETWORK_KEY: SearchDomain("choice", tuple(sweep.networks)), **space}
    if not space:
        raise InputError(f"{origin} is empty, and there is one network: there is nothing to search")
    if settings.tune.search == "grid":
        check_grid(space, origin)
    return space


def _read_space(bases: list[Settings], fixed: Set[str]) -> tuple[dict[str, Any], str]:
    """Return the space that is given, as a file or as its content, or the default space; and its name in messages."""
    given = bases[0].tune.space
    if given is None:
        return _default_content(bases, fixed), DEFAULT_SPACE_NAME
    return (read_json_file(given, "--space"), given) if isinstance(given, str) else (given, "space")


def _default_content(bases: list[Settings], fixed: Set[str]) -> dict[str, Any]:
    """Return the default space without the settings that are fixed."""
    num_workers = (bases[0].train.worker_range or (1, 1))[1]
    # Values of different losses cannot be compared.
    left_out = fixed | ({"network.loss"} if bases[0].network.metric == "val.loss" else set())
    return {key: domain for key, domain in default_space(bases, num_workers).items() if key not in left_out}


def choose_num_trials(tune: TuneSettings, space: SearchSpace) -> int | None:
    """Return the number of trials in all; None for as many as the sweep's time allows."""
    size = grid_size(space)
    if tune.search == "grid":
        assert size is not None
        return min(size, tune.samples or size)
    num_trials = tune.samples or (None if tune.hours else defaults.NUM_TRIALS)
    return num_trials if size is None else min(size, num_trials or size)


def choose_num_concurrent(tune: TuneSettings, workers: WorkerPlan, cluster: ClusterResources) -> int:
    """Return the number of concurrent trials: one on each GPU, or one on each node, since it keeps all CPUs busy."""
    if tune.concurrent is not None:
        return tune.concurrent
    return max(1, (int(cluster.gpus) if workers.use_gpu else cluster.nodes) // workers.fewest)


def sweep_description(bases: Mapping[str, Settings], space: SearchSpace, begun: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a sweep's settings.json. `begun` is that of `SweepSettings`."""
    settings = next(iter(bases.values()))
    description = run_description(settings)
    networks = {name: base.training_record()["network"] for name, base in bases.items()}
    searched = {key: domain.as_json() for key, domain in space.items()}
    del description["network"]
    sweep = {"networks": networks, "space": searched, "begun": begun}
    return {**description, "tune": settings.tune.model_dump(mode="json"), "sweep": sweep}


def check_sweep_resumable(plan: SweepPlan) -> Leaderboard:
    """Return the sweep's leaderboard, an empty one for a new sweep.

    Raise an InputError if the sweep was started with other settings, AlreadyFinished if no work is left.
    """
    storage, leaderboard = plan.storage, Leaderboard.read(plan.storage, plan.metric)
    before = _read_settings(storage)
    if before is None:
        return leaderboard
    refuse_differences(f"the sweep {storage.name}", sweep_differences(before, plan.description))
    if leaderboard.finished and (reason := explain_finished(plan, leaderboard)):
        raise AlreadyFinished(f"the sweep {storage.name} is finished: {reason}: {storage.path}", storage.path)
    return leaderboard


def explain_finished(plan: SweepPlan, leaderboard: Leaderboard) -> str:
    """Return why no work is left and what to type to search more; "" if work is left."""
    hours, count = plan.tune.hours, len(leaderboard.trials)
    if hours is not None and leaderboard.seconds >= 3600 * hours:
        more = max(2 * hours, hours + leaderboard.seconds / 3600)
        return f"its {hours:g} hours are used up. To continue the search, give more --hours, such as {more:.2g}"
    if any(trial.state in (RUNNING, OUT_OF_TIME) for trial in leaderboard.trials):
        return ""
    if leaderboard.exhausted or count == grid_size(plan.space):
        return f"all {count} combinations of its space have been tried"
    if plan.num_trials is not None and count >= plan.num_trials:
        return f"{count} trials have been run. To continue the search, add --samples {2 * count}"
    return ""


def _read_settings(storage: Storage) -> dict[str, Any] | None:
    try:
        settings = json.loads(storage.read_bytes("settings.json"))
    except FileNotFoundError:
        return None
    except ValueError:
        settings = None
    if not (isinstance(settings, dict) and "sweep" in settings):
        raise InputError(f"{storage.path}/settings.json is not that of a sweep; give another --name")
    return settings


def sweep_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the settings that differ and change what a sweep finds, each as `key: before -> now`."""
    differences = setting_differences(before, now)
    old, new = before["sweep"], now["sweep"]
    if old["networks"].keys() != new["networks"].keys():
        differences.append(f"networks: {', '.join(old['networks'])} -> {', '.join(new['networks'])}")
    for name in (name for name in old["networks"] if name in new["networks"]):
        differences += section_differences("network", old["networks"][name], new["networks"][name], f"networks.{name}")
    return differences + value_differences("space", old["space"], new["space"])

"""Plans a sweep before any trial runs: its networks, its search space, its concurrent trials, and whether it resumes.

A command that only names a sweep (`--name my_sweep --storage outputs`) resumes it with its first command line.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kasthuri_ray.config.differences import fill_defaults, section_differences, setting_differences
from kasthuri_ray.config.loading import Layer, explicit_value, override_layers, read_json_file, resolve_settings
from kasthuri_ray.config.settings import Settings, TrainSettings, TuneSettings
from kasthuri_ray.errors import InputError
from kasthuri_ray.ray_cluster.connection import WORKER_CPUS, connect_ray
from kasthuri_ray.ray_cluster.output_paths import check_shared_path, resolve_output_path
from kasthuri_ray.ray_cluster.resources import ClusterResources, ResourceDemand
from kasthuri_ray.storage.folder import Storage, open_storage
from kasthuri_ray.storage.uris import redact_secrets
from kasthuri_ray.tiles.splits import open_task_tiles
from kasthuri_ray.tiles.streaming import READ_CPUS
from kasthuri_ray.training.preflight import (
    absolute_volume_paths,
    build_checked_network,
    check_run_location,
    choose_batch_size,
    normalization_warning,
    plan_workers,
    read_initial_weights,
    unused_keys_notes,
    uses_gpus,
)
from kasthuri_ray.training.run_folder import run_description
from kasthuri_ray.training.trackers import check_trackers
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

NETWORKS_2D = ("UNet_2D", "UNet_2D_attention", "UNet_2D_residual", "UNet_2D_depth")
NETWORKS_3D = ("UNet_3D",)
DEFAULT_NUM_TRIALS = 20  # without --samples and --hours
DEFAULT_SPACE_NAME = "the default space"

# May differ when a sweep resumes: how long it runs and on how much. Networks and space are compared by their content.
CHANGEABLE_TUNE_SETTINGS = {"samples", "hours", "keep", "concurrent", "networks", "space"}

TILE_NORM_NOTE = (
    "network.normalization is searched: a winner that uses instance or group normalization, whose statistics depend on "
    "the tile, segments a little differently with another --block or --tile"
)

CommandLine = tuple[str | None, Mapping[str, Any]]  # --task, and the layers of settings
AddNote = Callable[[str], Any]


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
    resume_command : str
        Command that resumes the sweep.
    num_workers : tuple of int
        Minimum and maximum number of workers of each trial.
    use_gpu : bool
        Whether each worker has a GPU.
    num_concurrent : int
        Trials that run at the same time.
    workers_per_node : int
        Workers, of all trials, that share a node.
    description : dict
        Content of settings.json.
    """

    bases: dict[str, Settings]
    space: SearchSpace
    path: str
    num_trials: int | None
    resume_command: str
    num_workers: tuple[int, int]
    use_gpu: bool
    num_concurrent: int
    workers_per_node: int
    description: dict[str, Any]

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
        min_workers = self.num_workers[0]
        trials, workers = self.num_concurrent, self.num_concurrent * min_workers
        noun = "workers" if trials == 1 else f"workers of {trials} trials"
        flag = "--concurrent" if min_workers == 1 else "--concurrent or --num-workers"
        return ResourceDemand(workers, WORKER_CPUS, int(self.use_gpu), trials * READ_CPUS, noun, flag)


def plan_sweep(
    task: str | None, layers: Mapping[str, Any], resume_command: Callable[[str], str], add_note: AddNote
) -> SweepPlan:
    """Plan the sweep that a command line asks for, and connect to Ray.

    `task` is the value of `--task`; `layers` are config, assignments and flags, as `resolve_settings` takes them.
    `resume_command` returns the command that resumes the sweep of a name. `add_note` receives notes for the user.
    Raise InputError, FileNotFoundError or PermissionError for every mistake that can be found before the work starts.
    """
    task, layers = restore_command_line(task, layers)
    bases = {name: absolute_volume_paths(base) for name, base in resolve_networks(task, layers).items()}
    settings = next(iter(bases.values()))
    _check_settings(bases, add_note)
    num_workers = settings.train.worker_range or (1, 1)
    space = read_search_space(bases, num_workers[1], fixed_settings(layers))
    if {"instance", "group"} & set(getattr(space.get("network.normalization"), "values", ())):
        add_note(TILE_NORM_NOTE)
    open_task_tiles(settings, add_note)
    cluster = connect_ray(settings.train.verbose)
    name = settings.train.name or f"{settings.task.name.removesuffix('_task')}_sweep_{time.strftime('%Y%m%d-%H%M%S')}"
    path = open_storage(f"{resolve_output_path(settings.train.storage, cluster).rstrip('/')}/{name}").path
    check_shared_path(path, cluster)
    bases = {key: choose_batch_size(base, num_workers[1]) for key, base in bases.items()}
    for base in bases.values() if settings.train.worker_range else ():
        plan_workers(base, cluster)  # raises if a worker would get no tile of a batch
    num_trials, use_gpu = choose_num_trials(settings.tune, space), uses_gpus(settings, cluster)
    num_concurrent = choose_num_concurrent(settings.tune, num_workers[0], use_gpu, cluster)
    num_concurrent = min(num_concurrent, num_trials or num_concurrent)
    return SweepPlan(
        bases=bases,
        space=space,
        path=path,
        num_trials=num_trials,
        resume_command=resume_command(name),
        num_workers=num_workers,
        use_gpu=use_gpu,
        num_concurrent=num_concurrent,
        workers_per_node=math.ceil(num_concurrent * num_workers[1] / cluster.nodes),
        description=sweep_description(bases, space, command_record(task, layers)),
    )


def _check_settings(bases: Mapping[str, Settings], add_note: AddNote) -> None:
    settings = next(iter(bases.values()))
    for note in unused_keys_notes(settings):
        add_note(note)
    check_run_location(settings)
    check_trackers(settings.train)
    check_comparable(bases)
    for base in bases.values():
        if warning := normalization_warning(build_checked_network(base)):
            add_note(f"{base.network.outweightfilename}: {warning}")
        read_initial_weights(base)


def command_record(task: str | None, layers: Mapping[str, Any]) -> dict[str, Any]:
    """Return the command line as settings.json keeps it under the key "begun", without secrets."""
    return _redact({"task": task, **layers})


def _redact(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _redact(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_redact(each) for each in value]
    return redact_secrets(value) if isinstance(value, str) else value


def restore_command_line(task: str | None, layers: Mapping[str, Any]) -> CommandLine:
    """Return the command line, on top of the one that started the sweep if it names a sweep and no task."""
    train = layers["flags"].get("train", {})
    if task or layers["config"] or layers["flags"].get("task") or not train.get("name"):
        return task, layers
    storage = train.get("storage", TrainSettings.model_fields["storage"].default)
    try:
        settings = json.loads(open_storage(f"{str(storage).rstrip('/')}/{train['name']}").read_bytes("settings.json"))
        first = settings["sweep"]["begun"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return task, layers
    sections = {**first["flags"], **layers["flags"]}
    flags = {name: {**first["flags"].get(name, {}), **layers["flags"].get(name, {})} for name in sections}
    assignments = [*first["assignments"], *layers["assignments"]]
    return first["task"], {"config": first["config"], "assignments": assignments, "flags": flags}


def resolve_networks(task: str | None, layers: Mapping[str, Any]) -> dict[str, Settings]:
    """Return the settings of each network that the sweep tries, by the network's name."""
    above = override_layers(**layers)
    names = explicit_value("tune", "networks", above)
    names = [names] if isinstance(names, str) else names
    if names is None and any(explicit_value("network", key, above) for key in ("model", "model_type")):
        single = resolve_settings(task, None, **layers)  # a model that is set above the files is the same for all
        return {single.network.outweightfilename: single}
    if names is None:
        names = NETWORKS_3D if resolve_settings(task, None, **layers).task.volume_z > 1 else NETWORKS_2D
    networks: dict[str, Settings] = {}
    for file in names:
        name = Path(file).name.removesuffix(".json")
        if name in networks:
            raise InputError(f"--networks names {name} twice")
        networks[name] = resolve_settings(task, file, **layers)
    return networks


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


def fixed_settings(layers: Mapping[str, Any]) -> set[str]:
    """Return the keys that the command line sets for all trials; those of a --config file are only defaults."""
    above: list[tuple[str, Layer]] = override_layers(None, layers["assignments"], layers["flags"])
    fixed = {f"{section}.{key}" for _, layer in above for section, entries in layer.items() for key in entries}
    return fixed | {"network.loss"} if "task.loss" in fixed else fixed


def read_search_space(bases: Mapping[str, Settings], num_workers: int, fixed: set[str]) -> SearchSpace:
    """Return the space of the space file, or the default space; and the networks where there are several."""
    settings = next(iter(bases.values()))
    file = settings.tune.space
    origin = file or DEFAULT_SPACE_NAME
    if file is None:
        # Values of different losses cannot be compared.
        left_out = fixed | ({"network.loss"} if settings.network.metric == "val.loss" else set())
        content = {k: v for k, v in default_space(list(bases.values()), num_workers).items() if k not in left_out}
    else:
        content = read_json_file(Path(file))
        check_not_fixed(content, fixed, origin)
    space = parse_space(content, settings, origin)
    if len(bases) > 1:
        space = {NETWORK_KEY: SearchDomain("choice", tuple(bases)), **space}
    if not space:
        raise InputError(f"{origin} is empty, and there is one network: there is nothing to search")
    if settings.tune.search == "grid":
        check_grid(space, origin)
    return space


def choose_num_trials(tune: TuneSettings, space: SearchSpace) -> int | None:
    """Return the number of trials in all; None for as many as the sweep's time allows."""
    size = grid_size(space)
    if tune.search == "grid":
        assert size is not None
        return min(size, tune.samples or size)
    num_trials = tune.samples or (None if tune.hours else DEFAULT_NUM_TRIALS)
    return num_trials if size is None else min(size, num_trials or size)


def choose_num_concurrent(tune: TuneSettings, num_workers: int, use_gpu: bool, cluster: ClusterResources) -> int:
    """Return the number of concurrent trials: one on each GPU, or one on each node, since it keeps all CPUs busy."""
    if tune.concurrent is not None:
        return tune.concurrent
    return max(1, (int(cluster.gpus) if use_gpu else cluster.nodes) // num_workers)


def sweep_description(
    bases: Mapping[str, Settings], space: SearchSpace, command_line: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the content of a sweep's settings.json. `command_line` is a `command_record`."""
    settings = next(iter(bases.values()))
    description = run_description(settings)
    networks = {name: base.training_record()["network"] for name, base in bases.items()}
    searched = {key: domain.as_json() for key, domain in space.items()}
    del description["network"]
    sweep = {"networks": networks, "space": searched, "begun": command_line}
    return {**description, "tune": settings.tune.model_dump(mode="json"), "sweep": sweep}


def check_sweep_resumable(plan: SweepPlan) -> Leaderboard:
    """Return the sweep's leaderboard, an empty one for a new sweep.

    Raise an InputError if the sweep is finished, or was started with other settings.
    """
    storage, leaderboard = plan.storage, Leaderboard.read(plan.storage, plan.metric)
    before = _read_settings(storage)
    if before is None:
        return leaderboard
    differences = sweep_differences(before, plan.description)
    if differences:
        shown = "\n  ".join(differences)
        raise InputError(
            f"the sweep {storage.name} was started with other settings:\n  {shown}\n"
            "Give another --name, or the earlier settings."
        )
    if leaderboard.finished and (reason := explain_finished(plan, leaderboard)):
        raise InputError(f"the sweep {storage.name} is finished: {reason}: {storage.path}")
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
    old_tune, new_tune = (fill_defaults("tune", each["tune"]) for each in (before, now))
    differences += section_differences("tune", old_tune, new_tune, CHANGEABLE_TUNE_SETTINGS)
    old, new = before["sweep"], now["sweep"]
    if old["networks"].keys() != new["networks"].keys():
        differences.append(f"networks: {', '.join(old['networks'])} -> {', '.join(new['networks'])}")
    for name in (name for name in old["networks"] if name in new["networks"]):
        old_network, new_network = (fill_defaults("network", each["networks"][name]) for each in (old, new))
        differences += section_differences(f"networks.{name}", old_network, new_network)
    return differences + section_differences("space", old["space"], new["space"])

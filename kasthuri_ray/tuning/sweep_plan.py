"""A sweep that is only named (`--name my_sweep --storage outputs`) is the one that was begun under that name."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kasthuri_ray.config.differences import fill_defaults, section_differences, setting_differences
from kasthuri_ray.config.loading import Layer, explicit_value, layers_above, read_json_file, resolve_settings
from kasthuri_ray.config.settings import Settings, TrainSettings, TuneSettings
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
    unread_keys_notes,
    uses_gpus,
)
from kasthuri_ray.training.run_folder import run_description
from kasthuri_ray.training.trackers import check_trackers
from kasthuri_ray.tuning.leaderboard import OUT_OF_TIME, RUNNING, Leaderboard
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

CommandLine = tuple[str | None, Mapping[str, Any]]  # the task and the layers of settings of a command line


NETWORKS_2D = ("UNet_2D", "UNet_2D_attention", "UNet_2D_residual", "UNet_2D_depth")
NETWORKS_3D = ("UNet_3D",)
DEFAULT_SAMPLES = 20  # trials, where neither their number nor the time is said
DEFAULT_SPACE_NAME = "the default space"
# What may differ when a sweep goes on: how long and with how much it works; networks and space by what they hold.
FREE_TUNE_SETTINGS = {"samples", "hours", "keep", "concurrent", "networks", "space"}
TILE_NORM_NOTE = (
    "network.normalization is searched: a winner that normalizes by the tile (instance, group) segments a little "
    "differently with another --block or --tile"
)

AddNote = Callable[[str], Any]


def command_record(task: str | None, layers: Mapping[str, Any]) -> dict[str, Any]:
    """What a sweep keeps of its command line, under "begun" in its settings.json; no secret."""
    return _redact({"task": task, **layers})


def _redact(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _redact(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_redact(each) for each in value]
    return redact_secrets(value) if isinstance(value, str) else value


def with_begun_settings(task: str | None, layers: Mapping[str, Any]) -> CommandLine:
    """The command line, with that which the sweep was begun with below it where it names a sweep and no task."""
    train = layers["flags"].get("train", {})
    if task or layers["config"] or layers["flags"].get("task") or not train.get("name"):
        return task, layers
    place = train.get("storage", TrainSettings.model_fields["storage"].default)
    try:
        settings = json.loads(open_storage(f"{str(place).rstrip('/')}/{train['name']}").read_bytes("settings.json"))
        begun = settings["sweep"]["begun"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return task, layers
    sections = {**begun["flags"], **layers["flags"]}
    flags = {name: {**begun["flags"].get(name, {}), **layers["flags"].get(name, {})} for name in sections}
    assignments = [*begun["assignments"], *layers["assignments"]]
    return begun["task"], {"config": begun["config"], "assignments": assignments, "flags": flags}


@dataclass(frozen=True)
class SweepPlan:
    """A sweep that lacks nothing but to be run.

    bases: the settings of each network, by its name. path: the sweep's folder. samples: how many trials there shall be
    in all; None for as many as there is time for. again: the command that goes on. workers: of each trial, the fewest
    and the most. sharing: how many workers share a machine. description: what settings.json holds.
    """

    bases: dict[str, Settings]
    space: SearchSpace
    path: str
    samples: int | None
    again: str
    workers: tuple[int, int]
    gpu: bool
    concurrent: int
    sharing: int
    description: dict[str, Any]

    @property
    def settings(self) -> Settings:
        """Of the first network; task, train and tune are those of all."""
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
        """What all trials that run at once need."""
        fewest = self.workers[0]
        trials, number = self.concurrent, self.concurrent * fewest
        noun = "workers" if trials == 1 else f"workers of {trials} trials"
        flag = "--concurrent" if fewest == 1 else "--concurrent or --num-workers"
        return ResourceDemand(number, WORKER_CPUS, int(self.gpu), trials * READ_CPUS, noun, flag)


def plan_sweep(
    task: str | None, layers: Mapping[str, Any], resume_command: Callable[[str], str], say: AddNote
) -> SweepPlan:
    """The sweep that a command line asks for; attaches to Ray or starts it.

    task: of `--task`. layers: config, assignments and flags, as `layers.resolve` takes them. say: gets notes.
    Raises ValueError, FileNotFoundError, PermissionError for whatever can be seen to be wrong by now.
    """
    task, layers = with_begun_settings(task, layers)
    bases = {name: absolute_volume_paths(base) for name, base in resolve_networks(task, layers).items()}
    settings = next(iter(bases.values()))
    for note in unread_keys_notes(settings):
        say(note)
    check_run_location(settings)
    check_trackers(settings.train)
    check_comparable(bases)
    for base in bases.values():
        if warning := normalization_warning(build_checked_network(base)):
            say(f"{base.network.outweightfilename}: {warning}")
        read_initial_weights(base)
    workers = settings.train.workers or (1, 1)
    space = read_search_space(bases, workers[1], fixed_settings(layers))
    if {"instance", "group"} & set(getattr(space.get("network.normalization"), "values", ())):
        say(TILE_NORM_NOTE)
    open_task_tiles(settings, say)
    cluster = connect_ray(settings.train.verbose)
    name = settings.train.name or f"{settings.task.name.removesuffix('_task')}_sweep_{time.strftime('%Y%m%d-%H%M%S')}"
    path = open_storage(f"{resolve_output_path(settings.train.storage, cluster).rstrip('/')}/{name}").path
    check_shared_path(path, cluster)
    bases = {key: choose_batch_size(base, workers[1]) for key, base in bases.items()}
    for base in bases.values() if settings.train.workers else ():
        plan_workers(base, cluster)  # each needs a tile of a batch
    samples, gpu = num_samples(settings.tune, space), uses_gpus(settings, cluster)
    concurrent = min(num_concurrent(settings.tune, workers[0], gpu, cluster), samples or math.inf)
    return SweepPlan(
        bases=bases,
        space=space,
        path=path,
        samples=samples,
        again=resume_command(name),
        workers=workers,
        gpu=gpu,
        concurrent=int(concurrent),
        sharing=math.ceil(concurrent * workers[1] / cluster.nodes),
        description=sweep_description(bases, space, command_record(task, layers)),
    )


def resolve_networks(task: str | None, layers: Mapping[str, Any]) -> dict[str, Settings]:
    """The settings of each network that is to be tried, by its name."""
    above = layers_above(**layers)
    names = explicit_value("tune", "networks", above)
    names = [names] if isinstance(names, str) else names
    if names is None and any(explicit_value("network", key, above) for key in ("model", "model_type")):
        alone = resolve_settings(task, None, **layers)  # what is said above the files makes all of them one
        return {alone.network.outweightfilename: alone}
    if names is None:
        names = NETWORKS_3D if resolve_settings(task, None, **layers).task.volume_z > 1 else NETWORKS_2D
    found: dict[str, Settings] = {}
    for given in names:
        name = Path(given).name.removesuffix(".json")
        if name in found:
            raise ValueError(f"--networks names {name} twice")
        found[name] = resolve_settings(task, given, **layers)
    return found


def check_comparable(bases: Mapping[str, Settings]) -> None:
    """Raise a ValueError for networks whose trials cannot be held against each other epoch by epoch."""
    for key in ("epochs", "metric"):
        found = {name: getattr(base.network, key) for name, base in bases.items()}
        if len(set(found.values())) > 1:
            shown = ", ".join(f"{value} of {name}" for name, value in found.items())
            raise ValueError(
                f"network.{key} is {shown}: trials are compared by it; --set network.{key}=... sets it for all"
            )
    settings = next(iter(bases.values()))
    grace, epochs = settings.tune.grace, settings.network.epochs
    if grace is not None and grace >= epochs and settings.tune.scheduler != "none":
        raise ValueError(
            f"--grace {grace}: a trial has {epochs} epochs (network.epochs), so that none would be stopped early; give "
            "fewer, or --scheduler none"
        )


def fixed_settings(layers: Mapping[str, Any]) -> set[str]:
    """The settings that the command line sets for all trials, by key; a file of --config only lays the ground."""
    above: list[tuple[str, Layer]] = layers_above(None, layers["assignments"], layers["flags"])
    found = {f"{section}.{key}" for _, layer in above for section, entries in layer.items() for key in entries}
    return found | {"network.loss"} if "task.loss" in found else found


def read_search_space(bases: Mapping[str, Settings], workers: int, fixed: set[str]) -> SearchSpace:
    """What is searched: the space file or the default space, and the networks where there are several."""
    settings = next(iter(bases.values()))
    file = settings.tune.space
    origin = file or DEFAULT_SPACE_NAME
    if file is None:
        left_out = fixed | ({"network.loss"} if settings.network.metric == "val.loss" else set())  # each by its own
        content = {k: v for k, v in default_space(list(bases.values()), workers).items() if k not in left_out}
    else:
        content = read_json_file(Path(file))
        check_not_fixed(content, fixed, origin)
    space = parse_space(content, settings, origin)
    if len(bases) > 1:
        space = {NETWORK_KEY: SearchDomain("choice", tuple(bases)), **space}
    if not space:
        raise ValueError(f"{origin} is empty, and there is one network: there is nothing to search")
    if settings.tune.search == "grid":
        check_grid(space, origin)
    return space


def num_samples(tune: TuneSettings, space: SearchSpace) -> int | None:
    """How many trials there shall be; None for as many as there is time for."""
    size = grid_size(space)
    if tune.search == "grid":
        assert size is not None
        return min(size, tune.samples or size)
    samples = tune.samples or (None if tune.hours else DEFAULT_SAMPLES)
    return samples if size is None else min(size, samples or size)


def num_concurrent(tune: TuneSettings, workers: int, gpu: bool, cluster: ClusterResources) -> int:
    """How many trials run at once: one on each GPU, or one on each node, whose CPUs it keeps busy by itself."""
    if tune.concurrent is not None:
        return tune.concurrent
    return max(1, (int(cluster.gpus) if gpu else cluster.nodes) // workers)


def sweep_description(bases: Mapping[str, Settings], space: SearchSpace, begun: Mapping[str, Any]) -> dict[str, Any]:
    """What settings.json of a sweep holds. begun: its command line."""
    settings = next(iter(bases.values()))
    found = run_description(settings)
    networks = {name: base.of_training()["network"] for name, base in bases.items()}
    searched = {key: domain.as_json() for key, domain in space.items()}
    del found["network"]
    sweep = {"networks": networks, "space": searched, "begun": begun}
    return {**found, "tune": settings.tune.model_dump(mode="json"), "sweep": sweep}


def check_sweep_resumable(plan: SweepPlan) -> Leaderboard:
    """What is known of the sweep so far. Raises ValueError if it is finished, or was begun with other settings."""
    storage, board = plan.storage, Leaderboard.read(plan.storage, plan.metric)
    before = _read_settings(storage)
    if before is None:
        return board
    differ = sweep_differences(before, plan.description)
    if differ:
        shown = "\n  ".join(differ)
        raise ValueError(
            f"the sweep {storage.name} was begun with other settings:\n  {shown}\nGive another --name, or those."
        )
    if board.finished and (words := finished_message(plan, board)):
        raise ValueError(f"the sweep {storage.name} is finished: {words}: {storage.path}")
    return board


def finished_message(plan: SweepPlan, board: Leaderboard) -> str:
    """Why there is nothing left to do, and what would be done with other words; "" if there is something."""
    hours, count = plan.tune.hours, len(board.trials)
    if hours is not None and board.seconds >= 3600 * hours:
        more = max(2 * hours, hours + board.seconds / 3600)
        return f"its {hours:g} hours are over. To search on, give more --hours, such as {more:.2g}"
    if any(trial.state in (RUNNING, OUT_OF_TIME) for trial in board.trials):
        return ""
    if board.exhausted or count == grid_size(plan.space):
        return f"all {count} combinations of its space have been tried"
    if plan.samples is not None and count >= plan.samples:
        return f"{count} trials have been made. To search on, add --samples {2 * count}"
    return ""


def _read_settings(storage: Storage) -> dict[str, Any] | None:
    try:
        found = json.loads(storage.read_bytes("settings.json"))
    except FileNotFoundError:
        return None
    except ValueError:
        found = None
    if not (isinstance(found, dict) and "sweep" in found):
        raise ValueError(f"{storage.path}/settings.json is not that of a sweep; give another --name")
    return found


def sweep_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The settings that change what a sweep finds and that differ, each as `key: before -> now`."""
    found = setting_differences(before, now)
    tunes = [fill_defaults("tune", each["tune"]) for each in (before, now)]
    found += section_differences("tune", tunes[0], tunes[1], FREE_TUNE_SETTINGS)
    old, new = before["sweep"], now["sweep"]
    if old["networks"].keys() != new["networks"].keys():
        found.append(f"networks: {', '.join(old['networks'])} -> {', '.join(new['networks'])}")
    for name in (name for name in old["networks"] if name in new["networks"]):
        one, other = (fill_defaults("network", each["networks"][name]) for each in (old, new))
        found += section_differences(f"networks.{name}", one, other)
    return found + section_differences("space", old["space"], new["space"])

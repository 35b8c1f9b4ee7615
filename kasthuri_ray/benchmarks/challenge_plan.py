"""What the challenge's scoreboard compares: each network on each task with several seeds, and weights as they are.

All is checked here before Ray starts: tasks, networks, weights and volumes.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kasthuri_ray.benchmarks.accuracy import AREA, SPLITS, find_store
from kasthuri_ray.benchmarks.seed_recipe import NETWORK as RECIPE_NETWORK
from kasthuri_ray.config import defaults
from kasthuri_ray.config.config_files import PACKAGE_FOLDER, find_config_file
from kasthuri_ray.config.loading import GivenSettings, resolve_settings
from kasthuri_ray.config.settings import Settings
from kasthuri_ray.config.task import Region
from kasthuri_ray.errors import InputError
from kasthuri_ray.models.checkpoints import find_weights_file, hash_weights
from kasthuri_ray.segmentation.ensemble import read_trained_networks
from kasthuri_ray.segmentation.trained_network import TrainedNetwork, build_trained_network
from kasthuri_ray.storage.published_files import is_published
from kasthuri_ray.storage.uris import absolute_uri
from kasthuri_ray.training.preflight import prepare_training

TASKS = ("membrane", "synapse")
RECIPE = "challenge_recipe"  # how the Kasthuri Challenge trained, for comparison
MAX_SEEDS = 1000

# Epochs and tiles an epoch, that a board takes hours and not days on two cores; ac4 has those of the network files.
BUDGETS = {"vnc": (4, 224), "phantom": (4, 88), "ac4": None}
QUICK_TASK: dict[str, Any] = {  # the boxes of training hold a few synapses
    **{"xrange_vol": [0, 512], "yrange_vol": [0, 512], "z_train": [0, 8], "z_val": [8, 9], "z_test": [10, 11]},
    "tile_size": [64, 64],
}
QUICK_BUDGET = (1, 8)
QUICK_SETTINGS = ("network.batch_size=4", "train.compile=off", "segment.compile=off")


@dataclass(frozen=True)
class BoardRequest:
    """What a person asks for; see `jobs/benchmark.py challenge --help`.

    Parameters
    ----------
    data : str
        vnc, ac4 or phantom.
    store : str
        vnc.zarr, or the folder that holds it.
    tasks : sequence of str
        membrane, synapse, or task files.
    networks : sequence of str, optional
        Names or files of networks, or weights; by default all 2D networks that come with the package.
    num_seeds : int
        Trainings of each network on each task.
    storage : str
        Folder or `s3://` URL of all boards.
    name : str, optional
        Name of the board's folder.
    assignments : sequence of str
        `section.key=value`, as of `--set`, for every training.
    has_recipe : bool
        Whether the challenge's recipe takes part.
    quick : bool
        Whether little is trained, to try whether the board works.
    verbose : bool
        Whether to show Ray's own lines.
    """

    data: str = "vnc"
    store: str = "vnc.zarr"
    tasks: Sequence[str] = TASKS
    networks: Sequence[str] | None = None
    num_seeds: int = 3
    storage: str = defaults.STORAGE
    name: str | None = None
    assignments: Sequence[str] = ()
    has_recipe: bool = True
    quick: bool = False
    verbose: bool = False

    @property
    def board_name(self) -> str:
        """Name of the folder; the same command finds it again."""
        return self.name or f"challenge_{self.data}{'_quick' if self.quick else ''}"

    @property
    def all_assignments(self) -> list[str]:
        """What is set for every training, the lowest first."""
        budget = QUICK_BUDGET if self.quick else BUDGETS[self.data]
        keys = ("network.epochs", "network.tiles_per_epoch")
        amount = [] if budget is None else [f"{key}={value}" for key, value in zip(keys, budget, strict=True)]
        return [*amount, *(QUICK_SETTINGS if self.quick else ()), *self.assignments]


@dataclass(frozen=True)
class BoardEntry:
    """One run of the board.

    Parameters
    ----------
    task : str
        Name of the task on the board.
    contestant : str
        Name of the network, of the weights, or RECIPE.
    settings : Settings
        Settings of the training; of weights those of their network, and the task that they are tested on.
    num_parameters : int
        Parameters of the network.
    seed : int, optional
        Seed of the training; None for weights.
    weights : str
        Path or URL of weights that are not trained here; else "".
    weights_hash : str
        Hash of these weights.
    """

    task: str
    contestant: str
    settings: Settings
    num_parameters: int
    seed: int | None = None
    weights: str = ""
    weights_hash: str = ""

    @property
    def name(self) -> str:
        """Name of its folder."""
        return "_".join([self.task, self.contestant, *([] if self.seed is None else [str(self.seed)])])

    @property
    def test_region(self) -> Region:
        """What it is tested on."""
        return self.settings.task.regions("test")[0]

    @property
    def record(self) -> dict[str, Any]:
        """What decides its figures; a result of another record does not stand."""
        record = self.settings.training_record()
        known = {"task": record["task"], "weights": self.weights_hash}
        network = {key: value for key, value in record["network"].items() if key not in ("batch_size", "seed")}
        if self.contestant == RECIPE:
            network = {key: network[key] for key in ("epochs", "tiles_per_epoch")}
        return json.loads(json.dumps({**known, "network": network, "seed": self.seed}))

    def in_folder(self, path: str) -> BoardEntry:
        """Return the entry with its folder in that of the board."""
        train = self.settings.train.model_copy(update={"storage": path, "name": self.name})
        return replace(self, settings=self.settings.model_copy(update={"train": train}))


@dataclass(frozen=True)
class _Contestant:
    """A network that is trained, or weights; `network` is None where the weights say what it is."""

    name: str
    network: str | None
    weights: str = ""
    trained: TrainedNetwork | None = field(default=None, repr=False)


def plan_board(request: BoardRequest) -> list[BoardEntry]:
    """Return the runs of a board, the challenge's recipe first, after all checks that need no Ray.

    Parameters
    ----------
    request : BoardRequest
        What a person asks for.

    Returns
    -------
    list of BoardEntry
        By task; the seeds of a network follow each other.

    Raises
    ------
    InputError
        For an unknown task or network, for weights that fit no task, and for all that `prepare_training` refuses.
    """
    if not 1 <= request.num_seeds <= MAX_SEEDS:
        raise InputError(f"--seeds {request.num_seeds}: expected the number of trainings, 1 to {MAX_SEEDS}")
    contestants = _find_contestants(request)
    entries: list[BoardEntry] = []
    for task in request.tasks:
        entries += _plan_task(task, contestants, request)
    names = [entry.name for entry in entries]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"two runs of the board would be called {twice}: name each task once")
    idle = {each.name for each in contestants} - {entry.contestant for entry in entries}
    if idle:
        raise InputError(f"--networks {', '.join(sorted(idle))}: none of the tasks is the one of these weights")
    return entries


def _find_contestants(request: BoardRequest) -> list[_Contestant]:
    given = _default_networks() if request.networks is None else request.networks
    contestants = [_find_contestant(each) for each in given]
    names = [RECIPE, *(each.name for each in contestants)]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"--networks: two would be called {twice} on the board; rename a file")
    return contestants


def _default_networks() -> list[str]:
    """Return the names of the 2D networks that come with the package."""
    files = sorted((PACKAGE_FOLDER / "networkconfig").glob("*.json"))
    return [file.stem for file in files if json.loads(file.read_text()).get("dim", 2) == 2]


def _find_contestant(given: str) -> _Contestant:
    """Return a contestant: a network by its name or file, or weights, `FILE.pt:NETWORK` if they say no network."""
    path, is_split, network = given.rpartition(".pt:")
    path, network = (f"{path}.pt", network) if is_split else (given, "")
    if not (is_split or path.endswith((".pt", ".pth")) or "://" in path or Path(path).is_dir()):
        return _Contestant(find_config_file(given, "network", "--networks").stem, given)
    try:
        trained = read_trained_networks([path])
    except InputError as error:
        raise type(error)(str(error).replace("--weights", "--networks")) from None
    name = path.removeprefix("kasthuri://") if is_published(path) else _weights_name(path)
    if trained.settings is None:
        network = network or defaults.NETWORK
        find_config_file(network, "network", "--networks")
    return _Contestant(name, network or None, find_weights_file(path), trained)


def _weights_name(path: str) -> str:
    parts = path.rstrip("/").split("/")
    if parts[-2:-1] == ["checkpoint"] and len(parts) > 2:
        parts = parts[:-2]  # the run that they belong to
    return parts[-1].removesuffix(".pt").removesuffix(".pth")


def _plan_task(task: str, contestants: Sequence[_Contestant], request: BoardRequest) -> list[BoardEntry]:
    file, flags = _task_settings(task, request)
    entries: list[BoardEntry] = []
    label = ""
    for contestant in contestants:
        trained = contestant.trained
        base = (trained.where, trained.settings) if trained is not None and trained.settings else None
        all_flags: dict[str, dict[str, Any]] = {"task": flags, "train": {"num_workers": 1, "verbose": request.verbose}}
        given = GivenSettings(file, contestant.network, assignments=request.all_assignments, flags=all_flags)
        if base is not None and base[1]["task"]["task_type"] != resolve_settings(given).task.task_type:
            continue  # weights of another task
        prepared = prepare_training(resolve_settings(given, base))
        _check_test(prepared.settings, task)
        label = prepared.settings.task.name.removesuffix("_task").removeprefix("phantom_")
        if trained is not None:
            build_trained_network(prepared.settings, trained)
            entries.append(
                BoardEntry(
                    label,
                    contestant.name,
                    prepared.settings,
                    prepared.num_parameters,
                    weights=contestant.weights,
                    weights_hash=hash_weights(trained.weights),
                )
            )
        else:
            entries += _seeded(label, contestant.name, prepared.settings, prepared.num_parameters, request.num_seeds)
    return [*(_plan_recipe(label, file, flags, request) if request.has_recipe and label else []), *entries]


def _plan_recipe(label: str, file: str, flags: dict[str, Any], request: BoardRequest) -> list[BoardEntry]:
    """Return the runs of the challenge's recipe: its own network and settings, on as many tiles as the others."""
    given = GivenSettings(file, defaults.NETWORK, assignments=request.all_assignments, flags={"task": flags})
    amount = resolve_settings(given).network.model_dump(include={"epochs", "tiles_per_epoch"})
    others = [text for text in request.all_assignments if not text.startswith("network.")]
    prepared = prepare_training(
        resolve_settings(replace(given, network={**RECIPE_NETWORK, **amount}, assignments=others))
    )
    return _seeded(label, RECIPE, prepared.settings, prepared.num_parameters, request.num_seeds)


def _seeded(label: str, name: str, settings: Settings, num_parameters: int, num_seeds: int) -> list[BoardEntry]:
    """Return the runs of all seeds."""
    entries = []
    for seed in range(num_seeds):
        network = settings.network.model_copy(update={"seed": seed})
        changed = settings.model_copy(update={"network": network})
        entries.append(BoardEntry(label, name, changed, num_parameters, seed))
    return entries


def _task_settings(task: str, request: BoardRequest) -> tuple[str, dict[str, Any]]:
    """Return the name or file of a task, and the settings that place it on the data."""
    quick = QUICK_TASK if request.quick else {}
    if Path(task).is_file():
        return task, {}
    if task not in TASKS:
        near = difflib.get_close_matches(task, TASKS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InputError(f"--tasks {task}: expected {' or '.join(TASKS)}, or a task file{hint}")
    if request.data == "vnc":
        store = absolute_uri(find_store(request.store))
        volumes = {"image_chan": f"{store}/em", "annotation_chan": f"{store}/{task}"}
        return task, {**volumes, **AREA, **SPLITS, **quick}
    return (f"phantom_{task}" if request.data == "phantom" else task), quick


def _check_test(settings: Settings, task: str) -> None:
    """Raise an InputError if a task is not tested on one box."""
    regions = settings.task.regions("test")
    if len(regions) != 1 or not regions[0].annotation:
        raise InputError(
            f"--tasks {task}: a scoreboard needs one test box with an annotation (task.z_test or task.boxes.test); "
            f"this task has {len(regions)}"
        )

"""Preflight of a training run: all checks and decisions that come before any work."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from kasthuri_ray import hardware, process_resources
from kasthuri_ray.config.differences import refuse_differences, setting_differences
from kasthuri_ray.config.network import NetworkSettings
from kasthuri_ray.config.settings import Settings
from kasthuri_ray.config.task import SPLITS
from kasthuri_ray.errors import AlreadyFinished, InputError
from kasthuri_ray.models.checkpoints import Checkpoint
from kasthuri_ray.models.receptive_field import tile_normalization_note
from kasthuri_ray.models.unet import DEPTH_BLOCKS, PLAIN_BLOCKS, build_network, check_shape, pooling_factors
from kasthuri_ray.progress import format_count
from kasthuri_ray.ray_cluster.output_paths import SINGLE_NODE, check_writable_path, resolve_output_path
from kasthuri_ray.ray_cluster.resources import ClusterResources
from kasthuri_ray.storage.folder import open_storage
from kasthuri_ray.storage.uris import absolute_uri, in_ray_job
from kasthuri_ray.tiles.splits import TaskTiles, open_task_tiles
from kasthuri_ray.tiles.volume_split import split_volume
from kasthuri_ray.training.begun_recipe import keep_begun_recipe
from kasthuri_ray.training.initial_weights import initial_range_notes, read_initial_weights
from kasthuri_ray.training.learning_history import LearningHistory, read_learning_history
from kasthuri_ray.training.optimizer import should_stop_early
from kasthuri_ray.training.run_folder import RunFolder
from kasthuri_ray.training.trackers import check_trackers
from kasthuri_ray.training.training_job import TrainingJob
from kasthuri_ray.training.training_state import TrainingState

FLOAT_BYTES = 4
MAX_NAME_BYTES = 200


@dataclass(frozen=True)
class PreparedTraining:
    """A training whose settings, network, weights and volumes have been checked.

    Parameters
    ----------
    settings : Settings
        Settings of the run, with absolute paths.
    tiles : TaskTiles
        Tiles of all splits.
    weights : dict of str to Tensor or None
        State dict to start from.
    num_parameters : int
        Number of parameters of the network.
    history : LearningHistory
        What the network will have learnt from.
    notes : tuple of str
        Lines that a person should read.
    """

    settings: Settings
    tiles: TaskTiles
    weights: dict[str, Tensor] | None
    num_parameters: int
    history: LearningHistory
    notes: tuple[str, ...]

    def make_job(self, settings: Settings, path: str, next_command: str = "") -> TrainingJob:
        """Return what the workers receive.

        Parameters
        ----------
        settings : Settings
            Settings with a batch size, see `plan_workers`.
        path : str
            Folder of the run.
        next_command : str
            Command that trains the run for more epochs.

        Returns
        -------
        TrainingJob
            The job.
        """
        tiles = replace(self.tiles, train=self.tiles.train.in_whole_batches(settings.network.batch))
        return TrainingJob(settings, path, tiles, self.weights, next_command, self.history.of_run(path))


def prepare_training(settings: Settings, *, is_new: bool | None = None) -> PreparedTraining:
    """Check a run, a trial, or the settings that the trials of a sweep share, as far as that is possible without Ray.

    Parameters
    ----------
    settings : Settings
        Settings of the training.
    is_new : bool, optional
        Whether to find out what labels mean and to compare grey levels with their range, see `open_task_tiles`. By
        default not for a run or a sweep that was begun before, which keeps what was found then.

    Returns
    -------
    PreparedTraining
        What was built, read and opened.

    Raises
    ------
    InputError
        If settings, network, weights and volumes do not fit; the message says what to change.
    InputNotFound, InputDenied, VolumeError
        If a file or a volume cannot be opened or read.
    """
    settings = absolute_volume_paths(settings)
    notes = unused_keys_notes(settings)
    if is_new is None and settings.train.name is not None:
        settings, recipe_notes = keep_begun_recipe(settings, run_path(settings, settings.train.name))
        notes += recipe_notes
    check_trackers(settings.train)
    network = build_checked_network(settings)
    if warning := normalization_warning(network):
        notes.append(f"{settings.network.outweightfilename}: {warning}")
    checkpoint = read_weights_unless_resumed(settings)
    begun = read_begun_task(settings) if is_new is None else None
    if is_new is None:
        is_new = begun is None
        settings = set_background(settings, (begun or {}).get("background"))
        settings = set_labelled_tiles(settings, bool((begun or {}).get("labelled_tiles")))
    settings = split_volume(settings, notes.append, begun)
    tiles = open_task_tiles(settings, notes.append, is_new=is_new)
    settings = set_background(settings, tiles.label_rule.background)
    settings = set_labelled_tiles(settings, tiles.train.labelled is not None)
    if is_new:
        notes += initial_range_notes(checkpoint, tiles.train)
    name = settings.train.name
    folder = None if name is None else RunFolder(open_storage(run_path(settings, name)))
    history = read_learning_history(folder, tiles, settings.train.weights, checkpoint)
    notes += history.notes()
    weights = None if checkpoint is None else checkpoint.weights
    num_parameters = hardware.count_parameters(network)
    return PreparedTraining(settings, tiles, weights, num_parameters, history, tuple(notes))


def read_begun_task(settings: Settings) -> dict[str, Any] | None:
    """Return the task that is recorded for the run or sweep of this name; None if there is none."""
    name = settings.train.name
    if name is None:
        return None
    try:
        return dict(json.loads(open_storage(run_path(settings, name)).read_bytes("settings.json"))["task"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # what is no run is refused later
        return None


def set_background(settings: Settings, background: Sequence[int] | None) -> Settings:
    """Return the settings with the background labels that were found out, if the task does not state them."""
    if background is None or settings.task.background is not None:
        return settings
    task = settings.task.model_copy(update={"background": list(background)})
    return settings.model_copy(update={"task": task})


def set_labelled_tiles(settings: Settings, is_sparse: bool) -> Settings:
    """Return the settings with `task.labelled_tiles` true where labels are sparse, if the task does not state it."""
    if not is_sparse or settings.task.labelled_tiles is not None:
        return settings
    return settings.model_copy(update={"task": settings.task.model_copy(update={"labelled_tiles": True})})


def absolute_volume_paths(settings: Settings) -> Settings:
    """Return the settings with absolute paths of local volumes, so that a run can be resumed from any folder.

    Parameters
    ----------
    settings : Settings
        Settings of the run, which stay as they are.

    Returns
    -------
    Settings
        A copy.
    """
    task = settings.task.model_copy(deep=True)
    regions: list[Any] = [
        region for boxes in (task.boxes,) if boxes for split in SPLITS for region in getattr(boxes, split)
    ]
    for section, keys in [
        (task, ("image_chan", "annotation_chan")),
        *((region, ("image", "annotation")) for region in regions),
    ]:
        for key in keys:
            uri = getattr(section, key)
            if uri and key in section.model_fields_set:
                setattr(section, key, absolute_uri(uri))
    return settings.model_copy(update={"task": task})


def unused_keys_notes(settings: Settings) -> list[str]:
    """Return a line that names the keys of the settings files that nothing reads.

    Parameters
    ----------
    settings : Settings
        Settings of the run, with the keys that their files held.

    Returns
    -------
    list of str
        One line, or none.
    """
    keys = ", ".join(sorted(settings.kept))
    return [f"unused keys of the task and network files: {keys}"] if settings.kept else []


def check_run_location(settings: Settings) -> None:
    """Raise an InputError if the storage cannot be written to, or if a name is not a valid file name.

    Parameters
    ----------
    settings : Settings
        Settings of the run.
    """
    open_storage(settings.train.storage)
    name, task = settings.train.name, settings.task
    if name is not None and not is_file_name(name):
        raise InputError(f"--name {name!r} is not a valid folder name; --storage sets the folder that holds it")
    names = {"task.name": task.name, "task.task_type": task.task_type}
    for key, value in {**names, "network.outweightfilename": settings.network.outweightfilename}.items():
        if not is_file_name(value):
            raise InputError(
                f"{key} is {value!r}, but it becomes a part of file names: it must be one line without /, of at most "
                f"{MAX_NAME_BYTES} bytes"
            )
    if not in_ray_job():  # there the path depends on the cluster
        storage = resolve_output_path(settings.train.storage, SINGLE_NODE)
        check_writable_path(storage if name is None else run_path(settings, name))


def is_file_name(name: str) -> bool:
    """Return whether a name is valid for a file or a folder: one line, no path, and not too long."""
    is_path = name in ("", ".", "..") or "/" in name
    return not is_path and name.isprintable() and len(name.encode()) <= MAX_NAME_BYTES


def build_checked_network(settings: Settings) -> nn.Module:
    """Build the network with arbitrary weights, and check that it can be trained on the task's tiles.

    Parameters
    ----------
    settings : Settings
        Settings of the run, with a network and the shape of a tile.

    Returns
    -------
    nn.Module
        On the CPU.

    Raises
    ------
    InputError
        If it cannot be built, has no trainable parameters, does not fit into memory, or pools more often than the tiles
        can be halved.
    """
    network, tile = settings.network, settings.task.tile
    if network.dim == 2 and tile[0] != 1:
        raise InputError(f"a 2D network (network.dim 2) takes single sections: task.volume_z is {tile[0]}, use 1")
    shape = tile[-network.dim :]
    if "." not in network.model:
        blocks = network.n_blocks or (DEPTH_BLOCKS if network.model_type == "depth" else PLAIN_BLOCKS)
        try:
            check_shape(shape, pooling_factors(blocks, network.dim, network.pool_z)[-network.dim :])
        except ValueError as error:
            values = f"network.n_blocks {blocks}, task.volume_z {tile[0]}, task.tile_size {settings.task.tile_size}"
            raise InputError(f"{values}: {error}") from None
        _check_fits_memory(network, blocks)
    built = build_network(network.model_dump(), shape)
    if not any(parameter.requires_grad for parameter in built.parameters()):
        raise InputError(f"network.model {network.model} has no trainable parameters; expected at least one")
    return built


def normalization_warning(network: nn.Module) -> str:
    """Return a warning for a network whose normalization depends on the tile.

    Parameters
    ----------
    network : nn.Module
        The network that is trained.

    Returns
    -------
    str
        "" for other networks.
    """
    note = tile_normalization_note(network)
    return note and f"{note}, so the segmentation changes slightly with --block and --tile"


def read_weights_unless_resumed(settings: Settings) -> Checkpoint | None:
    """Return the weights to start from; None also if they cannot be read and a named run has a checkpoint to resume."""
    try:
        return read_initial_weights(settings)
    except (ValueError, OSError):
        name = settings.train.name
        if name is None or not open_storage(run_path(settings, name)).exists("checkpoint/last.pt"):
            raise
        return None


def default_run_name(settings: Settings) -> str:
    task = settings.task.name.removesuffix("_task")
    return f"{task}_{settings.network.outweightfilename}_{time.strftime('%Y%m%d-%H%M%S')}"


def run_path(settings: Settings, name: str, cluster: ClusterResources = SINGLE_NODE) -> str:
    """Return the path of the folder of a run.

    Parameters
    ----------
    settings : Settings
        Settings of the run, with `train.storage`.
    name : str
        Name of the run.
    cluster : ClusterResources
        Resources of the Ray cluster.

    Returns
    -------
    str
        Absolute path or URL.
    """
    return f"{resolve_output_path(settings.train.storage, cluster).rstrip('/')}/{name}"


def check_run_resumable(folder: RunFolder, settings: Settings) -> None:
    """Raise an InputError if the run was started with other settings, AlreadyFinished if it is finished.

    More epochs extend a finished run, unless it stopped early.
    """
    before = folder.read_settings()
    if before is None:
        return
    name, path, epochs = folder.storage.name, folder.storage.path, before["network"]["epochs"]
    metrics = folder.read_metrics()
    differences = setting_differences(before, settings.training_record())
    early = metrics is not None and _stopped_early(folder, settings, metrics["epochs"])
    ended = early or (metrics is not None and metrics["epochs"] >= epochs)  # False for an interrupted extension
    more_epochs = settings.network.epochs > epochs
    extended = ended and more_epochs and [line.split(":")[0] for line in differences] == ["network.epochs"]
    if not extended:
        refuse_differences(f"the run {name}", differences)
    if metrics and early:
        text = (
            f"the run {name} is finished: it stopped early after {format_count(metrics['epochs'], 'epoch')}, because "
            f"the validation loss no longer fell (network.early_stopping {settings.network.early_stopping}): {path}. "
            f"To train further, start another run with --weights {path}"
        )
        raise InputError(text) if more_epochs else AlreadyFinished(text, path)
    if metrics and not extended and metrics["epochs"] >= epochs:
        raise AlreadyFinished(
            f"the run {name} is finished, after {format_count(metrics['epochs'], 'epoch')}: {path}. To train it for "
            f"longer, add --set network.epochs={2 * epochs} (in Python, to settings)",
            path,
        )


def _check_fits_memory(network: NetworkSettings, blocks: int) -> None:
    """Raise an InputError, with the numbers, if training needs more memory than this machine has.

    If the workers are on another machine, only the weights must fit here, where the network is built once.
    """
    with torch.device("meta"):  # shapes only
        built = build_network(network.model_dump())
    num_parameters = hardware.count_parameters(built)
    # Weights, gradients, two values of the optimizer, and the averaged weights.
    copies = 1 if os.environ.get("RAY_ADDRESS") else 4 + bool(network.ema)
    needed, available = FLOAT_BYTES * num_parameters * copies, process_resources.total_memory_bytes()
    if needed > available:
        what = "they" if copies == 1 else "with gradients and the optimizer's state they"
        raise InputError(
            f"network.start_filters {network.start_filters} with network.n_blocks {blocks} makes "
            f"{num_parameters / 1e6:,.0f} million parameters; {what} take {needed / 2**30:,.0f} GiB, and this machine "
            f"has {available / 2**30:,.0f} GiB. Use fewer filters (the network files of this package have 32)"
        )


def _stopped_early(folder: RunFolder, settings: Settings, epochs: int) -> bool:
    """Return whether early stopping ended a run of `epochs` epochs."""
    last = folder.read_checkpoint("last")
    losses = TrainingState.of(last).progress.val_losses if last else []
    network = settings.network
    return len(losses) == epochs and should_stop_early(losses, network.early_stopping, network.early_stopping_delta)

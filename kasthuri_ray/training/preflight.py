"""Ray Train around the loop: check everything, hold the run's name, start the workers, and tell how it goes."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kasthuri_ray import hardware
from kasthuri_ray.config.differences import setting_differences
from kasthuri_ray.config.settings import NetworkSettings, Settings, default_batch_size
from kasthuri_ray.config.task import SPLITS
from kasthuri_ray.models.checkpoints import check_finite_weights, find_weights_file, read_weights
from kasthuri_ray.models.receptive_field import tile_normalization_note
from kasthuri_ray.models.unet import (
    DEPTH_BLOCKS,
    PLAIN_BLOCKS,
    build_network,
    check_shape,
    load_weights,
    pooling_factors,
)
from kasthuri_ray.progress import format_count
from kasthuri_ray.ray_cluster.output_paths import SINGLE_NODE, check_writable_path, resolve_output_path
from kasthuri_ray.ray_cluster.resources import ClusterResources
from kasthuri_ray.storage.folder import open_storage, read_uri
from kasthuri_ray.storage.uris import absolute_uri, in_ray_job
from kasthuri_ray.training.optimizer import should_stop_early
from kasthuri_ray.training.run_folder import RunFolder

FLOAT_BYTES = 4


def unread_keys_notes(settings: Settings) -> list[str]:
    """A line that names the keys that nobody reads, if there are any."""
    return [f"carried along and not read: {', '.join(sorted(settings.kept))}"] if settings.kept else []


def _start_weights(settings: Settings) -> dict[str, Any] | None:
    """The weights to start from; a run that goes on by its name does not need them again, if they are gone."""
    try:
        return read_initial_weights(settings)
    except (ValueError, OSError):
        name = settings.train.name
        if name is None or not open_storage(run_path(settings, name)).exists("checkpoint/last.pt"):
            raise
        return None


def run_path(settings: Settings, name: str, cluster: ClusterResources = SINGLE_NODE) -> str:
    """Where the run of a name lies."""
    return f"{resolve_output_path(settings.train.storage, cluster).rstrip('/')}/{name}"


def absolute_volume_paths(settings: Settings) -> Settings:
    """The settings with volumes of this machine by their whole paths: a run goes on from anywhere on the same ones."""
    task = settings.task.model_copy(deep=True)
    named: list[Any] = [
        region for boxes in (task.boxes,) if boxes for split in SPLITS for region in getattr(boxes, split)
    ]
    for holder, keys in [
        (task, ("image_chan", "annotation_chan")),
        *((region, ("image", "annotation")) for region in named),
    ]:
        for key in keys:
            uri = getattr(holder, key)
            if uri and key in holder.model_fields_set:
                setattr(holder, key, absolute_uri(uri))
    return settings.model_copy(update={"task": task})


def check_run_location(settings: Settings) -> None:
    """Raise a ValueError if the storage is none or takes no files, or if a name would lead out of it."""
    open_storage(settings.train.storage)
    name, task = settings.train.name, settings.task
    if name is not None and not is_file_name(name):
        raise ValueError(f"--name {name!r} is no name of a folder; where it lies is said by --storage")
    named = {"task.name": task.name, "task.task_type": task.task_type}
    for key, value in {**named, "network.outweightfilename": settings.network.outweightfilename}.items():
        if not is_file_name(value):
            raise ValueError(f"{key} is {value!r}: it becomes a part of files' names, which have no / and end no line")
    if not in_ray_job():  # there the place follows from the cluster
        check_writable_path(run_path(settings, name or "run"))


def is_file_name(name: str) -> bool:
    """Whether a name can be a file's or a folder's, in one line and not too long."""
    return name not in ("", ".", "..") and "/" not in name and name.isprintable() and len(name.encode()) <= 200


def default_run_name(settings: Settings) -> str:
    task = settings.task.name.removesuffix("_task")
    return f"{task}_{settings.network.outweightfilename}_{time.strftime('%Y%m%d-%H%M%S')}"


def choose_batch_size(settings: Settings, num_workers: int, before: Mapping[str, Any] | None = None) -> Settings:
    """Return the settings with a batch size.

    Parameters
    ----------
    settings : Settings
        A batch size that they name stays.
    num_workers : int
        The most workers of the run.
    before : mapping, optional
        The recorded settings of a run that is resumed, whose batch size is kept.

    Returns
    -------
    Settings
    """
    if settings.network.batch_size is not None:
        return settings
    size = before["network"]["batch_size"] if before else default_batch_size(num_workers)
    return settings.model_copy(update={"network": settings.network.model_copy(update={"batch_size": size})})


def most_workers(settings: Settings, cluster: ClusterResources) -> int:
    """Return how many workers a run may have: those asked for, else one for each GPU."""
    gpus = int(cluster.gpus) if uses_gpus(settings, cluster) else 1
    return (settings.train.workers or (1, gpus))[1]


def uses_gpus(settings: Settings, cluster: ClusterResources) -> bool:
    device = settings.train.device
    return device == "cuda" or (device == "auto" and cluster.gpus >= 1)


def plan_workers(settings: Settings, cluster: ClusterResources) -> tuple[tuple[int, int], bool]:
    """The fewest and the most workers, and whether each has a GPU."""
    gpu = uses_gpus(settings, cluster)
    all_gpus = min(max(1, int(cluster.gpus)), settings.network.batch)  # each needs at least one tile
    fewest, most = settings.train.workers or ((all_gpus,) * 2 if gpu else (1, 1))
    if settings.network.batch < most:
        raise ValueError(
            f"network.batch_size {settings.network.batch} is smaller than the {most} workers that share it "
            "(--num-workers); each needs at least one tile"
        )
    return (fewest, most), gpu


def check_run_resumable(folder: RunFolder, settings: Settings) -> None:
    """Raise a ValueError for a run that is finished, or that was begun with other settings."""
    before = folder.read_settings()
    if before is None:
        return
    name, epochs = folder.storage.name, before["network"]["epochs"]
    metrics = folder.read_metrics()
    differ = setting_differences(before, settings.of_training())
    early = metrics is not None and stopped_early(folder, settings, metrics["epochs"])
    ended = early or (metrics is not None and metrics["epochs"] >= epochs)  # an extension that was cut off has not
    more = settings.network.epochs > epochs
    longer = ended and more and [line.split(":")[0] for line in differ] == ["network.epochs"]
    if differ and not longer:
        shown = "\n  ".join(differ)
        raise ValueError(f"the run {name} was begun with other settings:\n  {shown}\nGive another --name, or those.")
    if metrics and early:
        raise ValueError(
            f"the run {name} is finished: it stopped early after {format_count(metrics['epochs'], 'epoch')}, as the "
            f"validation loss no longer fell (network.early_stopping {settings.network.early_stopping}): "
            f"{folder.storage.path}. To train on, begin another run with --weights {folder.storage.path}"
        )
    if metrics and not longer and metrics["epochs"] >= epochs:
        raise ValueError(
            f"the run {name} is finished, after {format_count(metrics['epochs'], 'epoch')}: {folder.storage.path}. To train "
            f"it longer, add --set network.epochs={2 * epochs}"
        )


def stopped_early(folder: RunFolder, settings: Settings, epochs: int) -> bool:
    """Whether the run that ended after so many epochs ended because it no longer got better."""
    last = folder.read_checkpoint("last")
    losses = [row["val.loss"] for row in last.about["resume"]["progress"]["history"]] if last else []
    network = settings.network
    return len(losses) == epochs and should_stop_early(losses, network.early_stopping, network.early_stopping_delta)


def build_checked_network(settings: Settings) -> nn.Module:
    """The network, with weights of no account.

    Raises ValueError if it cannot be built or learn, or cannot halve the tiles as often as it pools.
    """
    network, tile = settings.network, settings.task.tile
    if network.dim == 2 and tile[0] != 1:
        raise ValueError(f"a 2D network (network.dim 2) takes single sections: task.volume_z is {tile[0]}, use 1")
    shape = tile[-network.dim :]
    if "." not in network.model:
        blocks = network.n_blocks or (DEPTH_BLOCKS if network.model_type == "depth" else PLAIN_BLOCKS)
        try:
            check_shape(shape, pooling_factors(blocks, network.dim, network.pool_z)[-network.dim :])
        except ValueError as error:
            given = f"network.n_blocks {blocks}, task.volume_z {tile[0]}, task.tile_size {settings.task.tile_size}"
            raise ValueError(f"{given}: {error}") from None
        _check_size(network, blocks)
    built = build_network(network.model_dump(), shape)
    if not any(parameter.requires_grad for parameter in built.parameters()):
        raise ValueError(f"network.model {network.model} has no parameters that learn; expected at least one")
    return built


def _check_size(network: NetworkSettings, blocks: int) -> None:
    """Raise a ValueError, with the numbers, for more parameters than fit in the memory of who trains them.

    Where that is another machine, they must at least fit here, where the network is built once.
    """
    with torch.device("meta"):  # shapes alone
        built = build_network(network.model_dump())
    number = sum(parameter.numel() for parameter in built.parameters())
    copies = 1 if os.environ.get("RAY_ADDRESS") else 4 + bool(network.ema)  # weights, gradients, two of the optimizer
    needed, there = FLOAT_BYTES * number * copies, hardware.total_memory_bytes()
    if needed > there:
        what = "they" if copies == 1 else "with gradients and the optimizer's state they"
        raise ValueError(
            f"network.start_filters {network.start_filters} with network.n_blocks {blocks} makes "
            f"{number / 1e6:,.0f} million parameters; {what} take {needed / 2**30:,.0f} GiB, and this machine has "
            f"{there / 2**30:,.0f}. Give fewer filters (our own files have 32)"
        )


def normalization_warning(network: nn.Module) -> str:
    """What a person should know of how it normalizes; "" if nothing."""
    note = tile_normalization_note(network)
    return note and f"{note}, so that what it segments will change a little with --block and --tile"


def read_initial_weights(settings: Settings) -> dict[str, Tensor] | None:
    """The weights to start from, held against the network; None without `--weights`."""
    path = settings.train.weights
    if path is None:
        return None
    path = find_weights_file(path)
    weights = read_weights(read_uri(path), path)
    try:
        load_weights(build_network(settings.network.model_dump()), weights)
    except ValueError as error:
        raise ValueError(f"--weights {path}: {error}") from None
    check_finite_weights(weights, path)
    return weights

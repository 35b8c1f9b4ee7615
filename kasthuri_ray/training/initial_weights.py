"""The weights that a training starts from, and whether its images look like those that they learnt from."""

from __future__ import annotations

import json
from typing import Any

from kasthuri_ray.config import defaults
from kasthuri_ray.config.loading import GivenSettings, NamedLayer, resolve_settings
from kasthuri_ray.config.settings import Settings
from kasthuri_ray.config.task import class_names
from kasthuri_ray.errors import InputError, named_input
from kasthuri_ray.models.checkpoints import Checkpoint, check_finite_weights, find_weights_file
from kasthuri_ray.models.published_weights import read_weights
from kasthuri_ray.models.unet import build_network, load_weights
from kasthuri_ray.ray_cluster.output_paths import SINGLE_NODE, resolve_output_path
from kasthuri_ray.storage.folder import open_storage
from kasthuri_ray.storage.published_files import is_published
from kasthuri_ray.tiles.sampling import TrainTiles
from kasthuri_ray.volumes.grey_range import describe_range_mismatch, sample_grey_levels


def resolve_with_weights(given: GivenSettings) -> Settings:
    """Resolve the settings of a training; the weights of `--weights` bring their network.

    Parameters
    ----------
    given : GivenSettings
        What a person gave.

    Returns
    -------
    Settings
        Valid settings, with a note about the network.

    Raises
    ------
    InputError
        As of `resolve_settings` and `read_network_of_weights`.
    """
    base = read_network_of_weights(given)
    settings = resolve_settings(given, base)
    if base is None:
        return settings
    note = f"the network is that of {base[0]}; --network, or --set network.KEY=VALUE, changes it"
    return settings.model_copy(update={"notes": {**settings.notes, "network": note}})


def read_network_of_weights(given: GivenSettings) -> NamedLayer | None:
    """Return the settings that the weights of `--weights` bring: their network, and the names of its classes.

    Parameters
    ----------
    given : GivenSettings
        What a person gave.

    Returns
    -------
    tuple or None
        Name and settings by section, over which all that is given wins; of published weights their task too, if none is
        given. A run that was begun keeps the network that it has. None without weights, with `--network`, and for a
        bare state dict.

    Raises
    ------
    InputError
        If the file holds no weights.
    InputNotFound
        If there is no such file.
    """
    path = given.value("train", "weights")
    if path is None or given.network is not None:
        return None
    if begun := _begun_network(given):
        return begun
    where = find_weights_file(str(path))
    with named_input("--weights", where):
        settings = read_weights(where).settings
    if settings is None or "network" not in settings:
        return None
    has_task = given.task is not None or any("task" in layer for _, layer in given.overrides)
    if is_published(where) and not has_task:
        return f"--weights {path}", {"network": settings["network"], "task": settings["task"]}
    names = _named_classes(settings) if has_task else {}
    return f"--weights {path}", {"network": settings["network"], **({"task": names} if names else {})}


def _begun_network(given: GivenSettings) -> NamedLayer | None:
    """Return the network of the run that was begun from weights under the name that is given; None if there is none."""
    name, storage = given.value("train", "name"), given.value("train", "storage") or defaults.STORAGE
    if name is None:
        return None
    folder = f"{resolve_output_path(str(storage), SINGLE_NODE).rstrip('/')}/{name}"
    try:
        record = json.loads(open_storage(folder).read_bytes("settings.json"))
        return (f"{folder}/settings.json", {"network": record["network"]}) if record["train"]["weights"] else None
    except (OSError, ValueError, KeyError, TypeError):  # what is no run is refused later
        return None


def _named_classes(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the setting `classes` of a task whose classes have names; else nothing."""
    task = settings.get("task", {})
    if not (task.get("labels") or task.get("classes")):
        return {}
    return {"classes": ["background", *class_names(task, settings["network"]["classes"])]}


def read_initial_weights(settings: Settings) -> Checkpoint | None:
    """Read the weights to start from, and check that they fit the network.

    Parameters
    ----------
    settings : Settings
        Settings of the run, with `train.weights`.

    Returns
    -------
    Checkpoint or None
        The weights, and what is known about them; None without `--weights`.

    Raises
    ------
    InputError
        If they are weights of another network, or not finite.
    InputNotFound
        If there is no such file.
    """
    path = settings.train.weights
    if path is None:
        return None
    path = find_weights_file(path)
    with named_input(settings.name_of("train.weights"), path):
        checkpoint = read_weights(path)
        check_finite_weights(checkpoint.weights, path)
    try:
        load_weights(build_network(settings.network.model_dump()), checkpoint.weights)
    except ValueError as error:
        raise InputError(f"--weights {path}: {error}") from None
    return checkpoint


def initial_range_notes(checkpoint: Checkpoint | None, tiles: TrainTiles) -> list[str]:
    """Compare the images with the range of grey levels that the initial weights were trained on.

    Parameters
    ----------
    checkpoint : Checkpoint or None
        The initial weights.
    tiles : TrainTiles
        Tiles of the training boxes.

    Returns
    -------
    list of str
        A line if the images do not fit that range: this run has its own, in which they are not black or white.
    """
    source = tiles.sources[0]
    if checkpoint is None or checkpoint.image_intensity is None:
        return []
    first, last = checkpoint.image_intensity
    levels = sample_grey_levels(source.image, [source.box])
    mismatch = describe_range_mismatch(levels, (first, last), "that the initial weights were trained on")
    if not mismatch:
        return []
    low, high = source.intensity
    return [f"{source.image.uri} {source.box}: {mismatch}; here {low:g} becomes black and {high:g} white"]

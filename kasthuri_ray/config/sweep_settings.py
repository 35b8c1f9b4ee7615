"""Settings of a sweep: those of each network that it tries, resolved from what a person gave.

A person who only names a sweep (`--name my_sweep --storage outputs`) resumes it with what they gave first.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from kasthuri_ray.config import defaults
from kasthuri_ray.config.config_files import find_config_file
from kasthuri_ray.config.loading import GivenSettings, NamedLayer, resolve_settings
from kasthuri_ray.config.settings import Settings
from kasthuri_ray.errors import InputError, InputNotFound, missing_is_bad_input
from kasthuri_ray.storage.folder import open_storage
from kasthuri_ray.storage.local_paths import describe_missing
from kasthuri_ray.storage.uris import redact_secrets

FindBase = Callable[[GivenSettings], NamedLayer | None]


@dataclass(frozen=True)
class SweepSettings:
    """Resolved settings of a sweep.

    Parameters
    ----------
    networks : dict of str to Settings
        Settings of each network, by its name, before a trial changes some. The sections task, train and tune are the
        same for all.
    fixed : frozenset of str
        Keys that all trials share because a flag or `--set` gives them; those of a `--config` file are only defaults.
    begun : dict
        What the person gave, as settings.json keeps it, without secrets.
    """

    networks: dict[str, Settings]
    fixed: frozenset[str]
    begun: dict[str, Any]


@missing_is_bad_input()
def resolve_sweep(given: GivenSettings, find_base: FindBase = lambda _: None) -> SweepSettings:
    """Merge files, flags and defaults into the settings of a sweep.

    Parameters
    ----------
    given : GivenSettings
        What a person gave. If it only names a sweep, it is added to what started the sweep.
    find_base : callable, optional
        Returns the settings that the initial weights bring; see `resolve_settings`.

    Returns
    -------
    SweepSettings
        Valid settings.

    Raises
    ------
    InputError
        If a setting is unknown, missing or not allowed, or if a file is malformed.
    InputNotFound
        If there is no such file.
    """
    given = _restore(given)
    values = {each.name: getattr(given, each.name) for each in fields(given)}
    begun = {name: _redact(value) for name, value in values.items() if name != "network" or value is not None}
    return SweepSettings(_resolve_networks(given, find_base(given)), _fixed_settings(given), begun)


def _restore(given: GivenSettings) -> GivenSettings:
    """Return what started the sweep with `given` on top, if `given` names a sweep and no task."""
    train = given.flags.get("train", {})
    if given.task or given.config or given.flags.get("task") or not train.get("name"):
        return given
    folder = f"{str(train.get('storage', defaults.STORAGE)).rstrip('/')}/{train['name']}"
    try:
        begun = json.loads(open_storage(folder).read_bytes("settings.json"))["sweep"]["begun"]
    except FileNotFoundError as error:
        if any("task" in layer for _, layer in given.typed) or "://" in folder:
            return given
        missing = describe_missing(folder)
        raise InputNotFound(f"no task: give --task, or --name of a sweep that was begun; {missing}") from error
    except (ValueError, KeyError, TypeError):
        return given
    first = GivenSettings(**begun)
    sections = {**first.flags, **given.flags}
    return replace(
        first,
        assignments=[*first.assignments, *given.assignments],
        flags={name: {**first.flags.get(name, {}), **given.flags.get(name, {})} for name in sections},
    )


def _redact(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _redact(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_redact(each) for each in value]
    return redact_secrets(value) if isinstance(value, str) else value


def _resolve_networks(given: GivenSettings, base: NamedLayer | None) -> dict[str, Settings]:
    names = given.value("tune", "networks")
    is_set = given.network is not None or any(given.value("network", key) for key in ("model", "model_type"))
    if names is None and (is_set or base is not None):
        single = resolve_settings(given, base)  # a model that is set above the files is the same for all
        return {single.network.outweightfilename: single}
    if names is None:
        names = defaults.NETWORKS_3D if resolve_settings(given).task.volume_z > 1 else defaults.NETWORKS_2D
    networks: dict[str, Settings] = {}
    for file in [names] if isinstance(names, str) else names:
        name = Path(file).name.removesuffix(".json")
        if name in networks:
            raise InputError(f"--networks names {name} twice")
        find_config_file(file, "network", "--networks")
        networks[name] = resolve_settings(replace(given, network=file))
    return networks


def _fixed_settings(given: GivenSettings) -> frozenset[str]:
    fixed = given.typed_keys
    return fixed | {"network.loss"} if "task.loss" in fixed else fixed

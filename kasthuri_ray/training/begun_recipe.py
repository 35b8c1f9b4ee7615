"""Recipes of the package's network files that were improved: what was begun with an earlier one continues with it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kasthuri_ray.config.config_files import PACKAGE_FOLDER
from kasthuri_ray.config.differences import fill_defaults
from kasthuri_ray.config.settings import Settings
from kasthuri_ray.storage.folder import open_storage

EARLIER = {"optimizer": "AdamW", "momentum": 0.9, "ema": 0.0}  # values that the files had until November 2026


def keep_begun_recipe(settings: Settings, path: str | None) -> tuple[Settings, list[str]]:
    """Replace values of a package's network file by those that a run, a sweep or folds were begun with.

    Parameters
    ----------
    settings : Settings
        Settings as they are given now.
    path : str or None
        Folder of what may have been begun.

    Returns
    -------
    settings : Settings
        With the earlier value of each key whose value nobody but the package's own file gives now.
    notes : list of str
        A line that names them; none if nothing was replaced.
    """
    begun = None if path is None else _read_begun_network(path, settings.network.outweightfilename)
    if begun is None:
        return settings, []
    written, now = fill_defaults("network", begun), settings.network
    changes = {
        key: value
        for key, value in EARLIER.items()
        if written[key] == value != getattr(now, key) and _is_of_package(settings, key)
    }
    if not changes:
        return settings, []
    values = ", ".join(f"network.{key} {value}" for key, value in changes.items())
    note = f"it was begun with {values}, which {now.outweightfilename}.json had then, and continues so"
    return settings.model_copy(update={"network": now.model_copy(update=changes)}), [note]


def _is_of_package(settings: Settings, key: str) -> bool:
    origin = settings.origins.get(f"network.{key}", "")
    return Path(origin).parent == PACKAGE_FOLDER / "networkconfig"


def _read_begun_network(path: str, name: str) -> Mapping[str, Any] | None:
    """Return the recorded settings of the network of this name; None if nothing is recorded."""
    try:
        record = json.loads(open_storage(path).read_bytes("settings.json"))
        networks = [record["network"]] if "network" in record else record["sweep"]["networks"].values()
        return next((each for each in networks if each["outweightfilename"] == name), None)
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):  # what is no run is refused later
        return None

"""What differs between the settings that a run, a sweep or an output was begun with and those of now."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Set
from typing import Any

from kasthuri_ray.config.settings import SECTIONS

MISSING = object()
# What may differ when a run goes on: where and how fast it works, not what it learns.
FREE_SETTINGS = {
    "train": {
        *("storage", "name", "num_workers", "device", "boss", "cache", "cache_size", "wait_for_resources"),
        *("mlflow", "wandb", "verbose"),
    }
}


def fill_defaults(section: str, written: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a section that an older version wrote, and the default of every setting that is newer."""
    return {**{key: field.default for key, field in SECTIONS[section].model_fields.items()}, **written}


def fill_record_defaults(begun: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """The record with settings of task and network that it is too old to name, which had their defaults."""
    filled = dict(begun)
    for section in ("task", "network"):
        written = begun.get(section, {})
        whole = fill_defaults(section, written)
        filled[section] = {**{key: whole[key] for key in now[section] if key in whole}, **written}
    return filled


def record_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two JSON objects, each as `key: before -> now` with dots between keys; sorted."""
    old, new = dict(_leaves(before)), dict(_leaves(now))
    keys = sorted(key for key in old.keys() | new.keys() if old.get(key, MISSING) != new.get(key, MISSING))
    return [f"{key}: {_shown(old, key)} -> {_shown(new, key)}" for key in keys]


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", json.loads(json.dumps(value))  # as it is read again: tuples are lists


def _shown(leaves: dict[str, Any], key: str) -> str:
    return json.dumps(leaves[key]) if key in leaves else "not there"


def setting_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The settings that change a result and differ, each as `section.key: before -> now`.

    One that `before` is too old to name had the default.
    """
    found = []
    for section in ("task", "network", "train"):
        old, new = (fill_defaults(section, each.get(section, {})) for each in (before, now))
        found += section_differences(section, old, new, FREE_SETTINGS.get(section, set()))
    return found


def section_differences(
    name: str, old: Mapping[str, Any], new: Mapping[str, Any], free: Set[str] = frozenset()
) -> list[str]:
    """The entries of `name` that are not `free` and differ, each as `name.key: before -> now`."""
    return [
        f"{name}.{key}: {json.dumps(old.get(key))} -> {json.dumps(new.get(key))}"
        for key in sorted((old.keys() | new.keys()) - free)
        if old.get(key) != new.get(key)
    ]

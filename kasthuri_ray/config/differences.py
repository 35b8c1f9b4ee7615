"""Differences between the settings that a run, a sweep or an output was started with and the current ones."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

from kasthuri_ray.config.settings import SECTIONS
from kasthuri_ray.errors import InputError

_MISSING = object()
NAME_ADVICE = "Give another --name, or the earlier settings."


def fill_defaults(section: str, written: Mapping[str, Any]) -> dict[str, Any]:
    """Fill settings of a section that did not exist when it was written with their defaults.

    Parameters
    ----------
    section : str
        Name of the section.
    written : mapping
        Settings as they were written.

    Returns
    -------
    dict
        All settings of the section.
    """
    return {**{key: field.default for key, field in SECTIONS[section].model_fields.items()}, **written}


def fill_record_defaults(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """Fill settings of task and network that did not exist when the record was written with their defaults.

    Parameters
    ----------
    before : dict
        Record that an older version may have written.
    now : dict
        Record of the current version; settings that it does not name are not added.

    Returns
    -------
    dict
        Copy of `before` with the missing settings.
    """
    filled = dict(before)
    for section in ("task", "network"):
        written = before.get(section, {})
        whole = fill_defaults(section, written)
        filled[section] = {**{key: whole[key] for key in now[section] if key in whole}, **written}
    return filled


def record_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the differences between two JSON objects.

    Parameters
    ----------
    before, now : mapping
        Objects, nested or not.

    Returns
    -------
    list of str
        One `key: before -> now` for each difference, with dots between nested keys; sorted.
    """
    old, new = dict(_leaves(before)), dict(_leaves(now))
    keys = sorted(key for key in old.keys() | new.keys() if old.get(key, _MISSING) != new.get(key, _MISSING))
    return [f"{key}: {_value_text(old, key)} -> {_value_text(new, key)}" for key in keys]


def setting_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the settings that differ and change a result.

    Parameters
    ----------
    before, now : mapping
        Settings by section. A setting that did not exist when `before` was written had its default.

    Returns
    -------
    list of str
        One `section.key: before -> now` for each difference.
    """
    differences = []
    for section in ("task", "network", "train", "tune"):  # a run has no `tune`, a sweep no `network`
        differences += section_differences(section, before.get(section, {}), now.get(section, {}))
    return differences


def section_differences(section: str, old: Mapping[str, Any], new: Mapping[str, Any], name: str = "") -> list[str]:
    """Return the settings of a section that differ and change a result.

    Parameters
    ----------
    section : str
        Name of the section.
    old, new : mapping
        Settings by key. One that is missing had its default.
    name : str
        Name of the section in the messages, if it is another.

    Returns
    -------
    list of str
        One `name.key: before -> now` for each difference, sorted.
    """
    old, new = fill_defaults(section, old), fill_defaults(section, new)
    return value_differences(name or section, old, new, SECTIONS[section].changeable)


def value_differences(
    name: str, old: Mapping[str, Any], new: Mapping[str, Any], changeable: Set[str] = frozenset()
) -> list[str]:
    """Return the differences between two flat JSON objects.

    Parameters
    ----------
    name : str
        Name of the objects in the messages.
    old, new : mapping
        The objects.
    changeable : set of str
        Keys that do not count.

    Returns
    -------
    list of str
        One `name.key: before -> now` for each difference, sorted.
    """
    return [
        f"{name}.{key}: {json.dumps(old.get(key))} -> {json.dumps(new.get(key))}"
        for key in sorted((old.keys() | new.keys()) - changeable)
        if old.get(key) != new.get(key)
    ]


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", json.loads(json.dumps(value))  # as JSON reads it back: tuples are lists


def _value_text(leaves: dict[str, Any], key: str) -> str:
    return json.dumps(leaves[key]) if key in leaves else "missing"


def refuse_differences(what: str, differences: Sequence[str], advice: str = NAME_ADVICE) -> None:
    """Raise an InputError if there are differences.

    Parameters
    ----------
    what : str
        What was started with other settings, such as `the run NAME`.
    differences : sequence of str
        A line each, see `setting_differences`.
    advice : str
        What to type instead.

    Raises
    ------
    InputError
        With all differences.
    """
    if differences:
        lines = "\n  ".join(differences)
        raise InputError(f"{what} was started with other settings:\n  {lines}\n{advice}")

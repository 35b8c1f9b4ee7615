"""Messages about settings: errors that name the file, the key and what is allowed, and notes about likely mistakes."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from kasthuri_ray.config.field_types import SettingsSection
from kasthuri_ray.config.settings import SECTIONS, Settings
from kasthuri_ray.config.task import SPLITS, TaskSettings
from kasthuri_ray.errors import InputError

TASK_TYPES = ("synapse", "membrane")  # task types with defaults of their own
RUN_LOCATION = ("name", "storage")
MAX_LISTED = 4  # settings that a note names
EXPECTED = {  # by pydantic's name of the error
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    **dict.fromkeys(("list_type", "tuple_type"), "a list, such as [VALUE,VALUE]"),
    **dict.fromkeys(
        ("dict_type", "mapping_type", "model_type", "model_attributes_type"), 'an object, such as {"NAME":VALUE}'
    ),
    "string_type": "a text",
}
NO_LAYER = "defaults"  # where no file, flag or setting gave a value
NEAR = 0.75  # similarity of names from which a setting of another section may be meant


@dataclass
class Origins:
    """Names of the layers that set the settings, such as a file or `--set network.epochs=3`.

    Parameters
    ----------
    by_setting : dict
        Layer that set a setting, by `section.key`, and the first layer that set anything in a section, by `section`.
    layers : list of str
        All layers, the lowest first.
    """

    by_setting: dict[str, str]
    layers: list[str]

    def of_message(self, section: str, message: str) -> str:
        """Return the highest layer that set any setting of a section that a message names."""
        keys = set(re.findall(r"\w+", message)) & SECTIONS[section].model_fields.keys()
        names = {self.by_setting[f"{section}.{key}"] for key in keys if f"{section}.{key}" in self.by_setting}
        ordered = [name for name in self.layers if name in names]
        return ordered[-1] if ordered else self.by_setting.get(section, NO_LAYER)


def describe_errors(section: str, error: ValidationError, origins: Origins) -> list[str]:
    """Return a line for each of pydantic's errors: the layer, the key, the value and what is allowed."""
    grouped: dict[tuple[str, ...], tuple[Any, list[str]]] = {}
    for entry in error.errors():
        # Where one of two types is allowed, each reports an error, at a location that ends in its own name.
        path = tuple(
            str(part)
            for part in entry["loc"]
            if not re.fullmatch(r"str|int|float|constrained-\w+|(list|dict)\[.*", str(part))
        )
        grouped.setdefault(path, (entry["input"], []))[1].append(_what_is_allowed(entry))
    # The type that was meant accepts the value itself and reports an error inside of it.
    innermost = [path for path in grouped if not any(other[: len(path)] == path != other for other in grouped)]
    return [_error_line(section, path, *grouped[path], origins) for path in innermost]


def _what_is_allowed(entry: Any) -> str:
    if entry["type"] in EXPECTED:
        return f"expected {EXPECTED[entry['type']]}"
    message = entry["msg"].removeprefix("Value error, ").replace(" after validation", "")
    if entry["type"] == "extra_forbidden":
        return "there is no such setting"
    return "it is missing" if entry["type"] == "missing" else message.replace("Input should be", "expected")


def _error_line(section: str, path: tuple[str, ...], value: Any, allowed: list[str], origins: Origins) -> str:
    message = ", or ".join(allowed).replace("or expected ", "or ")
    if not path and message.startswith("--"):
        return message
    if not path:
        origin = origins.of_message(section, message)
        return message if origin == NO_LAYER else f"{origin}: {section}: {message}"
    origin = origins.by_setting.get(f"{section}.{path[0]}", NO_LAYER)
    text = json.dumps(value, default=str, ensure_ascii=False)
    if len(path) == 1 and origin.startswith("--"):  # a --set shows the value, a flag does not
        equals = "=" if origin.startswith("--set ") else " "
        shown = "" if "=" in origin else f"{equals}{value if isinstance(value, str) else text}"
        return f"{origin}{shown}: {message}"
    return f"{origin}: {section}.{'.'.join(path)} is {text}: {message}"


def whole_assignment(text: str) -> str:
    """Return an example of `section.key=value`: the one that was meant, if `text` names a setting."""
    given, _, value = text.partition("=")
    section, dot, key = given.strip().rpartition(".")
    if dot and key in getattr(SECTIONS.get(section), "model_fields", ()):
        return f"{section}.{key}={value.strip() or 'VALUE'}"
    names = {name: f"{each}.{name}" for each, kind in reversed(SECTIONS.items()) for name in kind.model_fields}
    near = difflib.get_close_matches(key, names, n=1, cutoff=NEAR)
    return f"{names[near[0]]}={value.strip() or 'VALUE'}" if near and not dot else "network.epochs=30"


def nearest_setting(section: str, key: str) -> str:
    """Return `; did you mean section.key?` for a setting that does not exist; empty if none is near.

    Parameters
    ----------
    section : str
        A section, or a word that is none.
    key : str
        What was given as the name of a setting in it.

    Returns
    -------
    str
        With the setting of this name in another section, else with the nearest name in this one, else in any.
    """
    others = [name for name, kind in SECTIONS.items() if key in kind.model_fields]
    if others:
        near = difflib.get_close_matches(section, others, n=1, cutoff=0)
        return f"; did you mean {near[0]}.{key}?"
    if section in SECTIONS and (hint := nearest_hint(key, SECTIONS[section].model_fields)):
        return hint.replace("mean ", f"mean {section}.", 1)
    names = {name: f"{each}.{name}" for each, kind in SECTIONS.items() for name in kind.model_fields}
    near = difflib.get_close_matches(key, names, n=1, cutoff=NEAR)
    return f"; did you mean {names[near[0]]}?" if near else ""


def nearest_hint(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean ...?` with the known word nearest to one that is unknown; empty if none is near."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def check_volumes_used(task: TaskSettings, typed: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """Raise an InputError for an image or an annotation on the command line that no region of the task would use.

    `typed` are layers of settings from the command line, each with its name, the lowest first.
    """
    if task.boxes is None:
        return
    regions = [region for split in SPLITS for region in getattr(task.boxes, split)]
    all_have_own = {
        "image": all(region.image for region in regions),
        "annotation": all("annotation" in region.model_fields_set for region in regions),
    }
    for kind, unused in all_have_own.items():
        names = [name for name, layer in typed if layer.get("task", {}).get(f"{kind}_chan")]
        if unused and names:
            flag = names[-1]
            raise InputError(
                f"{flag} has no effect: every region in task.boxes sets its own {kind}. Change it there, or remove "
                f'"{kind}" from the regions that {flag} is meant for'
            )


def task_type_note(task: TaskSettings) -> dict[str, str]:
    """Return a note about a task type that is nearly one of those with defaults of their own."""
    near = difflib.get_close_matches(task.task_type.lower(), TASK_TYPES, n=1, cutoff=0.8)
    if task.task_type in TASK_TYPES or not near:
        return {}
    return {
        "task.task_type": f"task.task_type {task.task_type!r} is a type of its own, without the defaults of "
        f"{near[0]!r}; did you mean {near[0]!r}?"
    }


def override_notes(
    config: str, files: Mapping[str, str], without_config: Mapping[str, SettingsSection], settings: Settings
) -> dict[str, str]:
    """Return notes about what a `--config` file changes in the files that are named beside it, and in the run's folder.

    `files` are names of files by section, `without_config` is each section that is valid without the `--config` file.
    """
    notes = {}
    for section, name in files.items():
        changes = _changes(section, without_config, settings)
        if changes:
            more = f"; and {len(changes) - MAX_LISTED} more" if len(changes) > MAX_LISTED else ""
            listed = "; ".join([*changes.values()][:MAX_LISTED])
            notes[section] = f"{config} overrides --{section} {name}: {listed}{more} (--set overrides both)"
    location = [text for key, text in _changes("train", without_config, settings).items() if key in RUN_LOCATION]
    if location:
        listed = "; ".join(location)
        notes["train"] = f"{config} sets where the run is stored: {listed} (--name and --storage override it)"
    return notes


def _changes(section: str, before: Mapping[str, SettingsSection], settings: Settings) -> dict[str, str]:
    """Return, by key, messages about the settings of a section that differ from those before."""
    if section not in before:
        return {}
    old, new = before[section], getattr(settings, section)
    old_json, new_json = old.model_dump(mode="json"), new.model_dump(mode="json")
    return {
        key: f"{section}.{key} is {_short(new_json[key])}, not {_short(old_json[key])}"
        for key in new_json
        if getattr(new, key) != getattr(old, key)
    }


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

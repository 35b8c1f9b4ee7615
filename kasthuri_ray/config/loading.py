"""Loading of settings: files, `--config`, `--set` and flags become one `Settings` object.

Precedence, highest first: flags, `--set`, the `--config` file, the task and network files, the defaults. Invalid
settings raise an InputError that names the file, the key, the value and what is allowed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from kasthuri_ray.config import messages
from kasthuri_ray.config.field_types import SettingsSection
from kasthuri_ray.config.settings import SECTIONS, Settings
from kasthuri_ray.config.task import RANGES
from kasthuri_ray.errors import InputError, InputNotFound

PACKAGE_FOLDER = Path(__file__).parents[1]
DEFAULT_NETWORK = "UNet_2D"
# Keys of the Kasthuri Challenge's files that nothing reads; they are written to settings.json again.
UNUSED_KEYS = {"encoder_name", "encoder_weights", "outputdir", "eval_threshold", "eval_reduction"}
# Keys of settings.json that are not sections; it can be used as a --config file all the same.
RECORD_KEYS = {"versions", "git_commit", "seed", "kept", "sweep"}

_JSON_KINDS = {type(None): "null", list: "a list", str: "a string", bool: "true or false"}  # in messages

Layer = dict[str, dict[str, Any]]  # settings by section and key
NamedLayer = tuple[str, Layer]  # the name is the one in errors


def find_config_file(name: str, kind: str) -> Path:
    """Return the path of a task or network file.

    Parameters
    ----------
    name : str
        Path of a file, or name of one that comes with the package.
    kind : str
        `task` or `network`.

    Returns
    -------
    Path

    Raises
    ------
    InputNotFound
        If there is no such file; the message lists the names.
    """
    if Path(name).is_file():
        return Path(name)
    ending = "_task" if kind == "task" else ""
    folder = PACKAGE_FOLDER / f"{kind}config"
    builtin = {path.stem.removesuffix(ending): path for path in sorted(folder.glob("*.json"))}
    stem = Path(name).name.removesuffix(".json").removesuffix(ending)
    if stem in builtin and Path(name).name == name:
        return builtin[stem]
    names, hint = ", ".join(builtin), messages.nearest_hint(stem, builtin)
    raise InputNotFound(f"no {kind} {name!r}: it is neither a file nor one of {names}{hint}")


def builtin_tasks() -> list[str]:
    """Return the names of the tasks that come with the package.

    Returns
    -------
    list of str
        Names, sorted.
    """
    return sorted(path.stem.removesuffix("_task") for path in (PACKAGE_FOLDER / "taskconfig").glob("*.json"))


def read_json_file(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Parameters
    ----------
    path : Path
        Path of the file.

    Returns
    -------
    dict
        The object.

    Raises
    ------
    InputNotFound
        If there is no such file.
    InputError
        If it does not hold a JSON object, or one with a key twice; the message names the line or the key.
    """
    try:
        content = json.loads(path.read_text(), object_pairs_hook=_reject_duplicate_keys)
    except FileNotFoundError:
        raise InputNotFound(f"there is no file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    except _DuplicateKey as error:
        raise InputError(f"{path}: {error}") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not JSON: {error.msg} in line {error.lineno}") from None
    if not isinstance(content, dict):
        kind = _JSON_KINDS.get(type(content), "a number")
        raise InputError(f"{path} must contain a JSON object {{...}}, not {kind}")
    return content


class _DuplicateKey(InputError):
    """A JSON object that holds a key twice; Python's reader would silently use the last."""


def _reject_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            both = f"{json.dumps(values[key])} and {json.dumps(value)}"
            raise _DuplicateKey(f"the key {key!r} occurs twice, as {both}; keep one of them")
        values[key] = value
    return values


def read_config(path: Path) -> Layer:
    """Read a `--config` file: settings by section. settings.json and best.json are such files too."""
    layer = {key: value for key, value in read_json_file(path).items() if key not in RECORD_KEYS}
    for section, values in layer.items():
        if section not in SECTIONS:
            raise InputError(f"{path}: no section {section!r}; the sections are {', '.join(SECTIONS)}")
        if not isinstance(values, dict):
            raise InputError(f"{path}: {section} is not an object of settings")
    return layer


def parse_assignment(text: str) -> Layer:
    """Return the setting of one `--set section.key=value`.

    The value is read as JSON if it is JSON, else as a list with commas, else as a string. A setting that is a string
    stays one: `phantom://em?shape=4,64,64` does not become a list.
    """
    target, equals, value = text.partition("=")
    section, dot, key = target.strip().partition(".")
    if not (equals and dot and key):
        raise InputError(f"--set {text}: expected section.key=value, such as network.epochs=30")
    if section not in SECTIONS:
        raise InputError(f"--set {text}: no section {section!r}; the sections are {', '.join(SECTIONS)}")
    try:
        parsed = _parse_value(value.strip())
    except _DuplicateKey as error:
        raise InputError(f"--set {text}: {error}") from None
    field = SECTIONS[section].model_fields.get(key)
    is_text = field is not None and field.annotation in (str, str | None)
    return {section: {key: value.strip() if is_text and isinstance(parsed, list | int | float) else parsed}}


def _parse_value(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_reject_duplicate_keys)
    except json.JSONDecodeError:
        return [_parse_value(part.strip()) for part in text.split(",")] if "," in text else text


def resolve_settings(
    task: str | None,
    network: str | None,
    *,
    config: str | None = None,
    assignments: Iterable[str] = (),
    flags: Layer | None = None,
    base: NamedLayer | None = None,
) -> Settings:
    """Merge files, flags and defaults into the settings of a job.

    Parameters
    ----------
    task, network : str or None
        Names or paths of the files; without `base` the network is `DEFAULT_NETWORK` by default.
    config : str or None
        Path of a file with settings by section.
    assignments : iterable of str
        `section.key=value`, as of `--set`; a later one wins.
    flags : dict or None
        Settings of the other flags, by section and key.
    base : tuple or None
        Name and settings, by section, of the run whose weights are used; the files win over them.

    Returns
    -------
    Settings
        Valid settings of all sections.

    Raises
    ------
    InputError
        If a setting is unknown, missing or not allowed, or if a file is malformed.
    InputNotFound
        If there is no such file.
    """
    overrides = override_layers(config, assignments, flags)
    files: list[NamedLayer] = [base] if base is not None else []
    if network is not None or base is None:
        path = find_config_file(network or DEFAULT_NETWORK, "network")
        files.append((str(path), {"network": {"outweightfilename": path.stem, **read_json_file(path)}}))
    if task is not None:
        path = find_config_file(task, "task")
        files.append((str(path), {"task": read_json_file(path)}))
    elif base is None and not any("task" in layer for _, layer in overrides):
        raise InputError(f"no task: give --task, one of {', '.join(builtin_tasks())} or a file of your own")
    merged = _merge(files, overrides)
    sections: dict[str, Any] = {section: _validate(section, merged) for section in SECTIONS}
    settings = Settings(kept=merged.unused, **sections)
    typed = overrides[config is not None :]
    messages.check_volumes_used(settings.task, typed)
    notes = messages.task_type_note(settings.task)
    if config is not None:
        names = {section: name for section, name in (("task", task), ("network", network)) if name is not None}
        notes |= messages.override_notes(config, names, _valid_sections(_merge(files, typed)), settings)
    return settings.model_copy(update={"notes": notes})


def override_layers(config: str | None, assignments: Iterable[str], flags: Layer | None) -> list[NamedLayer]:
    """Return the layers that win over the task and network files.

    Parameters
    ----------
    config : str or None
        Path of a file with settings by section.
    assignments : iterable of str
        `section.key=value`, as of `--set`.
    flags : dict or None
        Settings of the other flags, by section and key.

    Returns
    -------
    list of tuple
        Name and settings of each layer, the lowest first.
    """
    layers: list[NamedLayer] = [(config, read_config(Path(config)))] if config is not None else []
    layers += [(f"--set {text}", parse_assignment(text)) for text in assignments]
    return [*layers, ("the command line", flags or {})]


def explicit_value(section: str, key: str, overrides: Iterable[NamedLayer]) -> Any:
    """Return the value of one setting in the layers that win over the files, without validating it.

    Parameters
    ----------
    section, key : str
        Section and name of the setting.
    overrides : iterable of tuple
        Layers, the lowest first, as of `override_layers`.

    Returns
    -------
    object
        The value, or None if no layer sets it.
    """
    highest_first = reversed([layer for _, layer in overrides])
    return next((layer[section][key] for layer in highest_first if key in layer.get(section, {})), None)


def override_settings(settings: Settings, values: Mapping[str, Any], origin: str) -> Settings:
    """Return settings with some values replaced.

    Parameters
    ----------
    settings : Settings
        Settings to start from; they are not changed.
    values : mapping
        New values by `section.key`.
    origin : str
        Where the values come from; messages of errors start with it.

    Returns
    -------
    Settings
        Copy with the new values.

    Raises
    ------
    InputError
        If a setting is unknown or its value not allowed.
    """
    changes: Layer = {}
    for name, value in values.items():
        section, _, key = name.partition(".")
        _check_key(section, key, origin)
        changes.setdefault(section, {})[key] = value
    sections = {}
    for section, entries in changes.items():
        whole: SettingsSection = getattr(settings, section)
        origins = messages.Origins({section: origin, **{f"{section}.{key}": origin for key in entries}}, [origin])
        checked = _validate(section, _Merged({section: {**whole.model_dump(), **entries}}, origins, {}))
        # Only the new values are copied: a URI that model_dump wrote has lost its secrets.
        sections[section] = whole.model_copy(update={key: getattr(checked, key) for key in entries})
    return settings.model_copy(update=sections)


@dataclass
class _Merged:
    """Merged layers, not validated yet, with the layer that set each value and the keys that are not used."""

    values: Layer
    origins: messages.Origins
    unused: dict[str, Any]


def _merge(files: list[NamedLayer], overrides: list[NamedLayer]) -> _Merged:
    values: Layer = {section: {} for section in SECTIONS}
    origins: dict[str, str] = {}
    unused: dict[str, Any] = {}
    for origin, layer in files + overrides:
        for section, entries in layer.items():
            origins.setdefault(section, origin)
            if section == "task" and entries.get("boxes"):
                for key in RANGES:  # boxes replace the ranges of lower layers; in one layer both are an error
                    values[section].pop(key, None)
            for key, value in entries.items():
                if key in UNUSED_KEYS:
                    unused[key] = value
                    continue
                _check_key(section, key, origin)
                values[section][key] = value
                origins[f"{section}.{key}"] = origin
    # A task's own loss wins over that of the network file, but not over one that overrides the files.
    loss = values["task"].get("loss")
    if loss is not None and not any("loss" in layer.get("network", {}) for _, layer in overrides):
        values["network"]["loss"] = loss
    return _Merged(values, messages.Origins(origins, [origin for origin, _ in files + overrides]), unused)


def _validate(section: str, merged: _Merged) -> SettingsSection:
    try:
        return SECTIONS[section].model_validate(merged.values[section])
    except ValidationError as error:
        raise InputError("\n".join(messages.describe_errors(section, error, merged.origins))) from None


def _valid_sections(merged: _Merged) -> dict[str, SettingsSection]:
    """Return the sections that are valid; without its `--config` file a task may lack settings."""
    sections = {}
    for section in SECTIONS:
        with suppress(ValueError):
            sections[section] = _validate(section, merged)
    return sections


def _check_key(section: str, key: str, origin: str) -> None:
    known = SECTIONS[section].model_fields
    if key not in known:
        raise InputError(f"{origin}: no setting {section}.{key}{messages.nearest_hint(key, known)}")

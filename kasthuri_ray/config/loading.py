"""Loading of settings: what a person gave (`GivenSettings`) becomes one object of resolved settings.

Precedence, highest first: flags, `--set`, the `--config` file, the task and network files, the defaults. Invalid
settings raise an InputError that names the file, the key, the value and what is allowed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar, cast

from pydantic import ValidationError

from kasthuri_ray.config import defaults, messages
from kasthuri_ray.config.config_files import (
    DuplicateKey,
    builtin_tasks,
    find_config_file,
    read_json_file,
    reject_duplicate_keys,
)
from kasthuri_ray.config.field_types import SettingsSection
from kasthuri_ray.config.flags import flag_name
from kasthuri_ray.config.settings import SECTIONS, Settings
from kasthuri_ray.config.task import RANGES, named_classes
from kasthuri_ray.config.task_ranges import drop_foreign_ranges
from kasthuri_ray.errors import InputError

# Keys of the Kasthuri Challenge's files that nothing reads; they are written to settings.json again.
UNUSED_KEYS = {"encoder_name", "encoder_weights", "outputdir", "eval_threshold", "eval_reduction"}
# Keys of settings.json that are not sections; it can be used as a --config file all the same.
RECORD_KEYS = {"versions", "git_commit", "seed", "kept", "sweep", "learnt_from"}

_JOB_SECTIONS = [name for name in SECTIONS if name in Settings.model_fields]

Layer = dict[str, dict[str, Any]]  # settings by section and key
NamedLayer = tuple[str, Layer]  # the name is the one in errors
Section = TypeVar("Section", bound=SettingsSection)


@dataclass(frozen=True)
class GivenSettings:
    """What a person gave for a job, neither merged nor checked.

    Parameters
    ----------
    task, network : str, mapping or None
        Name or path of the file, or its content.
    config : str or None
        Path of a file with settings by section, as of `--config`.
    assignments : sequence of str
        `section.key=value`, as of `--set`; a later one wins.
    flags : mapping
        Settings of the other flags, by section and key.
    """

    task: str | Mapping[str, Any] | None = None
    network: str | Mapping[str, Any] | None = None
    config: str | None = None
    assignments: Sequence[str] = ()
    flags: Layer = field(default_factory=dict)

    @cached_property
    def typed(self) -> list[NamedLayer]:
        """Layers of the command line, the lowest first."""
        assignments = [(f"--set {text}", parse_assignment(text)) for text in self.assignments]
        flags = [
            (flag_name(section, key), {section: {key: value}})
            for section, values in self.flags.items()
            for key, value in values.items()
        ]
        return [*assignments, *flags]

    @property
    def typed_keys(self) -> frozenset[str]:
        """Settings that the command line gives, as `section.key`."""
        layers = (layer for _, layer in self.typed)
        return frozenset(f"{section}.{key}" for layer in layers for section, values in layer.items() for key in values)

    def typed_values(self, section: str) -> dict[str, Any]:
        """Return the settings of a section that the command line gives, not validated."""
        return {key: value for _, layer in self.typed for key, value in layer.get(section, {}).items()}

    @cached_property
    def overrides(self) -> list[NamedLayer]:
        """Layers that win over the task and network files, the lowest first."""
        config = [] if self.config is None else [(self.config, read_config(self.config))]
        return config + self.typed

    def value(self, section: str, key: str) -> Any:
        """Return the value of a setting in the layers that win over the files, not validated; None if none sets it."""
        highest_first = reversed([layer for _, layer in self.overrides])
        return next((layer[section][key] for layer in highest_first if key in layer.get(section, {})), None)


def read_config(path: str) -> Layer:
    """Read a `--config` file: settings by section. settings.json and best.json are such files too."""
    layer = {key: value for key, value in read_json_file(path, "--config").items() if key not in RECORD_KEYS}
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
        raise InputError(f"--set {text}: expected section.key=value, such as {messages.whole_assignment(text)}")
    if section not in SECTIONS:
        hint = messages.nearest_setting(section, key) or messages.nearest_hint(section, SECTIONS)
        raise InputError(f"--set {text}: no section {section!r}; the sections are {', '.join(SECTIONS)}{hint}")
    try:
        parsed = _parse_value(value.strip())
    except DuplicateKey as error:
        raise InputError(f"--set {text}: {error}") from None
    field = SECTIONS[section].model_fields.get(key)
    is_text = field is not None and field.annotation in (str, str | None)
    return {section: {key: value.strip() if is_text and isinstance(parsed, list | int | float) else parsed}}


def _parse_value(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=reject_duplicate_keys)
    except json.JSONDecodeError:
        return [_parse_value(part.strip()) for part in text.split(",")] if "," in text else text


def resolve_settings(given: GivenSettings, base: NamedLayer | None = None) -> Settings:
    """Merge files, flags and defaults into the settings of a job that trains, tunes or segments.

    Parameters
    ----------
    given : GivenSettings
        What a person gave; without `base` the network is `defaults.NETWORK` by default.
    base : tuple or None
        Name and settings, by section, of the run whose weights are used; the files win over them.

    Returns
    -------
    Settings
        Valid settings of all its sections.

    Raises
    ------
    InputError
        If a setting is unknown, missing or not allowed, or if a file is malformed.
    InputNotFound
        If there is no such file.
    """
    files, overrides, ranges_notes = drop_foreign_ranges(_file_layers(given, base), given.overrides)
    merged = _merge(files, overrides)
    sections: dict[str, Any] = {name: _validate(name, merged) for name in _JOB_SECTIONS}
    settings = Settings(kept=merged.unused, **sections)
    messages.check_volumes_used(settings.task, given.typed)
    notes = messages.task_type_note(settings.task) | ranges_notes
    if given.config is not None:
        files_given = {"task": given.task, "network": given.network}
        names = {name: _file_name(file) for name, file in files_given.items() if file is not None}
        notes |= messages.override_notes(given.config, names, _valid_sections(_merge(files, given.typed)), settings)
    update = {"notes": notes, "typed": given.typed_keys, "origins": merged.origins.by_setting}
    return settings.model_copy(update=update)


def resolve_section(kind: type[Section], given: GivenSettings) -> Section:
    """Return the settings of one section that needs no others.

    Parameters
    ----------
    kind : type
        Class of the section, such as `EvaluateSettings`.
    given : GivenSettings
        What a person gave; its task and its network are not read.

    Returns
    -------
    SettingsSection
        An object of `kind`.

    Raises
    ------
    InputError
        If a setting is unknown, missing or not allowed, or if the file is malformed.
    """
    name = next(name for name, section in SECTIONS.items() if section is kind)
    return cast(Section, _validate(name, _merge([], given.overrides)))


def _file_layers(given: GivenSettings, base: NamedLayer | None) -> list[NamedLayer]:
    files = [] if base is None else [base]
    if given.network is not None or base is None:
        files.append(_read_layer("network", defaults.NETWORK if given.network is None else given.network))
    if given.task is not None:
        files.append(_read_layer("task", given.task))
    elif not any("task" in layer for _, layer in (*files, *given.overrides)):
        raise InputError(f"no task: give --task, one of {', '.join(builtin_tasks())} or a file of your own")
    return files


def _read_layer(section: str, given: str | Mapping[str, Any]) -> NamedLayer:
    """Return the layer of a task or network that is given by its file or by its content."""
    if not isinstance(given, str):
        return _file_name(given), {section: dict(given)}
    path = find_config_file(given, section)
    own = {"outweightfilename": path.stem} if section == "network" else {}
    return str(path), {section: {**own, **read_json_file(path, f"--{section}")}}


def _file_name(given: str | Mapping[str, Any]) -> str:
    return given if isinstance(given, str) else "{...}"


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
            if section == "task":
                for key in _replaced_keys(entries):
                    if not origins.get(f"task.{key}", "").startswith("--"):  # the command line is one layer
                        values[section].pop(key, None)
            for key, value in entries.items():
                if key in UNUSED_KEYS:
                    unused[key] = value
                    continue
                _check_key(section, key, origin, str({**values[section], **entries}.get("model", "")))
                values[section][key] = value
                origins[f"{section}.{key}"] = origin
    # A task's own loss wins over that of the network file, but not over one that overrides the files.
    loss = values["task"].get("loss")
    if loss is not None and not any("loss" in layer.get("network", {}) for _, layer in overrides):
        values["network"]["loss"] = loss
    stated = [layer["network"]["classes"] for _, layer in overrides if "classes" in layer.get("network", {})]
    values["network"] |= named_classes(values["task"], stated)
    return _Merged(values, messages.Origins(origins, [origin for origin, _ in files + overrides]), unused)


def _replaced_keys(task: Mapping[str, Any]) -> list[str]:
    """Return the settings of lower layers that a layer of a task replaces; in one layer both are an error."""
    replaced = list(RANGES) if task.get("boxes") else []
    replaced += ["classes"] if task.get("labels") else []
    return replaced + (["labels"] if task.get("classes") else [])


def _validate(section: str, merged: _Merged) -> SettingsSection:
    try:
        return SECTIONS[section].model_validate(merged.values[section])
    except ValidationError as error:
        raise InputError("\n".join(messages.describe_errors(section, error, merged.origins))) from None


def _valid_sections(merged: _Merged) -> dict[str, SettingsSection]:
    """Return the sections that are valid; without its `--config` file a task may lack settings."""
    sections = {}
    for section in _JOB_SECTIONS:
        with suppress(ValueError):
            sections[section] = _validate(section, merged)
    return sections


def _check_key(section: str, key: str, origin: str, model: str = "") -> None:
    if key not in SECTIONS[section].model_fields:
        is_own = section == "network" and "." in model
        advice = "; arguments of your own network belong in network.model_args" if is_own else ""
        raise InputError(f"{origin}: no setting {section}.{key}{messages.nearest_setting(section, key)}{advice}")

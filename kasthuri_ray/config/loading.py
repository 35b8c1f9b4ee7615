"""Where settings come from, and which of two wins: flags over `--set` over `--config` over the files over the defaults.

`resolve` gives `Settings`, or a ValueError that names the file, the key, what was given and what is allowed; a
FileNotFoundError where a file is not there.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from kasthuri_ray.config import messages
from kasthuri_ray.config.settings import SECTIONS, Settings
from kasthuri_ray.config.task import RANGES, SettingsSection

PACKAGE_FOLDER = Path(__file__).parents[1]
DEFAULT_NETWORK = "UNet_2D"  # where no other is named
# Keys that the Kasthuri Challenge's files carry and that nothing has ever read.
UNREAD_KEYS = {"encoder_name", "encoder_weights", "outputdir", "eval_threshold", "eval_reduction"}
# What settings.json holds beside the sections, so that it is itself a file for --config.
RECORD_KEYS = {"versions", "git_commit", "seed", "kept", "sweep"}

Layer = dict[str, dict[str, Any]]
Named = tuple[str, Layer]  # a layer, and what it is called in errors


def find_config_file(name: str, kind: str) -> Path:
    """The task or network file (`kind`) that `name` means: an existing path, else one of ours."""
    if Path(name).is_file():
        return Path(name)
    folder = PACKAGE_FOLDER / f"{kind}config"
    stem = Path(name).name.removesuffix(".json").removesuffix("_task" if kind == "task" else "")
    own = {path.stem.removesuffix("_task" if kind == "task" else ""): path for path in sorted(folder.glob("*.json"))}
    if stem in own and (Path(name).name == name):
        return own[stem]
    raise FileNotFoundError(
        f"no {kind} {name!r}: it is neither a file nor one of {', '.join(own)}{_nearest(stem, own)}"
    )


def read_json_file(path: Path) -> dict[str, Any]:
    """The JSON object in a file, or a ValueError that says where it breaks."""
    try:
        found = json.loads(path.read_text(), object_pairs_hook=_reject_duplicate_keys)
    except _DuplicateKey as error:
        raise ValueError(f"{path}: {error}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error.msg} in line {error.lineno}") from None
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no JSON object but {type(found).__name__}")
    return found


class _DuplicateKey(ValueError):
    """A JSON object that holds a key twice, of which Python's reader would keep the last."""


def _reject_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _DuplicateKey(
                f"the key {key!r} is there twice, as {json.dumps(found[key])} and {json.dumps(value)}; keep one of them"
            )
        found[key] = value
    return found


def read_config(path: Path) -> Layer:
    """A `--config` file: sections of settings; settings.json and best.json are such files."""
    layer = {key: value for key, value in read_json_file(path).items() if key not in RECORD_KEYS}
    for section, values in layer.items():
        if section not in SECTIONS:
            raise ValueError(f"{path}: no section {section!r}; there are {', '.join(SECTIONS)}")
        if not isinstance(values, dict):
            raise ValueError(f"{path}: {section} is not an object of settings")
    return layer


def parse_assignment(text: str) -> Layer:
    """One `--set section.key=value`; the value is JSON if it parses, else a comma list, else a string.

    For a setting that is text, a list or a number is text too: `phantom://em?shape=4,64,64` stays whole.
    """
    target, equals, value = text.partition("=")
    section, dot, key = target.strip().partition(".")
    if not (equals and dot and key):
        raise ValueError(f"--set {text}: expected section.key=value, such as network.epochs=30")
    if section not in SECTIONS:
        raise ValueError(f"--set {text}: no section {section!r}; there are {', '.join(SECTIONS)}")
    try:
        found = _parse_value(value.strip())
    except _DuplicateKey as error:
        raise ValueError(f"--set {text}: {error}") from None
    field = SECTIONS[section].model_fields.get(key)
    is_text = field is not None and field.annotation in (str, str | None)
    return {section: {key: value.strip() if is_text and isinstance(found, list | int | float) else found}}


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
    base: Named | None = None,
) -> Settings:
    """The settings that the layers add up to; see the module's first lines for which wins.

    task, network: names or paths of their files. config: a file of sections. assignments: `section.key=value`.
    flags: what flags of their own set. base: sections below the files, of a run whose weights are used.
    Raises ValueError for whatever is not allowed, FileNotFoundError.
    """
    above = layers_above(config, assignments, flags)
    files: list[Named] = [base] if base is not None else []
    if network is not None or base is None:
        path = find_config_file(network or DEFAULT_NETWORK, "network")
        files.append((str(path), {"network": {"outweightfilename": path.stem, **read_json_file(path)}}))
    if task is not None:
        path = find_config_file(task, "task")
        files.append((str(path), {"task": read_json_file(path)}))
    elif base is None and not any("task" in layer for _, layer in above):
        raise ValueError(f"no task: give --task, one of {', '.join(builtin_tasks())} or a file of your own")
    merged = _merge(files, above)
    settings = _build_settings(merged)
    typed = above[config is not None :]
    messages.check_volumes_used(settings.task, typed)
    notes = messages.task_type_note(settings.task)
    if config is not None:
        named = {section: name for section, name in (("task", task), ("network", network)) if name is not None}
        notes |= messages.override_notes(config, named, _valid_sections(_merge(files, typed)), settings)
    return settings.model_copy(update={"notes": notes})


def layers_above(config: str | None, assignments: Iterable[str], flags: Layer | None) -> list[Named]:
    """What stands above the files, the lowest first."""
    above: list[Named] = [(config, read_config(Path(config)))] if config is not None else []
    above += [(f"--set {text}", parse_assignment(text)) for text in assignments]
    return [*above, ("the command line", flags or {})]


def explicit_value(section: str, key: str, above: Iterable[Named]) -> Any:
    """What the layers above the files say of one setting, before any other is looked at; None if nothing."""
    return next((layer[section][key] for _, layer in reversed(list(above)) if key in layer.get(section, {})), None)


def builtin_tasks() -> list[str]:
    """The names of the task files that come with the package."""
    return sorted(path.stem.removesuffix("_task") for path in (PACKAGE_FOLDER / "taskconfig").glob("*.json"))


def override_settings(settings: Settings, values: Mapping[str, Any], origin: str) -> Settings:
    """The settings with these in place, by `section.key`; errors as of `resolve`. origin: who gave them."""
    changed: Layer = {}
    for name, value in values.items():
        section, _, key = name.partition(".")
        _check_key(section, key, origin)
        changed.setdefault(section, {})[key] = value
    sections = {}
    for section, entries in changed.items():
        whole: SettingsSection = getattr(settings, section)
        origins = {section: origin, **{f"{section}.{key}": origin for key in entries}}
        checked = _build(section, _Merged({section: {**whole.model_dump(), **entries}}, origins, [origin], {}))
        # Taken over one by one: written out, an address loses what may be secret in it.
        sections[section] = whole.model_copy(update={key: getattr(checked, key) for key in entries})
    return settings.model_copy(update=sections)


@dataclass
class _Merged:
    """What layers add up to, not checked yet.

    origins: which layer said a setting (`section.key`), and which was the first to say anything of a section.
    order: the names of the layers, the lowest first. kept: as of Settings.
    """

    values: Layer
    origins: dict[str, str]
    order: list[str]
    kept: dict[str, Any]

    def origin_of(self, section: str, message: str) -> str:
        """The highest layer that said any of the settings of a section that a message names."""
        words = set(re.findall(r"\w+", message)) & SECTIONS[section].model_fields.keys()
        origins = {self.origins[f"{section}.{word}"] for word in words if f"{section}.{word}" in self.origins}
        found = [name for name in self.order if name in origins]
        return found[-1] if found else self.origins.get(section, "defaults")


def _merge(files: list[Named], above: list[Named]) -> _Merged:
    values: Layer = {section: {} for section in SECTIONS}
    origins: dict[str, str] = {}
    kept: dict[str, Any] = {}
    for origin, layer in files + above:
        for section, entries in layer.items():
            origins.setdefault(section, origin)
            if section == "task" and entries.get("boxes"):
                for key in RANGES:  # of the layers below; in the same one they are an error
                    values[section].pop(key, None)
            for key, value in entries.items():
                if key in UNREAD_KEYS:
                    kept[key] = value
                    continue
                _check_key(section, key, origin)
                values[section][key] = value
                origins[f"{section}.{key}"] = origin
    # A task's own loss wins over the network file's, but not over what is said above the files.
    loss = values["task"].get("loss")
    if loss is not None and not any("loss" in layer.get("network", {}) for _, layer in above):
        values["network"]["loss"] = loss
    return _Merged(values, origins, [origin for origin, _ in files + above], kept)


def _build_settings(merged: _Merged) -> Settings:
    sections = {section: _build(section, merged) for section in SECTIONS}
    return Settings(kept=merged.kept, **sections)  # type: ignore[arg-type]


def _valid_sections(merged: _Merged) -> dict[str, SettingsSection]:
    """The sections that are whole: what a `--config` file adds may be what a task lacks."""
    found = {}
    for section in SECTIONS:
        with suppress(ValueError):
            found[section] = _build(section, merged)
    return found


def _check_key(section: str, key: str, origin: str) -> None:
    known = SECTIONS[section].model_fields
    if key not in known:
        raise ValueError(f"{origin}: no setting {section}.{key}{_nearest(key, known)}")


def _nearest(word: str, known: Any) -> str:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def _build(section: str, merged: _Merged) -> SettingsSection:
    try:
        return SECTIONS[section].model_validate(merged.values[section])
    except ValidationError as error:
        raise ValueError("\n".join(_describe_errors(section, error, merged))) from None


def _describe_errors(section: str, error: ValidationError, merged: _Merged) -> list[str]:
    """Pydantic's errors, each as file, key, what was given and what is allowed."""
    found: dict[tuple[str, ...], tuple[Any, list[str]]] = {}
    for entry in error.errors():
        # Where one of two types is allowed, each complains, at a place that ends in its own name.
        path = tuple(str(part) for part in entry["loc"] if not re.fullmatch(r"str|(list|dict)\[.*", str(part)))
        found.setdefault(path, (entry["input"], []))[1].append(_allowed(entry))
    # One that accepts the outside and complains of the inside is the one that was meant.
    inmost = [path for path in found if not any(other[: len(path)] == path != other for other in found)]
    return [_line(section, path, *found[path], merged) for path in inmost]


def _allowed(entry: Any) -> str:
    message = entry["msg"].removeprefix("Value error, ").replace(" after validation", "")
    if entry["type"] == "extra_forbidden":
        return "there is no such setting"
    return "it is missing" if entry["type"] == "missing" else message.replace("Input should be", "expected")


def _line(section: str, path: tuple[str, ...], given: Any, allowed: list[str], merged: _Merged) -> str:
    message = ", or ".join(allowed)
    if not path:
        return f"{merged.origin_of(section, message)}: {section}: {message}"
    origin = merged.origins.get(f"{section}.{path[0]}", "defaults")
    return f"{origin}: {section}.{'.'.join(path)} is {json.dumps(given, default=str, ensure_ascii=False)}: {message}"

"""A sweep that is only named (`--name my_sweep --storage outputs`) is the one that was begun under that name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from kasthuri_ray.config import Train
from kasthuri_ray.storage import open_storage, without_secrets

Told = tuple[str | None, Mapping[str, Any]]  # the task and the layers of settings of a command line


def record_of(task: str | None, layers: Mapping[str, Any]) -> dict[str, Any]:
    """What a sweep keeps of its command line, under "begun" in its settings.json; no secret."""
    return _bare({"task": task, **layers})


def _bare(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _bare(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_bare(each) for each in value]
    return without_secrets(value) if isinstance(value, str) else value


def as_begun(task: str | None, layers: Mapping[str, Any]) -> Told:
    """The command line, with that which the sweep was begun with below it where it names a sweep and no task."""
    train = layers["flags"].get("train", {})
    if task or layers["config"] or layers["flags"].get("task") or not train.get("name"):
        return task, layers
    place = train.get("storage", Train.model_fields["storage"].default)
    try:
        settings = json.loads(open_storage(f"{str(place).rstrip('/')}/{train['name']}").read_bytes("settings.json"))
        begun = settings["sweep"]["begun"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return task, layers
    sections = {**begun["flags"], **layers["flags"]}
    flags = {name: {**begun["flags"].get(name, {}), **layers["flags"].get(name, {})} for name in sections}
    assignments = [*begun["assignments"], *layers["assignments"]]
    return begun["task"], {"config": begun["config"], "assignments": assignments, "flags": flags}

"""Files of settings: tasks and networks by name or path, and JSON objects read with errors that name what is wrong."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from kasthuri_ray.config import messages
from kasthuri_ray.errors import InputError, InputNotFound, named_input
from kasthuri_ray.storage.local_paths import describe_missing

PACKAGE_FOLDER = Path(__file__).parents[1]
_JSON_KINDS = {type(None): "null", list: "a list", str: "a string", bool: "true or false"}  # in messages


def find_config_file(name: str, kind: str, flag: str = "") -> Path:
    """Return the path of a task or network file.

    Parameters
    ----------
    name : str
        Path of a file, or name of one that comes with the package.
    kind : str
        `task` or `network`.
    flag : str
        By which it was given, for messages; that of the kind by default.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    InputNotFound
        If there is no such file; the message lists the names.
    InputError
        If it is a folder.
    """
    if Path(name).is_file():
        return Path(name)
    ending = "_task" if kind == "task" else ""
    folder = PACKAGE_FOLDER / f"{kind}config"
    builtin = {path.stem.removesuffix(ending): path for path in sorted(folder.glob("*.json"))}
    stem = Path(name).name.removesuffix(".json").removesuffix(ending)
    if stem in builtin and Path(name).name == name:
        return builtin[stem]
    flag = flag or f"--{kind}"
    names, hint = ", ".join(builtin), messages.nearest_hint(stem, builtin)
    if not name:
        raise InputError(f"{flag} is empty; expected a file, or one of {names}")
    if Path(name).is_dir():
        raise InputError(f"{flag} {name} is a folder; expected a file, or one of {names}")
    missing = describe_missing(name)
    if missing.endswith("?"):
        raise InputNotFound(f"{flag} {name}: {missing} Built-in {kind}s are {names}")
    raise InputNotFound(f"{flag} {name}: {missing}; built-in {kind}s are {names}{hint}")


def builtin_tasks() -> list[str]:
    """Return the names of the tasks that come with the package.

    Returns
    -------
    list of str
        Names, sorted.
    """
    return sorted(path.stem.removesuffix("_task") for path in (PACKAGE_FOLDER / "taskconfig").glob("*.json"))


def read_json_file(path: str | Path, flag: str = "") -> dict[str, Any]:
    """Read a JSON object from a file.

    Parameters
    ----------
    path : str or Path
        Path of the file.
    flag : str
        By which it was given, for messages.

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
    with named_input(flag, str(path)):
        content = _parse_file(path)
        if not isinstance(content, dict):
            kind = _JSON_KINDS.get(type(content), "a number")
            raise InputError(f"{path} must contain a JSON object {{...}}, not {kind}")
        return content


def _parse_file(path: str | Path) -> Any:
    if os.path.isdir(path):
        raise InputError(f"{path} is a folder; expected a JSON file")
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        return json.loads(text, object_pairs_hook=reject_duplicate_keys)
    except FileNotFoundError:
        raise InputNotFound(describe_missing(path)) from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not JSON: it is no text file") from None
    except DuplicateKey as error:
        raise InputError(f"{path}: {error}") from None
    except json.JSONDecodeError as error:
        reason = f"not JSON: {error.msg} in line {error.lineno}" if text.strip() else "empty; expected JSON"
        raise InputError(f"{path} is {reason}") from None


class DuplicateKey(InputError):
    """A JSON object that holds a key twice; Python's reader would silently use the last."""


def reject_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            both = f"{json.dumps(values[key])} and {json.dumps(value)}"
            raise DuplicateKey(f"the key {key!r} occurs twice, as {both}; keep one of them")
        values[key] = value
    return values

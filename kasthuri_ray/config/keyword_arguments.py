"""Keyword arguments of the Python API: which names there are, and how their values become settings."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from kasthuri_ray.config.flags import SECTIONS_OF_JOBS, TARGETS
from kasthuri_ray.errors import InputError

OTHER_WORDS = {"labels": "annotation", "label": "annotation", "table": "objects"}
BOXES = ("box", "export_box")
NUMBER_LISTS = ("position", "size")  # of the viewer
SAME_CALL = "the same call"  # what resumes a run, in place of a command
SETTINGS_EXAMPLE = 'settings={"network.epochs": 3}'


def check_keywords(function: str, given: Mapping[str, Any], names: Collection[str]) -> None:
    """Raise a TypeError for an unknown keyword argument of a function.

    Parameters
    ----------
    function : str
        Name of the function.
    given : mapping
        Keyword arguments by name.
    names : collection of str
        Names that the function knows.

    Raises
    ------
    TypeError
        If a name is unknown. The message says what to write instead: the nearest name, or the setting of that name.
    """
    for name, value in given.items():
        if name not in names:
            hint = _keyword_hint(name, value, names)
            raise TypeError(f"{function}() got an unexpected keyword argument {name!r}; {hint}")


def _keyword_hint(name: str, value: Any, names: Collection[str]) -> str:
    positive = name.removeprefix("no_")
    if positive in names and isinstance(value, bool):
        return f"did you mean {positive}={not value}?"
    if OTHER_WORDS.get(name) in names:
        return f"did you mean {OTHER_WORDS[name]!r}?"
    setting = _find_setting(name)
    if setting and "settings" in names:
        return f"it is a setting: settings={{{setting!r}: {value!r}}}"
    near = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(sorted(names))}"


def _find_setting(key: str) -> str:
    """Return `section.key` of a setting of the network or the task; "" if there is none."""
    from kasthuri_ray.config.settings import SECTIONS

    return next((f"{section}.{key}" for section in ("network", "task") if key in SECTIONS[section].model_fields), "")


def set_by_keywords(function: str, values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the settings that keyword arguments set.

    Parameters
    ----------
    function : str
        Name of the function, which is also that of the section of most settings.
    values : mapping
        Arguments by name, volumes as URIs; None counts as not given.

    Returns
    -------
    dict of dict
        Settings by section and key, not checked.

    Raises
    ------
    InputError
        If a result is given where its path is expected, or a box is no box.
    """
    settings: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        if value is not None:
            section, key = TARGETS.get(function, {}).get(name, f"{function}.{name}").split(".")
            settings.setdefault(section, {})[key] = as_setting(name, value)
    return settings


def as_setting(name: str, value: Any) -> Any:
    """Return the value of a keyword argument as a setting holds it: paths and boxes as text.

    Parameters
    ----------
    name : str
        Name of the argument.
    value : Any
        Its value.

    Returns
    -------
    Any
        Another value only for a path, the slices of a box, and the content of a search space.

    Raises
    ------
    InputError
        If a result is given where its path is expected, or if a box has steps or too many axes.
    """
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if path := path_of_result(value):
        raise InputError(f"{name} is a {type(value).__name__}; give its path, {path!r}")
    if name in BOXES and not isinstance(value, str):
        return _box_text(name, value)
    if name in NUMBER_LISTS and isinstance(value, Sequence) and not isinstance(value, str):
        return ",".join(map(str, value))
    if name == "space":  # tuples become lists, as in a file
        return json.loads(_as_json(name, value))
    return value


def path_of_result(value: Any) -> str | None:
    """Return the path of a result such as that of `train`.

    Parameters
    ----------
    value : Any
        Any argument.

    Returns
    -------
    str or None
        None for anything else.
    """
    path = getattr(value, "path", None)
    return path if isinstance(path, str) and hasattr(value, "metrics") else None


def _box_text(name: str, box: Any) -> str:
    """Return slices such as those of np.s_[0:10, :, 5:9] as text."""
    slices = list(box) if isinstance(box, tuple | list) else [box]
    if len(slices) != 3 or not all(isinstance(each, slice) and each.step in (None, 1) for each in slices):
        raise InputError(f'{name} is {box!r}; expected text such as "0:100,:,1000:3000", or three slices z, y, x')
    limits = (("" if limit is None else str(limit) for limit in (each.start, each.stop)) for each in slices)
    return ",".join(":".join(pair) for pair in limits)


def as_assignments(settings: Mapping[str, Any] | Sequence[str] | None) -> list[str]:
    """Return the argument `settings` as the texts of `--set`.

    Parameters
    ----------
    settings : mapping, sequence of str or None
        Values by `section.key`, or by section and key; or texts `section.key=value`.

    Returns
    -------
    list of str
        `section.key=value`, with the value in JSON if it came from a mapping.

    Raises
    ------
    InputError
        If the argument is something else, or if JSON cannot hold a value, such as an array.
    """
    if settings is None:
        return []
    if isinstance(settings, str) or not isinstance(settings, Mapping | Sequence):
        raise InputError(f"settings is {settings!r}; expected a dict, such as {SETTINGS_EXAMPLE}")
    if not isinstance(settings, Mapping):
        return [*settings]
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        inside = isinstance(value, Mapping) and "." not in key
        flat |= {f"{key}.{name}": each for name, each in value.items()} if inside else {key: value}
    return [f"{key}={_as_json(key, value)}" for key, value in flat.items()]


def check_sections(function: str, assignments: Sequence[str]) -> None:
    """Raise an InputError for a setting that the function would not read.

    Parameters
    ----------
    function : str
        Name of the function, or of the job.
    assignments : sequence of str
        `section.key=value`, as of `--set`.
    """
    from kasthuri_ray.config.settings import SECTIONS

    own = SECTIONS_OF_JOBS[function]
    for text in assignments:
        section = text.partition(".")[0].strip()
        if section in SECTIONS and section not in own:
            raise InputError(
                f"--set {text}: {function} reads no setting of the section {section}, only of {', '.join(own)} "
                f"(--settings lists them)"
            )


def _as_json(key: str, value: Any) -> str:
    try:
        return json.dumps(value, default=os.fspath)
    except TypeError:
        raise InputError(
            f"the setting {key} is a {type(value).__name__}; expected text, a number, true or false, or a list of "
            "these. An array is given as the argument image or annotation"
        ) from None


def check_task_or_network(name: str, value: Any) -> Any:
    """Return the argument `task` or `network`, a path as text.

    Parameters
    ----------
    name : str
        `task` or `network`.
    value : Any
        Value of the argument.

    Returns
    -------
    str, mapping or None
        As `GivenSettings` takes it.

    Raises
    ------
    InputError
        If it is neither a name, nor a path, nor a mapping; or if its model is a class that is not in a file.
    """
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if value is not None and not isinstance(value, str | Mapping):
        raise InputError(
            f"{name} is a {type(value).__name__}; expected the name or the path of a {name} file, or a dict"
            f"{_model_advice(type(value)) if name == 'network' else ''}"
        )
    model = value.get("model") if isinstance(value, Mapping) else None
    if name == "network" and model is not None and not isinstance(model, str):
        raise InputError(f"network.model is no text{_model_advice(model if isinstance(model, type) else type(model))}")
    return value


def _model_advice(model: type) -> str:
    """Return how a network that a person wrote is given."""
    if model.__module__ in ("__main__", "builtins"):
        name = "MyNet" if model.__module__ == "builtins" else model.__name__
        advice, path = "saved in a file and given by its import path", f"my_module.{name}"
    else:
        advice, path = "given by its import path", f"{model.__module__}.{model.__name__}"
    return f'. A network of your own is {advice}: network={{"model": "{path}"}}'

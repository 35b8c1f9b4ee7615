"""The list of all settings, with types, defaults and meanings: what `--settings` prints, and docs/settings.md.

`python -m kasthuri_ray.config.setting_list > docs/settings.md` writes the page. All of it comes from the classes of
settings: the docstring below a setting is its meaning.
"""

from __future__ import annotations

import difflib
import json
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from kasthuri_ray.config import defaults
from kasthuri_ray.config.config_files import find_config_file, read_json_file
from kasthuri_ray.config.field_types import SettingsSection
from kasthuri_ray.config.flags import SECTIONS_OF_JOBS
from kasthuri_ray.config.settings import SECTIONS
from kasthuri_ray.config.task import Region
from kasthuri_ray.errors import InputError

REGION = "task.boxes.SPLIT[NUMBER]"  # of the keys of a region; --set replaces task.boxes as a whole
LIMITS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}  # of JSON schemas
TYPES = {"boolean": "true or false", "string": "text", "object": "object {...}", "null": "null"}
PAGE_HEAD = """# Settings

Every setting, with its type, its default and what it means. `python jobs/train.py --settings` prints the same list, and
`python jobs/train.py --settings rate` those that hold a word.

`--set section.key=value` changes settings on the command line, `settings={"section.key": value}` in Python; a file of
`--config` holds them by section. `null` is None in Python. [Training](training.md#settings) says which value wins.
Shapes, sizes and boxes are z, y, x. This page is written by `python -m kasthuri_ray.config.setting_list`.
"""


@dataclass(frozen=True)
class SettingEntry:
    """A setting as it is listed.

    Parameters
    ----------
    name : str
        `section.key`.
    kind : str
        What its value may be.
    default : str
        Its default as JSON; "" if it has none.
    meaning : str
        One sentence or more.
    """

    name: str
    kind: str
    default: str
    meaning: str

    def holds(self, word: str) -> bool:
        """Return whether the name or the meaning holds a word, in upper or lower case."""
        return word.lower() in f"{self.name} {self.meaning}".lower()


def section_entries(section: str) -> list[SettingEntry]:
    """Return the settings of a section in the order of the code; those of regions follow `task.boxes`."""
    entries = list(_entries(section, SECTIONS[section]))
    if section == "task":
        place = [entry.name for entry in entries].index("task.boxes") + 1
        entries[place:place] = _entries(REGION, Region)
    return entries


def _entries(prefix: str, kind: type[SettingsSection]) -> Iterator[SettingEntry]:
    in_file = read_json_file(find_config_file(defaults.NETWORK, "network")) if prefix == "network" else {}
    for key, schema in kind.model_json_schema()["properties"].items():
        default = json.dumps(schema["default"]) if "default" in schema else ""
        if key in in_file and json.dumps(in_file[key]) not in (default, f'"{defaults.NETWORK}"'):
            default = f"{json.dumps(in_file[key])} in {defaults.NETWORK}, {default} where a file leaves it out"
        meaning = " ".join(schema.get("description", "").split())
        yield SettingEntry(f"{prefix}.{key}", describe_type(schema), default, meaning)


def describe_type(schema: dict[str, Any]) -> str:
    """Return what a JSON schema allows, in words such as `integer >= 1 or null`."""
    if "anyOf" in schema:
        return " or ".join(describe_type(each) for each in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        *first, last = (str(value) for value in schema.get("enum", [schema.get("const")]))
        return f"{', '.join(first)} or {last}" if first else last
    if schema.get("type") == "array":
        return _describe_list(schema)
    limits = " and ".join(f"{sign} {schema[key]:g}" for key, sign in LIMITS.items() if key in schema)
    return f"{TYPES.get(schema.get('type', 'object'), schema.get('type', 'object'))} {limits}".strip()


def _describe_list(schema: dict[str, Any]) -> str:
    low, high = schema.get("minItems"), schema.get("maxItems")
    number = f" of {low}" if low is not None and low == high else ""
    return f"list{number} ({describe_type(schema['items'])})"


def describe_settings(word: str = "", width: int = 80) -> str:
    """Return the list of settings as text.

    Parameters
    ----------
    word : str
        Only the settings whose name or meaning holds it.
    width : int
        Characters in a line.

    Returns
    -------
    str
        Lines, by section.

    Raises
    ------
    InputError
        If no setting holds the word; the message names the nearest.
    """
    by_section = {name: [each for each in section_entries(name) if each.holds(word)] for name in SECTIONS}
    if not any(by_section.values()):
        raise InputError(f"--settings {word}: no setting holds this word{_nearest_setting(word)}")
    parts = [
        "\n".join([textwrap.fill(_section_title(name), width - 1), *(_entry_text(entry, width) for entry in entries)])
        for name, entries in by_section.items()
        if entries
    ]
    return "\n\n".join(parts)


def _nearest_setting(word: str) -> str:
    names = {key: f"{name}.{key}" for name, kind in SECTIONS.items() for key in kind.model_fields}
    near = difflib.get_close_matches(word.rpartition(".")[2], names, n=1, cutoff=0.5)
    return f"; did you mean {names[near[0]]}?" if near else ""


def _section_title(section: str) -> str:
    return f"{section}: {_summary(section)} (--set {section}.KEY=VALUE of {_readers(section)})".replace(":  (", ": (")


def _summary(section: str) -> str:
    first = (SECTIONS[section].__doc__ or "").split("\n\n")[0]
    return " ".join(first.split()).rstrip(".")


def _readers(section: str, quote: str = "") -> str:
    jobs = [f"{quote}{job}.py{quote}" for job, sections in SECTIONS_OF_JOBS.items() if section in sections]
    return " and ".join(filter(None, [", ".join(jobs[:-1]), jobs[-1]]))


def _entry_text(entry: SettingEntry, width: int) -> str:
    default = f", default {entry.default}" if entry.default else ", required"
    title = f"{entry.name} ({entry.kind}{default})"
    lines = textwrap.wrap(title, width - 1, initial_indent="  ", subsequent_indent="    ")
    return "\n".join(
        [*lines, *textwrap.wrap(entry.meaning, width - 1, initial_indent=" " * 6, subsequent_indent=" " * 6)]
    )


def settings_page() -> str:
    """Return the text of docs/settings.md: a table for each section.

    Returns
    -------
    str
        Markdown.
    """
    return "\n".join([PAGE_HEAD, *("\n".join(_section_table(name)) for name in SECTIONS)])


def _section_table(section: str) -> Iterator[str]:
    yield f"## {section}\n\n{_summary(section)}. Of {_readers(section, '`')}.\n"
    yield "| setting | type | default | meaning |\n| --- | --- | --- | --- |"
    for entry in section_entries(section):
        is_value = entry.default and " in " not in entry.default
        default = f"`{entry.default}`" if is_value else entry.default or "required"
        yield f"| `{entry.name}` | {entry.kind} | {default} | {entry.meaning} |"
    yield ""


if __name__ == "__main__":
    sys.stdout.write(settings_page().rstrip("\n") + "\n")

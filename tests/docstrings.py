"""Check the docstrings of all names that other rooms or the jobs import: `python tests/docstrings.py [ROOM ...]`.

A docstring must be valid numpydoc: an imperative summary, and sections for parameters and return values. A room is a
folder of the package, or a module beside them. The fields that a dataclass inherits are described in its base.
"""

import ast
import importlib
import re
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path

from numpydoc.validate import validate

ROOT = Path(__file__).resolve().parents[1]
CHECKED = {"GL08", "SS01", "SS02", "SS03", "SS05", "PR01", "PR02", "PR04", "PR07", "RT01", "RT03", "YD01"}
FIELDS_DOCUMENTED_ONE_BY_ONE = ("SettingsSection", "OptimizerSettings")  # there, or in the settings of the same names


def room_of(module: str) -> str:
    """Return the room of a module, or the module itself if it is in no room."""
    return ".".join(module.split(".")[:2])


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def names_used_across_rooms() -> set[tuple[str, str]]:
    """Return (module, name) of everything that a module of another room or a job imports."""
    found = set()
    for path in [*(ROOT / "kasthuri_ray").rglob("*.py"), *(ROOT / "jobs").glob("*.py")]:
        own, tree, modules = room_of(module_name(path)), ast.parse(path.read_text()), {}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("kasthuri_ray"):
                for alias in node.names:
                    whole = f"{node.module}.{alias.name}"
                    if (ROOT / whole.replace(".", "/")).with_suffix(".py").exists():
                        modules[alias.asname or alias.name] = whole
                    elif room_of(str(node.module)) != own:
                        found.add((str(node.module), alias.name))
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                module = modules.get(node.value.id)
                if module is not None and room_of(module) != own:
                    found.add((module, node.attr))
    return found


def problems_of(module: str, name: str) -> list[str]:
    """Return the problems in the docstring of a function or class; nothing for other values."""
    value = getattr(importlib.import_module(module), name, None)
    if getattr(value, "__module__", None) != module or not callable(value) or not hasattr(value, "__qualname__"):
        return []
    skipped, inherited = set(), set()
    if isinstance(value, type):
        inherited = {field.name for base in value.__mro__[1:] if is_dataclass(base) for field in fields(base)}
        bases = {base.__name__ for base in value.__mro__}
        if bases & {*FIELDS_DOCUMENTED_ONE_BY_ONE, "BaseException", "Protocol"}:
            skipped = {"PR01", "PR02"}
        skipped |= {"SS05"}  # the summary of a class is a noun
    errors = validate(f"{module}.{name}")["errors"]
    errors = [each for each in errors if each[0] != "PR01" or not inherited.issuperset(re.findall(r"'(\w+)'", each[1]))]
    return [f"{module}.{name}: {code} {text}" for code, text in errors if code in CHECKED - skipped]


def main(rooms: list[str]) -> int:
    names = sorted(names_used_across_rooms())
    chosen = [each for each in names if not rooms or room_of(each[0]).rpartition(".")[2] in rooms]
    problems = [problem for each in chosen for problem in problems_of(*each)]
    print("\n".join([*problems, f"{len(chosen)} names used across rooms, {len(problems)} problems"]))
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

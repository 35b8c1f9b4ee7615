"""Names of sections: which files of a folder they are, their natural order, and gaps in their numbers."""

from __future__ import annotations

import collections
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kasthuri_ray.errors import InputError
from kasthuri_ray.storage.uris import expand_home

KINDS = {"TIFF": (".tif", ".tiff"), "PNG": (".png",), "JPEG": (".jpg", ".jpeg")}
MAX_LISTED = 10  # missing numbers, or names of files, that a line shows


@dataclass(frozen=True)
class SectionNames:
    """Files that are the sections of a volume.

    Parameters
    ----------
    paths : tuple of str
        Their absolute paths, in order.
    notes : tuple of str
        Lines about files that were ignored and numbers that are missing.
    """

    paths: tuple[str, ...]
    notes: tuple[str, ...]


def classify_section_name(name: str) -> str | None:
    """Return TIFF, PNG or JPEG by the ending of a file's name; None for other files and for hidden ones."""
    path = Path(name)
    if path.name.startswith("."):
        return None
    return next((kind for kind, endings in KINDS.items() if path.suffix.lower() in endings), None)


def natural_key(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """Return a key that sorts numbers in names by their value: s2 before s10."""
    parts = re.split(r"([0-9]+)", name)
    return [(0, int(part), "") if part.isdecimal() and part.isascii() else (1, 0, part) for part in parts], name


def choose_sections(uri: str, files: Sequence[str]) -> SectionNames:
    """Return which files of a folder or a pattern are sections, in natural order.

    Parameters
    ----------
    uri : str
        Opens messages.
    files : sequence of str
        Paths of all files that were found.

    Returns
    -------
    SectionNames
        TIFF and PNG files; JPEG files only where there are no others.

    Raises
    ------
    InputError
        If there are TIFF and PNG files, or none.
    """
    kinds = {name: classify_section_name(name) for name in files}
    counts = collections.Counter(kind for kind in kinds.values() if kind)
    if counts["TIFF"] and counts["PNG"]:
        raise InputError(
            f"{uri} holds {counts['TIFF']} TIFF and {counts['PNG']} PNG files; name the sections by a quoted pattern, "
            "such as 'folder/*.tif'"
        )
    kind = next((kind for kind in KINDS if counts[kind]), None)
    if kind is None:
        raise InputError(f"{uri} holds no TIFF or PNG files")
    chosen = sorted((name for name in files if kinds[name] == kind), key=natural_key)
    ignored = sorted({Path(name).suffix or Path(name).name for name in files if kinds[name] != kind})
    notes = []
    if ignored:
        notes.append(f"{uri}: {len(files) - len(chosen)} files that are no {kind} are ignored ({_listed(ignored)})")
    return SectionNames(tuple(chosen), (*notes, *order_notes(uri, chosen), *gap_notes(uri, chosen)))


def listed_sections(uri: str, lines: Sequence[str], folder: Path) -> SectionNames:
    """Return the sections that the lines of a text file name, relative to its folder, in the order of the lines."""
    names = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    others = [name for name in names if classify_section_name(name) is None]
    if not names or others:
        found = f"names {others[0]!r}" if others else "names no files"
        raise InputError(f"{uri} {found}; it should name one TIFF or PNG file a line")
    chosen = [str(folder / expand_home(name)) for name in names]
    ordered = sorted(chosen, key=natural_key)
    if chosen != ordered:
        order = f"{uri}: the sections are in the order of its lines, which is not that of their numbers"
        return SectionNames(tuple(chosen), (order,))
    return SectionNames(tuple(chosen), gap_notes(uri, chosen))


def order_notes(uri: str, names: Sequence[str]) -> tuple[str, ...]:
    """Return a line that shows the order of names that differ in more than one number, such as in signs or letters."""
    if len(names) < 2 or _varying_numbers(names) is not None:
        return ()
    shown = [Path(name).name for name in names]
    order = ", ".join(shown if len(shown) <= MAX_LISTED else [*shown[:3], "...", shown[-1]])
    return (f"{uri}: the names of the sections differ in more than one number; they are read in this order: {order}",)


def gap_notes(uri: str, names: Sequence[str]) -> tuple[str, ...]:
    """Return a line about the numbers that are missing in ordered names, if exactly one number differs among them."""
    numbers = _varying_numbers(names)
    if numbers is None:
        return ()
    steps = collections.Counter(b - a for a, b in itertools.pairwise(numbers))
    step = min(steps, key=lambda each: (-steps[each], each))
    if step <= 0:
        return (f"{uri}: several sections have the same number",)
    missing = [number for a, b in itertools.pairwise(numbers) for number in range(a + step, b, step)]
    if not missing:
        return ()
    text = (
        f"{uri}: the numbers of the sections have gaps, {len(missing)} are missing: {_listed(_ranges(missing, step))}"
    )
    return (f"{text}; the sections beside a gap are taken for neighbours",)


def _varying_numbers(names: Sequence[str]) -> list[int] | None:
    """Return the numbers in which names differ; None if they differ in anything else, or are fewer than two."""
    parts = [re.split(r"([0-9]+)", Path(name).name) for name in names]
    if len(names) < 2 or len({len(each) for each in parts}) > 1:
        return None
    varying = [column for column in zip(*parts, strict=True) if len(set(column)) > 1]
    if len(varying) != 1 or not all(text.isdecimal() and text.isascii() for text in varying[0]):
        return None
    return [int(text) for text in varying[0]]


def _ranges(numbers: Sequence[int], step: int) -> list[str]:
    """Return numbers as texts, those that follow each other as one: 3, 5-7."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + step:
            runs[-1].append(number)
        else:
            runs.append([number])
    return [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:MAX_LISTED]) + (", ..." if len(names) > MAX_LISTED else "")

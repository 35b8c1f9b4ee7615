"""What is at the place of an output before it is written, and how an output is removed."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kasthuri_ray.output.ome_metadata import PROVENANCE_KEY
from kasthuri_ray.storage.folder import _document, _remove_file, list_folder, open_storage, remove_folder

SHOWN = 5


UNFINISHED = re.compile(r"(.+)_[0-9a-f]+\.__lock$")  # how tensorstore names a file that it has not finished


@dataclass(frozen=True)
class ExistingOutput:
    """What is at a place. ours: whether a segmentation of ours wrote it, which `record` tells. words: what it is."""

    words: str
    ours: bool = False
    record: dict[str, Any] | None = None


def find_existing_output(path: str) -> ExistingOutput | None:
    """What is at a path or URL where an output is to be written; None for nothing, or an empty folder."""
    storage = open_storage(path)
    if storage.folder is not None and storage.folder.exists() and not storage.folder.is_dir():
        return ExistingOutput(f"{storage.path} is a file")
    names = list_folder(storage)
    if not names:
        return None
    for name, kind in (("zarr.json", "zarr"), ("provenance", "precomputed copy")):
        document = _document(storage, name)
        if name in names and document is None:
            return ExistingOutput(f"{storage.path} holds a {name} that is not JSON")
        record = _record_of(document or {})
        if record is not None:
            return ExistingOutput(f"{storage.path} is a {kind} that a segmentation wrote", True, record)
        if name == "zarr.json" and document:
            return ExistingOutput(
                f"{storage.path} is a zarr {document.get('node_type', 'node')} that no segmentation wrote"
            )
    shown = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
    return ExistingOutput(f"{storage.path} is a folder that holds {shown}")


def _record_of(document: dict[str, Any]) -> dict[str, Any] | None:
    """The provenance in a `zarr.json` or a `provenance` of ours; None for others."""
    try:
        if "processing" in document:
            step = document["processing"][0]
            record = step["method"] if step["by"] == PROVENANCE_KEY else None
        else:
            record = document["attributes"][PROVENANCE_KEY]
    except (KeyError, IndexError, TypeError):
        return None
    return record if isinstance(record, dict) else None


def remove_output(path: str) -> None:
    """Remove an output or a precomputed copy that is ours: what a segmentation writes, and no other file in it.

    What tells that it is ours goes last, so that a removal that was cut off can be done again. Raises ValueError for
    anything else; nothing there is no error.
    """
    found, storage = find_existing_output(path), open_storage(path)
    if found is None:
        return
    if not found.ours:
        raise ValueError(f"{found.words}: it is not removed; choose another output")
    names = list_folder(storage)
    folders = [name for name in names if re.fullmatch(r"s\d+|labels|[0-9.e+-]+(_[0-9.e+-]+){2}", name)]
    for name in folders:
        remove_folder(storage.child(name))
    for name in ("info", "provenance", "zarr.json"):
        if name in names:
            _remove_file(storage, name)
    if storage.folder is not None:
        with contextlib.suppress(OSError):  # other files are in it, or it is a link
            storage.folder.rmdir()


def remove_partial_files(files: Iterable[Path]) -> None:
    """Remove what killed writers left of files that are about to be written, each by its one owner."""
    names: dict[Path, set[str]] = {}
    for file in files:
        names.setdefault(file.parent, set()).add(file.name)
    for folder, own in names.items():
        with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
            left = [entry.path for entry in entries if (match := UNFINISHED.match(entry.name)) and match[1] in own]
            for path in left:
                Path(path).unlink(missing_ok=True)

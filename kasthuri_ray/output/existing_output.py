"""Find what exists at the path of an output before it is written, and remove outputs."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kasthuri_ray.errors import InputError
from kasthuri_ray.output.ome_metadata import PROVENANCE_KEY
from kasthuri_ray.storage.folder import open_storage

MAX_NAMES = 5  # that a description of a folder lists
PARTIAL_FILE = re.compile(r"(.+)_[0-9a-f]+\.__lock$")  # tensorstore's name of a file that it has not finished


@dataclass(frozen=True)
class ExistingOutput:
    """A file or folder that exists at the path of an output.

    Parameters
    ----------
    description : str
        What it is, for messages.
    is_segmentation : bool
        Whether a segmentation of this package wrote it.
    record : dict, optional
        The provenance that the segmentation wrote.
    """

    description: str
    is_segmentation: bool = False
    record: dict[str, Any] | None = None


def find_existing_output(path: str) -> ExistingOutput | None:
    """Find what exists where an output or a precomputed copy is to be written.

    Parameters
    ----------
    path : str
        Path or URL of the output.

    Returns
    -------
    ExistingOutput or None
        None if there is nothing, or an empty folder.
    """
    storage = open_storage(path)
    for name, kind in (("zarr.json", "zarr"), ("provenance", "precomputed copy")):
        document = storage.read_json(name)
        if document is None and storage.exists(name):
            return ExistingOutput(f"{storage.path} holds a {name} that is not JSON")
        record = _find_record(document or {})
        if record is not None:
            return ExistingOutput(f"{storage.path} is a {kind} that a segmentation wrote", True, record)
        if name == "zarr.json" and document:
            return ExistingOutput(
                f"{storage.path} is a zarr {document.get('node_type', 'node')} that no segmentation wrote"
            )
    try:
        names = storage.list_folder()  # last, since on S3 it lists all files below
    except NotADirectoryError:
        return ExistingOutput(f"{storage.path} is a file")
    if not names:
        return None
    listed = ", ".join(names[:MAX_NAMES]) + (", ..." if len(names) > MAX_NAMES else "")
    return ExistingOutput(f"{storage.path} is a folder that holds {listed}")


def remove_output(path: str) -> None:
    """Remove an output or a precomputed copy: the files that a segmentation writes, and no others.

    The file that shows that a segmentation wrote it is removed last, so that an interrupted removal can be repeated. If
    nothing exists, nothing is done.

    Parameters
    ----------
    path : str
        Path or URL of the output.

    Raises
    ------
    InputError
        If no segmentation wrote it.
    """
    existing, storage = find_existing_output(path), open_storage(path)
    if existing is None:
        return
    if not existing.is_segmentation:
        raise InputError(f"{existing.description}: it is not removed; choose another output")
    names = storage.list_folder()
    folders = [name for name in names if re.fullmatch(r"s\d+|labels|[0-9.e+-]+(_[0-9.e+-]+){2}", name)]
    for name in folders:
        storage.child(name).remove_folder()
    for name in ("info", "provenance", "zarr.json"):
        if name in names:
            storage.delete(name)
    storage.remove_if_empty()


def remove_partial_files(files: Iterable[Path]) -> None:
    """Remove the partial files of killed writers, for files that only the caller is about to write."""
    names: dict[Path, set[str]] = {}
    for file in files:
        names.setdefault(file.parent, set()).add(file.name)
    for folder, own in names.items():
        with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
            partial = [entry.path for entry in entries if (match := PARTIAL_FILE.match(entry.name)) and match[1] in own]
            for path in partial:
                Path(path).unlink(missing_ok=True)


def _find_record(document: dict[str, Any]) -> dict[str, Any] | None:
    """Return the provenance in a `zarr.json` or `provenance` file; None if no segmentation wrote it."""
    try:
        if "processing" in document:
            step = document["processing"][0]
            record = step["method"] if step["by"] == PROVENANCE_KEY else None
        else:
            record = document["attributes"][PROVENANCE_KEY]
    except (KeyError, IndexError, TypeError):
        return None
    return record if isinstance(record, dict) else None

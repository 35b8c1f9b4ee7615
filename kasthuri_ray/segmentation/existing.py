"""What is at the place of an output before it is written, and how an output is removed."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorstore as ts

from kasthuri_ray.segmentation.ome import OURS
from kasthuri_ray.storage import PART, Storage, open_storage, s3_errors
from kasthuri_ray.volumes.keyvalue import context, source_errors, writable

SHOWN = 5
REMOVE_SECONDS = 3600.0
UNFINISHED = re.compile(r"(.+)_[0-9a-f]+\.__lock$")  # how tensorstore names a file that it has not finished


@dataclass(frozen=True)
class Found:
    """What is at a place. ours: whether a segmentation of ours wrote it, which `record` tells. words: what it is."""

    words: str
    ours: bool = False
    record: dict[str, Any] | None = None


def what_is_there(path: str) -> Found | None:
    """What is at a path or URL where an output is to be written; None for nothing, or an empty folder."""
    storage = open_storage(path)
    if storage.folder is not None and storage.folder.exists() and not storage.folder.is_dir():
        return Found(f"{storage.path} is a file")
    names = names_in(storage)
    if not names:
        return None
    for name, kind in (("zarr.json", "zarr"), ("provenance", "precomputed copy")):
        document = _document(storage, name)
        if name in names and document is None:
            return Found(f"{storage.path} holds a {name} that is not JSON")
        record = _record_of(document or {})
        if record is not None:
            return Found(f"{storage.path} is a {kind} that a segmentation wrote", True, record)
        if name == "zarr.json" and document:
            return Found(f"{storage.path} is a zarr {document.get('node_type', 'node')} that no segmentation wrote")
    shown = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
    return Found(f"{storage.path} is a folder that holds {shown}")


def _record_of(document: dict[str, Any]) -> dict[str, Any] | None:
    """The provenance in a `zarr.json` or a `provenance` of ours; None for others."""
    try:
        if "processing" in document:
            step = document["processing"][0]
            record = step["method"] if step["by"] == OURS else None
        else:
            record = document["attributes"][OURS]
    except (KeyError, IndexError, TypeError):
        return None
    return record if isinstance(record, dict) else None


def remove(path: str) -> None:
    """Remove an output or a precomputed copy that is ours: what a segmentation writes, and no other file in it.

    What tells that it is ours goes last, so that a removal that was cut off can be done again. Raises ValueError for
    anything else; nothing there is no error.
    """
    found, storage = what_is_there(path), open_storage(path)
    if found is None:
        return
    if not found.ours:
        raise ValueError(f"{found.words}: it is not removed; choose another output")
    names = names_in(storage)
    folders = [name for name in names if re.fullmatch(r"s\d+|labels|[0-9.e+-]+(_[0-9.e+-]+){2}", name)]
    for name in folders:
        remove_folder(storage.child(name))
    for name in ("info", "provenance", "zarr.json"):
        if name in names:
            _remove_file(storage, name)
    if storage.folder is not None:
        with contextlib.suppress(OSError):  # other files are in it, or it is a link
            storage.folder.rmdir()


def remove_folder(place: Storage) -> None:
    """Remove a folder with all that is in it; it is there."""
    if place.folder is not None:
        shutil.rmtree(place.folder)
        return
    with source_errors(place.path, "removed"):
        store = ts.KvStore.open(writable(place.path), context=context()).result(timeout=60)
        store.delete_range(ts.KvStore.KeyRange()).result(timeout=REMOVE_SECONDS)


def clear_unfinished(files: Iterable[Path]) -> None:
    """Remove what killed writers left of files that are about to be written, each by its one owner."""
    names: dict[Path, set[str]] = {}
    for file in files:
        names.setdefault(file.parent, set()).add(file.name)
    for folder, own in names.items():
        with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
            left = [entry.path for entry in entries if (match := UNFINISHED.match(entry.name)) and match[1] in own]
            for path in left:
                Path(path).unlink(missing_ok=True)


def _remove_file(storage: Storage, name: str) -> None:
    if storage.folder is not None:
        return storage.delete(name)
    with source_errors(storage.path, "removed"):  # pyarrow would leave an empty object where the folder was
        store = ts.KvStore.open(writable(storage.path), context=context()).result(timeout=60)
        store.write(name, None).result(timeout=60)


def names_in(storage: Storage) -> list[str]:
    """What lies directly in a folder, without files that were not finished; sorted."""
    if storage.folder is not None:
        try:
            found = [entry.name for entry in Path(storage.folder).iterdir()]
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(name for name in found if not name.endswith(PART))
    from pyarrow.fs import FileSelector

    with s3_errors(storage.path):
        files, key = storage.filesystem()
        return sorted(info.base_name for info in files.get_file_info(FileSelector(key, allow_not_found=True)))


def _document(storage: Storage, name: str) -> dict[str, Any] | None:
    """A JSON object, None where there is none."""
    try:
        found = json.loads(storage.read_bytes(name))
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) else None

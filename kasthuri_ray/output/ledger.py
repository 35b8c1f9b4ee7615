"""What of a segmentation is done: one small object a finished block, in a folder beside the output.

    <output>.ledger/settings.json                 what changes a byte of the output
    <output>.ledger/<phase>/<name>.json           a finished block
    <output>.ledger/<phase>/<name>.blank.json     one that wrote nothing: all of it is 0
    <output>.ledger/aside/<phase>/<name>.json     one that failed for good, with its traceback

A block is recorded after its voxels are on the disk, by whoever wrote them. No times and no hosts are in it.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kasthuri_ray.errors import disk_full_error, is_disk_full
from kasthuri_ray.metrics.components import Components
from kasthuri_ray.storage.folder import Storage, list_folder, open_storage, remove_folder
from kasthuri_ray.storage.kvstore import translate_s3_errors

SETTINGS = "settings.json"
BLANK = ".blank"
END = b"}\n"  # of a record that is whole


@dataclass(frozen=True)
class Ledger:
    """The ledger in a folder. Picklable. Methods raise what `Storage` raises."""

    storage: Storage

    @classmethod
    def beside(cls, output: str) -> Ledger:
        """The ledger of the output at a path or URL."""
        return cls(open_storage(f"{open_storage(output).path}.ledger"))

    def settings(self) -> dict[str, Any] | None:
        """The settings that the output was begun with, None where nothing was begun."""
        try:
            data = self.storage.read_bytes(SETTINGS)
        except FileNotFoundError:
            return None
        return dict(json.loads(data))

    def begin(self, settings: Mapping[str, Any]) -> dict[str, Any] | None:
        """Keep the settings of a new output; return those that an output was begun with, and change nothing then."""
        before = self.settings()
        if before is None:
            self.storage.write_bytes(SETTINGS, (json.dumps(settings, indent=2, sort_keys=True) + "\n").encode())
        return before

    def record(self, phase: str, name: str, info: Mapping[str, Any] | None = None, *, blank: bool = False) -> None:
        """Say that a block is done. blank: its voxels are all 0 and were not written.

        It is on the disk when this returns. Raises OSError in words where the disk is full.
        """
        self._put(phase, f"{name}{BLANK if blank else ''}", info or {})

    def done(self, phase: str) -> dict[str, bool]:
        """The names of the finished blocks, in no order, and whether each wrote anything.

        One listing. A record that is torn or empty, as a power cut or a full disk leaves it, does not count.
        """
        names = (name.removesuffix(".json") for name in self._names(phase))
        return {name.removesuffix(BLANK): not name.endswith(BLANK) for name in names}

    def read(self, phase: str, name: str) -> dict[str, Any]:
        """What was recorded with a finished block. Raises FileNotFoundError where it is not done."""
        for mark in ("", BLANK):
            with contextlib.suppress(FileNotFoundError):
                data = self.storage.read_bytes(f"{phase}/{name}{mark}.json")
                if data.endswith(END):
                    return dict(json.loads(data))
        raise FileNotFoundError(f"{self.storage.path}: block {name} of {phase} is not done")

    def set_aside(self, phase: str, name: str, info: Mapping[str, Any]) -> None:
        """Say that a block failed for good; `info` holds its traceback."""
        self._put(f"aside/{phase}", name, info)

    def aside(self, phase: str) -> dict[str, dict[str, Any]]:
        """What was said of each block that was set aside."""
        found = sorted(self._names(f"aside/{phase}"))
        return {name.removesuffix(".json"): self.read(f"aside/{phase}", name.removesuffix(".json")) for name in found}

    def clear_aside(self, phase: str, name: str | None = None) -> None:
        """Forget that a block was set aside, or all of the phase, so that they are tried again."""
        for found in [f"{name}.json"] if name is not None else list(self._names(f"aside/{phase}")):
            self.storage.delete(f"aside/{phase}/{found}")

    def clear(self) -> None:
        """Forget every block and then the settings; the lock stays. The output goes after this, never before."""
        for name in list_folder(self.storage):
            if not name.endswith(".json"):
                remove_folder(self.storage.child(name))
        self.storage.delete(SETTINGS)

    def _put(self, folder: str, name: str, info: Mapping[str, Any]) -> None:
        data = json.dumps(info, sort_keys=True, allow_nan=False).encode() + b"\n"
        if self.storage.folder is None:
            self.storage.write_bytes(f"{folder}/{name}.json", data)
        else:
            _write_durably(self.storage.folder / folder / f"{name}.json", data)

    def _names(self, folder: str) -> Iterator[str]:
        """The names of the whole records in a folder."""
        if self.storage.folder is not None:
            yield from _whole_records(self.storage.folder / folder)
            return
        from pyarrow.fs import FileSelector

        place = self.storage.child(folder)
        with translate_s3_errors(place.path):
            files, key = place.filesystem()
            found = files.get_file_info(FileSelector(key, allow_not_found=True))
        yield from (info.base_name for info in found if info.base_name.endswith(".json") and info.size)


def _write_durably(path: Path, data: bytes) -> None:
    """Writes a small file in its place and waits for the disk: a third of the time that a file beside it would take.

    It may be torn by a power cut, so its readers look at its end.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_DSYNC", 0)
    try:
        try:
            handle = os.open(path, flags, 0o666)
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, flags, 0o666)
        try:
            left = data
            while left:
                left = left[os.write(handle, left) :]
            if not hasattr(os, "O_DSYNC"):
                os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if not is_disk_full(error):
            raise
        path.unlink(missing_ok=True)
        raise disk_full_error(f"{path} ({len(data)} bytes)", "what is done is kept", error.errno or 0) from error


def _whole_records(folder: Path) -> Iterator[str]:
    try:
        entries = os.scandir(folder)
    except FileNotFoundError:
        return
    with entries:
        for entry in entries:
            if not entry.name.endswith(".json"):
                continue
            with contextlib.suppress(FileNotFoundError, IsADirectoryError), open(entry.path, "rb", buffering=0) as file:
                if file.read().endswith(END):
                    yield entry.name


def components_path(name: str) -> str:
    """Where in the ledger the components of a block lie."""
    return f"components/{name}.npz"


def read_components(ledger: Ledger, name: str) -> Components:
    return Components.from_bytes(ledger.storage.read_bytes(components_path(name)))

"""The ledger of a segmentation: one small file for each finished block, in a folder beside the output.

    <output>.ledger/settings.json                 settings that decide the bytes of the output
    <output>.ledger/<phase>/<name>.json           a finished block
    <output>.ledger/<phase>/<name>.blank.json     a finished block of zeros alone, which wrote nothing
    <output>.ledger/aside/<phase>/<name>.json     a block set aside after its last retry, with its traceback

A block is recorded by its writer, after its voxels are on the disk. Records hold neither times nor hosts.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Container, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from kasthuri_ray.metrics.components import Components
from kasthuri_ray.storage.folder import open_storage
from kasthuri_ray.storage.storage import RECORD_END, Storage

SETTINGS = "settings.json"
LOCK_FILE = "lock.json"  # of the lease that a run holds while it writes the output
COPY_FILE = "copy.json"  # path of the precomputed copy whose blocks are recorded
COMPONENTS = "components"  # folder of the components of each block
BLANK = ".blank"
NUM_READERS = 16  # threads that read small files, most of whose time is waiting


@dataclass(frozen=True)
class Ledger:
    """The ledger in a folder. It can be pickled. Methods raise what those of `Storage` raise.

    Parameters
    ----------
    storage : Storage
        The folder.
    """

    storage: Storage

    @classmethod
    def beside(cls, output: str) -> Ledger:
        """Return the ledger of the output at a path or URL."""
        return cls(open_storage(f"{open_storage(output).path}.ledger"))

    def settings(self) -> dict[str, Any] | None:
        """Return the settings that the output was started with; None if it was not started."""
        try:
            data = self.storage.read_bytes(SETTINGS)
        except FileNotFoundError:
            return None
        return dict(json.loads(data))

    def start(self, settings: Mapping[str, Any]) -> dict[str, Any] | None:
        """Record the settings of a new output and return None.

        For an output that was started before, return its settings and change nothing.
        """
        before = self.settings()
        if before is None:
            self.restart(settings)
        return before

    def restart(self, settings: Mapping[str, Any]) -> None:
        """Record the settings of an output, in place of earlier ones."""
        self.storage.write_bytes(SETTINGS, (json.dumps(settings, indent=2, sort_keys=True) + "\n").encode())

    def record(self, phase: str, name: str, info: Mapping[str, Any] | None = None, *, blank: bool = False) -> None:
        """Record that a block is done. blank: its voxels are all 0 and were not written.

        The record is on the disk when this returns. Raises OSError that says so if the disk is full.
        """
        self._write_record(phase, f"{name}{BLANK if blank else ''}", info or {})

    def done(self, phase: str) -> dict[str, bool]:
        """Return the names of the finished blocks, in any order, and whether each wrote anything.

        Needs one listing. Incomplete or empty records, as a power cut or a full disk leaves them, do not count.
        """
        names = (name.removesuffix(".json") for name in self.storage.list_records(phase))
        return {name.removesuffix(BLANK): not name.endswith(BLANK) for name in names}

    def read(self, phase: str, name: str) -> dict[str, Any]:
        """Return what was recorded with a finished block. Raises FileNotFoundError if it is not done."""
        for suffix in ("", BLANK):
            with contextlib.suppress(FileNotFoundError):
                data = self.storage.read_bytes(f"{phase}/{name}{suffix}.json")
                if data.endswith(RECORD_END):
                    return dict(json.loads(data))
        raise FileNotFoundError(f"{self.storage.path}: block {name} of {phase} is not done")

    def total(self, phase: str, names: Iterable[str], key: str) -> int | None:
        """Return the sum of a number that was recorded with finished blocks; None if a block has none.

        A block that `outside` marks counts 0. Blocks that are not done count nothing.
        """

        def read(name: str) -> int | None:
            try:
                info = self.read(phase, name)
            except FileNotFoundError:
                return 0
            return info.get(key, 0 if info.get("outside") else None)

        with ThreadPoolExecutor(NUM_READERS) as readers:
            numbers = list(readers.map(read, names))
        return None if None in numbers else sum(number for number in numbers if number is not None)

    def set_aside(self, phase: str, name: str, info: Mapping[str, Any]) -> None:
        """Record that a block failed after its last retry; `info` holds its traceback."""
        self._write_record(f"aside/{phase}", name, info)

    def blocks_set_aside(self, phase: str) -> dict[str, dict[str, Any]]:
        """Return what was recorded with each block that was set aside."""
        found = {}
        for name in sorted(self.storage.list_records(f"aside/{phase}")):
            with contextlib.suppress(FileNotFoundError):  # S3 may hold an empty record of an earlier version
                found[name.removesuffix(".json")] = self.read(f"aside/{phase}", name.removesuffix(".json"))
        return found

    def clear_set_aside(self, phase: str, name: str | None = None) -> None:
        """Remove the record of a block that was set aside, or all those of a phase, so that they are tried again."""
        for file in self.storage.list_records(f"aside/{phase}") if name is None else [f"{name}.json"]:
            self.storage.delete(f"aside/{phase}/{file}")

    @property
    def set_aside_path(self) -> str:
        """Path of the folder that holds the records of blocks set aside."""
        return f"{self.storage.path}/aside"

    def is_locked(self) -> bool:
        """Return whether a run holds the output, or was killed while it did."""
        return self.storage.exists(LOCK_FILE)

    def copy_path(self) -> str | None:
        """Return the path of the precomputed copy whose blocks are recorded; None if there is none."""
        try:
            return str(json.loads(self.storage.read_bytes(COPY_FILE))["path"])
        except (FileNotFoundError, ValueError, KeyError):
            return None

    def start_copy(self, path: str, phases: Container[str]) -> None:
        """Forget the blocks of another precomputed copy, and record the path of this one.

        Parameters
        ----------
        path : str
            Path or URL of the copy.
        phases : container of str
            Names of the phases that copy blocks.
        """
        self.forget([name for name in self.storage.list_folder() if name in phases])
        self.storage.write_bytes(COPY_FILE, json.dumps({"path": path}).encode())

    def forget(self, folders: Iterable[str]) -> None:
        """Remove the records of these phases, or other folders of the ledger, one after another."""
        known = self.storage.list_folder()
        for name in folders:
            if name in known:
                self.storage.child(name).remove_folder()
            self.clear_set_aside(name)

    def clear(self) -> None:
        """Remove the records of all blocks and then the settings; the lock stays.

        The output must be removed after this, not before.
        """
        for name in self.storage.list_folder():
            if not name.endswith(".json"):
                self.storage.child(name).remove_folder()
        self.storage.delete(SETTINGS)

    def _write_record(self, folder: str, name: str, info: Mapping[str, Any]) -> None:
        data = json.dumps(info, sort_keys=True, allow_nan=False).encode() + b"\n"
        self.storage.write_record(f"{folder}/{name}.json", data)


def components_path(name: str) -> str:
    """Return the file in the ledger that holds the components of a block.

    Parameters
    ----------
    name : str
        Name of the block.

    Returns
    -------
    str
        Path in the ledger.
    """
    return f"{COMPONENTS}/{name}.npz"


def write_components(ledger: Ledger, name: str, components: Components) -> None:
    """Write the components of a block to the ledger.

    Parameters
    ----------
    ledger : Ledger
        Ledger of the output.
    name : str
        Name of the block.
    components : Components
        What `label_block_components` returned for the block.
    """
    ledger.storage.write_bytes(components_path(name), components.to_bytes())


def read_components(ledger: Ledger, name: str) -> Components:
    """Read the components of a block from the ledger.

    Parameters
    ----------
    ledger, name : Ledger, str
        As for `write_components`.

    Returns
    -------
    Components
        What `write_components` wrote.

    Raises
    ------
    FileNotFoundError
        If the block was not labelled.
    """
    return Components.from_bytes(ledger.storage.read_bytes(components_path(name)))

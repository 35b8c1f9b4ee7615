"""The interface of storages: files by name in a folder, each written whole or not at all.

`LocalStorage` keeps them on a disk, `S3Storage` in object storage; `open_storage` returns the one that a path needs.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

from kasthuri_ray.errors import InputError

RECORD_END = b"}\n"  # of a record that is complete


class ConditionsUnsupported(OSError):
    """The store cannot make a write depend on what it holds; the message says why."""


@dataclass(frozen=True)
class DiskSpace:
    """The disk that will hold a local storage.

    Parameters
    ----------
    folder : Path
        The folder of the storage, or the nearest one above it that exists.
    free_bytes : int
        Free space of its disk.
    writable : bool
        Whether files can be created in it.
    """

    folder: Path
    free_bytes: int
    writable: bool


@dataclass(frozen=True)
class Storage(ABC):
    """A folder of files on a disk or on S3.

    Names of files may include folders (`checkpoint/best.pt`). Folders are created with their first file. A storage
    can be pickled.

    Parameters
    ----------
    path : str
        An absolute path or `s3://bucket/key`. `open_storage` of it returns the same storage.

    Notes
    -----
    All methods raise PermissionError if access is refused and ConnectionError if S3 does not answer. What writes or
    lists raises FileNotFoundError for a bucket that does not exist.
    """

    path: str
    is_local: ClassVar[bool]  # whether the folder is on a disk of this machine

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rstrip("/").rpartition("/")[2]

    @property
    def real_path(self) -> str:
        """The path without symbolic links, to compare folders."""
        return self.path

    def child(self, name: str) -> Self:
        """Return the storage of a folder inside this one."""
        return replace(self, path=f"{self.path.rstrip('/')}/{check_file_name(name)}")

    def read_bytes(self, name: str) -> bytes:
        """Return the content of a file, or raise FileNotFoundError."""
        return self.read_version(name)[0]

    def read_json(self, name: str) -> dict[str, Any] | None:
        """Return the JSON object in a file; None if there is no such file or it holds anything else."""
        try:
            document = json.loads(self.read_bytes(name))
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return None
        return document if isinstance(document, dict) else None

    @abstractmethod
    def read_version(self, name: str) -> tuple[bytes, bytes]:
        """Return the content of a file and its version, which `write_if` takes, or raise FileNotFoundError."""

    @abstractmethod
    def write_bytes(self, name: str, data: bytes, *, flush: bool = True) -> None:
        """Write a file so that a reader finds the old content or the new one, never a part.

        If the disk is full, raise OSError and leave the old content as it was. With `flush` the file is on the disk
        when this returns.
        """

    @abstractmethod
    def write_if(self, name: str, data: bytes, version: bytes | None) -> bytes | None:
        """Write a file if it still has a version, or, for None, if it does not exist.

        Of several processes that try at the same time, exactly one succeeds, also if another one is killed meanwhile.

        Parameters
        ----------
        name : str
            Name of the file.
        data : bytes
            Its new content.
        version : bytes or None
            From `read_version`, or what this method returned for the write before.

        Returns
        -------
        bytes or None
            The new version; None if the file has another version or is being replaced, and nothing was written.

        Raises
        ------
        ConditionsUnsupported
            If the store has no conditional writes.
        """

    def write_record(self, name: str, data: bytes) -> None:
        """Write a small file that ends with `RECORD_END` and that no other process writes.

        On a disk this is faster than `write_bytes`, but a power cut may leave a part, which `list_records` omits.
        """
        self.write_bytes(name, data)

    @abstractmethod
    def list_records(self, folder: str) -> list[str]:
        """Return the names of the complete records directly in a folder of this storage, in any order."""

    @abstractmethod
    def exists(self, name: str) -> bool:
        """Return whether there is a file of this name."""

    @abstractmethod
    def list_files(self, prefix: str = "") -> list[str]:
        """Return the sorted names of all files, in subfolders too, that start with `prefix`."""

    @abstractmethod
    def list_folder(self) -> list[str]:
        """Return the sorted names of the files and folders directly in this folder, without unfinished files.

        Raises NotADirectoryError if there is a file in place of the folder.
        """

    @abstractmethod
    def delete(self, name: str) -> None:
        """Delete a file if it exists."""

    def move(self, name: str, target: Storage) -> None:
        """Move a file to another storage of the same kind, under the same name; a file there is replaced."""
        target.write_bytes(name, self.read_bytes(name))
        self.delete(name)

    @abstractmethod
    def remove_folder(self) -> None:
        """Remove this folder with everything in it. On a disk it must exist."""

    def remove_if_empty(self) -> None:  # noqa: B027
        """Remove this folder if it is empty; object storage has no empty folders."""

    def disk_space(self) -> DiskSpace | None:
        """Return what is known of the disk; None for object storage, which has no limit."""
        return None


def check_file_name(name: str) -> str:
    """Return the name, or raise an InputError if it is not that of a file inside a storage."""
    if not name or name.startswith("/") or ".." in name.split("/"):
        raise InputError(f"{name!r} is not the name of a file in a storage; expected one such as checkpoint/best.pt")
    return name

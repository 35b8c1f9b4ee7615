"""Files in a folder of this machine: written beside their place, flushed, and renamed."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kasthuri_ray.errors import disk_full_error, is_disk_full
from kasthuri_ray.storage.storage import RECORD_END, ConditionsUnsupported, DiskSpace, Storage, check_file_name

PARTIAL_SUFFIX = ".part"  # of a file that is still being written
LOCK_IS_HELD = (errno.EWOULDBLOCK, errno.EACCES)


@dataclass(frozen=True)
class LocalStorage(Storage):
    """A folder of files on a disk of this machine; parameters and errors as of `Storage`."""

    is_local = True

    @property
    def folder(self) -> Path:
        """The folder."""
        return Path(self.path)

    @property
    def real_path(self) -> str:
        return os.path.realpath(self.path)

    def read_bytes(self, name: str) -> bytes:
        return self._file(name).read_bytes()

    def read_version(self, name: str) -> tuple[bytes, bytes]:
        data = self._file(name).read_bytes()
        return data, _version(data)

    def write_bytes(self, name: str, data: bytes, *, flush: bool = True) -> None:
        _write_whole(self._file(name), data, replace=True, flush=flush)

    def write_if(self, name: str, data: bytes, version: bytes | None) -> bytes | None:
        path = self._file(name)
        if version is None:
            with contextlib.suppress(FileExistsError):
                _write_whole(path, data, replace=False)
                return _version(data)
            return None
        with _locked_content(path) as content:
            if content is None or _version(content) != version:
                return None
            _write_whole(path, data, replace=True)
        return _version(data)

    def write_record(self, name: str, data: bytes) -> None:
        _write_in_place(self._file(name), data)

    def list_records(self, folder: str) -> list[str]:
        return list(_complete_records(self._file(folder)))

    def exists(self, name: str) -> bool:
        return self._file(name).is_file()

    def list_files(self, prefix: str = "") -> list[str]:
        names = (path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file())
        return sorted(name for name in names if name.startswith(prefix) and not name.endswith(PARTIAL_SUFFIX))

    def list_folder(self) -> list[str]:
        try:
            names = os.listdir(self.path)
        except FileNotFoundError:
            return []
        return sorted(name for name in names if not name.endswith(PARTIAL_SUFFIX))

    def delete(self, name: str) -> None:
        self._file(name).unlink(missing_ok=True)

    def move(self, name: str, target: Storage) -> None:
        if not isinstance(target, LocalStorage):
            return super().move(name, target)
        path = target._file(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(self._file(name), path)  # needs no space on the disk

    def remove_folder(self) -> None:
        shutil.rmtree(self.path)

    def remove_if_empty(self) -> None:
        with contextlib.suppress(OSError):  # it holds other files, or is a link
            os.rmdir(self.path)

    def disk_space(self) -> DiskSpace:
        existing = next(parent for parent in [self.folder, *self.folder.parents] if parent.exists())
        return DiskSpace(existing, shutil.disk_usage(existing).free, os.access(existing, os.W_OK))

    def _file(self, name: str) -> Path:
        return self.folder / check_file_name(name)


def _version(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


@contextlib.contextmanager
def _locked_content(path: Path) -> Iterator[bytes | None]:
    """Lock a file and yield its content; yield None if it does not exist, or if another process is replacing it.

    The lock is on the file itself, which its holder replaces by another file: whoever opened the file before that and
    gets the lock afterwards finds another file at the path. No file is left behind, and the system drops the lock when
    its process ends, however it ends. NFS grants such locks between machines. Raises ConditionsUnsupported on a disk
    without locks.
    """
    try:
        handle = _open_to_lock(path)
    except FileNotFoundError:
        yield None
        return
    with open(handle, "rb") as file:
        yield file.read() if _lock(handle) and _is_at(handle, path) else None


def _open_to_lock(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR)  # NFS locks no file that is open for reading alone
    except PermissionError:
        return os.open(path, os.O_RDONLY)


def _lock(handle: int) -> bool:
    """Lock an open file and return True, or return False if another process holds its lock."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in LOCK_IS_HELD:
            return False
        raise ConditionsUnsupported(f"the disk has no file locks: {error.strerror}") from error
    return True


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def _write_whole(path: Path, data: bytes, *, replace: bool, flush: bool = True) -> None:
    """Write a temporary file beside `path`, and rename it once it is whole and on the disk."""
    partial = path.parent / f".{path.name}.{uuid.uuid4().hex}{PARTIAL_SUFFIX}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "xb") as file:
            file.write(data)
            if flush:
                file.flush()
                os.fsync(file.fileno())
        if replace:
            os.replace(partial, path)
        else:
            _link(partial, path, data)
        if flush:
            _sync_folder(path.parent)
    except OSError as error:
        if is_disk_full(error):
            kept = "the earlier file is unchanged" if path.exists() else "nothing was written"
            raise disk_full_error(f"{path} ({len(data)} bytes)", kept, error.errno or 0) from error
        raise
    finally:
        partial.unlink(missing_ok=True)


def _link(partial: Path, path: Path, data: bytes) -> None:
    """Link the finished file to `path`, or write it there if the file system has no links; never replace a file."""
    try:
        os.link(partial, path)
    except FileExistsError:
        raise
    except OSError:
        with open(path, "xb") as file:
            file.write(data)


def _sync_folder(folder: Path) -> None:
    """Flush the new name to the disk, on file systems that can do that."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _write_in_place(path: Path, data: bytes) -> None:
    """Write a small file in place and wait for the disk: a third of the time of writing another file and renaming it.

    A power cut may leave it incomplete, so readers check its end.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_DSYNC", 0)
    try:
        try:
            handle = os.open(path, flags, 0o666)
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, flags, 0o666)
        try:
            remaining = data
            while remaining:
                remaining = remaining[os.write(handle, remaining) :]
            if not hasattr(os, "O_DSYNC"):
                os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if not is_disk_full(error):
            raise
        path.unlink(missing_ok=True)
        raise disk_full_error(f"{path} ({len(data)} bytes)", "finished blocks are kept", error.errno or 0) from error


def _complete_records(folder: Path) -> Iterator[str]:
    try:
        entries = os.scandir(folder)
    except FileNotFoundError:
        return
    with entries:
        for entry in entries:
            if not entry.name.endswith(".json"):
                continue
            with contextlib.suppress(FileNotFoundError, IsADirectoryError), open(entry.path, "rb", buffering=0) as file:
                if file.read().endswith(RECORD_END):
                    yield entry.name

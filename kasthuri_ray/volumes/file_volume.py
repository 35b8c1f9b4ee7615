"""Volumes in files on the local disk: what the formats share. Each process opens the files of a volume once."""

from __future__ import annotations

import hashlib
import os
import threading
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np

from kasthuri_ray.errors import InputDenied, InputError, InputNotFound, VolumeError
from kasthuri_ray.geometry import Box, Zyx, per_axis
from kasthuri_ray.storage.local_paths import describe_missing
from kasthuri_ray.storage.uris import expand_home
from kasthuri_ray.volumes.axes import axes_text, lengths_along, read_zyx
from kasthuri_ray.volumes.uri_options import UriOptions
from kasthuri_ray.volumes.volume import Volume, make_opening_id

MAX_OPEN = 16  # volumes that a process keeps open

Reader = Callable[[tuple[slice, ...]], np.ndarray]  # of slices of the stored axes; many threads may call it

_lock = threading.Lock()
_readers: OrderedDict[str, Reader] = OrderedDict()  # of the volumes that this process has open, by `opening`


@dataclass(kw_only=True)
class FileVolume(Volume):
    """A volume that a library reads from local files.

    Parameters
    ----------
    axes : tuple of int
        Which stored axes are z, y, x; all others have length 1. See `choose_axes`.
    rank : int
        Number of stored axes.
    stored_dtype : np.dtype
        Type of the stored voxels; `dtype` may take them for another one of the same size.
    opening : str
        See `make_opening_id`.
    """

    axes: Zyx
    rank: int
    stored_dtype: np.dtype
    opening: str

    @abstractmethod
    def _open(self) -> Reader:
        """Open the files in this process."""

    def _read(self, box: Box) -> np.ndarray:
        ranges = dict(zip(self.axes, box.slices(), strict=True))
        try:
            stored = self._reader()(tuple(ranges.get(axis, slice(0, 1)) for axis in range(self.rank)))
        except Exception as error:  # a broken file raises whatever its codec raises
            raise VolumeError(f"{self.uri}: the cutout {box} (z,y,x) could not be read: {error}") from error
        return np.ascontiguousarray(read_zyx(stored, self.axes), dtype=self.stored_dtype).view(self.dtype)

    def _reader(self) -> Reader:
        with _lock:
            reader = _readers.get(self.opening)
            if reader is None:
                reader = _readers[self.opening] = self._open()
                if len(_readers) > MAX_OPEN:
                    _readers.popitem(last=False)
            _readers.move_to_end(self.opening)
            return reader


def fill_sections(parts: Iterable[np.ndarray], num_sections: int) -> np.ndarray:
    """Return sections as one array; only one of them is in memory besides."""
    stack: np.ndarray | None = None
    for z, part in enumerate(parts):
        if stack is None:
            stack = np.empty((num_sections, *part.shape), part.dtype)
        stack[z] = part
    assert stack is not None
    return stack


def volume_fields(
    uri: str, shape: tuple[int, ...], axes: Zyx, dtype: np.dtype, chunk: Sequence[int], options: UriOptions
) -> dict[str, Any]:
    """Return the fields of a `FileVolume` that follow from its stored array.

    Parameters
    ----------
    uri : str
        URI without its options.
    shape : tuple of int
        Shape of the stored array.
    axes : tuple of int
        Which of its axes are z, y, x.
    dtype : np.dtype
        Type of the stored voxels, in any byte order.
    chunk : sequence of int
        What is read at once along the stored axes.
    options : UriOptions
        Of which `dtype` counts.

    Returns
    -------
    dict
        Arguments for the class.

    Raises
    ------
    InputError
        If the voxels are not numbers, or of another size than the type that the options state.
    """
    if np.dtype(dtype).kind not in "buif":
        raise InputError(f"{uri} holds {dtype}; a volume holds integers or floats")
    native = np.dtype(dtype).newbyteorder("=")
    taken = native if options.dtype is None else np.dtype(options.dtype)
    if taken.itemsize != native.itemsize or taken.kind not in "buif":
        raise InputError(f"{uri}: dtype={options.dtype} does not fit: the stored voxels are {native}")
    whole = lengths_along(axes, shape)
    return {
        "uri": uri,
        "bounds": Box((0, 0, 0), whole),
        "dtype": taken,
        "chunk": per_axis(min, lengths_along(axes, chunk), whole),
        "chunk_origin": (0, 0, 0),
        "axes": axes,
        "stored_axes": axes_text(axes, len(shape)),
        "rank": len(shape),
        "stored_dtype": native,
        "opening": make_opening_id(),
    }


def content_id(paths: Sequence[str], *traits: object) -> str:
    """Return a name of the voxels in files as they are now and as they are read.

    The chunk cache keeps chunks under it, so that it does not return those of a file that was replaced.
    """
    states = [
        (os.path.realpath(path), status.st_size, status.st_mtime_ns) for path in paths for status in [os.stat(path)]
    ]
    digest = hashlib.blake2b(repr((states, traits)).encode(), digest_size=16).hexdigest()
    return f"{os.path.commonpath([os.path.realpath(path) for path in paths])}:{digest}"


def local_path(name: str, uri: str) -> Path:
    """Return the path of a file that can be read, or raise an error that says what is wrong with it."""
    path = local_name(name, uri)
    if not path.is_file():
        raise InputNotFound(missing_file_text(uri, path))
    if not os.access(path, os.R_OK):
        raise InputDenied(f"{uri}: no permission to read {path}")
    return path


def missing_file_text(uri: str, path: Path) -> str:
    """Return that there is no file at the path of a URI, and what was probably meant."""
    return f"{'' if uri == str(path) else f'{uri}: '}{describe_missing(path)}"


def local_name(name: str, uri: str) -> Path:
    """Return the absolute path that a name stands for, whether there is something or not."""
    if name.startswith("file://"):
        name = unquote(name.removeprefix("file://"))
    elif "://" in name:
        raise InputError(
            f"{uri}: HDF5, TIFF, PNG and MRC are read from a local disk only; copy the files, or convert them to zarr"
        )
    return Path(expand_home(name)).absolute()

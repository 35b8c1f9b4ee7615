"""MRC stacks (.mrc, .rec, .st): mrcfile reads the header, and the voxels are mapped into memory."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kasthuri_ray.errors import InputError
from kasthuri_ray.geometry import Nm, Zyx, per_axis
from kasthuri_ray.volumes.axes import ABSENT, choose_axes, turn_lengths
from kasthuri_ray.volumes.file_volume import FileVolume, Reader, local_path, volume_fields
from kasthuri_ray.volumes.length_units import in_nanometers
from kasthuri_ray.volumes.place import Place, StatedSize, size_fields
from kasthuri_ray.volumes.uri_options import UriOptions
from kasthuri_ray.volumes.volume import Volume

HEADER_BYTES = 1024
DTYPES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}  # by mode
AXIS_NAMES = {1: "x", 2: "y", 3: "z"}  # by the numbers of mapc, mapr, maps
FIRST_VOLUME_STACK = 401  # space groups from here on mark several volumes in one file
UNSET_SIZE_NM = (0.1, 0.1, 0.1)  # what many programs write where the size is not known: 1 Angstrom
IMOD_STAMP = 1146047817
IMOD_PLACE = slice(40, 48)  # of IMOD's stamp and flags in the second unused part of the header
SIGNED_BYTES, INVERTED_ORIGIN, HALF_BYTES = 1, 4, 16  # IMOD's flags


@dataclass(kw_only=True)
class MrcVolume(FileVolume):
    """An MRC stack."""

    path: str
    offset: int  # of the first voxel in the file
    stored_shape: tuple[int, int, int]
    byteorder: str

    def _open(self) -> Reader:
        dtype = np.dtype(self.byteorder + self.stored_dtype.str[1:])
        return np.memmap(self.path, dtype, "r", self.offset, self.stored_shape).__getitem__


def open_mrc(name: str, uri: str, options: UriOptions) -> Volume:
    """Open an MRC stack; parameters and errors as of `open_file_volume`.

    Notes
    -----
    Header: https://www.ccpem.ac.uk/mrc_format/mrc2014.php. Its stamp and flags by IMOD, which say whether bytes are
    signed and what sign the origin has: https://bio3d.colorado.edu/imod/doc/mrc_format.txt.
    """
    path = local_path(name, uri)
    header = _read_header(path, uri)
    shape = (int(header.nz), int(header.ny), int(header.nx))
    flags = _imod_flags(header)
    dtype, dtype_note = _dtype(header, flags, options, uri)
    offset, offset_note = _find_voxels(path, header, math.prod(shape) * dtype.itemsize, uri)
    names = [AXIS_NAMES.get(int(number), "") for number in (header.maps, header.mapr, header.mapc)]
    names = names if sorted(names) == ["x", "y", "z"] else list("zyx")
    axes = choose_axes(shape, uri, names=names, option=options.axes)
    stated = per_axis(names.index, "zyx")
    size, size_note = _voxel_size(header, uri)
    size = size and turn_lengths(size, stated, axes)
    notes = (_check_complete(path, shape, offset, dtype, uri), offset_note, dtype_note, size_note)
    return MrcVolume(
        **volume_fields(uri, shape, axes, dtype, (1, *shape[1:]), options),
        **size_fields(StatedSize.of(size, "MRC cell and grid")),
        format="MRC",
        place=_place(header, flags, size, stated, axes),
        source_id=f"{path.resolve()}:{options.axes or ''}{dtype}",
        notes=tuple(note for note in notes if note),
        path=str(path),
        offset=offset,
        stored_shape=shape,
        byteorder=header.dtype["nx"].str[0],
    )


def _read_header(path: Path, uri: str) -> np.recarray:
    import mrcfile

    try:
        with warnings.catch_warnings(action="ignore"), mrcfile.open(path, header_only=True, permissive=True) as file:
            header = file.header.copy()
    except ValueError as error:
        raise InputError(f"{uri} is not a complete MRC file: {error}") from error
    if min(header.nx, header.ny, header.nz) < 1 or header.nsymbt < 0 or int(header.mode) not in DTYPES:
        raise InputError(
            f"{uri}: its header states {header.nz} x {header.ny} x {header.nx} voxels (z,y,x) of mode {header.mode}; "
            f"the modes {', '.join(map(str, DTYPES))} are read"
        )
    if header.ispg >= FIRST_VOLUME_STACK and 0 < header.mz < header.nz:
        raise InputError(f"{uri} holds {header.nz // header.mz} volumes of {header.mz} sections; a volume is one")
    return header


def _imod_flags(header: np.recarray) -> int | None:
    """Return IMOD's flags; None if the file does not carry its stamp."""
    stamp, flags = np.frombuffer(header.extra2.tobytes()[IMOD_PLACE], header.dtype["nx"])
    return int(flags) if stamp == IMOD_STAMP else None


def _dtype(header: np.recarray, flags: int | None, options: UriOptions, uri: str) -> tuple[np.dtype, str | None]:
    if flags is not None and flags & HALF_BYTES:
        raise InputError(f"{uri} holds values of 4 bits; convert it: newstack -mode 0")
    dtype = np.dtype(DTYPES[int(header.mode)])
    if header.mode != 0 or options.dtype is not None:
        return dtype, None
    if flags is not None:
        return (dtype if flags & SIGNED_BYTES else np.dtype(np.uint8)), None
    return dtype, f"{uri}: its bytes are read as signed, -128 to 127; if they are unsigned, end the URI in ?dtype=uint8"


def _find_voxels(path: Path, header: np.recarray, num_bytes: int, uri: str) -> tuple[int, str | None]:
    """Return the byte at which the voxels begin, and a line if the extended header is missing that the header states.

    Programs that copy a header to a new file often leave its length in it.
    """
    if header.nsymbt and path.stat().st_size == HEADER_BYTES + num_bytes:
        return HEADER_BYTES, f"{uri}: the extended header of {header.nsymbt} bytes that it states is not there"
    return HEADER_BYTES + int(header.nsymbt), None


def _check_complete(path: Path, shape: tuple[int, int, int], offset: int, dtype: np.dtype, uri: str) -> str | None:
    """Raise an InputError if sections are missing; return a line if the file is longer than its header states."""
    section = shape[1] * shape[2] * dtype.itemsize
    found = path.stat().st_size - offset
    if found < shape[0] * section:
        raise InputError(
            f"{uri} is incomplete: {max(0, found // section)} of {shape[0]} sections are there. Copy it again"
        )
    extra = found - math.prod(shape) * dtype.itemsize
    return f"{uri}: {extra} bytes follow the {shape[0]} sections that its header states" if extra else None


def _voxel_size(header: np.recarray, uri: str) -> tuple[Nm | None, str | None]:
    """Return the size that the header states in Angstrom, and a line if it is the one that stands for no size."""
    cell, grid = header.cella, (header.mz, header.my, header.mx)
    if min(grid) < 1:
        return None, None
    lengths = per_axis(lambda axis, n: float(cell[axis]) / int(n), "zyx", grid)
    size = in_nanometers(lengths, ["angstrom"] * 3)
    size = size and per_axis(lambda length: float(f"{length:.6g}"), size)  # stored as float32
    if size == UNSET_SIZE_NM:
        return None, f"{uri}: a voxel size of 1 Angstrom is taken for one that is not known"
    return size, None


def _place(header: np.recarray, flags: int | None, size: Nm | None, stated: Zyx, axes: Zyx) -> Place | None:
    """Return the place of the origin, else of the first column, row and section; None if both are 0.

    The origin is that of the axes x, y, z of the header (`stated`); columns, rows and sections are stored axes.
    IMOD's origin is the negative position of the first voxel, unless a flag says otherwise.
    """
    sign = -1 if flags is not None and not flags & INVERTED_ORIGIN else 1
    origin = per_axis(lambda axis: sign * 0.1 * float(header.origin[axis]), "zyx")
    starts = (int(header.nzstart), int(header.nystart), int(header.nxstart))  # of sections, rows, columns
    start = per_axis(lambda axis: 0 if axis == ABSENT else starts[axis], axes)
    if any(origin) and all(map(math.isfinite, origin)):
        rounded = per_axis(lambda value: float(f"{value:.7g}"), turn_lengths(origin, stated, axes))
        return Place(rounded, "corner", "MRC origin")
    if any(start) and size is not None:
        return Place(per_axis(lambda n, length: n * length, start, size), "corner", "MRC nxstart")
    return None

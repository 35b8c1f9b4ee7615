"""Files for other programs: one TIFF or HDF5 file with the voxels of a box, their size, their place and their origin.

    with create_export("/data/out.tif", spec) as file:
        file.write(box, voxels)     # any boxes, in any order

The file appears under its name when it is complete, and not at all if the export is interrupted.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kasthuri_ray.errors import InputError, disk_full_error, is_disk_full
from kasthuri_ray.output.export_spec import ExportSpec, ExportWriter

TIFF, HDF5 = (".tif", ".tiff"), (".h5", ".hdf5")


def is_hdf5(path: str) -> bool:
    """Return whether a file of this name is HDF5, not TIFF.

    Parameters
    ----------
    path : str
        Path of an export.

    Returns
    -------
    bool
        By the ending of the name.

    Raises
    ------
    InputError
        If the ending is that of neither.
    """
    ending = Path(path).suffix.lower()
    if ending not in (*TIFF, *HDF5):
        raise InputError(f"--export {path}: the name ends in {' or '.join((*TIFF, *HDF5))}, which says the format")
    return ending in HDF5


@contextlib.contextmanager
def create_export(path: str, spec: ExportSpec) -> Iterator[ExportWriter]:
    """Create a file, and replace the one of that name once it is complete.

    Parameters
    ----------
    path : str
        Absolute path; its ending decides the format.
    spec : ExportSpec
        What the file holds.

    Yields
    ------
    ExportWriter
        Takes the voxels.

    Raises
    ------
    OSError
        If the file cannot be written; it has a message of its own for a full disk.
    """
    partial = f"{path}.{uuid.uuid4().hex[:8]}.part"
    try:
        writer = _open_writer(partial, spec, is_hdf5(path))
        try:
            yield writer
        finally:
            writer.close()
        _flush(partial)
        os.replace(partial, path)
    except OSError as error:
        if is_disk_full(error):
            raise disk_full_error(path, "the segmentation is complete") from error
        raise
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(partial)


def _open_writer(path: str, spec: ExportSpec, as_hdf5: bool) -> ExportWriter:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if as_hdf5:
        from kasthuri_ray.output.hdf5_export import Hdf5Export

        return Hdf5Export(path, spec)
    from kasthuri_ray.output.tiff_export import TiffExport

    return TiffExport(path, spec)


def _flush(path: str) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def read_export_provenance(path: str) -> dict[str, Any] | None:
    """Return the provenance that a file holds.

    Parameters
    ----------
    path : str
        Path of a file that exists, whose ending says the format.

    Returns
    -------
    dict or None
        None if no export wrote the file.
    """
    if is_hdf5(path):
        from kasthuri_ray.output.hdf5_export import read_hdf5_provenance

        return read_hdf5_provenance(path)
    from kasthuri_ray.output.tiff_export import read_tiff_provenance

    return read_tiff_provenance(path)

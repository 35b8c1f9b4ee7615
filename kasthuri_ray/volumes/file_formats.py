"""Volumes in local files: which format a URI names, by the ending of the name, and opening it."""

from __future__ import annotations

import glob
import re

from kasthuri_ray.errors import InputError, InputNotFound
from kasthuri_ray.volumes.file_volume import local_name, missing_file_text
from kasthuri_ray.volumes.section_names import SectionNames
from kasthuri_ray.volumes.uri_options import UriOptions
from kasthuri_ray.volumes.volume import Volume

HDF5 = re.compile(r"(.+?\.(?:h5|hdf5|hdf))(?::(.*))?$", re.IGNORECASE)
TIFF = re.compile(r".+\.(?:tiff?|tf2|tf8|btf)$", re.IGNORECASE)
MRC = re.compile(r".+\.(?:mrcs?|rec|st|ali|preali|map|ccp4)$", re.IGNORECASE)
SECTIONS = re.compile(r".+\.(?:png|jpe?g|txt)$", re.IGNORECASE)


def is_file_volume(uri: str) -> bool:
    """Return whether a URI names a file that this module opens, with or without `:dataset`, or sections."""
    if "|" in uri:
        return False
    if _is_local(uri) and local_name(uri, uri).is_dir():
        return _section_names(uri) is not None
    return any(pattern.match(uri) for pattern in (HDF5, TIFF, MRC, SECTIONS)) or _is_pattern(uri)


def open_file_volume(
    uri: str, mip: int | None = None, options: UriOptions | None = None, *, labels: bool = False
) -> Volume:
    """Open a local file, or files that are one section each.

    Parameters
    ----------
    uri : str
        `x.h5:dataset`, `x.tif`, `x.mrc`, `x.png`, or a folder, a pattern or a text file of names of sections; a path
        or a `file://` URL, without its options. Without `:dataset` it is the file's only dataset of three axes.
    mip : int or None
        0 or None: files have one resolution.
    options : UriOptions or None
        Of which `axes` and `dtype` count.
    labels : bool
        Whether the voxels are labels, which keep their stored values where those of images do not.

    Returns
    -------
    Volume
        The volume. Axes of length 1 besides z, y, x are dropped.

    Raises
    ------
    InputError, InputNotFound, InputDenied
        As of `open_volume`.
    """
    if mip not in (None, 0):
        raise InputError(f"{uri} has one resolution, mip 0; mip {mip} does not exist")
    try:
        return _open(uri, options or UriOptions(), labels)
    except (InputError, FileNotFoundError, PermissionError):
        raise
    except OSError as error:
        raise InputError(f"{uri} is not a complete {_kind(uri)} file: {error}") from error


def _open(uri: str, options: UriOptions, labels: bool) -> Volume:
    if match := HDF5.match(uri):
        from kasthuri_ray.volumes.hdf5 import open_hdf5

        return open_hdf5(match[1], match[2] or "", uri, options)
    is_one_file = not _is_pattern(uri) and not local_name(uri, uri).is_dir()
    if is_one_file and MRC.match(uri):
        from kasthuri_ray.volumes.mrc import open_mrc

        return open_mrc(uri, uri, options)
    if is_one_file and TIFF.match(uri):
        from kasthuri_ray.volumes.tiff import open_tiff

        return open_tiff(uri, uri, options, labels)
    from kasthuri_ray.volumes.section_folder import open_sections

    names = _section_names(uri)
    if names is None:
        raise InputNotFound(missing_file_text(uri, local_name(uri, uri)))
    return open_sections(names, uri, options, labels)


def _section_names(uri: str) -> SectionNames | None:
    from kasthuri_ray.volumes.section_folder import find_section_names

    return find_section_names(uri, uri)


def _is_pattern(uri: str) -> bool:
    return _is_local(uri) and glob.has_magic(uri) and not local_name(uri, uri).exists()


def _is_local(uri: str) -> bool:
    return "://" not in uri.removeprefix("file://")


def _kind(uri: str) -> str:
    kinds = {"HDF5": HDF5, "TIFF": TIFF, "MRC": MRC}
    return next((name for name, pattern in kinds.items() if pattern.match(uri)), "picture")

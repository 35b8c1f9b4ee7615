"""Folders of sections: each TIFF, PNG or JPEG file is one section of a volume."""

from __future__ import annotations

import collections
import glob
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from kasthuri_ray.errors import InputDenied, InputError, InputNotFound
from kasthuri_ray.geometry import Zyx
from kasthuri_ray.storage.local_paths import BEST_FILE
from kasthuri_ray.volumes.axes import choose_axes, lengths_along
from kasthuri_ray.volumes.file_volume import FileVolume, Reader, content_id, fill_sections, local_name, volume_fields
from kasthuri_ray.volumes.place import size_fields
from kasthuri_ray.volumes.section_files import PictureSection, SectionHeader, TiffSection, open_section
from kasthuri_ray.volumes.section_names import SectionNames, choose_sections, classify_section_name, listed_sections
from kasthuri_ray.volumes.store_metadata import DOCUMENTS
from kasthuri_ray.volumes.tiff_pages import CACHE_BYTES, PageReader
from kasthuri_ray.volumes.uri_options import UriOptions
from kasthuri_ray.volumes.volume import Volume

HEADER_THREADS = 8  # that read the headers of sections at the same time
MAX_OPEN_SECTIONS = 256  # whose headers a process keeps
MAX_NAMED = 3  # files that a message names
TRIED_ROWS = 16  # of a section that is read to find out whether it can be
LIST_ENDING = ".txt"
STORED_AXES: Zyx = (0, 1, 2)


@dataclass(kw_only=True)
class SectionVolume(FileVolume):
    """Files that are one section each; the stored axes are the files, their rows and their columns.

    Parameters
    ----------
    folder : str
        Folder that all files have in common.
    names : tuple of str
        Their paths in it.
    labels : bool
        Whether the voxels are labels.
    """

    folder: str
    names: tuple[str, ...]
    labels: bool

    def _open(self) -> Reader:
        return _SectionReader([os.path.join(self.folder, name) for name in self.names], self.labels).read


class _SectionReader:
    """Reads sections; the headers, and the pictures that were decoded last, are kept."""

    def __init__(self, paths: Sequence[str], labels: bool) -> None:
        self.paths, self.labels = paths, labels
        self._pages = PageReader()
        self._sections: OrderedDict[str, PictureSection | TiffSection] = OrderedDict()
        self._pictures: OrderedDict[str, np.ndarray] = OrderedDict()
        self._lock, self._decoding = threading.Lock(), threading.Lock()

    def read(self, ranges: tuple[slice, ...]) -> np.ndarray:
        sections, rows, columns = ranges
        paths = self.paths[sections]
        return fill_sections((self._read(path, rows, columns) for path in paths), len(paths))

    def try_out(self, path: str) -> None:
        """Read the first rows of a section, or its first tile or strip."""
        section = self._open(path)
        rows, columns = section.header.shape
        self._read(path, slice(0, min(rows, TRIED_ROWS)), slice(0, columns))
        self._pictures.clear()

    def _read(self, path: str, rows: slice, columns: slice) -> np.ndarray:
        section = self._open(path)
        if isinstance(section, TiffSection):
            return section.header.rule.apply(self._pages.read(section.page, 0, rows, columns))
        if (rows.stop - rows.start, columns.stop - columns.start) == section.header.shape:
            return section.read()  # the chunk cache keeps it
        with self._decoding:
            if path not in self._pictures:
                self._pictures[path] = section.read()
                while len(self._pictures) > 1 and sum(each.nbytes for each in self._pictures.values()) > CACHE_BYTES:
                    self._pictures.popitem(last=False)
            self._pictures.move_to_end(path)
            return self._pictures[path][rows, columns]

    def _open(self, path: str) -> PictureSection | TiffSection:
        with self._lock:
            section = self._sections.get(path)
        if section is None:
            section = open_section(path, self.labels)
        with self._lock:
            self._sections[path] = section
            if len(self._sections) > MAX_OPEN_SECTIONS:
                self._sections.popitem(last=False)
        return section


def find_section_names(name: str, uri: str) -> SectionNames | None:
    """Return the sections in a folder, of a pattern or in a text file, or a picture; None if it is none of them."""
    path = local_name(name, uri)
    if path.is_dir():
        if any((path / document).exists() for document in DOCUMENTS):
            return None
        if (path / BEST_FILE).exists():
            raise InputError(f"{uri} is the folder of a training run; give a volume, such as the output of segment.py")
        files = [entry.path for entry in os.scandir(path) if not os.path.isdir(entry)]  # with links to missing files
        return choose_sections(uri, files) if any(map(classify_section_name, files)) else None
    if path.is_file():
        if path.suffix.lower() == LIST_ENDING:
            return listed_sections(uri, path.read_text("utf-8-sig", "replace").splitlines(), path.parent)
        return SectionNames((str(path),), ()) if classify_section_name(path.name) in ("PNG", "JPEG") else None
    if not glob.has_magic(str(path)):
        return None
    files = [file for file in glob.glob(str(path), recursive=True) if not os.path.isdir(file)]
    if not files:
        raise InputNotFound(f"{uri}: no file matches {path}")
    return choose_sections(uri, files)


def open_sections(names: SectionNames, uri: str, options: UriOptions, labels: bool) -> Volume:
    """Open files that are one section each; parameters and errors as of `open_file_volume`."""
    paths = names.paths
    _check_there(paths, uri)
    with ThreadPoolExecutor(HEADER_THREADS) as threads:
        headers = list(threads.map(lambda path: open_section(path, labels).header, paths))
    first = headers[0]
    _check_alike(headers, uri)
    shape = (len(paths), *first.shape)
    option = f"?{options.axes}" if options.axes and len(paths) == 1 and len(options.axes) == 2 else options.axes
    axes = choose_axes(shape, uri, names="zyx", option=option)
    size, place = first.voxel_size, first.place
    if size is None or size.source != "voxel_size_nm_zyx":  # those of OME and ImageJ go with their stored axes
        size, place = size and size.turned(STORED_AXES, axes), place and place.turned(STORED_AXES, axes)
    folder = os.path.commonpath([os.path.dirname(path) for path in paths])
    is_decoded_whole = any(header.is_decoded_whole for header in headers)
    chunk = next((header.chunk for header in headers if header.is_decoded_whole), first.chunk)
    reader = _SectionReader(paths, labels)
    _try_out(reader, headers)
    return SectionVolume(
        **volume_fields(uri, shape, axes, first.dtype, chunk, options),
        **size_fields(size),
        format=f"{classify_section_name(first.path)} sections"
        if len(paths) > 1
        else str(classify_section_name(first.path)),
        place=place,
        decode_shape=lengths_along(axes, (1, *first.shape)) if is_decoded_whole else None,
        source_id=content_id(paths, options.axes, labels),
        notes=(*names.notes, *_section_notes(headers, uri)),
        folder=folder,
        names=tuple(os.path.relpath(path, folder) for path in paths),
        labels=labels,
    )


def _check_there(paths: Sequence[str], uri: str) -> None:
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing:
        raise InputNotFound(f"{uri}: {len(missing)} of {len(paths)} sections are not there: {_named(missing)}")
    denied = [path for path in paths if not os.access(path, os.R_OK)]
    if denied:
        raise InputDenied(f"{uri}: no permission to read {_named(denied)}")


def _check_alike(headers: Sequence[SectionHeader], uri: str) -> None:
    """Raise an InputError that names the files of another size or type than most of the sections."""
    kinds = collections.Counter((header.shape, header.dtype) for header in headers)
    usual = kinds.most_common(1)[0][0]
    others = [header for header in headers if (header.shape, header.dtype) != usual]
    if others:
        found = ", ".join(f"{header.path} {_kind_text(header.shape, header.dtype)}" for header in others[:MAX_NAMED])
        raise InputError(
            f"{uri}: all sections have one size and type; {kinds[usual]} are {_kind_text(*usual)}, but {found}"
            f"{', ...' if len(others) > MAX_NAMED else ''}"
        )


def _kind_text(shape: tuple[int, int], dtype: np.dtype) -> str:
    return f"{shape[0]} x {shape[1]} {dtype} (rows, columns)"


def _try_out(reader: _SectionReader, headers: Sequence[SectionHeader]) -> None:
    """Read the first rows of a section of each kind, and raise an InputError that says why one cannot be read."""
    for header in {(header.codec, header.rule.samples): header for header in reversed(headers)}.values():
        if header.codec or header.rule.samples >= 3:
            try:
                reader.try_out(header.path)
            except (ValueError, OSError) as error:
                raise InputError(f"{header.path}: {error}") from error


def _section_notes(headers: Sequence[SectionHeader], uri: str) -> list[str]:
    """Return the lines about sections, each once, with the number of sections that it is about."""
    if len(headers) == 1:
        return [headers[0].note] if headers[0].note else []
    counts = collections.Counter(header.note.removeprefix(header.path) for header in headers if header.note)
    return [f"{uri}, {count} of {len(headers)} sections{note}" for note, count in counts.items()]


def _named(paths: Sequence[str]) -> str:
    return ", ".join(paths[:MAX_NAMED]) + (", ..." if len(paths) > MAX_NAMED else "")

"""Datasets of HDF5 files, read with h5py."""

from __future__ import annotations

import errno
import re
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kasthuri_ray.errors import InputError
from kasthuri_ray.geometry import Box
from kasthuri_ray.volumes.absent_chunks import find_stored_chunk
from kasthuri_ray.volumes.axes import choose_axes
from kasthuri_ray.volumes.file_volume import FileVolume, Reader, local_path, volume_fields
from kasthuri_ray.volumes.hdf5_attributes import hdf5_axis_names, stated_geometry
from kasthuri_ray.volumes.place import check_unit, size_fields
from kasthuri_ray.volumes.uri_options import UriOptions
from kasthuri_ray.volumes.volume import Volume

if TYPE_CHECKING:
    import h5py

CACHE_BYTES = 64_000_000  # of decoded chunks that an open dataset keeps
MAX_LISTED = 20  # datasets that a message names
BDV_CELLS = re.compile(r"/t\d{5}/(s\d{2,})/\d+/cells")  # voxels of a resolution, in files of BigDataViewer
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, 524)  # 524: ENOTSUPP of the kernel, on some network disks
FILTERS = {
    32000: "LZF", 32001: "Blosc", 32004: "LZ4", 32008: "Bitshuffle", 32013: "ZFP", 32015: "Zstandard", 32017: "SZ",
    32024: "SZ3", 32026: "Blosc2", 32028: "SPERR", 307: "BZip2", 4: "SZIP",
}  # fmt: skip


@dataclass(kw_only=True)
class Hdf5Volume(FileVolume):
    """A dataset of an HDF5 file."""

    path: str
    dataset: str
    is_stored: bool  # whether anything was ever written to it

    def has_any_chunk(self, box: Box) -> bool:
        return self.is_stored

    def _open(self) -> Reader:
        stored = open_hdf5_file(self.path, rdcc_nbytes=CACHE_BYTES)[self.dataset]
        missing_filters(stored)  # loads those of hdf5plugin
        return stored.__getitem__  # h5py holds a lock around every call


@dataclass(kw_only=True)
class ChunkedHdf5Volume(Hdf5Volume):
    """A dataset that is stored in chunks; those that were never written are absent."""

    may_lack_chunks = True

    def has_any_chunk(self, box: Box) -> bool:
        with open_hdf5_file(self.path) as file:
            stored = file[self.dataset]
            spans, lengths, num_stored = self._spans(box), stored.chunks, stored.id.get_num_chunks()
            is_old = not hasattr(stored.id, "chunk_iter")  # HDF5 before 1.12.3
            if is_old or num_stored == self.count_chunks(self.bounds):
                return num_stored > 0

            def is_in_box(chunk: h5py.h5d.StoreInfo) -> bool | None:
                meets = (
                    at < stop and at + length > start
                    for at, length, (start, stop) in zip(chunk.chunk_offset, lengths, spans, strict=True)
                )
                return all(meets) or None  # anything but None ends the search

            return bool(stored.id.chunk_iter(is_in_box))

    def find_stored(self, box: Box) -> Box | None:
        return find_stored_chunk(self, box, sorted(range(3), key=lambda axis: self.axes[axis]))

    def _are_absent(self, chunks: list[Box]) -> list[bool]:
        with open_hdf5_file(self.path) as file:
            stored = file[self.dataset]
            starts = (
                tuple(start // n * n for (start, _), n in zip(self._spans(chunk), stored.chunks, strict=True))
                for chunk in chunks
            )
            return [stored.id.get_chunk_info_by_coord(start).byte_offset is None for start in starts]

    def _spans(self, box: Box) -> list[tuple[int, int]]:
        """Return the first voxel and the end of a box along the stored axes."""
        spans = dict(zip(self.axes, zip(box.start, box.stop, strict=True), strict=True))
        return [spans.get(axis, (0, 1)) for axis in range(self.rank)]


def _fill_value(stored: h5py.Dataset, dtype: np.dtype) -> float:
    """Return the value of voxels that were never written; 0 for nan."""
    value = float(np.asarray(stored.fillvalue, stored.dtype.newbyteorder("=")).view(dtype))
    return 0.0 if np.isnan(value) else value


def open_hdf5_file(path: str | Path, **options: int) -> h5py.File:
    """Return the file, open for reading; an InputError if another program is writing it."""
    import h5py

    try:
        return h5py.File(path, "r", **options)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES, errno.EWOULDBLOCK) and "lock" in str(error):
            raise InputError(
                f"{path} is open in another program that may be writing it: close the file there, or copy it. If "
                "nothing writes it, set HDF5_USE_FILE_LOCKING=FALSE"
            ) from error
        if error.errno in NO_LOCKS:
            raise InputError(f"the disk of {path} has no file locks: set HDF5_USE_FILE_LOCKING=FALSE") from error
        raise


def open_hdf5(file_name: str, dataset: str, uri: str, options: UriOptions) -> Volume:
    """Open a dataset; parameters and errors as of `open_file_volume`. Without a name it is the file's only volume."""
    import h5py

    path = local_path(file_name, uri)
    with open_hdf5_file(path) as file:
        name = dataset or _only_dataset(file, path, uri)
        stored = file.get(name)
        if not isinstance(stored, h5py.Dataset):
            raise _no_dataset_error(file, name, path, uri)
        if not stored.shape:
            raise InputError(
                f"{uri} holds {'nothing' if stored.shape is None else 'one number'}; a volume has three axes"
            )
        _check_readable(stored, uri)
        is_unsigned = options.dtype is None and _is_unsigned_of_bdv(stored)
        if is_unsigned:
            options = replace(options, dtype="uint16")
        names = hdf5_axis_names(stored)
        axes = choose_axes(stored.shape, uri, names=names, option=options.axes)
        size, place, place_notes = stated_geometry(stored, axes, names if options.axes else None, uri)
        if options.voxel_size_nm is None:
            check_unit(size, uri)
        chunk = stored.chunks or (1,) * (len(stored.shape) - 2) + stored.shape[-2:]
        fields = volume_fields(uri, stored.shape, axes, stored.dtype, chunk, options)
        is_chunked = stored.chunks is not None and not stored.is_virtual
        kind = ChunkedHdf5Volume if is_chunked else Hdf5Volume
        return kind(
            **fields,
            **size_fields(size),
            format="HDF5",
            place=place,
            fill_value=_fill_value(stored, fields["dtype"]) if is_chunked or not _is_stored(stored) else 0,
            notes=(*_notes(stored, is_unsigned, uri), *place_notes),
            source_id=f"{path.resolve()}:{name}{f'?axes={options.axes}' if options.axes else ''}",
            path=str(path),
            dataset=name,
            is_stored=_is_stored(stored),
        )


def _only_dataset(file: h5py.File, path: Path, uri: str) -> str:
    """Return the name of the only dataset of three axes or more, else of the only one of two; else an InputError."""
    stacks, images = _datasets(file), _datasets(file, 2)
    if len(stacks) == 1 or (not stacks and len(images) == 1):
        return (stacks or images)[0]
    raise InputError(f"{uri} holds {len(stacks)} datasets of three axes; name one: {_listed(path, stacks or images)}")


def _datasets(file: h5py.File, min_axes: int = 3) -> list[str]:
    """Return the names of all datasets with so many axes or more; of those that only links name, the names of these."""
    import h5py

    names: list[str] = []
    links: list[str] = []
    file.visititems(lambda name, item: names.append(name))
    file.visititems_links(lambda name, link: None if isinstance(link, h5py.HardLink) else links.append(name))
    items = ((name, file.get(name)) for name in (*names, *links))
    return [name for name, item in items if isinstance(item, h5py.Dataset) and len(item.shape or ()) >= min_axes]


def _no_dataset_error(file: h5py.File, name: str, path: Path, uri: str) -> InputError:
    """Return the error for a name that is no dataset; it names what a broken link points to, and the datasets."""
    import h5py

    try:
        link = file.get(name, getlink=True)
    except KeyError:  # a group on the way is missing too
        link = None
    if isinstance(link, h5py.SoftLink | h5py.ExternalLink) and file.get(name) is None:
        target = f"{link.filename}:{link.path}" if isinstance(link, h5py.ExternalLink) else link.path
        return InputError(f"{uri}: {name!r} is a link to {target}, which is not there")
    return InputError(f"{uri}: {path.name} has no dataset {name!r}; name one: {_listed(path, _datasets(file))}")


def _is_unsigned_of_bdv(stored: h5py.Dataset) -> bool:
    """Return whether int16 stands for uint16: BigDataViewer stores all images so that do not state their `dataType`."""
    match = BDV_CELLS.fullmatch(stored.name or "")
    if match is None or stored.dtype != np.dtype("int16"):
        return False
    setup = stored.file.get(match[1])
    return setup is not None and "resolutions" in setup and "dataType" not in setup.attrs


def _listed(path: Path, names: list[str]) -> str:
    shown = ", ".join(f"{path.name}:{name}" for name in names[:MAX_LISTED])
    return (shown or "it has none") + (", ..." if len(names) > MAX_LISTED else "")


def _check_readable(stored: h5py.Dataset, uri: str) -> None:
    """Raise an InputError if a filter cannot be undone here, or if files that hold the voxels are missing."""
    missing = missing_filters(stored)
    if missing:
        raise InputError(
            f"{uri} is compressed by the HDF5 filter {' and '.join(missing)}, which is not installed: pip install "
            "hdf5plugin, or convert the file (h5repack -f GZIP=1)"
        )
    sources = stored.virtual_sources() if stored.is_virtual else []
    external = [name.decode() if isinstance(name, bytes) else name for name, *_ in stored.external or ()]
    folder = Path(stored.file.filename).parent
    names = [name for name in dict.fromkeys([*(source.file_name for source in sources), *external]) if name != "."]
    absent = [name for name in names if not (folder / name).is_file()]
    if absent:
        raise InputError(f"{uri}: {len(absent)} of {len(names)} files that hold its voxels are missing: {absent[0]}")
    parts = {(source.file_name, source.dset_name) for source in sources if source.file_name != "."}
    lacking = sorted(part for part in parts if not _holds(folder / part[0], part[1]))
    if lacking:
        raise InputError(
            f"{uri}: {len(lacking)} of the {len(parts)} datasets of which it consists cannot be read, such as "
            f"{lacking[0][1]} in {lacking[0][0]}; HDF5 would fill them with {stored.fillvalue}"
        )


def _holds(path: Path, name: str) -> bool:
    """Return whether a file can be read and holds a dataset."""
    try:
        with open_hdf5_file(path) as file:
            return name in file
    except OSError:
        return False


def _notes(stored: h5py.Dataset, is_unsigned: bool, uri: str) -> tuple[str, ...]:
    """Return lines about a dataset of which nothing was ever written, or whose type means another one."""
    if is_unsigned:
        return (f"{uri}: BigDataViewer stores uint16 as int16; its voxels are read as uint16",)
    if _is_stored(stored):
        return ()
    return (f"{uri}: nothing is stored in the dataset; all its voxels are {stored.fillvalue}",)


def _is_stored(stored: h5py.Dataset) -> bool:
    return bool(stored.is_virtual or stored.external or not stored.size or stored.id.get_storage_size())


def missing_filters(stored: h5py.Dataset) -> list[str]:
    """Return the names of a dataset's filters that are not available, once hdf5plugin is loaded if it is installed."""
    import h5py

    plist = stored.id.get_create_plist()
    filters = [plist.get_filter(number) for number in range(plist.get_nfilters())]
    if not all(h5py.h5z.filter_avail(code) for code, *_ in filters):
        with suppress(ImportError):
            import hdf5plugin  # noqa: F401  (registers its filters)
    return [
        f"{FILTERS.get(code) or name.decode(errors='replace') or 'unknown'} ({code})"
        for code, _, _, name in filters
        if not h5py.h5z.filter_avail(code)
    ]

"""Datasets of HDF5 files, read with h5py."""

from __future__ import annotations

import errno
import json
import re
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kasthuri_ray.errors import InputError
from kasthuri_ray.geometry import per_axis
from kasthuri_ray.volumes.axes import choose_axes
from kasthuri_ray.volumes.file_volume import FileVolume, Reader, local_path, volume_fields
from kasthuri_ray.volumes.length_units import in_nanometers
from kasthuri_ray.volumes.place import Place, StatedSize, check_unit, size_fields
from kasthuri_ray.volumes.uri_options import UriOptions
from kasthuri_ray.volumes.volume import Volume

if TYPE_CHECKING:
    import h5py

CACHE_BYTES = 64_000_000  # of decoded chunks that an open dataset keeps
MAX_LISTED = 20  # datasets that a message names
SIZE_ATTRIBUTES = (("voxel_size_nm_zyx", "nm"), ("resolution", None), ("voxel_size", None), ("element_size_um", "um"))
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

    def _open(self) -> Reader:
        stored = open_hdf5_file(self.path, rdcc_nbytes=CACHE_BYTES)[self.dataset]
        missing_filters(stored)  # loads those of hdf5plugin
        return stored.__getitem__  # h5py holds a lock around every call


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
        size = _voxel_size(stored)
        if options.voxel_size_nm is None:
            check_unit(size, uri)
        axes = choose_axes(stored.shape, uri, names=_axis_names(stored), option=options.axes)
        chunk = stored.chunks or (1,) * (len(stored.shape) - 2) + stored.shape[-2:]
        return Hdf5Volume(
            **volume_fields(uri, stored.shape, axes, stored.dtype, chunk, options),
            **size_fields(size),
            format="HDF5",
            place=_place(stored),
            notes=_notes(stored, is_unsigned, uri),
            source_id=f"{path.resolve()}:{name}{f'?axes={options.axes}' if options.axes else ''}",
            path=str(path),
            dataset=name,
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
    if stored.is_virtual or stored.external or not stored.size or stored.id.get_storage_size():
        return ()
    return (f"{uri}: nothing is stored in the dataset; all its voxels are {stored.fillvalue}",)


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


def _axis_names(stored: h5py.Dataset) -> list[str] | None:
    """Return the names of the axes in ilastik's `axistags`, else the labels of the dimensions; None without any."""
    try:
        return [str(axis["key"]) for axis in json.loads(stored.attrs["axistags"])["axes"]]
    except (KeyError, TypeError, ValueError):
        return [dimension.label for dimension in stored.dims]


def _voxel_size(stored: h5py.Dataset) -> StatedSize | None:
    """Return the size in the attributes of a dataset, its group or its file, z, y, x.

    It is our `voxel_size_nm_zyx`, CREMI's `resolution`, gunpowder's `voxel_size` (both in nm, unless `units` says
    otherwise), or ilastik's `element_size_um`.
    """
    for item, where in ((stored, ""), (stored.parent, " of its group"), (stored.file, " of the file")):
        for name, unit in SIZE_ATTRIBUTES:
            if np.shape(item.attrs.get(name)) == (3,):
                units = [unit] * 3 if unit else _units(stored)
                size = in_nanometers(_numbers(item.attrs[name]), units or ["nm"] * 3)
                return StatedSize.of(size, name + where, bool(units))
    return None


def _numbers(values: Any) -> list[float]:
    """Return the numbers in an attribute; none if it holds anything else."""
    try:
        return [float(value) for value in values]
    except (TypeError, ValueError):
        return []


def _place(stored: h5py.Dataset) -> Place | None:
    """Return the `offset` of a dataset, else of its group, z, y, x, in nm unless `units` says otherwise (CREMI)."""
    for item in (stored, stored.parent):
        if np.shape(item.attrs.get("offset")) == (3,):
            units = in_nanometers([1.0] * 3, _units(stored) or ["nm"] * 3)
            offset = _numbers(item.attrs["offset"])
            if units is None or not offset:
                return None
            return Place(per_axis(lambda value, unit: value * unit, offset, units), "corner", "offset")
    return None


def _units(stored: h5py.Dataset) -> list[str]:
    """Return the three units that the attribute `units` of a dataset or its group states; none without."""
    for item in (stored, stored.parent):
        if "units" in item.attrs:
            units = [each.decode() if isinstance(each, bytes) else str(each) for each in np.ravel(item.attrs["units"])]
            return units * 3 if len(units) == 1 else units
    return []

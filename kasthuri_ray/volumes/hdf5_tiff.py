"""HDF5 datasets and TIFF stacks on the local disk, read with h5py and tifffile."""

from __future__ import annotations

import itertools
import math
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote
from xml.etree import ElementTree

import numpy as np

from kasthuri_ray.errors import InputDenied, InputError, InputNotFound, VolumeError
from kasthuri_ray.geometry import Box, Nm, Zyx, ceil_div, per_axis
from kasthuri_ray.volumes.store_metadata import in_nanometers
from kasthuri_ray.volumes.volume import Volume, make_opening_id

if TYPE_CHECKING:
    import h5py
    import tifffile

HDF5 = re.compile(r"(.+?\.(?:h5|hdf5|hdf))(?::(.*))?$", re.IGNORECASE)
TIFF = re.compile(r".+\.tiff?$", re.IGNORECASE)
CACHE_BYTES = 64_000_000  # of decoded chunks that an open file keeps
MIN_CHUNK_ROWS = 256  # rows of a page that are read at once, unless the page has fewer
MAX_LISTED = 20  # datasets that a message names

Reader = Callable[[tuple[slice, ...]], np.ndarray]


@dataclass(kw_only=True)
class FileVolume(Volume):
    """A dataset of an HDF5 file, or a TIFF stack."""

    path: str  # absolute
    dataset: str  # name in the file; empty for TIFF
    axes: Zyx  # which stored axes are z, y, x; z is -1 for a TIFF of one page; all other axes have length 1
    rank: int  # number of stored axes
    opening: str  # see `make_opening_id`

    def _read(self, box: Box) -> np.ndarray:
        try:
            read = _open_reader(self.path, self.dataset, self.opening)
            return _read_zyx(read, box, self.axes, self.dtype, self.rank)
        except Exception as error:  # a broken file raises whatever its codec raises
            raise VolumeError(f"{self.uri}: the cutout {box} (z,y,x) could not be read: {error}") from error


def is_file_volume(uri: str) -> bool:
    """Return whether a URI names an HDF5 file, with or without `:dataset`, or a TIFF file."""
    return "|" not in uri and bool(HDF5.match(uri) or TIFF.match(uri)) and not Path(uri).is_dir()


def open_file_volume(uri: str, mip: int | None = None) -> Volume:
    """Open `x.h5:dataset` or `x.tif`, a path or a `file://` URL; parameters and errors as of `open_volume`.

    Without `:dataset` it is the file's only dataset of three axes. Axes of length 1 besides z, y, x are dropped.
    """
    if mip not in (None, 0):
        raise InputError(f"{uri} has one resolution, mip 0; mip {mip} does not exist")
    match = HDF5.match(uri)
    name, dataset = (match[1], match[2] or "") if match else (uri, "")
    path = _local_path(name, uri)
    try:
        return _open_hdf5(uri, path, dataset) if match else _open_tiff(uri, path)
    except (FileNotFoundError, PermissionError):
        raise
    except OSError as error:
        raise InputError(f"{uri} is not a complete {'HDF5' if match else 'TIFF'} file: {error}") from error


def _local_path(name: str, uri: str) -> Path:
    if name.startswith("file://"):
        name = unquote(name.removeprefix("file://"))
    elif "://" in name:
        raise InputError(f"{uri}: HDF5 and TIFF are read from a local disk only; copy the file, or convert it to zarr")
    path = Path(name).expanduser().absolute()
    if not path.is_file():
        raise InputNotFound(f"{uri}: there is no file {path}")
    if not os.access(path, os.R_OK):
        raise InputDenied(f"{uri}: no permission to read {path}")
    return path


def _open_hdf5(uri: str, path: Path, name: str) -> Volume:
    import h5py

    with h5py.File(path, "r") as file:
        datasets = _find_datasets(file)
        if not name:
            if len(datasets) != 1:
                listed = _listed(path, datasets)
                raise InputError(f"{uri} holds {len(datasets)} datasets of three axes; name one: {listed}")
            name = datasets[0]
        if not isinstance(file.get(name), h5py.Dataset):
            raise InputError(f"{uri}: {path.name} has no dataset {name!r}; name one: {_listed(path, datasets)}")
        stored = file[name]
        axes = _last_three_axes(stored.shape, uri)
        chunks = stored.chunks or (1,) * (len(stored.shape) - 2) + stored.shape[-2:]
        chunk = per_axis(min, chunks[-3:], stored.shape[-3:])
        return _make_volume(uri, path, name, axes, stored.shape, stored.dtype, chunk, _hdf5_voxel_size(stored))


def _find_datasets(file: h5py.File) -> list[str]:
    """Return the names of all datasets with three axes or more."""
    import h5py

    names: list[str] = []
    file.visititems(
        lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) and item.ndim >= 3 else None
    )
    return names


def _listed(path: Path, names: list[str]) -> str:
    shown = ", ".join(f"{path.name}:{name}" for name in names[:MAX_LISTED])
    return (shown or "it has none") + (", ..." if len(names) > MAX_LISTED else "")


def _last_three_axes(shape: tuple[int, ...], uri: str) -> Zyx:
    if len(shape) < 3 or any(n != 1 for n in shape[:-3]):
        channels = f"{shape[-4]} channels" if len(shape) > 3 else f"{len(shape)} axes"
        raise InputError(f"{uri} has {channels}, shape {shape}; a volume has one channel and three axes: z, y, x")
    return len(shape) - 3, len(shape) - 2, len(shape) - 1


def _hdf5_voxel_size(stored: h5py.Dataset) -> Nm | None:
    """Return the size in the attributes of a dataset, its group or its file.

    It is our `voxel_size_nm_zyx`, CREMI's `resolution` (nm) or ilastik's `element_size_um`.
    """
    for item in (stored, stored.parent, stored.file):
        for name, unit in (("voxel_size_nm_zyx", "nm"), ("resolution", "nm"), ("element_size_um", "um")):
            if np.shape(item.attrs.get(name)) == (3,):
                return in_nanometers([float(size) for size in item.attrs[name]], [unit] * 3)
    return None


def _open_tiff(uri: str, path: Path) -> Volume:
    with _open_tiff_file(path) as file:
        if len(file.series) != 1:
            shapes = ", ".join(str(series.shape) for series in file.series[:5])
            raise InputError(f"{uri} holds {len(file.series)} images, shapes {shapes}; a volume is one stack of pages")
        series = file.series[0]
        axes = _tiff_axes(series, uri)
        _check_codec(series, uri)
        chunk = per_axis(lambda axis, length: 1 if axis < 0 else length, axes, _tiff_chunk(series, axes))
        return _make_volume(uri, path, "", axes, series.shape, np.dtype(series.dtype), chunk, _tiff_voxel_size(file))


def _open_tiff_file(path: str | Path) -> tifffile.TiffFile:
    """Return the open file; pages that were written one by one, each with its own shape, become one stack."""
    import tifffile

    try:
        file = tifffile.TiffFile(path)
    except tifffile.TiffFileError as error:
        raise OSError(str(error)) from error
    if len(file.series) > 1 and file.is_shaped:
        file.close()
        return tifffile.TiffFile(path, is_shaped=False)
    return file


def _tiff_axes(series: tifffile.TiffPageSeries, uri: str) -> Zyx:
    """Return which stored axes are z, y, x.

    Whatever other axis is longer than 1 is z, whether its name is Z, I, Q or T; z is -1 if there is none.
    """
    names, shape = series.axes, series.shape
    y, x = names.find("Y"), names.find("X")
    longer = [axis for axis in range(len(names)) if axis not in (y, x) and shape[axis] > 1]
    if min(y, x) < 0 or len(longer) > 1 or any(names[axis] in "CS" for axis in longer):
        raise InputError(f"{uri} has axes {names} of shape {shape}; a volume has one channel and three axes: z, y, x")
    others = [axis for axis in range(len(names)) if axis not in (y, x, *longer) and names[axis] not in "CS"]
    return (*longer, *others, -1)[0], y, x


def _check_codec(series: tifffile.TiffPageSeries, uri: str) -> None:
    import tifffile

    try:
        tifffile.TIFF.DECOMPRESSORS[series.keyframe.compression]
    except KeyError as error:
        raise InputError(
            f"{uri}: {error.args[0]}: install it (pip install imagecodecs), or convert the file"
        ) from error


def _tiff_chunk(series: tifffile.TiffPageSeries, axes: Zyx) -> Zyx:
    """Return the shape of a tile of a page, or of as many whole strips as have MIN_CHUNK_ROWS rows."""
    height, width = series.shape[axes[1]], series.shape[axes[2]]
    if series.keyframe.is_tiled:
        return 1, min(series.keyframe.tilelength, height), min(series.keyframe.tilewidth, width)
    strip = min(series.keyframe.rowsperstrip, height)
    return 1, min(strip * math.ceil(MIN_CHUNK_ROWS / strip), height), width


def _tiff_voxel_size(file: tifffile.TiffFile) -> Nm | None:
    """Return the size in OME-XML, in ImageJ's metadata or in a `voxel_size_nm_zyx` of tifffile's metadata.

    A resolution in dots per inch does not count, since it says nothing about z.
    """
    for metadata in file.shaped_metadata or ():
        if len(metadata.get("voxel_size_nm_zyx", ())) == 3:
            return in_nanometers(metadata["voxel_size_nm_zyx"], ["nm"] * 3)
    if file.is_ome and file.ome_metadata:
        return _ome_xml_voxel_size(file.ome_metadata)
    if file.is_imagej and file.imagej_metadata:
        return _imagej_voxel_size(file.imagej_metadata, file.pages[0].tags)  # type: ignore[union-attr]
    return None


def _ome_xml_voxel_size(xml: str) -> Nm | None:
    pixels = next((item for item in ElementTree.fromstring(xml).iter() if item.tag.endswith("}Pixels")), None)
    if pixels is None or any(pixels.get(f"PhysicalSize{axis}") is None for axis in "ZYX"):
        return None
    sizes = [float(pixels.get(f"PhysicalSize{axis}", 0)) for axis in "ZYX"]
    return in_nanometers(sizes, [pixels.get(f"PhysicalSize{axis}Unit", "µm") for axis in "ZYX"])


def _imagej_voxel_size(metadata: dict[str, Any], tags: Any) -> Nm | None:
    unit = str(metadata.get("unit", "")).replace("\\u00B5", "µ")
    if "spacing" not in metadata or "XResolution" not in tags or "YResolution" not in tags:
        return None
    in_plane = []
    for name in ("YResolution", "XResolution"):
        pixels, units = tags[name].value
        in_plane.append(units / pixels if pixels else 0.0)
    return in_nanometers([float(metadata["spacing"]), *in_plane], [unit] * 3)


def _make_volume(
    uri: str, path: Path, dataset: str, axes: Zyx, shape: Any, dtype: np.dtype, chunk: Zyx, size: Nm | None
) -> Volume:
    if dtype.kind not in "buif":
        raise InputError(f"{uri} holds {dtype}; a volume holds integers or floats")
    return FileVolume(
        uri=uri,
        bounds=Box((0, 0, 0), per_axis(lambda axis: 1 if axis < 0 else shape[axis], axes)),
        dtype=dtype.newbyteorder("="),
        voxel_size_nm=size,
        chunk=chunk,
        chunk_origin=(0, 0, 0),
        source_id=f"{path.resolve()}:{dataset}",
        path=str(path),
        dataset=dataset,
        axes=axes,
        rank=len(shape),
        opening=make_opening_id(),
    )


def _read_zyx(read: Reader, box: Box, axes: Zyx, dtype: np.dtype, rank: int) -> np.ndarray:
    """Return the voxels of a box as z, y, x, whatever the order of the stored axes."""
    ranges = dict(zip(axes, box.slices(), strict=True))
    voxels = read(tuple(ranges.get(axis, slice(0, 1)) for axis in range(rank)))
    kept = [axis for axis in axes if axis >= 0]
    transposed = voxels.transpose([*(axis for axis in range(rank) if axis not in kept), *kept])
    return np.ascontiguousarray(transposed.reshape(box.shape), dtype=dtype)


@lru_cache(maxsize=16)
def _open_reader(path: str, dataset: str, opening: str) -> Reader:
    """Return a function that reads slices of the stored axes from an open file; many threads may call it at once.

    Each process keeps one for each opening.
    """
    if dataset:
        import h5py

        stored = h5py.File(path, "r", rdcc_nbytes=CACHE_BYTES)[dataset]
        return stored.__getitem__  # h5py holds a lock around every call
    file = _open_tiff_file(path)
    series = file.series[0]
    if series.dataoffset is not None:
        stored_type = np.dtype(series.dtype).newbyteorder(file.byteorder)
        return np.memmap(path, stored_type, "r", series.dataoffset, series.shape).__getitem__
    axes = _tiff_axes(series, path)
    lengths = dict(zip(axes, _tiff_chunk(series, axes), strict=True))
    return _CompressedTiff(series, tuple(lengths.get(axis, 1) for axis in range(series.ndim))).read


class _CompressedTiff:
    """A compressed TIFF that is read by chunks; the chunks used last stay decoded."""

    def __init__(self, series: tifffile.TiffPageSeries, chunk: tuple[int, ...]) -> None:
        import zarr

        self.array: Any = zarr.open_array(series.aszarr(level=0), mode="r")
        self.chunk = chunk
        self.decoded: OrderedDict[tuple[int, ...], np.ndarray] = OrderedDict()
        self.lock = threading.Lock()

    def read(self, ranges: tuple[slice, ...]) -> np.ndarray:
        voxels = np.empty([part.stop - part.start for part in ranges], self.array.dtype)
        indices = (range(p.start // n, ceil_div(p.stop, n)) for p, n in zip(ranges, self.chunk, strict=True))
        for index in itertools.product(*indices):
            source, target = [], []
            for i, n, part in zip(index, self.chunk, ranges, strict=True):
                low, high = max(part.start, i * n), min(part.stop, (i + 1) * n)
                source.append(slice(low - i * n, high - i * n))
                target.append(slice(low - part.start, high - part.start))
            voxels[tuple(target)] = self._decode(index)[tuple(source)]
        return voxels

    def _decode(self, index: tuple[int, ...]) -> np.ndarray:
        with self.lock:
            if index not in self.decoded:
                ranges = tuple(slice(i * n, (i + 1) * n) for i, n in zip(index, self.chunk, strict=True))
                self.decoded[index] = np.asarray(self.array[ranges])
                while len(self.decoded) > 1 and sum(voxels.nbytes for voxels in self.decoded.values()) > CACHE_BYTES:
                    self.decoded.popitem(last=False)
            self.decoded.move_to_end(index)
            return self.decoded[index]

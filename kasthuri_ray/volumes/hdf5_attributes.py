"""What the attributes of an HDF5 dataset, its group and its file state: names of axes, voxel size and place."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from kasthuri_ray.geometry import Zyx, per_axis
from kasthuri_ray.volumes.axes import ABSENT, stated_axes
from kasthuri_ray.volumes.length_units import in_nanometers
from kasthuri_ray.volumes.place import Place, StatedSize

if TYPE_CHECKING:
    import h5py

SIZE_ATTRIBUTES = (("voxel_size_nm_zyx", "nm"), ("resolution", None), ("voxel_size", None), ("element_size_um", "um"))
UNITS = ("units", "unit")
StoredOrder = tuple[Zyx, int]  # which stored axes are z, y, x, and how many there are
SIZE_ADVICE = "give the size: ?voxel_size_nm=z,y,x"
PLACE_ADVICE = "give the place: ?offset_nm=z,y,x"


def hdf5_axis_names(stored: h5py.Dataset) -> list[str]:
    """Return the names of the axes in ilastik's `axistags`, else the labels of the dimensions, which may be empty."""
    try:
        return [str(axis["key"]) for axis in json.loads(np.ravel(stored.attrs["axistags"])[0])["axes"]]
    except (IndexError, KeyError, TypeError, ValueError):
        return [dimension.label for dimension in stored.dims]


def stated_geometry(
    stored: h5py.Dataset, axes: Zyx, names: list[str] | None, uri: str
) -> tuple[StatedSize | None, Place | None, list[str]]:
    """Return voxel size and place along z, y, x, and a line about each that is there and is not understood.

    Parameters
    ----------
    stored : Dataset
        The dataset.
    axes : tuple of int
        Which stored axes are z, y, x.
    names : list of str or None
        Names of the stored axes where others are read as z, y, x: size and place then go with their stored axes.
    uri : str
        Opens the lines.
    """
    notes: list[str] = []
    places = [(stored, ""), (stored.parent, " of its group"), (stored.file, " of the file")]
    stated = stated_axes(stored.shape, names)
    order = axes if stated is None or ABSENT in stated else stated, len(stored.shape)
    size, num_items = _voxel_size(places, order, uri, notes)
    place = _place(places[: max(2, num_items)], order, uri, notes)
    if stated is not None:
        size, place = size and size.turned(stated, axes), place and place.turned(stated, axes)
    return size, place, notes


def _voxel_size(
    places: list[tuple[Any, str]], order: StoredOrder, uri: str, notes: list[str]
) -> tuple[StatedSize | None, int]:
    """Return the size in the attributes of a dataset, its group or its file, and in how many of these it was sought.

    It is our `voxel_size_nm_zyx`, CREMI's `resolution`, gunpowder's `voxel_size` (both in nm, unless `units` says
    otherwise), or ilastik's `element_size_um`.
    """
    for number, (item, where) in enumerate(places, start=1):
        for name, unit in SIZE_ATTRIBUTES:
            if name not in item.attrs:
                continue
            units = [unit] * 3 if unit else _units(places[: max(2, number)], order)
            size = in_nanometers(_lengths(item.attrs[name], order), units or ["nm"] * 3)
            if size is not None:
                return StatedSize.of(size, name + where, bool(units)), number
            notes.append(_ignored(item, name + where, units, uri, SIZE_ADVICE))
            if len(_lengths(item.attrs[name], order)) == 3:
                return None, number
    return None, 0


def _place(places: list[tuple[Any, str]], order: StoredOrder, uri: str, notes: list[str]) -> Place | None:
    """Return the `offset` of a dataset, else of its group, z, y, x, in nm unless `units` says otherwise (CREMI).

    That of the file counts where the voxel size is that of the file.
    """
    for item, where in places:
        if "offset" not in item.attrs:
            continue
        units = _units(places, order)
        factors, offset = in_nanometers([1.0] * 3, units or ["nm"] * 3), _lengths(item.attrs["offset"], order)
        if factors is None or len(offset) != 3 or not all(map(math.isfinite, offset)):
            notes.append(_ignored(item, f"offset{where}", units, uri, PLACE_ADVICE))
            return None
        return Place(per_axis(lambda value, unit: value * unit, offset, factors), "corner", "offset")
    return None


def _ignored(item: Any, name: str, units: list[str], uri: str, advice: str) -> str:
    value = " ".join(str(item.attrs[name.split()[0]]).split())
    unit = f" {','.join(units)}" if units else ""
    return f"{uri}: its {name}, {value[:80]}{unit}, is not three lengths along z,y,x and does not count; {advice}"


def _lengths(values: Any, order: StoredOrder) -> list[float]:
    """Return the numbers along z, y, x in an attribute of any shape; none if it holds anything else."""
    return [] if (three := _three(values, order)) is None else _numbers(three)


def _three(values: Any, order: StoredOrder) -> list[Any] | None:
    """Return three values: all that there are, or of one for each stored axis those of z, y, x; else None."""
    flat = list(np.ravel(values))
    if len(flat) == 3:
        return flat
    axes, rank = order
    return [flat[axis] for axis in axes] if len(flat) == rank and ABSENT not in axes else None


def _numbers(values: list[Any]) -> list[float]:
    try:
        return [float(value) for value in values]
    except (TypeError, ValueError):
        return []


def _units(places: list[tuple[Any, str]], order: StoredOrder) -> list[str]:
    """Return the units that the attribute `units` or `unit` of the first of several items states; none without."""
    for item, _ in places:
        for name in UNITS:
            if name in item.attrs:
                units = [each.decode() if isinstance(each, bytes) else str(each) for each in np.ravel(item.attrs[name])]
                return units * 3 if len(units) == 1 else _three(units, order) or units
    return []

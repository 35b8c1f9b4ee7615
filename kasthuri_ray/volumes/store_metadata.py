"""The metadata of zarr, OME-Zarr, N5 and Neuroglancer precomputed: pure functions on their JSON.

They take axes and sizes as the format writes them, and return them as z, y, x.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kasthuri_ray.geometry import AXES, Nm, Zyx, per_axis

Document = Mapping[str, Any]

ARRAY, GROUP = "array", "group"
# Metadata files that are looked for at a path, in order of preference, and the format (a tensorstore driver) of each.
DOCUMENTS = {
    "zarr.json": "zarr3",
    ".zarray": "zarr",
    ".zgroup": "zarr",
    ".zattrs": "zarr",
    "info": "neuroglancer_precomputed",
    "attributes.json": "n5",
    "s0/attributes.json": "n5",
}
NANOMETERS = {
    "picometer": 1e-3,
    "pm": 1e-3,
    "angstrom": 0.1,
    "å": 0.1,
    "nanometer": 1.0,
    "nanometre": 1.0,
    "nm": 1.0,
    "micrometer": 1e3,
    "micrometre": 1e3,
    "micron": 1e3,
    "um": 1e3,
    "µm": 1e3,
    "μm": 1e3,
    "millimeter": 1e6,
    "millimetre": 1e6,
    "mm": 1e6,
    "centimeter": 1e7,
    "cm": 1e7,
    "meter": 1e9,
    "metre": 1e9,
    "m": 1e9,
}


@dataclass(frozen=True)
class StoreNode:
    """An array or a group at a path.

    Parameters
    ----------
    driver : str
        Format, as the name of a tensorstore driver.
    kind : str
        `ARRAY` or `GROUP`.
    attributes : mapping
        Attributes that users write.
    metadata : mapping
        Metadata that the format defines.
    """

    driver: str
    kind: str
    attributes: Document = field(default_factory=dict)
    metadata: Document = field(default_factory=dict)


@dataclass(frozen=True)
class OmeLevel:
    """One resolution of an OME-Zarr pyramid.

    Parameters
    ----------
    path : str
        Path in the group.
    axes : tuple of str
        Names of the stored axes, in lower case.
    voxel_size_nm : tuple of float or None
        Size of a voxel along z, y, x, in nm; None if the unit is missing.
    translation_nm : tuple of float
        Position of the middle of voxel 0, 0, 0 along z, y, x, in nm.
    """

    path: str
    axes: tuple[str, ...]
    voxel_size_nm: Nm | None
    translation_nm: Nm


def find_node(documents: Mapping[str, Document], driver: str | None = None) -> StoreNode | None:
    """Return the array or group that metadata files describe, or None if there is none.

    Parameters
    ----------
    documents : mapping
        Content of the files of `DOCUMENTS` that exist, by name.
    driver : str or None
        The only format that counts; None for all.

    Returns
    -------
    StoreNode or None
    """
    formats = {name: format for name, format in DOCUMENTS.items() if driver in (None, format) and name in documents}
    for name, format in formats.items():
        document = documents[name]
        if name == "zarr.json":
            kind = ARRAY if document.get("node_type") == "array" else GROUP
            return StoreNode(format, kind, document.get("attributes", {}), document)
        if format == "zarr":
            return StoreNode(format, ARRAY if ".zarray" in formats else GROUP, documents.get(".zattrs", {}), document)
        if name == "info" and "scales" in document:
            return StoreNode(format, ARRAY, {}, document)
        if format == "n5":
            attributes = documents.get("attributes.json", {})
            kind = ARRAY if "dimensions" in attributes and "blockSize" in attributes else GROUP
            return StoreNode(format, kind, attributes, attributes)
    return None


def in_nanometers(sizes: Sequence[float], units: Sequence[str | None]) -> Nm | None:
    """Return three lengths in nm, or None if a unit is missing or not a length, or if a size is not positive."""
    factors = [factor for unit in units if (factor := _nanometers_per_unit(unit)) is not None]
    if len(factors) < len(units):
        return None
    return _positive_sizes(size * factor for size, factor in zip(sizes, factors, strict=True))


def _nanometers_per_unit(unit: str | None) -> float | None:
    """Return the length of a unit (singular, plural or symbol) in nm, or None if it is not a length."""
    if not unit:
        return None
    name = unit.lower() if len(unit) > 2 else unit
    return NANOMETERS.get(name, NANOMETERS.get(name.removesuffix("s")))


def _positive_sizes(sizes: Iterable[float]) -> Nm | None:
    """Return three sizes, or None if there are not three or one is not a positive number."""
    values = [round(float(size), 9) for size in sizes]
    if len(values) != 3 or not all(math.isfinite(value) and value > 0 for value in values):
        return None
    return per_axis(float, values)


def ome_levels(attributes: Document) -> list[OmeLevel] | None:
    """Return the resolutions of the first pyramid of an OME-Zarr group (version 0.1 to 0.5), finest first.

    Parameters
    ----------
    attributes : mapping
        Attributes of the group.

    Returns
    -------
    list of OmeLevel or None
        None if the group is not a pyramid. A level without unit or scale has no voxel size.

    Notes
    -----
    The scale and translation of a level come first, then those of the whole pyramid:
    https://ngff.openmicroscopy.org/0.5/#multiscale-md.
    """
    multiscales = attributes.get("ome", attributes).get("multiscales")
    if not multiscales:
        return None
    whole = multiscales[0]
    axes = [axis if isinstance(axis, dict) else {"name": axis} for axis in whole.get("axes", "tczyx")]
    return [_ome_level(dataset, axes, whole.get("coordinateTransformations", [])) for dataset in whole["datasets"]]


def _ome_level(dataset: Document, axes: list[dict[str, Any]], whole: Sequence[Document]) -> OmeLevel:
    names = tuple(axis["name"].lower() for axis in axes)
    order = zyx_positions(names)
    scale, translation = [1.0] * len(axes), [0.0] * len(axes)
    transformations = [*dataset.get("coordinateTransformations", []), *whole]
    for transformation in transformations:
        if "scale" in transformation:
            factor = transformation["scale"]
            scale = [a * b for a, b in zip(scale, factor, strict=True)]
            translation = [a * b for a, b in zip(translation, factor, strict=True)]
        if "translation" in transformation:
            translation = [a + b for a, b in zip(translation, transformation["translation"], strict=True)]
    if order is None or not transformations:
        return OmeLevel(dataset["path"], names, None, (0.0, 0.0, 0.0))
    units = [axes[axis].get("unit") for axis in order]
    size = in_nanometers([scale[axis] for axis in order], units)
    if size is None:
        return OmeLevel(dataset["path"], names, None, (0.0, 0.0, 0.0))
    shift = per_axis(lambda axis, unit: translation[axis] * (_nanometers_per_unit(unit) or 0.0), order, units)
    return OmeLevel(dataset["path"], names, size, shift)


def zyx_positions(names: Sequence[str | None] | None) -> Zyx | None:
    """Return the indices of z, y and x among the names of an array's axes, or None if one is missing."""
    lower = [str(name).lower() for name in names or ()]
    if any(lower.count(axis) != 1 for axis in AXES):
        return None
    return per_axis(lower.index, AXES)


def zarr_axes(node: StoreNode, level: OmeLevel | None, rank: int) -> Zyx:
    """Return which axes of a zarr array are z, y and x.

    Their names are OME's axes, `dimension_names` or xarray's; without names they are the last three axes.

    Parameters
    ----------
    node : StoreNode
        Array.
    level : OmeLevel or None
        Resolution of a pyramid that the array is, if it is one.
    rank : int
        Number of stored axes.

    Returns
    -------
    tuple of int
        Indices of z, y, x.
    """
    for names in (
        level.axes if level else None,
        node.metadata.get("dimension_names"),
        node.attributes.get("_ARRAY_DIMENSIONS"),
    ):
        order = zyx_positions(names)
        if order is not None and names is not None and len(names) == rank:
            return order
    return rank - 3, rank - 2, rank - 1


def zarr_voxel_size(array: Document, group: Document, level: OmeLevel | None) -> Nm | None:
    """Return the voxel size of a zarr array along z, y, x, in nm.

    It is the array's `voxel_size_nm_zyx`, else that of its level in the group's pyramid, else the group's own.
    """
    if "voxel_size_nm_zyx" in array:
        return _positive_sizes(array["voxel_size_nm_zyx"])
    if level is not None:
        return level.voxel_size_nm
    return _positive_sizes(group.get("voxel_size_nm_zyx", ()))


def n5_voxel_size(array: Document, group: Document, index: int | None) -> Nm | None:
    """Return the voxel size of an N5 dataset along z, y, x, in nm; the attributes are in the order x, y, z.

    Parameters
    ----------
    array, group : mapping
        Attributes of the dataset and of its group.
    index : int or None
        Which of the group's `scales` the dataset is, if it is one.

    Returns
    -------
    tuple of float or None
        None if neither states a size.

    Notes
    -----
    `voxel_size_nm_zyx` comes first; then a `transform` with its own axes, which is that of the level (COSEM); then
    `pixelResolution` or `resolution` times `downsamplingFactors`, since those are of the finest level (N5 viewer).
    """
    if "voxel_size_nm_zyx" in array:
        return _positive_sizes(array["voxel_size_nm_zyx"])
    transform = array.get("transform", {})
    order = zyx_positions(transform.get("axes"))
    if order is not None:
        units = transform.get("units", ["nm"] * 3)
        return in_nanometers([transform["scale"][axis] for axis in order], [units[axis] for axis in order])
    scales = group.get("scales", [])
    factors = array.get("downsamplingFactors", scales[index] if index is not None and index < len(scales) else [1] * 3)
    for document in (array, group):
        sizes, units = _n5_resolution(document)
        if sizes:
            scaled = [size * factor for size, factor in zip(sizes[:3], factors[:3], strict=True)]
            return in_nanometers(scaled[::-1], units[:3][::-1])
    return _positive_sizes(a * b for a, b in zip(group.get("voxel_size_nm_zyx", ()), factors[2::-1], strict=False))


def _n5_resolution(document: Document) -> tuple[list[float], list[str]]:
    """Return the sizes and units in the attributes of an N5 dataset or group; no sizes if it states none."""
    pixel = document.get("pixelResolution", document.get("resolution", []))
    unit = document.get("unit", "nm")
    if isinstance(pixel, Mapping):
        pixel, unit = pixel.get("dimensions", []), pixel.get("unit", unit)
    return list(pixel), list(document.get("units", [unit] * len(pixel)))

"""The metadata of zarr, OME-Zarr, N5 and Neuroglancer precomputed: pure functions on their JSON.

They take axes and sizes as the format writes them, and return them as z, y, x.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kasthuri_ray.geometry import AXES, Nm, Zyx, per_axis
from kasthuri_ray.volumes.place import Place

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
    place : Place or None
        Position of the middle of voxel 0, 0, 0; None without a voxel size.
    problem : str
        Why the metadata cannot be used; empty if they can.
    """

    path: str
    axes: tuple[str, ...]
    voxel_size_nm: Nm | None = None
    place: Place | None = None
    problem: str = ""


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
        if problem := _transformation_problem(transformation, names):
            return OmeLevel(dataset["path"], names, problem=problem)
        if "scale" in transformation:
            factor = transformation["scale"]
            scale = [a * b for a, b in zip(scale, factor, strict=True)]
            translation = [a * b for a, b in zip(translation, factor, strict=True)]
        if "translation" in transformation:
            translation = [a + b for a, b in zip(translation, transformation["translation"], strict=True)]
    if order is None or not transformations:
        return OmeLevel(dataset["path"], names)
    units = [axes[axis].get("unit") for axis in order]
    size = in_nanometers([scale[axis] for axis in order], units)
    if size is None:
        return OmeLevel(dataset["path"], names)
    shift = per_axis(lambda axis, unit: translation[axis] * (_nanometers_per_unit(unit) or 0.0), order, units)
    stated = any("translation" in transformation for transformation in transformations)
    return OmeLevel(dataset["path"], names, size, Place(shift, "middle", "OME translation", stated))


def _transformation_problem(transformation: Document, names: tuple[str, ...]) -> str:
    """Return what is wrong with the numbers of a transformation; "" if nothing is."""
    for kind in ("scale", "translation"):
        numbers = transformation.get(kind)
        if numbers is None or (len(numbers) == len(names) and all(isinstance(n, int | float) for n in numbers)):
            continue
        return f"its OME metadata give the {kind} {numbers}, expected a number for each of the axes {','.join(names)}"
    return ""


def zyx_positions(names: Sequence[str | None] | None) -> Zyx | None:
    """Return the indices of z, y and x among the names of axes, or None if one is missing."""
    lower = [str(name).lower() for name in names or ()]
    if any(lower.count(axis) != 1 for axis in AXES):
        return None
    return per_axis(lower.index, AXES)


def axis_names(node: StoreNode, level: OmeLevel | None, rank: int) -> list[str] | None:
    """Return the names of the stored axes: OME's, `dimension_names`, xarray's or funlib's; None if there are none."""
    for names in (
        level.axes if level else None,
        node.metadata.get("dimension_names"),
        node.attributes.get("_ARRAY_DIMENSIONS"),
        node.attributes.get("axis_names"),
    ):
        if isinstance(names, Sequence) and len(names) == rank and {"y", "x"} <= {str(name).lower() for name in names}:
            return [str(name).removesuffix("^") for name in names]  # funlib marks channels so
    return None


def zarr_voxel_size(array: Document, group: Document, level: OmeLevel | None, order: Zyx) -> Nm | None:
    """Return the voxel size of a zarr array along z, y, x, in nm.

    It is the array's `voxel_size_nm_zyx`, else that of its level in the group's pyramid, the array's `transform`
    (COSEM), its `voxel_size` or `resolution` (funlib, gunpowder), else the group's `voxel_size_nm_zyx`.
    """
    if "voxel_size_nm_zyx" in array:
        return _positive_sizes(array["voxel_size_nm_zyx"])
    if level is not None:
        return level.voxel_size_nm
    return (
        _transform_lengths(array, "scale")
        or _lengths(array, ("voxel_size", "resolution"), order)
        or _positive_sizes(group.get("voxel_size_nm_zyx", ()))
    )


def store_place(array: Document, level: OmeLevel | None, order: Zyx, voxel_size_nm: Nm | None) -> Place | None:
    """Return the place of a zarr or N5 array; None if it states none, or no voxel size in nm.

    Parameters
    ----------
    array : mapping
        Attributes of the array.
    level : OmeLevel or None
        Resolution of a pyramid that the array is, if it is one.
    order : tuple of int
        Which stored axes are z, y, x.
    voxel_size_nm : tuple of float or None
        Voxel size that was found.

    Returns
    -------
    Place or None
        OME's translation, else COSEM's `transform`, else `offset`, else OME's scale without a translation.

    Notes
    -----
    `offset` is in nm unless `units` says otherwise, in the order of the stored axes: z, y, x in zarr
    (funlib.persistence, gunpowder), x, y, z in N5.
    """
    if voxel_size_nm is None:
        return None
    if level is not None and level.place is not None and level.place.stated:
        return level.place
    if (translate := _transform_lengths(array, "translate")) is not None:
        return Place(translate, "middle", "transform")
    if (offset := _lengths(array, ("offset",), order)) is not None:
        return Place(offset, "corner", "offset")
    return None if level is None else level.place


def _transform_lengths(array: Document, name: str) -> Nm | None:
    """Return the `scale` or `translate` of a COSEM transform along z, y, x, in nm."""
    transform = array.get("transform", {})
    order = zyx_positions(transform.get("axes")) if isinstance(transform, Mapping) else None
    if order is None or name not in transform:
        return None
    units = transform.get("units", ["nm"] * len(transform["axes"]))
    return _in_nm([transform[name][axis] for axis in order], [units[axis] for axis in order])


def _lengths(document: Document, names: Iterable[str], order: Zyx) -> Nm | None:
    """Return the first of several attributes that holds lengths of the stored axes, along z, y, x, in nm."""
    units = document.get("units", document.get("unit", "nm"))
    for name in names:
        values = document.get(name)
        if not isinstance(values, Sequence) or isinstance(values, str) or len(values) < 3:
            continue
        each = [units] * len(values) if isinstance(units, str) else units
        if (lengths := _in_nm(_in_zyx(values, order), _in_zyx(each, order))) is not None:
            return lengths
    return None


def _in_zyx(values: Sequence[Any], order: Zyx) -> list[Any]:
    """Return the values for z, y, x of a list for all stored axes, or for those three in their stored order."""
    kept = sorted(order)
    return [values[kept.index(axis) if len(values) == 3 else axis] for axis in order]


def _in_nm(values: Sequence[float], units: Sequence[str | None]) -> Nm | None:
    """Return three positions or sizes in nm; None if a unit is no length, or a value is no finite number."""
    factors = [_nanometers_per_unit(unit) for unit in units]
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in values) or None in factors:
        return None
    return per_axis(lambda value, factor: round(float(value * (factor or 0.0)), 9), values, factors)


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
    if (size := _transform_lengths(array, "scale")) is not None:
        return size
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

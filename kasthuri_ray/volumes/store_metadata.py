"""The metadata of zarr, OME-Zarr, N5 and Neuroglancer precomputed: pure functions on their JSON.

They take axes and sizes as the format writes them, and return them as z, y, x.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kasthuri_ray.geometry import Nm, Zyx, per_axis
from kasthuri_ray.volumes.axes import ABSENT, stated_axes
from kasthuri_ray.volumes.length_units import is_number, nanometers_per_unit, positive_sizes
from kasthuri_ray.volumes.ome_pyramid import OmeLevel, zyx_positions
from kasthuri_ray.volumes.place import Place, StatedSize

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

# Sources of a size or a place that is stated for named axes, whatever their order in the array.
SIZES_BY_NAME = ("voxel_size_nm_zyx", "OME scale", "transform")
PLACES_BY_NAME = ("OME translation", "transform")


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


def axis_names(node: StoreNode, level: OmeLevel | None, rank: int) -> list[str] | None:
    """Return the names of the stored axes: OME's, `dimension_names`, xarray's, funlib's or N5's; None without any."""
    for names in (
        level.axes if level else None,
        node.metadata.get("dimension_names"),
        node.attributes.get("_ARRAY_DIMENSIONS"),
        node.attributes.get("axis_names"),
        node.attributes.get("axes") if node.driver == "n5" else None,
    ):
        if isinstance(names, Sequence) and len(names) == rank and {"y", "x"} <= {str(name).lower() for name in names}:
            return [str(name).removesuffix("^") for name in names]  # funlib marks channels so
    return None


def named_axes(node: StoreNode, names: Sequence[str | None] | None, rank: int) -> Zyx | None:
    """Return which stored axes the metadata call z, y, x; None if they name none. A COSEM transform names them too."""
    transform = node.attributes.get("transform")
    if names is None and isinstance(transform, Mapping) and len(transform.get("axes", ())) == rank:
        names = "xyz" if node.driver == "n5" and rank == 3 else transform["axes"]
    return stated_axes([1] * rank, names)


def zarr_voxel_size(array: Document, group: Document, level: OmeLevel | None, order: Zyx) -> StatedSize | None:
    """Return the voxel size of a zarr array along z, y, x, in nm.

    It is the array's `voxel_size_nm_zyx`, else that of its level in the group's pyramid, the array's `transform`
    (COSEM), its `voxel_size` or `resolution` (funlib, gunpowder), else the group's `voxel_size_nm_zyx`.
    """
    if "voxel_size_nm_zyx" in array:
        return StatedSize.of(positive_sizes(array["voxel_size_nm_zyx"]), "voxel_size_nm_zyx")
    if level is not None:
        return StatedSize.of(level.voxel_size_nm, "OME scale")
    return (
        _transform_size(array)
        or _stated_size(array, "voxel_size", order)
        or _stated_size(array, "resolution", order)
        or StatedSize.of(positive_sizes(group.get("voxel_size_nm_zyx", ())), "voxel_size_nm_zyx of the group")
    )


def _transform_size(array: Document) -> StatedSize | None:
    """Return the `scale` of a COSEM transform."""
    scale = _transform_lengths(array, "scale")
    return None if scale is None else StatedSize.of(positive_sizes(scale), "transform", "units" in array["transform"])


def _stated_size(document: Document, name: str, order: Zyx) -> StatedSize | None:
    """Return the voxel size in an attribute that holds lengths of the stored axes."""
    lengths = _lengths(document, name, order)
    return None if lengths is None else StatedSize.of(positive_sizes(lengths), name, _states_unit(document))


def _states_unit(document: Document) -> bool:
    return "units" in document or "unit" in document


def store_place(
    array: Document, group: Document, level: OmeLevel | None, order: Zyx, voxel_size_nm: Nm | None
) -> Place | None:
    """Return the place of a zarr or N5 array; None if it states none, or no voxel size in nm.

    Parameters
    ----------
    array, group : mapping
        Attributes of the array, and of the group whose `offset` counts too (N5, Paintera).
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
    for document in (array, group):
        if (offset := _lengths(document, "offset", order)) is not None:
            return Place(offset, "corner", "offset")
    return None if level is None else level.place


def _transform_lengths(array: Document, name: str) -> Nm | None:
    """Return the `scale` or `translate` of a COSEM transform along z, y, x, in nm."""
    transform = array.get("transform", {})
    order = zyx_positions(transform.get("axes")) if isinstance(transform, Mapping) else None
    values = transform.get(name) if order else None
    if order is None or not isinstance(values, Sequence) or len(values) != len(transform["axes"]):
        return None
    units = transform.get("units", ["nm"] * len(values))
    return _in_nm([values[axis] for axis in order], [units[axis] for axis in order])


def _lengths(document: Document, name: str, order: Zyx) -> Nm | None:
    """Return the lengths of the stored axes that an attribute holds along z, y, x, in nm; None if it holds none."""
    values, units = document.get(name), document.get("units", document.get("unit", "nm"))
    if not isinstance(values, list | tuple):
        return None
    along, each = _in_zyx(values, order), _in_zyx(units if isinstance(units, list) else [units] * len(values), order)
    return _in_nm(along, each) if along and each else None


def _in_zyx(values: Sequence[Any], order: Zyx) -> list[Any]:
    """Return the values for z, y, x of a list for all stored axes, or for those three in their stored order.

    The list is empty if there are too few values.
    """
    if len(values) != 3:
        return [values[axis] for axis in order] if max(order) < len(values) and ABSENT not in order else []
    is_c_order = order[1] < order[2]
    kept = sorted(order, key=lambda axis: (axis == ABSENT and not is_c_order, axis))
    return [values[kept.index(axis)] for axis in order]


def _in_nm(values: Sequence[Any], units: Sequence[object]) -> Nm | None:
    """Return three positions or sizes in nm; None if a unit is no length, or a value is no finite number."""
    factors = [nanometers_per_unit(unit) for unit in units]
    if not all(map(is_number, values)) or None in factors:
        return None
    return per_axis(lambda value, factor: round(float(value * (factor or 0.0)), 9), values, factors)


def n5_voxel_size(array: Document, group: Document, index: int | None, order: Zyx) -> StatedSize | None:
    """Return the voxel size of an N5 dataset along z, y, x, in nm.

    Parameters
    ----------
    array, group : mapping
        Attributes of the dataset and of its group, in the order of the stored axes, which are x, y, z by default.
    index : int or None
        Which of the group's `scales` the dataset is, if it is one.
    order : tuple of int
        Which stored axes are z, y, x.

    Returns
    -------
    StatedSize or None
        None if neither states a size.

    Notes
    -----
    `voxel_size_nm_zyx` comes first; then a `transform` with its own axes, which is that of the level (COSEM); then
    `pixelResolution` or `resolution` times `downsamplingFactors`, since those are of the finest level (N5 viewer).
    """
    if "voxel_size_nm_zyx" in array:
        return StatedSize.of(positive_sizes(array["voxel_size_nm_zyx"]), "voxel_size_nm_zyx")
    if (size := _transform_size(array)) is not None:
        return size
    scales = group.get("scales", [])
    listed = scales[index] if index is not None and index < len(scales) else None
    factors = _factors(array.get("downsamplingFactors", listed), order)
    for document in (array, group):
        for name in ("pixelResolution", "resolution"):
            if name in document:
                return _times(_n5_resolution(document, name, order), factors)
    of_group = StatedSize.of(positive_sizes(group.get("voxel_size_nm_zyx", ())), "voxel_size_nm_zyx of the group")
    return _times(of_group, factors)


def _factors(stated: Any, order: Zyx) -> Nm:
    """Return the downsampling factors along z, y, x; 1 where none are stated."""
    factors = _in_zyx(stated, order) if isinstance(stated, list) else []
    return positive_sizes(factors) or (1.0, 1.0, 1.0)


def _times(size: StatedSize | None, factors: Nm) -> StatedSize | None:
    if size is None:
        return None
    scaled = per_axis(lambda a, b: round(a * b, 9), size.size_nm, factors)
    return StatedSize(scaled, size.source, size.states_unit)


def _n5_resolution(document: Document, name: str, order: Zyx) -> StatedSize | None:
    """Return the voxel size in `pixelResolution`, which may be a list or hold `dimensions` and `unit`."""
    pixel = document[name]
    if not isinstance(pixel, Mapping):
        return _stated_size(document, name, order)
    units = (
        {"unit": pixel["unit"]}
        if "unit" in pixel
        else {key: document[key] for key in ("units", "unit") if key in document}
    )
    return _stated_size({name: pixel.get("dimensions"), **units}, name, order)

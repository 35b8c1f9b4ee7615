"""What the metadata of zarr, OME-Zarr, N5 and Neuroglancer precomputed say: pure functions on their JSON.

Axes and sizes are given as the format writes them, and leave here as z, y, x.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kasthuri_ray.geometry import Nm

Document = Mapping[str, Any]


ARRAY, GROUP = "array", "group"
# What is looked for at a path, in the order of preference, and the format that each one speaks for.
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
    """What lies at a path: an array or a group of one format (a tensorstore driver), and its attributes."""

    driver: str
    kind: str
    attributes: Document = field(default_factory=dict)
    metadata: Document = field(default_factory=dict)


@dataclass(frozen=True)
class OmeLevel:
    """One resolution of an OME-Zarr pyramid: its path in the group, its axes, where its voxels lie in nm."""

    path: str
    axes: tuple[str, ...]
    voxel_size_nm: Nm | None
    translation_nm: Nm


def find_node(documents: Mapping[str, Document], driver: str | None = None) -> StoreNode | None:
    """The node that these documents describe, of the format `driver` if one is named; None if there is none.

    documents: by the names of DOCUMENTS, those that exist.
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
    """Three lengths with their units in nm; None where a unit is missing or no length, or a size is not positive."""
    factors = [_nanometers_of(unit) for unit in units]
    if any(factor is None for factor in factors):
        return None
    return _positive(size * factor for size, factor in zip(sizes, factors, strict=True))  # type: ignore[operator]


def _nanometers_of(unit: str | None) -> float | None:
    """How many nm a unit has, in the singular, the plural or as its sign; None for what is no length."""
    if not unit:
        return None
    name = unit.lower() if len(unit) > 2 else unit
    return NANOMETERS.get(name, NANOMETERS.get(name.removesuffix("s")))


def _positive(sizes: Any) -> Nm | None:
    values = tuple(round(float(size), 9) for size in sizes)
    good = len(values) == 3 and all(math.isfinite(value) and value > 0 for value in values)
    return values if good else None  # type: ignore[return-value]


def ome_levels(attributes: Document) -> list[OmeLevel] | None:
    """The resolutions of the first pyramid of an OME-Zarr group (0.1 to 0.5), finest first; None if it has none.

    Scale and translation as in https://ngff.openmicroscopy.org/0.5/#multiscale-md: those of the level, then those of
    the whole. A level without unit or scale has no voxel size.
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
    shift = tuple(translation[axis] * (_nanometers_of(units[i]) or 0.0) for i, axis in enumerate(order))
    return OmeLevel(dataset["path"], names, size, shift if size else (0.0, 0.0, 0.0))  # type: ignore[arg-type]


def zyx_positions(names: Sequence[str | None] | None) -> tuple[int, int, int] | None:
    """Where z, y and x stand among the names of an array's axes; None if they are not all there."""
    lower = [str(name).lower() for name in names or ()]
    if any(lower.count(axis) != 1 for axis in "zyx"):
        return None
    return lower.index("z"), lower.index("y"), lower.index("x")


def zarr_axes(node: StoreNode, level: OmeLevel | None, rank: int) -> tuple[int, int, int]:
    """Where z, y and x stand in a zarr array: by OME's axes, `dimension_names`, xarray's names, else the last three."""
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
    """z, y, x in nm: the array's `voxel_size_nm_zyx`, else its place in the group's pyramid, else the group's own."""
    if "voxel_size_nm_zyx" in array:
        return _positive(array["voxel_size_nm_zyx"])
    if level is not None:
        return level.voxel_size_nm
    return _positive(group.get("voxel_size_nm_zyx", ()))


def n5_voxel_size(array: Document, group: Document, index: int | None) -> Nm | None:
    """z, y, x in nm of an N5 dataset, from what it or its group says (both write x, y, z).

    `voxel_size_nm_zyx` first; then a `transform` with its own axes, which is the level's (COSEM); then
    `pixelResolution` or `resolution` times `downsamplingFactors`, since those are the finest level's (N5 viewer).
    index: which of the group's `scales` the dataset is, if it is one.
    """
    if "voxel_size_nm_zyx" in array:
        return _positive(array["voxel_size_nm_zyx"])
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
    return _positive(a * b for a, b in zip(group.get("voxel_size_nm_zyx", ()), factors[2::-1], strict=False))


def _n5_resolution(document: Document) -> tuple[list[float], list[str]]:
    pixel = document.get("pixelResolution", document.get("resolution", []))
    unit = document.get("unit", "nm")
    if isinstance(pixel, Mapping):
        pixel, unit = pixel.get("dimensions", []), pixel.get("unit", unit)
    return list(pixel), list(document.get("units", [unit] * len(pixel)))

"""The pyramids of an OME-Zarr group (version 0.1 to 0.6), from their JSON: pure functions."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kasthuri_ray.geometry import AXES, Nm, Zyx, per_axis
from kasthuri_ray.volumes.length_units import in_nanometers, is_number, nanometers_per_unit
from kasthuri_ray.volumes.place import Place

AXES_BEFORE_0_3 = "tczyx"


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


def ome_pyramids(attributes: Mapping[str, Any]) -> list[list[OmeLevel]]:
    """Return the resolutions of each pyramid of an OME-Zarr group, finest first.

    Parameters
    ----------
    attributes : mapping
        Attributes of the group.

    Returns
    -------
    list of list of OmeLevel
        Empty if the group is not a pyramid. A level without unit or scale has no voxel size.

    Notes
    -----
    The scale and translation of a level come first, then those of the whole pyramid:
    https://ngff.openmicroscopy.org/0.5/#multiscale-md. In version 0.6 the axes are in `coordinateSystems`, the
    transformation of a level may be a sequence, and those of the whole pyramid lead to other coordinate systems.
    """
    ome = attributes.get("ome", attributes)
    multiscales = ome.get("multiscales") if isinstance(ome, Mapping) else None
    if not isinstance(multiscales, list):
        return []
    return [levels for each in multiscales if isinstance(each, Mapping) and (levels := _levels(each))]


def _levels(multiscale: Mapping[str, Any]) -> list[OmeLevel]:
    """Return the levels of a pyramid; none if one of them has no path."""
    datasets = multiscale.get("datasets")
    if not isinstance(datasets, list) or not all(isinstance(each, Mapping) and "path" in each for each in datasets):
        return []
    is_0_6 = "coordinateSystems" in multiscale
    axes = _system_axes(multiscale["coordinateSystems"], datasets) if is_0_6 else multiscale.get("axes")
    named = [axis if isinstance(axis, Mapping) else {"name": axis} for axis in axes or AXES_BEFORE_0_3]
    return [
        _level(dataset, named, [] if is_0_6 else multiscale.get("coordinateTransformations")) for dataset in datasets
    ]


def _system_axes(systems: Sequence[Mapping[str, Any]], datasets: Sequence[Mapping[str, Any]]) -> Any:
    """Return the axes of the coordinate system to which the levels lead."""
    outputs = [each.get("output") for dataset in datasets for each in dataset.get("coordinateTransformations", ())]
    names = [output.get("name") if isinstance(output, Mapping) else output for output in outputs]
    system = next((system for system in systems if system.get("name") in names), systems[0] if systems else {})
    return system.get("axes")


def _level(dataset: Mapping[str, Any], axes: list[Mapping[str, Any]], whole: Any) -> OmeLevel:
    names = tuple(str(axis.get("name")).lower() for axis in axes)
    path = posixpath.normpath(str(dataset["path"]).strip("/"))
    transformations = [*_single(dataset.get("coordinateTransformations")), *_single(whole)]
    scale, translation = [1.0] * len(axes), [0.0] * len(axes)
    for transformation in transformations:
        if problem := _problem(transformation, names):
            return OmeLevel(path, names, problem=f"its OME metadata give {problem}")
        factor, shift = transformation.get("scale"), transformation.get("translation")
        if factor is not None:
            scale = [a * b for a, b in zip(scale, factor, strict=True)]
            translation = [a * b for a, b in zip(translation, factor, strict=True)]
        if shift is not None:
            translation = [a + b for a, b in zip(translation, shift, strict=True)]
    order = zyx_positions(names)
    if order is None or not transformations:
        return OmeLevel(path, names)
    units = [axes[axis].get("unit") for axis in order]
    size = in_nanometers([scale[axis] for axis in order], units)
    if size is None:
        return OmeLevel(path, names)
    origin = per_axis(lambda axis, unit: translation[axis] * (nanometers_per_unit(unit) or 0.0), order, units)
    stated = any("translation" in transformation for transformation in transformations)
    return OmeLevel(path, names, size, Place(origin, "middle", "OME translation", stated))


def _single(transformations: Any) -> Iterator[Any]:
    """Yield transformations in the order in which they apply, those of sequences one by one."""
    for each in transformations or ():
        if isinstance(each, Mapping) and each.get("type") == "sequence":
            yield from _single(each.get("transformations"))
        else:
            yield each


def _problem(transformation: Any, names: tuple[str, ...]) -> str:
    """Return what is wrong with a transformation, as the object of a sentence; "" if nothing is."""
    if not isinstance(transformation, Mapping):
        return f"the transformation {transformation!r}"
    kinds = [kind for kind in ("scale", "translation") if kind in transformation]
    if not kinds and transformation.get("type") != "identity":
        return f"a transformation of the type {transformation.get('type')!r}, which is not read"
    for kind in kinds:
        numbers = transformation[kind]
        if not isinstance(numbers, list) or len(numbers) != len(names) or not all(map(is_number, numbers)):
            return f"the {kind} {numbers}, expected a number for each of the axes {','.join(names)}"
        if kind == "scale" and min(numbers) <= 0:
            return f"the scale {numbers}, expected positive numbers: mirrored axes are not read"
    return ""


def zyx_positions(names: Sequence[str | None] | None) -> Zyx | None:
    """Return the indices of z, y and x among the names of axes, or None if one is missing."""
    lower = [str(name).lower() for name in names or ()]
    if any(lower.count(axis) != 1 for axis in AXES):
        return None
    return per_axis(lower.index, AXES)

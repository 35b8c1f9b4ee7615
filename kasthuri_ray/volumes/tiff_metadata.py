"""What a TIFF file states besides its pixels: how many sections, voxel size and place, in OME's and ImageJ's words."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from kasthuri_ray.errors import InputError
from kasthuri_ray.geometry import Nm, per_axis
from kasthuri_ray.volumes.length_units import in_nanometers
from kasthuri_ray.volumes.place import Place, StatedSize

if TYPE_CHECKING:
    import tifffile

ORIENTATION = 274  # a tag
OME_UNIT = "µm"  # of PhysicalSize without a unit
MAX_LISTED = 5  # files that a message names


def promised_pages(file: tifffile.TiffFile) -> int | None:
    """Return how many pages the metadata of OME, ImageJ or tifffile promise; None if there are none."""
    pixels = _ome_pixels(file)
    samples = file.pages.first.samplesperpixel
    if pixels is not None:
        return math.prod(int(pixels.get(f"Size{axis}", 1)) for axis in "ZCT") // samples
    if file.is_imagej and file.imagej_metadata:
        counts = [int(file.imagej_metadata.get(name, 1)) for name in ("slices", "frames", "channels")]
        if samples > 1:
            counts.pop()
        return max(math.prod(counts), int(file.imagej_metadata.get("images", 1)) if samples == 1 else 1)
    if file.is_shaped:
        values = sum(math.prod(each["shape"]) for each in file.shaped_metadata or ())
        return values // max(1, math.prod(file.pages.first.shaped))
    return None


def incomplete_error(uri: str, num_found: int, expected: int | None, cause: str) -> InputError:
    """Return the error for a file of which a part is missing, with both counts as far as they are known."""
    found = f"only {num_found}" if expected is None else f"{num_found} of {expected}"
    return InputError(f"{uri} is incomplete: {found} sections are there{f'; {cause}' if cause else ''}. Copy it again")


def missing_ome_files(file: tifffile.TiffFile) -> list[str]:
    """Return the files that the OME-XML names and that are not beside this one."""
    names = [item.get("FileName", "") for item in _ome_items(file, "UUID")]
    folder = Path(file.filehandle.path).parent
    missing = [name for name in dict.fromkeys(names) if name and not (folder / name).is_file()]
    return [*missing[:MAX_LISTED], *(["..."] if len(missing) > MAX_LISTED else [])]


def ome_master_file(file: tifffile.TiffFile) -> str | None:
    """Return the name of the file that describes an OME-TIFF of which this file is one part; None for other files."""
    parts = _ome_items(file, "BinaryOnly")
    return parts[0].get("MetadataFile", "its metadata file") if parts else None


def orientation_note(frame: tifffile.TiffPage, name: str) -> str | None:
    """Return a line about a page that states that its rows and columns are to be turned, which is not done."""
    tag = frame.tags.get(ORIENTATION)
    return None if tag is None or tag.value == 1 else turned_note(int(tag.value), name)


def turned_note(orientation: int, name: str) -> str:
    """Return the line about an orientation of TIFF or EXIF that is stated."""
    return f"{name}: an orientation is stated ({orientation}); rows and columns are read as they are stored"


def calibration_note(file: tifffile.TiffFile, name: str) -> str | None:
    """Return a line about a straight line that gives ImageJ's grey values; ImageJ saves signed 16 bits so."""
    metadata = (file.imagej_metadata or {}) if file.is_imagej else {}
    offset, factor = metadata.get("c0", 0), metadata.get("c1", 1)
    if metadata.get("cf") != 0 or (offset, factor) == (0, 1):
        return None
    return f"{name}: ImageJ shows a value v as {offset:g} + {factor:g} v; the values are read as they are stored"


def names_axes(file: tifffile.TiffFile) -> bool:
    """Return whether a file itself says which stored axis is z, so that a size along z is that of this axis."""
    return file.is_ome or file.is_imagej or any("axes" in metadata for metadata in file.shaped_metadata or ())


def tiff_voxel_size(file: tifffile.TiffFile) -> StatedSize | None:
    """Return the size in OME-XML, in ImageJ's metadata or in a `voxel_size_nm_zyx` of tifffile's metadata.

    A resolution in dots per inch does not count, since it says nothing about z.
    """
    for metadata in file.shaped_metadata or ():
        if len(metadata.get("voxel_size_nm_zyx", ())) == 3:
            return StatedSize.of(in_nanometers(metadata["voxel_size_nm_zyx"], ["nm"] * 3), "voxel_size_nm_zyx")
    pixels = _ome_pixels(file)
    if pixels is not None:
        sizes = [float(pixels.get(f"PhysicalSize{axis}", 0)) for axis in "ZYX"]
        units = [pixels.get(f"PhysicalSize{axis}Unit", OME_UNIT) for axis in "ZYX"]
        return StatedSize.of(in_nanometers(sizes, units), "OME PhysicalSizeX/Y/Z")
    if file.is_imagej and file.imagej_metadata:
        size = _imagej_voxel_size(file.imagej_metadata, file.pages.first.tags)
        return StatedSize.of(size, "ImageJ's unit, spacing and resolution")
    return None


def tiff_place(file: tifffile.TiffFile, voxel_size_nm: Nm | None) -> Place | None:
    """Return the place that OME's `PositionX/Y/Z` of the first plane or ImageJ's origin states."""
    pixels = _ome_pixels(file)
    if pixels is not None:
        planes = [item for item in pixels.iter() if _is(item, "Plane")]
        first = min(planes, key=lambda plane: [int(plane.get(f"The{axis}", 0)) for axis in "TCZ"], default=None)
        return None if first is None else _ome_place(first)
    origins = [(file.imagej_metadata or {}).get(f"{axis}origin") for axis in "zyx"]
    if voxel_size_nm is None or all(origin is None for origin in origins):
        return None
    origin = per_axis(lambda voxels, size: 0.0 - float(voxels or 0) * size, origins, voxel_size_nm)
    return Place(origin, "corner", "ImageJ's origin")


def _ome_place(plane: ElementTree.Element) -> Place | None:
    """Return the place of a plane; a position without a unit of length (a reference frame) is none."""
    stated = [axis for axis in "ZYX" if plane.get(f"Position{axis}") is not None]
    if not {"Y", "X"} <= set(stated):
        return None
    units = [plane.get(f"Position{axis}Unit") if axis in stated else "nm" for axis in "ZYX"]
    one = in_nanometers([1.0] * 3, units)
    if one is None:
        return None
    origin = per_axis(lambda axis, factor: float(plane.get(f"Position{axis}", 0)) * factor, "ZYX", one)
    return Place(origin, "middle", "OME PositionX/Y/Z")


def _ome_pixels(file: tifffile.TiffFile) -> ElementTree.Element | None:
    """Return the `Pixels` of the first image in the OME-XML of a file."""
    return next(iter(_ome_items(file, "Pixels")), None)


def _ome_items(file: tifffile.TiffFile, name: str) -> list[ElementTree.Element]:
    """Return the elements of a name in the OME-XML of a file; none without an XML that can be read."""
    try:
        root = ElementTree.fromstring(file.ome_metadata) if file.is_ome and file.ome_metadata else None
    except ElementTree.ParseError:
        root = None
    return [] if root is None else [item for item in root.iter() if _is(item, name)]


def _is(item: ElementTree.Element, name: str) -> bool:
    return item.tag.rpartition("}")[2] == name


def _imagej_voxel_size(metadata: dict[str, Any], tags: Any) -> Nm | None:
    unit = re.sub(r"\\u([0-9A-Fa-f]{4})", lambda match: chr(int(match[1], 16)), str(metadata.get("unit", "")))
    if "spacing" not in metadata or "XResolution" not in tags or "YResolution" not in tags:
        return None
    in_plane = []
    for name in ("YResolution", "XResolution"):
        pixels, units = tags[name].value
        in_plane.append(units / pixels if pixels else 0.0)
    return in_nanometers([float(metadata["spacing"]), *in_plane], [unit] * 3)

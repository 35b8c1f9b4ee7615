"""TIFF files for Fiji: ImageJ's hyperstacks, and OME-TIFF where those cannot hold the voxels."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from kasthuri_ray.geometry import Box
from kasthuri_ray.output.export_spec import ExportSpec
from kasthuri_ray.output.ome_metadata import PROVENANCE_KEY

MAX_IMAGEJ_BYTES = 2**32 - 2**25  # of the voxels of a file with offsets of 32 bits
IMAGEJ_DTYPES = ("uint8", "uint16", "float32")
MAX_DENOMINATOR = 1_000_000  # of a voxel size as a fraction


class TiffExport:
    """An uncompressed TIFF that is being written; see `ExportWriter`.

    Parameters
    ----------
    path : str
        Path of the file.
    spec : ExportSpec
        What it holds. Its pages are the sections, with several channels one page each.
    """

    def __init__(self, path: str, spec: ExportSpec) -> None:
        self.spec, self.dtype = spec, spec.dtype.newbyteorder("<")
        channels = [len(spec.channels)] if len(spec.channels) > 1 else []
        shape = (spec.shape[0], *channels, *spec.shape[1:])
        as_ome = is_ome(path, spec)
        metadata = ome_metadata_of(spec) if as_ome else make_imagej_metadata(spec)
        with tifffile.TiffWriter(path, ome=as_ome, imagej=not as_ome, bigtiff=as_ome, byteorder="<") as writer:
            written = writer.write(
                None,
                shape=shape,
                dtype=self.dtype,
                photometric="minisblack",
                resolution=None if as_ome else _resolution(spec),
                metadata=metadata,
                returnoffset=True,
            )
        assert written is not None
        self.offset = written[0]
        self.file = open(path, "r+b")  # noqa: SIM115  (closed by `close`)

    def write(self, box: Box, voxels: np.ndarray) -> None:
        height, width = self.spec.shape[1:]
        (z, y, x), is_wide = box.start, box.shape[2] == width
        for channel, stack in enumerate(np.ascontiguousarray(voxels, self.dtype)):
            for depth, section in enumerate(stack):
                page = (z + depth) * len(voxels) + channel
                runs = section[None] if is_wide else section
                for row, run in enumerate(runs):
                    at = (page * height + y + row) * width + x
                    self.file.seek(self.offset + at * self.dtype.itemsize)
                    self.file.write(run.data)

    def close(self) -> None:
        self.file.close()


def is_ome(path: str, spec: ExportSpec) -> bool:
    """Return whether a file is an OME-TIFF: by its name, or since ImageJ's format cannot hold the voxels."""
    is_named_so = ".ome." in Path(path).name.lower()
    return is_named_so or spec.num_bytes > MAX_IMAGEJ_BYTES or spec.dtype.name not in IMAGEJ_DTYPES


def make_imagej_metadata(spec: ExportSpec) -> dict[str, Any]:
    """Return the metadata by which ImageJ knows axes, size and place: its origin is voxel 0 of the place in voxels."""
    metadata: dict[str, Any] = {
        "axes": "ZCYX" if len(spec.channels) > 1 else "ZYX",
        "min": 0.0,
        "max": float(spec.highest),
        "Info": json.dumps({PROVENANCE_KEY: dict(spec.provenance)}),
    }
    if len(spec.channels) > 1:
        metadata["Labels"] = list(spec.channels) * spec.shape[0]
    if spec.voxel_size_nm is None:
        return metadata
    metadata |= {"unit": "nm", "spacing": spec.voxel_size_nm[0]}
    positions = zip("zyx", spec.origin_nm, spec.voxel_size_nm, strict=True)
    return {**metadata, **{f"{axis}origin": -origin / size for axis, origin, size in positions}}


def _resolution(spec: ExportSpec) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """Return pixels for each nm along x and y, as fractions."""
    if spec.voxel_size_nm is None:
        return None
    sizes = (Fraction(size).limit_denominator(MAX_DENOMINATOR) for size in spec.voxel_size_nm[:0:-1])
    x, y = ((size.denominator, size.numerator) for size in sizes)
    return x, y


def ome_metadata_of(spec: ExportSpec) -> dict[str, Any]:
    """Return the metadata of OME for tifffile: axes, size, the position of every plane, and the provenance."""
    metadata: dict[str, Any] = {
        "axes": "ZCYX" if len(spec.channels) > 1 else "ZYX",
        "Description": json.dumps({PROVENANCE_KEY: dict(spec.provenance)}),
    }
    if len(spec.channels) > 1:
        metadata["Channel"] = {"Name": list(spec.channels)}
    if spec.voxel_size_nm is None:
        return metadata
    planes = spec.shape[0] * len(spec.channels)
    positions: dict[str, list[Any]] = {}
    for axis, size, origin in zip("ZYX", spec.voxel_size_nm, spec.origin_nm, strict=True):
        metadata |= {f"PhysicalSize{axis}": size, f"PhysicalSize{axis}Unit": "nm"}
        step = size if axis == "Z" else 0.0
        positions[f"Position{axis}"] = [origin + plane // len(spec.channels) * step for plane in range(planes)]
        positions[f"Position{axis}Unit"] = ["nm"] * planes
    return {**metadata, "Plane": positions}


def read_tiff_provenance(path: str) -> dict[str, Any] | None:
    """Return the provenance in a file; None if no export wrote it."""
    try:
        with tifffile.TiffFile(path) as file:
            if file.is_imagej:
                text = (file.imagej_metadata or {})["Info"]
            else:
                text = tifffile.xml2dict(str(file.ome_metadata))["OME"]["Image"]["Description"]
            return dict(json.loads(text)[PROVENANCE_KEY])
    except Exception:  # another file raises whatever its parser raises
        return None

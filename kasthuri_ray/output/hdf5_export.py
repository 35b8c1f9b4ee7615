"""HDF5 files as ilastik writes them, with size and place as CREMI's files state them."""

from __future__ import annotations

import json
from typing import Any

import h5py
import numpy as np

from kasthuri_ray.geometry import AXES, Box, per_axis
from kasthuri_ray.output.export_spec import ExportSpec
from kasthuri_ray.output.ome_metadata import PROVENANCE_KEY

DATASET = "exported_data"  # ilastik's name
CHUNK = (16, 128, 128)
CACHE_BYTES = 64_000_000  # of chunks that are not complete yet
SPACE, CHANNEL = 2, 1  # kinds of axes in vigra's axistags


class Hdf5Export:
    """An HDF5 file that is being written; see `ExportWriter`.

    Parameters
    ----------
    path : str
        Path of the file.
    spec : ExportSpec
        What it holds. Several channels are the last axis.
    """

    def __init__(self, path: str, spec: ExportSpec) -> None:
        channels = [len(spec.channels)] if len(spec.channels) > 1 else []
        self.file = h5py.File(path, "w", rdcc_nbytes=CACHE_BYTES)
        self.stored = self.file.create_dataset(
            DATASET,
            shape=(*spec.shape, *channels),
            dtype=spec.dtype,
            chunks=(*per_axis(min, CHUNK, spec.shape), *channels),
            compression="gzip",
            compression_opts=1,
            shuffle=spec.dtype.itemsize > 1,
        )
        attributes = self.stored.attrs
        attributes["axistags"] = axistags_json(bool(channels))
        attributes["drange"] = np.array([0, spec.highest], spec.dtype)
        attributes[PROVENANCE_KEY] = json.dumps(spec.provenance)
        if spec.voxel_size_nm is not None:
            attributes["resolution"] = np.array(spec.voxel_size_nm, np.float64)
            attributes["offset"] = np.array(spec.origin_nm, np.float64)
            attributes["element_size_um"] = np.array(spec.voxel_size_nm, np.float64) / 1000

    def write(self, box: Box, voxels: np.ndarray) -> None:
        self.stored[box.slices()] = voxels[0] if len(voxels) == 1 else np.moveaxis(voxels, 0, -1)

    def close(self) -> None:
        self.file.close()


def axistags_json(has_channels: bool) -> str:
    """Return the attribute by which vigra and ilastik know the axes."""
    kinds = {**dict.fromkeys(AXES, SPACE), **({"c": CHANNEL} if has_channels else {})}
    axes = [{"key": key, "typeFlags": kind, "resolution": 0, "description": ""} for key, kind in kinds.items()]
    return json.dumps({"axes": axes})


def read_hdf5_provenance(path: str) -> dict[str, Any] | None:
    """Return the provenance in a file; None if no export wrote it."""
    try:
        with h5py.File(path, "r") as file:
            return dict(json.loads(file[DATASET].attrs[PROVENANCE_KEY]))
    except Exception:  # another file raises whatever its parser raises
        return None

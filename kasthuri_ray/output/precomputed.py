"""A copy of an output in Neuroglancer's precomputed format, which BossDB ingests.

    copy = PrecomputedCopy.create("s3://bucket/copy", output.spec)
    copy.copy_block(output.probabilities, 0, box)   # by the only writer of the block

Its chunks are those of the zarr, so that whole shards are whole chunks. A chunk has one writer, and is one file or one
PUT. Chunks of zeros alone are not stored. Format: https://neuroglancer-docs.web.app/datasource/precomputed/volume.html
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from kasthuri_ray.errors import InputError
from kasthuri_ray.geometry import Box, Zyx, per_axis
from kasthuri_ray.output.existing_output import remove_partial_files
from kasthuri_ray.output.layout import fit_layout
from kasthuri_ray.output.ome_metadata import PROVENANCE_KEY
from kasthuri_ray.output.ome_zarr import OutputSpec
from kasthuri_ray.output.output_array import OutputArray, translate_write_errors
from kasthuri_ray.output.pyramid import PyramidLevel
from kasthuri_ray.storage.folder import open_storage
from kasthuri_ray.storage.kvstore import (
    ANSWER_TIMEOUT_S,
    MIN_BYTES_PER_SECOND,
    tensorstore_context,
    translate_tensorstore_errors,
    writable_kvstore,
)

ENCODINGS = ("raw", "png")


@dataclass(frozen=True)
class PrecomputedCopy:
    """A precomputed copy on a disk or on S3. It can be pickled.

    Parameters
    ----------
    path : str
        Absolute path, or `s3://bucket/key`.
    spec : OutputSpec
        Spec of the output that is copied.
    encoding : str
        Of the chunks: `raw`, which every program reads, or `png`, which is several times smaller and as exact.
    """

    path: str
    spec: OutputSpec
    encoding: str = "raw"

    @classmethod
    def create(cls, path: str, spec: OutputSpec, encoding: str = "raw") -> PrecomputedCopy:
        """Create the copy of an output, or complete one that was created in part, as `OmeZarrOutput.create`."""
        if encoding not in ENCODINGS:
            raise InputError(f"precomputed encoding {encoding!r}: expected one of {', '.join(ENCODINGS)}")
        storage = open_storage(path)
        documents = {"provenance": provenance_json(spec), "info": info_json(spec, encoding)}
        for name, document in documents.items():
            storage.write_bytes(name, (json.dumps(document, indent=2, sort_keys=True) + "\n").encode())
        return cls(storage.path, spec, encoding)

    def copy_block(self, probabilities: OutputArray, level: int, box: Box) -> bool:
        """Copy whole shards of a level; `box` is in voxels of that level. Return whether any voxel is not 0.

        Blocks of zeros are not written. Raises the errors of `OutputArray`.
        """
        voxels = probabilities.read(level, box)
        if not voxels.any():
            return False
        self.write_block(level, box, voxels)
        return True

    def write_block(self, level: int, box: Box, voxels: np.ndarray) -> None:
        """Write whole shards, uint8 [c, *box.shape]."""
        scale = scale_json(self.spec, self.spec.levels[level], self.encoding)
        spec = {
            "driver": "neuroglancer_precomputed",
            "kvstore": writable_kvstore(self.path),
            "scale_metadata": {"key": scale["key"]},
        }
        box = box.shifted(voxel_offset(self.spec, self.spec.levels[level]))
        if not self.path.startswith("s3://"):
            remove_partial_files(Path(self.path, scale["key"], name) for name in self._chunk_names(level, box))
        store = _open_scale(json.dumps(spec, sort_keys=True))
        timeout_s = 60 + voxels.size / MIN_BYTES_PER_SECOND
        with translate_write_errors(self.path):
            future = store[(..., *box.slices())].write(voxels, can_reference_source_data_indefinitely=True)
            future.result(timeout=timeout_s)

    def _chunk_names(self, level: int, box: Box) -> Iterator[str]:
        """Yield the names of the chunks of a box that starts with one: x, y, z, as in the format."""
        for cell in box.cells(fit_layout(self.spec.layout, self.spec.levels[level].shape).chunk, box.start):
            yield "_".join(f"{a}-{b}" for a, b in zip(cell.start[::-1], cell.stop[::-1], strict=True))


@lru_cache(maxsize=64)
def _open_scale(spec: str) -> ts.TensorStore:
    """Open a scale once in this process, with axes channel, z, y, x."""
    parsed = json.loads(spec)
    with translate_tensorstore_errors(parsed["kvstore"]["path"], "opened"):
        store = ts.open(parsed, read=True, write=True, open=True, context=tensorstore_context(0)).result(
            timeout=ANSWER_TIMEOUT_S
        )
    return store[ts.d["channel", "z", "y", "x"].transpose[:]]


def voxel_offset(spec: OutputSpec, level: PyramidLevel) -> Zyx:
    """Return the position z, y, x of the first voxel of a scale, in whole voxels of it, which the format requires.

    If the output does not start at a multiple of the level's factor (or the image at a multiple of its voxels), it is
    the nearest position, at most half a voxel of the scale off.
    """
    return per_axis(lambda translation, scale: round(translation / scale), spec.levels[0].translation, level.scale)


def scale_json(spec: OutputSpec, level: PyramidLevel, encoding: str) -> dict[str, Any]:
    """Return a scale of `info`, with axes x, y, z. A voxel size that is not known is written as 1 nm."""
    chunk = fit_layout(spec.layout, level.shape).chunk
    size, resolution, offset, chunk_size = (
        list(values)[::-1] for values in (level.shape, level.scale, voxel_offset(spec, level), chunk)
    )
    return {
        "key": "_".join(f"{n:.12g}" for n in resolution),
        "size": size,
        "resolution": resolution,
        "voxel_offset": offset,
        "chunk_sizes": [chunk_size],
        "encoding": encoding,
    }


def info_json(spec: OutputSpec, encoding: str) -> dict[str, Any]:
    """Return the file `info`."""
    return {
        "@type": "neuroglancer_multiscale_volume",
        "type": "image",
        "data_type": "uint8",
        "num_channels": len(spec.channels),
        "scales": [scale_json(spec, level, encoding) for level in spec.levels],
    }


def provenance_json(spec: OutputSpec) -> dict[str, Any]:
    """Return the file `provenance`, in the form of CloudVolume; it identifies a copy as one of this package."""
    sources = [spec.record["image"]] if "image" in spec.record else []
    return {
        "description": f"{spec.name}: {', '.join(spec.channels)}",
        "owners": [],
        "sources": sources,
        "processing": [{"by": PROVENANCE_KEY, "method": spec.record}],
    }

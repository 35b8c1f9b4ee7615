"""A copy of an output as Neuroglancer precomputed, which BossDB ingests: copied block by block, level by level.

    copy = Precomputed.create("s3://bucket/copy", output.spec)
    copy.copy_block(output, 0, box)     # by the one owner of the block

Its chunks are those of the zarr, so that whole shards are whole chunks: one writer each, one file or one PUT a chunk.
Chunks of zeros alone are not stored. Format: https://neuroglancer-docs.web.app/datasource/precomputed/volume.html
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

from kasthuri_ray.geometry import Box, Zyx
from kasthuri_ray.output.existing_output import remove_partial_files
from kasthuri_ray.output.ome_metadata import PROVENANCE_KEY
from kasthuri_ray.output.ome_zarr import OmeZarrOutput, OutputSpec, translate_write_errors
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
    """A precomputed copy at a path: an absolute one, or `s3://bucket/key`. Picklable.

    encoding: of the chunks; `raw` is read by everything, `png` is several times smaller and as exact.
    """

    path: str
    spec: OutputSpec
    encoding: str = "raw"

    @classmethod
    def create(cls, path: str, spec: OutputSpec, encoding: str = "raw") -> PrecomputedCopy:
        """The copy of an output of this spec, made anew or completed; see `Output.create`."""
        if encoding not in ENCODINGS:
            raise ValueError(f"precomputed encoding {encoding!r}: expected one of {', '.join(ENCODINGS)}")
        storage = open_storage(path)
        documents = {"provenance": provenance_json(spec), "info": info_json(spec, encoding)}
        for name, document in documents.items():
            storage.write_bytes(name, (json.dumps(document, indent=2, sort_keys=True) + "\n").encode())
        return cls(storage.path, spec, encoding)

    def copy_block(self, output: OmeZarrOutput, level: int, box: Box) -> bool:
        """Copy whole shards of a level; `box` in voxels of the output's level. Says whether any voxel is not 0.

        Where all is 0 nothing is written. Raises as `Output` does.
        """
        voxels = output.read(level, box)
        if not voxels.any():
            return False
        self.write_block(level, box, voxels)
        return True

    def write_block(self, level: int, box: Box, voxels: np.ndarray) -> None:
        """Write whole shards: uint8 [c, *box.shape]."""
        scale = scale_json(self.spec, self.spec.levels[level], self.encoding)
        spec = {
            "driver": "neuroglancer_precomputed",
            "kvstore": writable_kvstore(self.path),
            "scale_metadata": {"key": scale["key"]},
        }
        origin = voxel_offset(self.spec, self.spec.levels[level])
        place = Box.at([a + b for a, b in zip(box.start, origin, strict=True)], box.shape)
        if not self.path.startswith("s3://"):
            remove_partial_files(Path(self.path, scale["key"], name) for name in self._chunks(level, place))
        store = _opened(json.dumps(spec, sort_keys=True))
        seconds = 60 + voxels.size / MIN_BYTES_PER_SECOND
        with translate_write_errors(self.path):
            future = store[(..., *place.slices())].write(voxels, can_reference_source_data_indefinitely=True)
            future.result(timeout=seconds)

    def _chunks(self, level: int, place: Box) -> Iterator[str]:
        """The names of the chunks of a box that begins with one, as the format has them: x, y, z."""
        for cell in place.cells(self.spec.level_layout(level).chunk, place.start):
            yield "_".join(f"{a}-{b}" for a, b in zip(cell.start[::-1], cell.stop[::-1], strict=True))


@lru_cache(maxsize=64)
def _opened(spec: str) -> ts.TensorStore:
    """A scale of this process, as channel, z, y, x."""
    parsed = json.loads(spec)
    with translate_tensorstore_errors(parsed["kvstore"]["path"], "opened"):
        store = ts.open(parsed, read=True, write=True, open=True, context=tensorstore_context(0)).result(
            timeout=ANSWER_TIMEOUT_S
        )
    return store[ts.d["channel", "z", "y", "x"].transpose[:]]


def voxel_offset(spec: OutputSpec, level: PyramidLevel) -> Zyx:
    """z, y, x of the first voxel of a scale: whole voxels of it, as the format wants.

    Where the output does not begin at a multiple of the level's factor (or the image at a multiple of its voxels), it
    is the nearest: at most half a voxel of the scale aside.
    """
    corner = spec.levels[0].translation
    return tuple(round(t / n) for t, n in zip(corner, level.scale, strict=True))  # type: ignore[return-value]


def scale_json(spec: OutputSpec, level: PyramidLevel, encoding: str) -> dict[str, Any]:
    """One scale of `info`; here z, y, x becomes x, y, z. Voxels whose size is not known count as 1 nm."""
    chunk = spec.level_layout(level.number).chunk
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
    """The file `info`."""
    return {
        "@type": "neuroglancer_multiscale_volume",
        "type": "image",
        "data_type": "uint8",
        "num_channels": len(spec.channels),
        "scales": [scale_json(spec, level, encoding) for level in spec.levels],
    }


def provenance_json(spec: OutputSpec) -> dict[str, Any]:
    """The file `provenance`, in CloudVolume's form; by it a copy is known as ours."""
    sources = [spec.record["image"]] if "image" in spec.record else []
    return {
        "description": f"{spec.name}: {', '.join(spec.channels)}",
        "owners": [],
        "sources": sources,
        "processing": [{"by": PROVENANCE_KEY, "method": spec.record}],
    }

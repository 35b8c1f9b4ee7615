"""The voxels of an output, probabilities or labels, at all levels of its pyramid: written in whole shards, and read.

    array = OmeZarrOutput.create("out.zarr", spec).probabilities
    array.write_block(0, box, voxels)   # by the only writer of these shards, on any machine
    array.downsample_block(1, box)      # from the level before

A shard is one file or one PUT, and is on the disk when the call that writes it returns. Shards of zeros alone are not
stored.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from kasthuri_ray.errors import InputError, disk_full_error
from kasthuri_ray.geometry import AXES, Box, Zyx
from kasthuri_ray.output import ome_metadata
from kasthuri_ray.output.block_grid import BlockGrid
from kasthuri_ray.output.existing_output import remove_partial_files
from kasthuri_ray.output.layout import ArrayLayout, fit_layout
from kasthuri_ray.output.pyramid import PyramidLevel, downsample, downsample_ids, downsample_labels
from kasthuri_ray.storage.kvstore import (
    ANSWER_TIMEOUT_S,
    MIN_BYTES_PER_SECOND,
    tensorstore_context,
    translate_tensorstore_errors,
    writable_kvstore,
)

DISK_FULL_TEXTS = ("ENOSPC", "EDQUOT", "No space left", "quota exceeded")


@dataclass(frozen=True)
class OutputArray:
    """Probabilities or labels of an output, on a disk or on S3. It can be pickled; each process opens a level once.

    Voxels are [c, z, y, x]; those of labels are [z, y, x]. Boxes are in voxels of the level; the first voxel of
    the output is 0, 0, 0. All methods raise OSError if the store fails, with a message of its own for a full disk,
    PermissionError if access is refused and FileNotFoundError if the array does not exist.

    Parameters
    ----------
    path : str
        Folder of the levels: an absolute path, or `s3://bucket/key`.
    levels : tuple of PyramidLevel
        Levels, the finest first.
    layout : ArrayLayout
        Shards and chunks of the finest level; those of the others follow.
    num_channels : int or None
        Number of foreground classes; None for labels.
    dtype : str
        Type of the voxels; the ids of objects have a larger one.
    """

    path: str
    levels: tuple[PyramidLevel, ...]
    layout: ArrayLayout
    num_channels: int | None
    dtype: str = "uint8"

    def level_layout(self, level: int) -> ArrayLayout:
        """Return the shards and chunks of a level."""
        return fit_layout(self.layout, self.levels[level].shape)

    def level_json(self, level: int) -> dict[str, Any]:
        """Return the `zarr.json` of a level."""
        return ome_metadata.array_json(
            self.levels[level].shape, self.level_layout(level), self.num_channels, self.dtype
        )

    def grid(self, level: int, block: Zyx | None = None) -> BlockGrid:
        """Return the blocks of a level, by default of one shard each."""
        return BlockGrid(self.levels[level].box, block or self.level_layout(level).shard)

    def write_block(self, level: int, box: Box, voxels: np.ndarray) -> bool:
        """Write whole shards. Return whether any voxel is not 0. Raises InputError for a box that cuts a shard."""
        assert voxels.shape == self._shape(box), (voxels.shape, box)
        assert voxels.dtype == np.dtype(self.dtype), voxels.dtype
        self._check_shards(level, box)
        remove_partial_files(self._shard_files(level, box))
        store = self._open_level(level)
        timeout_s = 60 + voxels.size / MIN_BYTES_PER_SECOND
        with translate_write_errors(self.path):
            # This call waits, and no written voxel is cached, so the source need not be copied.
            future = store[(..., *box.slices())].write(voxels, can_reference_source_data_indefinitely=True)
            future.result(timeout=timeout_s)
        return bool(voxels.any())

    def read(self, level: int, box: Box) -> np.ndarray:
        """Read the voxels of a box; 0 where nothing was written."""
        store = self._open_level(level)
        timeout_s = 60 + box.num_voxels * (self.num_channels or 1) / MIN_BYTES_PER_SECOND
        with translate_tensorstore_errors(self.path, "read"):
            return store[(..., *box.slices())].read(order="C").result(timeout=timeout_s)

    def read_channel(self, level: int, box: Box, channel: int) -> np.ndarray:
        """Read the voxels of a box of one channel, z, y, x; 0 where nothing was written."""
        store = self._open_level(level)
        timeout_s = 60 + box.num_voxels / MIN_BYTES_PER_SECOND
        with translate_tensorstore_errors(self.path, "read"):
            return store[(channel, *box.slices())].read(order="C").result(timeout=timeout_s)

    def downsample_block(self, level: int, box: Box) -> bool:
        """Compute whole shards of a level from the level before. Return whether any voxel is not 0.

        The level before is read in pieces as high as a chunk. Shards of zeros are not written.
        """
        target, before = self.levels[level], self.levels[level - 1]
        reduce = downsample if self.num_channels is not None else downsample_labels
        if self.dtype != "uint8":
            reduce = downsample_ids
        result = np.empty(self._shape(box), self.dtype)
        rows = self.level_layout(level).chunk[1]
        for piece in box.cells((box.shape[0], rows, box.shape[2]), box.start):
            source = self.read(level - 1, target.source(piece).intersect(before.box))
            result[(..., *piece.slices(box.start))] = reduce(source, target.step)
        return bool(result.any()) and self.write_block(level, box, result)

    def _shape(self, box: Box) -> tuple[int, ...]:
        return box.shape if self.num_channels is None else (self.num_channels, *box.shape)

    def _open_level(self, level: int) -> ts.TensorStore:
        kvstore = writable_kvstore(f"{self.path}/{self.levels[level].name}")
        spec = {"driver": "zarr3", "kvstore": kvstore, "metadata": self.level_json(level)}
        return _open_store(json.dumps(spec, sort_keys=True))

    def _shard_files(self, level: int, box: Box) -> Iterator[Path]:
        """Yield the files on a disk that hold a box, one for each channel and shard; none on S3."""
        if self.path.startswith("s3://"):
            return
        folder = Path(self.path, self.levels[level].name, "c")
        for channel in [[]] if self.num_channels is None else [[str(c)] for c in range(self.num_channels)]:
            for index in self.grid(level).overlapping(box):
                yield folder.joinpath(*channel, *map(str, index))

    def _check_shards(self, level: int, box: Box) -> None:
        shape, shard = self.levels[level].shape, self.level_layout(level).shard
        for axis, (a, b, n, size) in enumerate(zip(box.start, box.stop, shape, shard, strict=True)):
            if a % size or (b % size and b != n) or not 0 <= a < b <= n:
                raise InputError(
                    f"{self.path}: the block {box} of s{level} is not whole shards {shard} along {AXES[axis]}, where "
                    f"the level has {n} voxels"
                )


@lru_cache(maxsize=64)
def _open_store(spec: str) -> ts.TensorStore:
    """Open an array once in this process. Voxels are not cached: other processes write what this one reads."""
    parsed = json.loads(spec)
    parsed["metadata"].pop("attributes", None)
    with translate_tensorstore_errors(parsed["kvstore"]["path"], "opened"):
        return ts.open(parsed, read=True, write=True, open=True, context=tensorstore_context(0)).result(
            timeout=ANSWER_TIMEOUT_S
        )


@contextlib.contextmanager
def translate_write_errors(path: str) -> Iterator[None]:
    """Translate the errors of tensorstore while it writes; a full disk becomes an OSError with ENOSPC."""
    try:
        with translate_tensorstore_errors(path, "written"):
            yield
    except OSError as error:
        if any(text in f"{error} {error.__cause__}" for text in DISK_FULL_TEXTS):
            raise disk_full_error(f"a block of {path}", "finished blocks are kept") from error
        raise

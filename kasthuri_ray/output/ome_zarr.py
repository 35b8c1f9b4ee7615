"""The output of a segmentation: an OME-Zarr 0.5 group that is written in whole shards.

    output = OmeZarrOutput.create("out.zarr", spec)
    output.write_block(0, box, probabilities)   # by the only writer of these shards, on any machine
    output.downsample_block(1, box)             # the pyramid, from the level before

`s0`, `s1`, ... are zarr 3 arrays with axes c, z, y, x, uint8. A shard is one file or one PUT, and is on the disk when
the call that writes it returns. Shards of zeros alone are not stored. The same spec and voxels have the same bytes.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts
from numcodecs.zstd import Zstd

from kasthuri_ray.errors import InputError, InputNotFound, disk_full_error
from kasthuri_ray.geometry import AXES, Box, Zyx
from kasthuri_ray.output import ome_metadata
from kasthuri_ray.output.block_grid import BlockGrid
from kasthuri_ray.output.existing_output import remove_partial_files
from kasthuri_ray.output.layout import ArrayLayout, fit_layout
from kasthuri_ray.output.pyramid import PyramidLevel, downsample, downsample_labels
from kasthuri_ray.storage.folder import Storage, open_storage
from kasthuri_ray.storage.kvstore import (
    ANSWER_TIMEOUT_S,
    MIN_BYTES_PER_SECOND,
    tensorstore_context,
    translate_tensorstore_errors,
    writable_kvstore,
)

DISK_FULL_TEXTS = ("ENOSPC", "EDQUOT", "No space left", "quota exceeded")


@dataclass(frozen=True)
class OutputSpec:
    """Everything that the metadata of an output depends on.

    Parameters
    ----------
    levels : tuple of PyramidLevel
        As from `plan_levels`. The shape of s0 is that of what is segmented.
    layout : ArrayLayout
        Of s0; those of the other levels follow.
    nanometers : bool
        Whether lengths of the levels are in nm.
    channels : tuple of str
        Names of the foreground classes, in their order.
    name : str
        Of the image, for viewers.
    mask : str, optional
        Name of the label image in `labels/`; None for none.
    record : dict
        Provenance, a JSON object that is stored as the attribute `kasthuri_ray` of the group.

    Raises
    ------
    InputError
        If `mask` cannot be the name of a zarr node.
    """

    levels: tuple[PyramidLevel, ...]
    layout: ArrayLayout
    nanometers: bool
    channels: tuple[str, ...]
    name: str
    mask: str | None = None
    record: dict[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if self.mask is not None and not ome_metadata.is_node_name(self.mask):
            raise InputError(f"{self.mask!r} cannot name a label image; expected letters, digits, . _ and -")

    def level_layout(self, level: int) -> ArrayLayout:
        """Return the shards and chunks of a level."""
        return fit_layout(self.layout, self.levels[level].shape)

    def array_json(self, level: int, mask: bool = False) -> dict[str, Any]:
        """Return the `zarr.json` of a level, of the image or of the label image."""
        return ome_metadata.array_json(
            self.levels[level].shape, self.level_layout(level), None if mask else len(self.channels)
        )

    def metadata_files(self) -> dict[str, dict[str, Any]]:
        """Return every `zarr.json` by its path in the group, that of the group first."""
        files = {
            "zarr.json": ome_metadata.image_json(self.name, self.levels, self.nanometers, self.channels, self.record)
        }
        for level in self.levels:
            files[f"{level.name}/zarr.json"] = self.array_json(level.number)
        if self.mask is not None:
            labels = f"labels/{self.mask}"
            files["labels/zarr.json"] = ome_metadata.labels_json([self.mask])
            files[f"{labels}/zarr.json"] = ome_metadata.mask_json(
                self.mask, self.levels, self.nanometers, self.channels
            )
            for level in self.levels:
                files[f"{labels}/{level.name}/zarr.json"] = self.array_json(level.number, mask=True)
        return files


@dataclass(frozen=True)
class OmeZarrOutput:
    """An output on a disk or on S3. It can be pickled; each process opens its arrays once.

    Boxes are z, y, x in voxels of the level; the first voxel of the output is 0, 0, 0. All methods raise OSError if the
    store fails, with a message of its own for a full disk, PermissionError if access is refused and FileNotFoundError
    if the array does not exist.

    Parameters
    ----------
    path : str
        Absolute path, or `s3://bucket/key`.
    spec : OutputSpec
        What the output contains.
    """

    path: str
    spec: OutputSpec

    @classmethod
    def create(cls, path: str, spec: OutputSpec) -> OmeZarrOutput:
        """Create the output of a spec, or complete one that was created in part.

        The metadata of another output would be overwritten: check with `find_existing_output` before.
        """
        storage = open_storage(path)
        for name, document in spec.metadata_files().items():
            data = (json.dumps(document, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()
            if _read_or_none(storage, name) != data:
                storage.write_bytes(name, data)
        return cls(storage.path, spec)

    @classmethod
    def open(cls, path: str) -> OmeZarrOutput:
        """Open an output. Raises FileNotFoundError if there is none, and InputError for anything else."""
        storage = open_storage(path)
        try:
            group, finest = (json.loads(storage.read_bytes(name)) for name in ("zarr.json", "s0/zarr.json"))
        except FileNotFoundError:
            raise InputNotFound(f"{storage.path}: there is no output of a segmentation") from None
        labels = _read_or_none(storage, "labels/zarr.json")
        try:
            return cls(storage.path, _spec_from_metadata(group, finest, json.loads(labels or b"{}")))
        except (KeyError, TypeError, IndexError, ValueError) as error:
            raise InputError(f"{storage.path} is not an output of a segmentation: {error!r}") from None

    def grid(self, level: int, block: Zyx | None = None) -> BlockGrid:
        """Return the blocks of a level, by default of one shard each."""
        return BlockGrid(self.spec.levels[level].box, block or self.spec.level_layout(level).shard)

    def write_block(self, level: int, box: Box, probabilities: np.ndarray) -> bool:
        """Write whole shards, uint8 [c, *box.shape]. Return whether any voxel is not 0.

        Raises InputError for a box that cuts a shard.
        """
        assert probabilities.shape == (len(self.spec.channels), *box.shape), (probabilities.shape, box)
        return self._write(level, box, probabilities, mask=False)

    def write_mask(self, level: int, box: Box, mask: np.ndarray) -> bool:
        """Write whole shards of the label image, uint8 [*box.shape], as `write_block`."""
        assert self.spec.mask is not None
        assert mask.shape == box.shape, (mask.shape, box)
        return self._write(level, box, mask, mask=True)

    def read(self, level: int, box: Box) -> np.ndarray:
        """Read the probabilities of a box, uint8 [c, *box.shape]; 0 where nothing was written."""
        return self._read(level, box, mask=False)

    def read_mask(self, level: int, box: Box) -> np.ndarray:
        """Read the label image in a box, uint8 [*box.shape]."""
        return self._read(level, box, mask=True)

    def downsample_block(self, level: int, box: Box) -> bool:
        """Compute whole shards of a level, of image and mask, from the level before. Return whether any voxel is not 0.

        The level before is read in pieces as high as a chunk. Shards of zeros are not written.
        """
        wrote = False
        for mask in (False, True) if self.spec.mask is not None else (False,):
            result = self._downsample(level, box, mask)
            if result.any():
                wrote |= self._write(level, box, result, mask)
        return wrote

    def _downsample(self, level: int, box: Box, mask: bool) -> np.ndarray:
        target, before = self.spec.levels[level], self.spec.levels[level - 1]
        channels = () if mask else (len(self.spec.channels),)
        result = np.empty((*channels, *box.shape), np.uint8)
        rows = self.spec.level_layout(level).chunk[1]
        for piece in box.cells((box.shape[0], rows, box.shape[2]), box.start):
            source = self._read(level - 1, target.source(piece).intersect(before.box), mask)
            downsampled = downsample_labels(source, target.step) if mask else downsample(source, target.step)
            result[(..., *piece.slices(box.start))] = downsampled
        return result

    def _write(self, level: int, box: Box, voxels: np.ndarray, mask: bool) -> bool:
        assert voxels.dtype == np.uint8, voxels.dtype
        self._check_shards(level, box)
        remove_partial_files(self._shard_files(level, box, mask))
        store = self._open_array(level, mask)
        timeout_s = 60 + voxels.size / MIN_BYTES_PER_SECOND
        with translate_write_errors(self.path):
            # This call waits, and no written voxel is cached, so the source need not be copied.
            future = store[(..., *box.slices())].write(voxels, can_reference_source_data_indefinitely=True)
            future.result(timeout=timeout_s)
        return bool(voxels.any())

    def _read(self, level: int, box: Box, mask: bool) -> np.ndarray:
        store = self._open_array(level, mask)
        timeout_s = 60 + box.num_voxels * len(self.spec.channels) / MIN_BYTES_PER_SECOND
        with translate_tensorstore_errors(self.path, "read"):
            return store[(..., *box.slices())].read(order="C").result(timeout=timeout_s)

    def _open_array(self, level: int, mask: bool) -> ts.TensorStore:
        kvstore = writable_kvstore(self._array_path(level, mask))
        spec = {"driver": "zarr3", "kvstore": kvstore, "metadata": self.spec.array_json(level, mask)}
        return _open_store(json.dumps(spec, sort_keys=True))

    def _array_path(self, level: int, mask: bool) -> str:
        folder = f"{self.path}/labels/{self.spec.mask}" if mask else self.path
        return f"{folder}/{self.spec.levels[level].name}"

    def _shard_files(self, level: int, box: Box, mask: bool) -> Iterator[Path]:
        """Yield the files on a disk that hold a box, one for each channel and shard; none on S3."""
        if self.path.startswith("s3://"):
            return
        folder = Path(self._array_path(level, mask), "c")
        for channel in [[]] if mask else [[str(c)] for c in range(len(self.spec.channels))]:
            for index in self.grid(level).overlapping(box):
                yield folder.joinpath(*channel, *map(str, index))

    def _check_shards(self, level: int, box: Box) -> None:
        shape, shard = self.spec.levels[level].shape, self.spec.level_layout(level).shard
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


def label_image(probabilities: np.ndarray, threshold: float) -> np.ndarray:
    """Return the label image of a block.

    A voxel is foreground if the values of its classes add up to at least 255 * threshold; this is exact.

    Parameters
    ----------
    probabilities : ndarray of uint8, (c, z, y, x)
        Probabilities of the foreground classes, 255 for 1.
    threshold : float
        Probability.

    Returns
    -------
    ndarray of uint8, (z, y, x)
        1 + the class with the highest value, the first of equal ones, for foreground; 0 for background.
    """
    min_value = math.ceil(255 * threshold - 1e-9)
    if len(probabilities) == 1:
        return (probabilities[0] >= min_value).view(np.uint8)
    foreground = probabilities.sum(axis=0, dtype=np.uint16) >= min_value
    return np.where(foreground, 1 + probabilities.argmax(axis=0), 0).astype(np.uint8)


def compression_ratio(voxels: np.ndarray) -> float:
    """Return how many times smaller voxels are once they are compressed as in an output.

    Parameters
    ----------
    voxels : ndarray of uint8
        Probabilities or labels, of any shape.

    Returns
    -------
    float
        At least 1.
    """
    return max(1.0, voxels.size / len(Zstd(level=1).encode(np.ascontiguousarray(voxels))))


def _read_or_none(storage: Storage, name: str) -> bytes | None:
    try:
        return storage.read_bytes(name)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _spec_from_metadata(group: dict[str, Any], finest: dict[str, Any], labels: dict[str, Any]) -> OutputSpec:
    """Return the spec of an output. Raises KeyError, TypeError, IndexError or InputError if these are not its files."""
    record = group["attributes"][ome_metadata.PROVENANCE_KEY]
    levels, nanometers, channels = ome_metadata.read_image(group, tuple(finest["shape"][1:]))
    names = labels.get("attributes", {}).get("ome", {}).get("labels", [None])
    return OutputSpec(
        levels=levels,
        layout=ome_metadata.read_layout(finest),
        nanometers=nanometers,
        channels=channels,
        name=group["attributes"]["ome"]["multiscales"][0]["name"],
        mask=names[0],
        record=record,
    )

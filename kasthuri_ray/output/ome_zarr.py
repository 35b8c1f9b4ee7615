"""The output of a segmentation: an OME-Zarr 0.5 group that is written in whole shards and read again.

    output = Output.create("out.zarr", spec)
    output.write_block(0, box, probabilities)   # by the one owner of its shards, on any machine
    output.build_block(1, box)                  # the pyramid, from the level before

`s0`, `s1`, ... are zarr 3 arrays with axes c, z, y, x, uint8. A shard is one file or one PUT, and on the disk when the
call that writes it returns. A shard of zeros alone is not stored. The same spec and voxels give the same bytes.
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

from kasthuri_ray.errors import disk_full_error
from kasthuri_ray.geometry import AXES, Box, Zyx
from kasthuri_ray.output import ome_metadata
from kasthuri_ray.output.block_grid import ArrayLayout, BlockGrid
from kasthuri_ray.output.existing_output import remove_partial_files
from kasthuri_ray.output.pyramid import PyramidLevel, downsample, downsample_labels, fit_layout
from kasthuri_ray.storage.folder import Storage, open_storage
from kasthuri_ray.storage.kvstore import (
    ANSWER_TIMEOUT_S,
    MIN_BYTES_PER_SECOND,
    tensorstore_context,
    translate_tensorstore_errors,
    writable_kvstore,
)

DISK_FULL_WORDS = ("ENOSPC", "EDQUOT", "No space left", "quota exceeded")


@dataclass(frozen=True)
class OutputSpec:
    """What decides every byte of an output's metadata.

    levels: see `plan_levels`; that of s0 is the shape of what is segmented. layout: of s0; the others' follow.
    nanometers: whether the levels' lengths are nm. channels: the names of the foreground classes, in their order.
    name: of the image, for viewers. mask: the name of the label image in `labels/`, None for none.
    record: the provenance, a JSON object, kept as the group's attribute `kasthuri_ray`.
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
            raise ValueError(f"{self.mask!r} is no name of a label image; expected letters, digits, . _ and -")

    def level_layout(self, level: int) -> ArrayLayout:
        return fit_layout(self.layout, self.levels[level].shape)

    def array_json(self, level: int, mask: bool = False) -> dict[str, Any]:
        """The metadata of one array."""
        return ome_metadata.array_json(
            self.levels[level].shape, self.level_layout(level), None if mask else len(self.channels)
        )

    def documents(self) -> dict[str, dict[str, Any]]:
        """Every `zarr.json` by its path in the group, the group's own first."""
        found = {
            "zarr.json": ome_metadata.image_json(self.name, self.levels, self.nanometers, self.channels, self.record)
        }
        for level in self.levels:
            found[f"{level.name}/zarr.json"] = self.array_json(level.number)
        if self.mask is not None:
            labels = f"labels/{self.mask}"
            found["labels/zarr.json"] = ome_metadata.labels_json([self.mask])
            found[f"{labels}/zarr.json"] = ome_metadata.mask_json(
                self.mask, self.levels, self.nanometers, self.channels
            )
            for level in self.levels:
                found[f"{labels}/{level.name}/zarr.json"] = self.array_json(level.number, mask=True)
        return found


@dataclass(frozen=True)
class OmeZarrOutput:
    """An output at a path: an absolute one, or `s3://bucket/key`. Picklable; each process opens its arrays once.

    Boxes are z, y, x in voxels of the level, 0 being the first of the output. All methods raise OSError where the
    store fails, with words for a full disk, PermissionError where access is refused and FileNotFoundError where the
    array is gone.
    """

    path: str
    spec: OutputSpec

    @classmethod
    def create(cls, path: str, spec: OutputSpec) -> OmeZarrOutput:
        """The output of this spec, made anew or, where some or all of it is there, completed.

        The caller has looked `what_is_there`: the metadata of another output would be written over.
        """
        storage = open_storage(path)
        for name, document in spec.documents().items():
            data = (json.dumps(document, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()
            if _content(storage, name) != data:
                storage.write_bytes(name, data)
        return cls(storage.path, spec)

    @classmethod
    def open(cls, path: str) -> OmeZarrOutput:
        """The output that is there. Raises FileNotFoundError or, for anything else, ValueError."""
        storage = open_storage(path)
        try:
            group, finest = (json.loads(storage.read_bytes(name)) for name in ("zarr.json", "s0/zarr.json"))
        except FileNotFoundError:
            raise FileNotFoundError(f"{storage.path}: there is no output of a segmentation") from None
        labels = _content(storage, "labels/zarr.json")
        try:
            return cls(storage.path, _spec_of(group, finest, json.loads(labels or b"{}")))
        except (KeyError, TypeError, IndexError, ValueError) as error:
            raise ValueError(f"{storage.path} is not an output of a segmentation: {error!r}") from None

    def grid(self, level: int, block: Zyx | None = None) -> BlockGrid:
        """The blocks of a level; one shard each unless `block` says another size."""
        return BlockGrid(self.spec.levels[level].box, block or self.spec.level_layout(level).shard)

    def write_block(self, level: int, box: Box, probabilities: np.ndarray) -> bool:
        """Write whole shards: uint8 [c, *box.shape]. Says whether any voxel is not 0.

        Raises ValueError for a box that cuts a shard.
        """
        assert probabilities.shape == (len(self.spec.channels), *box.shape), (probabilities.shape, box)
        return self._write(level, box, probabilities, mask=False)

    def write_mask(self, level: int, box: Box, mask: np.ndarray) -> bool:
        """Write whole shards of the label image: uint8 [*box.shape]; else as `write_block`."""
        assert self.spec.mask is not None
        assert mask.shape == box.shape, (mask.shape, box)
        return self._write(level, box, mask, mask=True)

    def read(self, level: int, box: Box) -> np.ndarray:
        """The probabilities of a box: uint8 [c, *box.shape], 0 where nothing was written."""
        return self._read(level, box, mask=False)

    def read_mask(self, level: int, box: Box) -> np.ndarray:
        """The label image in a box: uint8 [*box.shape]."""
        return self._read(level, box, mask=True)

    def build_block(self, level: int, box: Box) -> bool:
        """Make whole shards of a level from the level before, image and mask. Says whether any voxel is not 0.

        Reads in pieces of a chunk's rows. Where all is 0 nothing is written.
        """
        wrote = False
        for mask in (False, True) if self.spec.mask is not None else (False,):
            result = self._reduced(level, box, mask)
            if result.any():
                wrote |= self._write(level, box, result, mask)
        return wrote

    def _reduced(self, level: int, box: Box, mask: bool) -> np.ndarray:
        here, before = self.spec.levels[level], self.spec.levels[level - 1]
        channels = () if mask else (len(self.spec.channels),)
        result = np.empty((*channels, *box.shape), np.uint8)
        rows = self.spec.level_layout(level).chunk[1]
        for piece in box.cells((box.shape[0], rows, box.shape[2]), box.start):
            source = self._read(level - 1, here.source(piece).intersect(before.box), mask)
            reduced = downsample_labels(source, here.step) if mask else downsample(source, here.step)
            result[(..., *piece.slices(box.start))] = reduced
        return result

    def _write(self, level: int, box: Box, voxels: np.ndarray, mask: bool) -> bool:
        assert voxels.dtype == np.uint8, voxels.dtype
        self._check_shards(level, box)
        remove_partial_files(self._shards(level, box, mask))
        store = self._store(level, mask)
        seconds = 60 + voxels.size / MIN_BYTES_PER_SECOND
        with translate_write_errors(self.path):
            # Nothing is kept of what is written, and this call waits: the source is not copied.
            future = store[(..., *box.slices())].write(voxels, can_reference_source_data_indefinitely=True)
            future.result(timeout=seconds)
        return bool(voxels.any())

    def _read(self, level: int, box: Box, mask: bool) -> np.ndarray:
        store = self._store(level, mask)
        seconds = 60 + box.num_voxels * len(self.spec.channels) / MIN_BYTES_PER_SECOND
        with translate_tensorstore_errors(self.path, "read"):
            return store[(..., *box.slices())].read(order="C").result(timeout=seconds)

    def _store(self, level: int, mask: bool) -> ts.TensorStore:
        kvstore = writable_kvstore(self._array(level, mask))
        spec = {"driver": "zarr3", "kvstore": kvstore, "metadata": self.spec.array_json(level, mask)}
        return _opened(json.dumps(spec, sort_keys=True))

    def _array(self, level: int, mask: bool) -> str:
        folder = f"{self.path}/labels/{self.spec.mask}" if mask else self.path
        return f"{folder}/{self.spec.levels[level].name}"

    def _shards(self, level: int, box: Box, mask: bool) -> Iterator[Path]:
        """The files on this machine's disk that hold a box, one a channel and shard."""
        if self.path.startswith("s3://"):
            return
        folder = Path(self._array(level, mask), "c")
        for channel in [[]] if mask else [[str(c)] for c in range(len(self.spec.channels))]:
            for index in self.grid(level).covering(box):
                yield folder.joinpath(*channel, *map(str, index))

    def _check_shards(self, level: int, box: Box) -> None:
        shape, shard = self.spec.levels[level].shape, self.spec.level_layout(level).shard
        for axis, (a, b, n, size) in enumerate(zip(box.start, box.stop, shape, shard, strict=True)):
            if a % size or (b % size and b != n) or not 0 <= a < b <= n:
                raise ValueError(
                    f"{self.path}: the block {box} of s{level} is not whole shards {shard} along {AXES[axis]}, where "
                    f"it has {n} voxels"
                )


@lru_cache(maxsize=64)
def _opened(spec: str) -> ts.TensorStore:
    """An array of this process. Nothing is kept decoded: other processes write what this one reads."""
    parsed = json.loads(spec)
    parsed["metadata"].pop("attributes", None)
    with translate_tensorstore_errors(parsed["kvstore"]["path"], "opened"):
        return ts.open(parsed, read=True, write=True, open=True, context=tensorstore_context(0)).result(
            timeout=ANSWER_TIMEOUT_S
        )


@contextlib.contextmanager
def translate_write_errors(path: str) -> Iterator[None]:
    """Says in words what tensorstore raises inside; a full disk is an OSError with ENOSPC."""
    try:
        with translate_tensorstore_errors(path, "written"):
            yield
    except OSError as error:
        if any(word in f"{error} {error.__cause__}" for word in DISK_FULL_WORDS):
            raise disk_full_error(f"a block of {path}", "what is done is kept") from error
        raise


def label_image(probabilities: np.ndarray, threshold: float) -> np.ndarray:
    """The label image of a block: uint8 [z, y, x] of uint8 probabilities [c, z, y, x] of the foreground classes.

    Foreground is where the classes' values add up to at least 255 * threshold: no rounding comes between. Its label is
    1 + the class with the highest value, the first of equals; 0 elsewhere.
    """
    least = math.ceil(255 * threshold - 1e-9)
    if len(probabilities) == 1:
        return (probabilities[0] >= least).view(np.uint8)
    foreground = probabilities.sum(axis=0, dtype=np.uint16) >= least
    return np.where(foreground, 1 + probabilities.argmax(axis=0), 0).astype(np.uint8)


def _content(storage: Storage, name: str) -> bytes | None:
    try:
        return storage.read_bytes(name)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _spec_of(group: dict[str, Any], finest: dict[str, Any], labels: dict[str, Any]) -> OutputSpec:
    """The spec whose documents these are. Raises KeyError, TypeError, IndexError or ValueError for others."""
    record = group["attributes"]["kasthuri_ray"]
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

"""The arrays of an output as volumes: probabilities of a class, labels, and objects."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np

from kasthuri_ray.errors import InputError
from kasthuri_ray.geometry import Box, Zyx, per_axis
from kasthuri_ray.output.object_image import complete_object_image_path
from kasthuri_ray.output.ome_zarr import OmeZarrOutput
from kasthuri_ray.output.output_array import OutputArray
from kasthuri_ray.segmentation.export_source import ExportSource, segmented_box
from kasthuri_ray.volumes.opening import VolumeOpener
from kasthuri_ray.volumes.place import Place
from kasthuri_ray.volumes.volume import Volume

MAX_LABELLED_VOXELS = 1 << 26  # of a block, which is labelled as a whole
MAX_BLOCKS_KEPT = 2
MAX_LEVELS = 16


@dataclass(kw_only=True)
class OutputVolume(Volume):
    """A level of an array of an output."""

    array: OutputArray
    level: int
    channel: int | None

    def _read(self, box: Box) -> np.ndarray:
        if self.channel is None:
            return self.array.read(self.level, box)
        return self.array.read_channel(self.level, box, self.channel)


def level_volumes(output: OmeZarrOutput, array: OutputArray, channel: int | None, num_levels: int) -> list[Volume]:
    """Return levels of an array of an output as volumes.

    Parameters
    ----------
    output : OmeZarrOutput
        The output.
    array : OutputArray
        Its probabilities or its labels.
    channel : int or None
        Number of the class; None for labels.
    num_levels : int
        How many levels, from the finest on.

    Returns
    -------
    list of Volume
        Finest first.
    """
    has_size = output.spec.nanometers
    return [
        OutputVolume(
            uri=f"{array.path}/{level.name}",
            bounds=level.box,
            dtype=np.dtype(np.uint8),
            voxel_size_nm=level.scale if has_size else None,
            place=Place(level.translation, "middle", "OME translation") if has_size else None,
            chunk=array.level_layout(level.number).chunk,
            chunk_origin=(0, 0, 0),
            array=array,
            level=level.number,
            channel=channel,
        )
        for level in array.levels[:num_levels]
    ]


def objects_volumes(output: OmeZarrOutput, opener: VolumeOpener) -> list[Volume]:
    """Return the levels of the label image of the objects; none if it was not written, or not completely."""
    uri = complete_object_image_path(output.path, output.spec.name)
    if uri is None:
        return []
    volumes: list[Volume] = []
    for mip in range(MAX_LEVELS):
        try:
            volumes.append(opener.open(uri, mip, labels=True))
        except (InputError, FileNotFoundError):
            break
    return volumes if volumes and volumes[0].shape == output.spec.levels[0].shape else []


@dataclass(kw_only=True)
class ObjectsVolume(Volume):
    """The objects of an output, labelled block by block from its probabilities; ids are those of the table."""

    objects: ExportSource
    kept: OrderedDict[Zyx, np.ndarray] = field(default_factory=OrderedDict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def of(cls, output: OmeZarrOutput) -> ObjectsVolume | None:
        """Return the objects of a finished output; None if a block is too large, or if they were not found."""
        level, has_size = output.spec.levels[0], output.spec.nanometers
        block = per_axis(min, per_axis(int, output.spec.record["block"]), level.shape)
        if math.prod(block) > MAX_LABELLED_VOXELS:
            return None
        try:
            objects = ExportSource(output, "objects", segmented_box(output), {})
        except (InputError, FileNotFoundError):
            return None
        return cls(
            uri=f"{output.path}, objects",
            bounds=level.box,
            dtype=np.dtype(np.uint32),
            voxel_size_nm=level.scale if has_size else None,
            place=Place(level.translation, "middle", "OME translation") if has_size else None,
            chunk=output.spec.layout.chunk,
            chunk_origin=(0, 0, 0),
            objects=objects,
        )

    def _read(self, box: Box) -> np.ndarray:
        ids = np.empty(box.shape, np.uint32)
        for index in self.objects.grid.overlapping(box):
            block = self.objects.grid.box(index)
            part = block.intersect(box)
            ids[part.slices(box.start)] = self._block(index)[part.slices(block.start)]
        return ids

    def _block(self, index: Zyx) -> np.ndarray:
        """Return the ids of a block; the last ones are kept."""
        with self.lock:
            if index not in self.kept:
                self.kept[index] = self.objects.read(self.objects.grid.box(index))[0].astype(np.uint32)
                while len(self.kept) > MAX_BLOCKS_KEPT:
                    self.kept.popitem(last=False)
            self.kept.move_to_end(index)
            return self.kept[index]

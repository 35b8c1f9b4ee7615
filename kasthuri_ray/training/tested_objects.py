"""The objects of a split that was predicted tile by tile: its tiles are kept compressed, and joined block by block.

Probabilities too low to belong to any object are not kept, so that a tile takes little more than a mask would. Blocks
are decompressed one after another, so that a box of any size fits.
"""

from __future__ import annotations

import functools
import operator
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

import numpy as np

from kasthuri_ray.geometry import Box, Zyx
from kasthuri_ray.labels import IGNORE_LABEL
from kasthuri_ray.metrics.block_objects import class_bytes, find_block_objects
from kasthuri_ray.metrics.class_map import classes_at, lowest_value
from kasthuri_ray.metrics.cleft_distances import (
    ClassMasks,
    CleftDistances,
    measure_cleft_distances,
    pack_class_masks,
)
from kasthuri_ray.metrics.object_comparison import ComparedObjects, ObjectComparison
from kasthuri_ray.metrics.object_criteria import ObjectCriteria
from kasthuri_ray.metrics.object_detection import block_read_box, block_with_shell, find_extent, select_objects
from kasthuri_ray.metrics.object_outcomes import ObjectOutcomes, pool_outcomes
from kasthuri_ray.metrics.object_settings import ObjectSettings
from kasthuri_ray.tiles.sampling import GridTiles, TileAddress

BLOCK: Zyx = (32, 512, 512)  # takes about 20 bytes a voxel
FASTEST = 1  # level of zlib
LOWEST_KEPT = 0.1  # probability: no lower extent is searched

PackedTiles = Mapping[int, bytes]  # `pack_tile` by number of the tile


@dataclass(frozen=True)
class SplitObjects:
    """The objects of a split, and CREMI's distances, of each class that has objects, by its number.

    Parameters
    ----------
    outcomes : mapping of int to ObjectOutcomes
        What became of the objects.
    distances : mapping of int to CleftDistances
        Empty without a voxel size.
    """

    outcomes: Mapping[int, ObjectOutcomes] = field(default_factory=dict)
    distances: Mapping[int, CleftDistances] = field(default_factory=dict)


def pack_tile(probability: np.ndarray, truth: np.ndarray, address: TileAddress, lowest: float = LOWEST_KEPT) -> bytes:
    """Compress the probabilities of a tile's own voxels, as uint8 like those of a segmentation, and their classes.

    Parameters
    ----------
    probability : ndarray of float, (classes - 1, [z], y, x)
        Probability of each foreground class.
    truth : ndarray of uint8, ([z], y, x)
        Class of each voxel.
    address : TileAddress
        The tile.
    lowest : float
        Lower probabilities become 0.

    Returns
    -------
    bytes
        For `TileVolume`.
    """
    own = address.own.slices(address.box.start)
    stored = np.rint(probability * 255).astype(np.uint8)
    is_true = (truth > 0) & (truth != IGNORE_LABEL)  # there the probability of missed objects is needed
    stored[(stored < lowest_value(lowest)) & ~is_true] = 0
    all_voxels = np.concatenate([stored, truth[None].astype(np.uint8)])
    return zlib.compress(all_voxels.reshape(-1, *address.box.shape)[(slice(None), *own)].tobytes(), FASTEST)


@dataclass(frozen=True)
class TileVolume:
    """The tiles of one box of a split as a volume.

    Parameters
    ----------
    box : Box
        The box.
    tiles : sequence of tuple
        Own voxels of each tile, and what `pack_tile` returned. Voxels of tiles that are absent are ignored.
    num_classes : int
        Foreground classes.
    """

    box: Box
    tiles: Sequence[tuple[Box, bytes]]
    num_classes: int

    @classmethod
    def of_boxes(cls, tiles: GridTiles, packed: PackedTiles, num_classes: int) -> list[TileVolume]:
        """Return the volume of each box of a split."""
        addresses = [(tiles.address(number), data) for number, data in packed.items()]
        return [
            cls(source.box, [(at.own, data) for at, data in addresses if at.source == index], num_classes)
            for index, source in enumerate(tiles.sources)
        ]

    @cached_property
    def _corners(self) -> tuple[np.ndarray, np.ndarray]:
        """First voxel of each tile, and the one after its last: int [tiles, 3]."""
        owns = [own for own, _ in self.tiles]
        starts, stops = ([own.start for own in owns], [own.stop for own in owns])
        return np.array(starts).reshape(-1, 3), np.array(stops).reshape(-1, 3)

    def read(self, box: Box) -> tuple[np.ndarray, np.ndarray]:
        """Return probabilities, uint8 c, z, y, x, and classes, uint8 z, y, x."""
        probability = np.zeros((self.num_classes, *box.shape), np.uint8)
        truth = np.full(box.shape, IGNORE_LABEL, np.uint8)
        starts, stops = self._corners
        for index in np.flatnonzero(((starts < box.stop) & (stops > box.start)).all(1)).tolist():
            own, data = self.tiles[index]
            part = own.intersect(box)
            voxels = np.frombuffer(zlib.decompress(data), np.uint8).reshape(-1, *own.shape)
            voxels = voxels[(slice(None), *part.slices(own.start))]
            inside = part.slices(box.start)
            probability[(slice(None), *inside)], truth[inside] = voxels[:-1], voxels[-1]
        return probability, truth

    def blocks(self, settings: ObjectSettings, shape: Zyx = BLOCK) -> Iterator[tuple[Box, Box, np.ndarray, np.ndarray]]:
        """Yield blocks with what they are read with: (block, box that is read, probabilities, classes)."""
        for block in self.box.cells(shape, self.box.start):
            read = block_read_box(block, self.box, settings)
            yield (block, read, *self.read(read))


def add_block(
    objects: ObjectComparison,
    settings: ObjectSettings,
    numbers: Sequence[int],
    bounds: Box,
    voxels: tuple[Box, Box, np.ndarray, np.ndarray],
) -> None:
    """Find the objects of a block of `TileVolume.blocks`, and add them to a comparison.

    Parameters
    ----------
    objects : ObjectComparison
        The blocks before.
    settings : ObjectSettings
        How objects are found.
    numbers : sequence of int
        Classes that have objects.
    bounds : Box
        The box of the volume.
    voxels : tuple
        What `TileVolume.blocks` yielded.
    """
    block, read, probability, truth = voxels
    with_shell = block_with_shell(block, bounds)
    extent = find_extent(probability, settings).cut(read, with_shell)
    inside = with_shell.slices(read.start)
    labels = truth[inside]
    bridged = extent.bridged if settings.bridge_sections else None
    of_true = class_bytes(probability[(slice(None), *inside)], labels)
    objects.add(find_block_objects(extent.classes, labels, block, numbers, extent.probability, of_true, bridged))


def compare_tile_objects(
    tiles: GridTiles, packed: PackedTiles, numbers: Sequence[int], settings: ObjectSettings, block: Zyx = BLOCK
) -> list[ComparedObjects]:
    """Find the objects of prediction and annotation in all boxes of a split.

    Parameters
    ----------
    tiles, packed, numbers, block : GridTiles, mapping, sequence of int, tuple of int
        As for `match_tile_objects`.
    settings : ObjectSettings
        How objects are found.

    Returns
    -------
    list of ComparedObjects
        For each box.
    """
    boxes = _compare_boxes(tiles, packed, numbers, settings, block, settings.extent)
    return [objects.joined() for objects, _ in boxes]


def match_tile_objects(
    tiles: GridTiles,
    packed: PackedTiles,
    numbers: Sequence[int],
    settings: ObjectSettings,
    thresholds: Sequence[float],
    block: Zyx = BLOCK,
) -> SplitObjects:
    """Match the objects of each class in all boxes of a split.

    Parameters
    ----------
    tiles : GridTiles
        The split.
    packed : mapping
        Its tiles; voxels of a tile that is absent do not count.
    numbers : sequence of int
        Classes that have objects.
    settings : ObjectSettings
        How objects are found.
    thresholds : sequence of float
        Threshold of the voxels of each foreground class, for CREMI's distances.
    block : tuple of int
        Shape of the blocks, z, y, x. The result does not depend on it.

    Returns
    -------
    SplitObjects
        Of all boxes together.
    """
    outcomes, distances = [], []
    for source, (objects, masks) in zip(
        tiles.sources, _compare_boxes(tiles, packed, numbers, settings, block, thresholds), strict=True
    ):
        size = source.image.voxel_size_nm
        matched = objects.match(numbers, ObjectCriteria(source.box, size))
        outcomes.append({number: each.outcomes for number, each in matched.items()})
        measured = {n: measure_cleft_distances([m[n] for m in masks], size) for n in numbers if size is not None}
        distances.append(measured)
    return SplitObjects(
        {number: pool_outcomes(each[number] for each in outcomes) for number in numbers},
        {number: functools.reduce(operator.add, (each[number] for each in distances)) for number in numbers}
        if all(distances)
        else {},
    )


def _compare_boxes(
    tiles: GridTiles,
    packed: PackedTiles,
    numbers: Sequence[int],
    settings: ObjectSettings,
    shape: Zyx,
    thresholds: Sequence[float],
) -> Iterator[tuple[ObjectComparison, list[Mapping[int, ClassMasks]]]]:
    """Yield for each box its objects, and the marked and the true voxels of each of its blocks."""
    size = tiles.sources[0].image.voxel_size_nm
    for volume in TileVolume.of_boxes(tiles, packed, len(settings.extent)):
        objects = ObjectComparison(partial(select_objects, settings=settings, bounds=volume.box, voxel_size_nm=size))
        masks: list[Mapping[int, ClassMasks]] = []
        for voxels in volume.blocks(settings, shape):
            add_block(objects, settings, numbers, volume.box, voxels)
            block, read, probability, truth = voxels
            inside = block.slices(read.start)
            marked = classes_at(probability[(slice(None), *inside)], thresholds)
            masks.append(pack_class_masks(marked, truth[inside], block, numbers))
        yield objects, masks

"""The objects of a split that was predicted tile by tile: its tiles are kept compressed, and joined block by block.

An uncompressed tile would need two bytes a voxel; masks take a small part of that. Blocks are decompressed one after
another, so that a test box of any size fits.
"""

from __future__ import annotations

import functools
import operator
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from kasthuri_ray.geometry import Box, Zyx, per_axis
from kasthuri_ray.labels import IGNORE_LABEL
from kasthuri_ray.metrics.cleft_distances import (
    ClassMasks,
    CleftDistances,
    measure_cleft_distances,
    pack_class_masks,
)
from kasthuri_ray.metrics.object_comparison import ObjectComparison, class_bytes, find_block_objects
from kasthuri_ray.metrics.object_criteria import ObjectCriteria
from kasthuri_ray.metrics.object_outcomes import ObjectOutcomes, pool_outcomes
from kasthuri_ray.tiles.sampling import GridTiles, TileAddress

BLOCK: Zyx = (32, 512, 512)  # takes about 20 bytes a voxel
FASTEST = 1  # level of zlib

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


def pack_tile(probability: np.ndarray, predicted: np.ndarray, truth: np.ndarray, address: TileAddress) -> bytes:
    """Compress the classes of a tile's own voxels, and their probability where it is needed.

    Parameters
    ----------
    probability : ndarray of float, (classes - 1, [z], y, x)
        Probability of class 1, 2, ...
    predicted, truth : ndarray of uint8, ([z], y, x)
        Class of each voxel of the tile.
    address : TileAddress
        The tile.

    Returns
    -------
    bytes
        For `match_tile_objects`.
    """
    own = address.own.slices(address.box.start)
    voxels = [
        predicted,
        truth,
        np.where(predicted > 0, class_bytes(probability, predicted), 0),
        np.where((truth > 0) & (truth != IGNORE_LABEL), class_bytes(probability, truth), 0),
    ]
    both = [each.reshape(address.box.shape)[own].astype(np.uint8) for each in voxels]
    return zlib.compress(np.stack(both).tobytes(), FASTEST)


def match_tile_objects(
    tiles: GridTiles, packed: PackedTiles, numbers: Sequence[int], block: Zyx = BLOCK
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
    block : tuple of int
        Shape of the blocks, z, y, x. The result does not depend on it.

    Returns
    -------
    SplitObjects
        Of all boxes together.
    """
    addresses = {number: tiles.address(number) for number in packed}
    results = []
    for index, source in enumerate(tiles.sources):
        own = [(address.own, packed[number]) for number, address in addresses.items() if address.source == index]
        criteria = ObjectCriteria(source.box, source.image.voxel_size_nm)
        results.append(_match_box(criteria, own, numbers, block))
    outcomes, distances = zip(*results, strict=True)
    return SplitObjects(
        {number: pool_outcomes(each[number] for each in outcomes) for number in numbers},
        {number: functools.reduce(operator.add, (each[number] for each in distances)) for number in numbers}
        if all(distances)
        else {},
    )


def _match_box(
    criteria: ObjectCriteria, tiles: Sequence[tuple[Box, bytes]], numbers: Sequence[int], shape: Zyx
) -> tuple[dict[int, ObjectOutcomes], dict[int, CleftDistances]]:
    objects, masks, box = ObjectComparison(), list[Mapping[int, ClassMasks]](), criteria.box
    starts = np.array([own.start for own, _ in tiles]).reshape(-1, 3)
    stops = np.array([own.stop for own, _ in tiles]).reshape(-1, 3)
    for block in box.cells(shape, box.start):
        with_shell = Box(block.start, per_axis(lambda stop: stop + 1, block.stop)).intersect(box)
        meets = ((starts < with_shell.stop) & (stops > with_shell.start)).all(1)
        arrays = np.zeros((4, *with_shell.shape), np.uint8)
        arrays[1] = IGNORE_LABEL
        for index in np.flatnonzero(meets).tolist():
            own, data = tiles[index]
            part = own.intersect(with_shell)
            voxels = np.frombuffer(zlib.decompress(data), np.uint8).reshape(4, *own.shape)
            arrays[(slice(None), *part.slices(with_shell.start))] = voxels[(slice(None), *part.slices(own.start))]
        predicted, truth, *probabilities = arrays
        objects.add(find_block_objects(predicted, truth, block, numbers, *probabilities))
        inside = block.slices(block.start)
        masks.append(pack_class_masks(predicted[inside], truth[inside], block, numbers))
    matched = objects.match(numbers, criteria)
    size = criteria.voxel_size_nm
    distances = {
        number: measure_cleft_distances([each[number] for each in masks], size)
        for number in numbers
        if size is not None
    }
    return {number: each.outcomes for number, each in matched.items()}, distances

"""The objects of a split that was predicted tile by tile: its tiles are kept compressed, and joined block by block.

An uncompressed tile would need two bytes a voxel; masks take a small part of that. Blocks are decompressed one after
another, so that a test box of any size fits.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

import numpy as np

from kasthuri_ray.geometry import Box, Zyx, per_axis
from kasthuri_ray.labels import IGNORE_LABEL
from kasthuri_ray.metrics.matching import pool_matches
from kasthuri_ray.metrics.object_comparison import ObjectComparison, find_block_objects
from kasthuri_ray.tiles.sampling import GridTiles, TileAddress

BLOCK: Zyx = (32, 512, 512)  # takes about 20 bytes a voxel
FASTEST = 1  # level of zlib

PackedTiles = Mapping[int, bytes]  # `pack_tile` by number of the tile


def pack_tile(predicted: np.ndarray, truth: np.ndarray, address: TileAddress) -> bytes:
    """Compress the classes of a tile's own voxels.

    Parameters
    ----------
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
    both = [voxels.reshape(address.box.shape)[own].astype(np.uint8) for voxels in (predicted, truth)]
    return zlib.compress(np.stack(both).tobytes(), FASTEST)


def match_tile_objects(
    tiles: GridTiles, packed: PackedTiles, numbers: Sequence[int], block: Zyx = BLOCK
) -> dict[int, dict[str, float | int]]:
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
    dict
        As of `ObjectComparison.match`, of all boxes together.
    """
    addresses = {number: tiles.address(number) for number in packed}
    results = []
    for index, source in enumerate(tiles.sources):
        own = [(address.own, packed[number]) for number, address in addresses.items() if address.source == index]
        results.append(_match_box(source.box, own, numbers, block))
    return {number: pool_matches([result[number] for result in results]) for number in numbers}


def _match_box(
    box: Box, tiles: Sequence[tuple[Box, bytes]], numbers: Sequence[int], shape: Zyx
) -> dict[int, dict[str, float | int]]:
    objects = ObjectComparison()
    starts = np.array([own.start for own, _ in tiles]).reshape(-1, 3)
    stops = np.array([own.stop for own, _ in tiles]).reshape(-1, 3)
    for block in box.cells(shape, box.start):
        with_shell = Box(block.start, per_axis(lambda stop: stop + 1, block.stop)).intersect(box)
        meets = ((starts < with_shell.stop) & (stops > with_shell.start)).all(1)
        predicted, truth = np.zeros(with_shell.shape, np.uint8), np.full(with_shell.shape, IGNORE_LABEL, np.uint8)
        for index in np.flatnonzero(meets).tolist():
            own, data = tiles[index]
            part = own.intersect(with_shell)
            voxels = np.frombuffer(zlib.decompress(data), np.uint8).reshape(2, *own.shape)
            for array, of_tile in zip((predicted, truth), voxels, strict=True):
                array[part.slices(with_shell.start)] = of_tile[part.slices(own.start)]
        objects.add(find_block_objects(predicted, truth, block, numbers))
    return objects.match(numbers)

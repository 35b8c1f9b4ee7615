from __future__ import annotations

import math

import numpy as np
import pytest

from kasthuri_ray.geometry import Box
from kasthuri_ray.inference.tiling import (
    ChunkGrid,
    VolumePart,
    blank_chunk_mask,
    check_tile_shape,
    choose_tile_shape,
    count_computed_voxels,
    mirror_indices,
    plan_tiles,
    pooling_phase,
    recomputed_share,
    tiles_to_compute,
)

CASES = [
    # block, origin, margin, factors, max voxels, dim
    (Box((0, 0, 0), (3, 100, 120)), (0, 0, 0), (0, 8, 8), (1, 4, 4), 60 * 60, 2),
    (Box((5, 13, 7), (9, 90, 71)), (2, 5, 3), (0, 56, 56), (1, 8, 8), 200 * 200, 2),
    (Box((-4, -9, 11), (30, 43, 57)), (-5, -10, 3), (8, 16, 16), (2, 8, 8), 48**3, 3),
    (Box((7, 7, 7), (8, 8, 8)), (0, 0, 0), (56, 56, 56), (8, 8, 8), 1, 3),
]


@pytest.mark.parametrize(("block", "origin", "margin", "factors", "max_voxels", "dim"), CASES)
def test_cores_cover_a_block_once_and_inputs_are_aligned_to_the_pooling_grid(
    block, origin, margin, factors, max_voxels, dim
):
    tile = choose_tile_shape(block.shape, margin, factors, max_voxels, dim, pooling_phase(block.start, origin, factors))
    tiles = plan_tiles(block, origin, margin, factors, tile)
    num_cores = np.zeros(block.shape, int)
    for each in tiles:
        assert block.contains(each.core)
        num_cores[each.core.slices(block.start)] += 1
        for axis in range(3):
            assert (each.input.start[axis] - origin[axis]) % factors[axis] == 0
            assert each.input.shape[axis] % factors[axis] == 0
            assert each.core.start[axis] - each.input.start[axis] >= margin[axis]
            assert each.input.stop[axis] - each.core.stop[axis] >= margin[axis]
    assert (num_cores == 1).all()
    assert {each.input.shape for each in tiles} == {tile}
    assert math.prod(tile) <= max_voxels or len(tiles) == 1
    assert count_computed_voxels(block, origin, margin, factors, tile) == sum(each.input.num_voxels for each in tiles)


def test_the_chosen_tile_computes_the_fewest_voxels():
    margin, factors, shape, max_voxels = (0, 16, 16), (1, 8, 8), (2, 120, 200), 100 * 100
    block = Box.at((0, 0, 0), shape)
    tile = choose_tile_shape(shape, margin, factors, max_voxels, 2)
    tiles = [(1, y, x) for y in range(40, 160, 8) for x in range(40, 240, 8) if y * x <= max_voxels]
    fewest = min(count_computed_voxels(block, (0, 0, 0), margin, factors, each) for each in tiles)
    assert count_computed_voxels(block, (0, 0, 0), margin, factors, tile) == fewest


def test_less_than_a_fifth_of_a_default_block_is_computed_twice():
    block, margin, factors = Box.at((64, 2048, 4096), (64, 2048, 2048)), (0, 56, 56), (1, 8, 8)
    tile = choose_tile_shape(block.shape, margin, factors, 5_000_000, 2)
    assert tile == (1, 2160, 2160)
    assert recomputed_share(block, (0, 0, 0), margin, factors, tile) == pytest.approx((2160 / 2048) ** 2 - 1)
    assert recomputed_share(block, (0, 0, 0), margin, factors, (1, 1136, 2160)) < 0.2


@pytest.mark.parametrize(("block_size", "origin"), [(64, 0), (64, 3), (60, 3)])
def test_the_blocks_of_a_volume_need_few_tile_shapes(block_size, origin):
    whole = Box.at((0, origin, origin), (2, 5 * block_size + 21, 3 * block_size + 8))
    margin, factors, full = (0, 16, 16), (1, 8, 8), (64, block_size, block_size)
    tile = choose_tile_shape(full, margin, factors, 4000, 2, pooling_phase(whole.start, (0, 0, 0), factors))
    shapes = {
        each.input.shape
        for block in whole.cells(full, whole.start)
        for each in plan_tiles(block, (0, 0, 0), margin, factors, tile)
    }
    assert len(shapes) <= 4
    assert all(n <= m for shape in shapes for n, m in zip(shape, tile, strict=True))


def test_a_wrong_tile_is_refused_with_the_nearest_good_sizes():
    assert check_tile_shape((1, 128, 256), (0, 56, 56), (1, 8, 8), 2) == (1, 128, 256)
    with pytest.raises(ValueError, match=r"tile \(1, 130, 256\) has 130 voxels along y.*multiple of 8.*use 128 or 136"):
        check_tile_shape((1, 130, 256), (0, 56, 56), (1, 8, 8), 2)
    with pytest.raises(ValueError, match=r"112 voxels along x.*more than the margins, 2 x 56; use 120$"):
        check_tile_shape((1, 256, 112), (0, 56, 56), (1, 8, 8), 2)
    with pytest.raises(ValueError, match=r"8 voxels along z: sections are computed one by one; use 1$"):
        check_tile_shape((8, 256, 256), (0, 56, 56), (1, 8, 8), 2)


@pytest.mark.parametrize("length", [1, 2, 3, 7, 20])
def test_mirrored_indices_equal_the_padding_of_numpy(length):
    values = np.arange(length) + 5
    padded = np.pad(values, (33, 41), mode="reflect")
    np.testing.assert_array_equal(mirror_indices(np.arange(5 - 33, 5 + length + 41), 5, 5 + length), padded)


def volume_with_spots(bounds, spots):
    """Return a volume that is blank except for single voxels."""
    volume = np.full(bounds.shape, 7, np.uint16)
    for spot in spots:
        volume[tuple(a - b for a, b in zip(spot, bounds.start, strict=True))] = 8
    return volume


def find_blank_chunks(volume, bounds, block, margin, grid):
    box = block.grown(margin).intersect(bounds)
    return blank_chunk_mask(VolumePart(volume[box.slices(bounds.start)], box, bounds), block, grid, margin, 7)


def test_a_chunk_is_blank_if_everything_within_its_margin_is():
    bounds, margin, grid = Box((3, 0, 0), (4, 40, 40)), (0, 5, 5), ChunkGrid((1, 10, 10), (3, 0, 0))
    # Of the chunk at y, x = 10:20, a voxel 5 away is within the margin, one 6 away is not.
    for x, within in ((24, True), (25, False)):
        blank = find_blank_chunks(volume_with_spots(bounds, [(3, 15, x)]), bounds, bounds, margin, grid)
        assert blank.shape == (1, 4, 4)
        assert blank[0, 1, 1] != within
        assert blank[0, 3, 0]


def test_blank_chunks_do_not_depend_on_the_division_into_blocks():
    bounds, margin, grid = Box((2, 5, 5), (9, 70, 93)), (2, 6, 6), ChunkGrid((4, 10, 10), (3, 8, 8))
    whole = Box(grid.origin, (9, 70, 90))
    rng = np.random.default_rng(0)
    spots = [tuple(int(v) for v in rng.integers(bounds.start, bounds.stop)) for _ in range(4)]
    volume = volume_with_spots(bounds, spots)
    expected = find_blank_chunks(volume, bounds, whole, margin, grid)
    boxes = grid.boxes(whole)
    assert boxes[-1, -1, -1] == Box((7, 68, 88), (9, 70, 90))
    assert 0 < expected.sum() < expected.size
    by_block = {}
    for block in whole.cells((4, 20, 30), grid.origin):
        blank = find_blank_chunks(volume, bounds, block, margin, grid)
        by_block |= dict(zip(grid.boxes(block).flat, blank.flat, strict=True))
    assert by_block == dict(zip(boxes.flat, expected.flat, strict=True))


def test_finding_blank_chunks_in_a_box_without_their_margins_is_an_error():
    bounds = Box((0, 0, 0), (1, 40, 40))
    block = Box((0, 10, 10), (1, 20, 20))
    part = VolumePart(np.zeros(block.shape, np.uint8), block, bounds)
    with pytest.raises(ValueError, match=r"chunk 0:1,10:20,10:20 depends on 0:1,5:25,5:25, and only 0:1,10:20,10:20"):
        blank_chunk_mask(part, block, ChunkGrid((1, 10, 10), (0, 0, 0)), (0, 5, 5), 0)


def test_tiles_whose_cores_overlap_only_blank_chunks_are_not_computed():
    block, grid = Box((4, 6, 6), (6, 46, 46)), ChunkGrid((1, 20, 20), (4, 6, 6))
    tiles = plan_tiles(block, (0, 6, 6), (0, 8, 8), (1, 4, 4), (1, 32, 32))  # cores of 16, 12 and 16 wide
    keep = np.zeros((2, 2, 2), bool)
    keep[1, 0, 1] = True  # section 5, y 6:26, x 26:46
    needed = tiles_to_compute(tiles, block, grid, keep)
    wanted = Box((5, 6, 26), (6, 26, 46))
    assert needed == [tile for tile in tiles if tile.core.overlaps(wanted)]
    assert 0 < len(needed) < len(tiles)

"""Boxes, ranges typed as text, and grids of tiles that own every voxel once."""

import time

import numpy as np
import pytest

from kasthuri_ray.geometry import Box, TileGrid, ceil_div, check_inside, parse_box, per_axis, tile_starts

BOUNDS = Box((0, 0, 0), (100, 1024, 1024))


def random_box(rng: np.random.Generator, size: int = 30) -> Box:
    start = rng.integers(-size, size, 3)
    return Box(tuple(start), tuple(start + rng.integers(1, size, 3)))


def test_a_function_is_applied_to_each_of_three_axes():
    assert per_axis(max, (1, 5, 3), (4, 2, 6)) == (4, 5, 6)
    assert per_axis(ceil_div, (8, 9, -9), (4, 4, 4)) == (2, 3, -2)
    with pytest.raises(ValueError, match="values to unpack"):
        per_axis(max, (1, 5), (4, 2))


def test_boxes_intersect_in_the_voxels_that_both_hold():
    rng = np.random.default_rng(0)
    for _ in range(200):
        a, b = random_box(rng, 8), random_box(rng, 8)
        space = np.zeros((2, 32, 32, 32), bool)
        for mask, box in zip(space, (a, b), strict=True):
            mask[box.slices((-16, -16, -16))] = True
        both = space[0] & space[1]
        assert a.overlaps(b) == both.any()
        assert a.intersect(b).num_voxels == both.sum()
        assert a.contains(b) == (both.sum() == b.num_voxels)


def test_cells_cover_a_box_once_and_stay_on_the_grid():
    rng = np.random.default_rng(1)
    for _ in range(50):
        box, cell, origin = random_box(rng), rng.integers(1, 12, 3), rng.integers(-5, 5, 3)
        counts = np.zeros(box.shape, int)
        for part in box.cells(cell, origin):
            counts[part.slices(box.start)] += 1
            whole = part.grown_to_grid(cell, origin)
            assert whole.shape == tuple(cell)
            assert all((a - o) % c == 0 for a, o, c in zip(whole.start, origin, cell, strict=True))
        assert (counts == 1).all()


def test_the_text_of_a_box_is_parsed_to_the_same_box():
    assert str(Box((0, 1, 2), (3, 4, 5))) == "0:3,1:4,2:5"
    assert parse_box(str(Box((0, 1, 2), (3, 4, 5))), BOUNDS) == Box((0, 1, 2), (3, 4, 5))
    assert Box.at((5, 6, 7), (1, 2, 3)) == Box((5, 6, 7), (6, 8, 10))


def test_open_ranges_end_at_the_bounds_of_a_volume_with_an_offset():
    bounds = Box((10, 20, 30), (50, 60, 70))
    assert parse_box(":,25:,:40", bounds) == Box((10, 25, 30), (50, 60, 40))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0:1,0:1", "is not three ranges z,y,x such as 0:100,1000:3000,:"),
        ("0:1,0:1,5", "is not three ranges"),
        ("0:1,0:1,0:2:3", "is not three ranges"),
        ("0:a,0:1,0:1", "'0:a' along z is not a range of whole voxels"),
        ("0:1.5,0:1,0:1", "'0:1.5' along z is not a range of whole voxels"),
        ("0:1,-5:10,0:1", "negative indices are refused, along y it has '-5:10'"),
        ("0:1,0:-1,0:1", "negative indices are refused, along y"),
        ("5:5,:,:", "holds no voxels"),
        ("9:5,:,:", "holds no voxels"),
        ("0:101,:,:", "box 0:101,:,: is outside the volume, 0:100,0:1024,0:1024 (z,y,x)"),
    ],
)
def test_a_malformed_or_outside_box_is_an_error_that_says_why(text, message):
    with pytest.raises(ValueError, match=r"^box ") as caught:
        parse_box(text, BOUNDS)
    assert message in str(caught.value)


def test_negative_indices_are_allowed_in_a_volume_that_begins_below_zero():
    bounds = Box((-4, 0, 0), (4, 8, 8))
    assert parse_box("-3:2,:,:", bounds).start == (-3, 0, 0)
    with pytest.raises(ValueError, match="negative indices"):
        parse_box("-5:2,:,:", bounds)


def test_a_box_outside_the_volume_is_an_error_that_shows_the_bounds():
    assert check_inside(BOUNDS, BOUNDS, "it") is BOUNDS
    with pytest.raises(ValueError, match=r"a cutout is outside the volume: 0:1,0:1,1000:1025 is not within 0:100"):
        check_inside(Box((0, 0, 1000), (1, 1, 1025)), BOUNDS, "a cutout")


def test_the_last_tile_shifts_inward_to_end_with_the_range():
    assert tile_starts(3, 13, 4) == [3, 7, 9]
    assert tile_starts(0, 8, 4) == [0, 4]
    with pytest.raises(ValueError, match="a range of 3 voxels is smaller than the tile, 4"):
        tile_starts(0, 3, 4)


def test_every_voxel_belongs_to_one_tile():
    rng = np.random.default_rng(2)
    for _ in range(100):
        box = random_box(rng, 20)
        tile = tuple(int(rng.integers(1, n + 1)) for n in box.shape)
        counts = np.zeros(box.shape, int)
        for outer, own in TileGrid(box, tile):
            assert outer.shape == tile
            assert box.contains(outer)
            assert outer.contains(own)
            counts[own.slices(box.start)] += 1
        assert (counts == 1).all()


def test_a_tile_grid_is_a_sequence():
    grid = TileGrid(Box((0, 0, 0), (2, 5, 7)), (1, 4, 4))
    pairs = list(grid)
    assert len(pairs) == len(grid) == 8
    assert grid[-1] == pairs[-1]
    assert grid[2:5] == pairs[2:5]
    with pytest.raises(IndexError, match="tile 8 of 8"):
        grid[8]


def test_a_box_smaller_than_a_tile_is_refused():
    with pytest.raises(ValueError, match="smaller than a tile along x: it has 255 voxels, the tile 256"):
        TileGrid(Box((0, 0, 0), (1, 256, 255)), (1, 256, 256))


def test_the_tile_grid_of_the_whole_kasthuri_volume_is_made_without_listing_its_tiles():
    start = time.perf_counter()
    grid = TileGrid(Box((0, 0, 0), (1850, 26624, 21504)), (1, 256, 256))
    assert len(grid) == 1850 * 104 * 84
    assert grid[len(grid) - 1][0].stop == (1850, 26624, 21504)
    assert time.perf_counter() - start < 0.5

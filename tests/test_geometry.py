"""Boxes, ranges in words, and grids of tiles that own every voxel once."""

import time

import numpy as np
import pytest

from kasthuri_ray.geometry import Box, TileGrid, check_inside, parse_box, tile_starts

BOUNDS = Box((0, 0, 0), (100, 1024, 1024))


def random_box(rng: np.random.Generator, size: int = 30) -> Box:
    start = rng.integers(-size, size, 3)
    return Box(tuple(start), tuple(start + rng.integers(1, size, 3)))


def test_boxes_meet_where_their_voxels_do():
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
        seen = np.zeros(box.shape, int)
        for part in box.cells(cell, origin):
            seen[part.slices(box.start)] += 1
            whole = part.grown_to_grid(cell, origin)
            assert whole.shape == tuple(cell)
            assert all((a - o) % c == 0 for a, o, c in zip(whole.start, origin, cell, strict=True))
        assert (seen == 1).all()


def test_a_box_says_itself_as_a_person_would_type_it():
    assert str(Box((0, 1, 2), (3, 4, 5))) == "0:3,1:4,2:5"
    assert parse_box(str(Box((0, 1, 2), (3, 4, 5))), BOUNDS) == Box((0, 1, 2), (3, 4, 5))
    assert Box.at((5, 6, 7), (1, 2, 3)) == Box((5, 6, 7), (6, 8, 10))


def test_open_ranges_take_the_whole_axis_offset_included():
    bounds = Box((10, 20, 30), (50, 60, 70))
    assert parse_box(":,25:,:40", bounds) == Box((10, 25, 30), (50, 60, 40))


@pytest.mark.parametrize(
    ("text", "words"),
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
        ("0:101,:,:", "0:101,0:1024,0:1024 is not within 0:100,0:1024,0:1024 (z,y,x)"),
    ],
)
def test_a_box_that_is_none_is_refused_in_words(text, words):
    with pytest.raises(ValueError, match=r"box '") as caught:
        parse_box(text, BOUNDS)
    assert words in str(caught.value)


def test_a_volume_that_begins_below_zero_is_read_there():
    bounds = Box((-4, 0, 0), (4, 8, 8))
    assert parse_box("-3:2,:,:", bounds).start == (-3, 0, 0)
    with pytest.raises(ValueError, match="negative indices"):
        parse_box("-5:2,:,:", bounds)


def test_check_inside_shows_the_bounds():
    assert check_inside(BOUNDS, BOUNDS, "it") is BOUNDS
    with pytest.raises(ValueError, match=r"a cutout is outside the volume: 0:1,0:1,1000:1025 is not within 0:100"):
        check_inside(Box((0, 0, 1000), (1, 1, 1025)), BOUNDS, "a cutout")


def test_the_last_tile_shifts_inward():
    assert tile_starts(3, 13, 4) == [3, 7, 9]
    assert tile_starts(0, 8, 4) == [0, 4]
    with pytest.raises(ValueError, match="a range of 3 voxels is smaller than the tile, 4"):
        tile_starts(0, 3, 4)


def test_every_voxel_is_one_tiles_own():
    rng = np.random.default_rng(2)
    for _ in range(100):
        box = random_box(rng, 20)
        tile = tuple(int(rng.integers(1, n + 1)) for n in box.shape)
        seen = np.zeros(box.shape, int)
        for outer, own in TileGrid(box, tile):
            assert outer.shape == tile
            assert box.contains(outer)
            assert outer.contains(own)
            seen[own.slices(box.start)] += 1
        assert (seen == 1).all()


def test_a_grid_is_a_sequence():
    grid = TileGrid(Box((0, 0, 0), (2, 5, 7)), (1, 4, 4))
    listed = list(grid)
    assert len(listed) == len(grid) == 8
    assert grid[-1] == listed[-1]
    assert grid[2:5] == listed[2:5]
    with pytest.raises(IndexError, match="tile 8 of 8"):
        grid[8]


def test_a_box_smaller_than_a_tile_is_refused():
    with pytest.raises(ValueError, match="smaller than a tile along x: it has 255 voxels, the tile 256"):
        TileGrid(Box((0, 0, 0), (1, 256, 255)), (1, 256, 256))


def test_the_grid_over_the_whole_kasthuri_volume_is_not_listed():
    start = time.perf_counter()
    grid = TileGrid(Box((0, 0, 0), (1850, 26624, 21504)), (1, 256, 256))
    assert len(grid) == 1850 * 104 * 84
    assert grid[len(grid) - 1][0].stop == (1850, 26624, 21504)
    assert time.perf_counter() - start < 0.5

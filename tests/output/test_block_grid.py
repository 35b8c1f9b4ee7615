"""How an output is cut into chunks, shards, blocks and levels."""

import itertools
import math
import re

import numpy as np
import pytest

from kasthuri_ray.geometry import Box
from kasthuri_ray.output.block_grid import (
    ArrayLayout,
    BlockGrid,
    block_index,
    block_name,
    check_block_shape,
    default_block_shape,
)
from kasthuri_ray.output.pyramid import fit_layout, plan_layout, plan_levels, source_box

KASTHURI = (1850, 26624, 21504)


def factors(*args, **more):
    return [level.factors for level in plan_levels(*args, **more)]


def test_y_and_x_are_halved_until_sections_are_as_thick_as_voxels_are_long():
    found = factors(KASTHURI, (30.0, 6.0, 6.0))
    assert found == [(1, 1, 1), (1, 2, 2), (1, 4, 4), (2, 8, 8), (4, 16, 16), (8, 32, 32), (16, 64, 64)]
    assert factors((64, 2048, 1000), (8.0, 8.0, 8.0)) == [(1, 1, 1), (2, 2, 2), (4, 4, 4)]
    assert factors((64, 900, 900), (4.0, 8.0, 8.0)) == [(1, 1, 1), (2, 1, 1), (4, 2, 2)]
    assert factors((64, 900, 900), (12.0, 8.0, 8.0)) == [(1, 1, 1), (1, 2, 2)]  # 1.5 times is not alike


def test_a_pyramid_ends_where_a_section_is_small():
    assert factors((1850, 512, 512), (30.0, 6.0, 6.0)) == [(1, 1, 1)]
    assert factors((1850, 513, 100), (30.0, 6.0, 6.0)) == [(1, 1, 1), (1, 2, 2)]


def test_without_a_voxel_size_y_and_x_alone_are_halved_and_nothing_is_moved_in_nm():
    first, second = plan_levels((64, 900, 900), None, (1, 2, 3), (5.0, 5.0, 5.0))
    assert (first.scale, first.translation) == ((1.0, 1.0, 1.0), (1.0, 2.0, 3.0))
    assert (second.factors, second.scale, second.translation) == ((1, 2, 2), (1.0, 2.0, 2.0), (1.0, 2.5, 3.5))


def test_an_axis_of_one_voxel_is_never_halved():
    assert factors((1, 2000, 1), (6.0, 30.0, 6.0)) == [(1, 1, 1), (1, 2, 1), (1, 4, 1)]


def test_levels_lie_on_the_image():
    """The middle of a coarse voxel is the mean of the middles of those that it is made of."""
    size, start, moved = (30.0, 6.0, 6.5), (3, 101, 7), (10.0, 0.0, -4.0)
    levels = plan_levels((40, 1500, 1024), size, start, moved)
    assert levels[0].translation == (10 + 3 * 30, 101 * 6.0, -4 + 7 * 6.5)
    for before, level in itertools.pairwise(levels):
        for axis in range(3):
            ends = [before.translation[axis] + i * before.scale[axis] for i in range(level.step[axis])]
            assert level.translation[axis] == pytest.approx(np.mean(ends))
            assert level.scale[axis] == before.scale[axis] * level.step[axis]
            assert level.shape[axis] == math.ceil(before.shape[axis] / level.step[axis])


def test_layout_of_a_large_box_is_the_default_and_of_a_small_one_what_it_needs():
    assert plan_layout(KASTHURI) == ArrayLayout((64, 1024, 1024), (64, 256, 256))
    assert plan_layout((20, 165, 768)) == ArrayLayout((20, 165, 768), (20, 165, 256))
    assert plan_layout((100, 1100, 600)) == ArrayLayout((64, 1024, 768), (64, 256, 256))


@pytest.mark.parametrize("shape", [(1, 1, 1), (20, 165, 768), (100, 1100, 600), (65, 257, 1025), KASTHURI])
@pytest.mark.parametrize(
    "asked", [(None, None), ((32, 512, 512), None), (None, (16, 128, 100)), ((8, 90, 96), (4, 45, 32))]
)
def test_chunks_divide_shards_and_neither_is_longer_than_the_box_needs(shape, asked):
    layout = plan_layout(shape, *asked)
    for n, shard, chunk in zip(shape, layout.shard, layout.chunk, strict=True):
        assert shard % chunk == 0
        assert chunk <= n
        assert shard < n + chunk
    assert fit_layout(layout, shape) == layout


def test_a_shard_finds_its_chunk_and_a_chunk_its_shard():
    assert plan_layout(KASTHURI, (64, 1000, 512)).chunk == (64, 250, 256)
    assert plan_layout(KASTHURI, None, (10, 300, 64)) == ArrayLayout((60, 900, 1024), (10, 300, 64))


def test_a_chunk_that_does_not_divide_its_shard_is_refused_with_good_sizes():
    with pytest.raises(
        ValueError,
        match=r"shard \(64, 1000, 512\) is not a multiple of the chunk \(64, 256, 256\) along y; use 768 or 1024",
    ):
        plan_layout(KASTHURI, (64, 1000, 512), (64, 256, 256))
    with pytest.raises(
        ValueError, match=r"shard \(64, 1021, 1024\): no chunk of 16 to 256 divides it along y; use 768 or 1024"
    ):
        plan_layout(KASTHURI, (64, 1021, 1024))
    with pytest.raises(ValueError, match=r"chunk \(0, 1, 1\): expected three sizes"):
        plan_layout(KASTHURI, None, (0, 1, 1))


def test_a_block_that_cuts_a_shard_is_refused_with_good_sizes():
    words = "block (64, 500, 512) is not a multiple of the shard (64, 512, 512) along y; use 512"
    with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
        check_block_shape((64, 500, 512), (64, 512, 512), KASTHURI)
    with pytest.raises(ValueError, match=r"along z; use 64 or 128, nor along x; use 512 or 1024$"):
        check_block_shape((100, 512, 700), (64, 512, 512), KASTHURI)
    with pytest.raises(ValueError, match="at least 1"):
        check_block_shape((0, 512, 512), (64, 512, 512), KASTHURI)


def test_a_block_may_have_any_size_where_it_covers_the_box():
    check_block_shape((100, 1024, 512), (64, 512, 512), (100, 3000, 512))
    check_block_shape((5000, 512, 512), (64, 512, 512), (1850, 3000, 512))


def test_blocks_grow_where_the_halo_costs_most():
    layout = plan_layout(KASTHURI)
    assert default_block_shape(KASTHURI, layout, (0, 56, 56)) == (64, 2048, 2048)
    assert default_block_shape(KASTHURI, layout, (24, 56, 56)) == (256, 1024, 1024)
    assert default_block_shape((100, 1100, 600), plan_layout((100, 1100, 600)), (0, 56, 56)) == (64, 2048, 768)
    large = plan_layout(KASTHURI, (64, 8192, 8192))
    assert default_block_shape(KASTHURI, large, (0, 56, 56)) == large.shard


GRIDS = [
    BlockGrid(Box.at((3, 5, 7), (10, 33, 20)), (4, 8, 8)),
    BlockGrid(Box.at((0, 0, 0), (1, 9, 50)), (1, 3, 4)),
    BlockGrid(Box.at((0, 0, 0), (9, 4, 4)), (2, 8, 8)),
]


@pytest.mark.parametrize("grid", GRIDS)
def test_blocks_cover_the_box_once_and_each_touches_the_one_before(grid):
    seen = np.zeros(grid.box_of_all.shape, int)
    for index in grid:
        seen[grid.box(index).slices(grid.box_of_all.start)] += 1
    assert (seen == 1).all()
    for before, after in itertools.pairwise(grid):
        assert sum(abs(a - b) for a, b in zip(before, after, strict=True)) == 1


@pytest.mark.parametrize("grid", GRIDS)
def test_numbers_and_indices_lead_to_each_other(grid):
    assert [grid.index(index) for index in grid] == list(range(len(grid)))
    assert grid[-1] == grid[len(grid) - 1]
    assert grid[1:3] == [grid[1], grid[2]]
    assert grid[0] in grid
    assert grid.shape not in grid
    with pytest.raises(IndexError):
        grid[len(grid)]
    with pytest.raises(ValueError, match="there is no block"):
        grid.index(grid.shape)


@pytest.mark.parametrize("grid", GRIDS)
def test_the_blocks_that_cover_a_box_are_those_that_share_a_voxel_with_it(grid):
    rng = np.random.default_rng(0)
    for _ in range(20):
        box = Box.at(rng.integers(-3, 12, 3), rng.integers(0, 12, 3))
        assert list(grid.covering(box)) == sorted(index for index in grid if grid.box(index).overlaps(box))


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("ends", [1, 2])
def test_kinds_of_blocks_add_up(grid, ends):
    kinds = list(grid.kinds(ends))
    assert sum(number for number, _ in kinds) == len(grid)
    assert sum(number * box.num_voxels for number, box in kinds) == grid.box_of_all.num_voxels


def test_millions_of_blocks_cost_nothing():
    grid = BlockGrid(Box.at((0, 0, 0), (10**6, 10**6, 10**6)), (64, 64, 64))
    assert len(grid) == 15625**3
    assert grid.index(grid[10**12 + 3]) == 10**12 + 3


def test_names_of_blocks():
    assert block_name((0, 12, 7)) == "0_12_7"
    assert block_index("0_12_7") == (0, 12, 7)
    for wrong in ("0_12", "0_12_7.blank", "0_-1_7", ""):
        with pytest.raises(ValueError, match="no name of a block"):
            block_index(wrong)


def test_the_source_of_a_block_is_what_its_voxels_are_made_of():
    levels = plan_levels((90, 2100, 1111), (30.0, 12.0, 12.0))
    assert [level.step for level in levels] == [(1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2)]
    box = Box((3, 10, 5), (12, 263, 139))
    assert source_box(levels, 3, box, 2) == Box((6, 20, 10), (24, 525, 278))
    assert source_box(levels, 3, box) == Box((12, 80, 40), (48, 2100, 1111))
    assert source_box(levels, 3, levels[3].box) == levels[0].box
    assert source_box(levels, 0, box) == box

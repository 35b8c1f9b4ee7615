"""How an output is divided into blocks."""

import itertools
import re

import numpy as np
import pytest

from kasthuri_ray.geometry import Box
from kasthuri_ray.output.block_grid import (
    BlockGrid,
    block_index,
    block_name,
    check_block_shape,
    default_block_shape,
)
from kasthuri_ray.output.layout import plan_layout

KASTHURI = (1850, 26624, 21504)


def test_a_block_that_cuts_a_shard_is_refused_with_good_sizes():
    message = "block (64, 500, 512) is not a multiple of the shard (64, 512, 512) along y; use 512"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check_block_shape((64, 500, 512), (64, 512, 512), KASTHURI)
    with pytest.raises(ValueError, match=r"along z; use 64 or 128, nor along x; use 512 or 1024$"):
        check_block_shape((100, 512, 700), (64, 512, 512), KASTHURI)
    with pytest.raises(ValueError, match="at least 1"):
        check_block_shape((0, 512, 512), (64, 512, 512), KASTHURI)


def test_a_block_may_have_any_size_along_an_axis_that_it_covers():
    check_block_shape((100, 1024, 512), (64, 512, 512), (100, 3000, 512))
    check_block_shape((5000, 512, 512), (64, 512, 512), (1850, 3000, 512))


def test_default_blocks_are_larger_along_axes_with_a_larger_margin():
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
    num_blocks = np.zeros(grid.bounds.shape, int)
    for index in grid:
        num_blocks[grid.box(index).slices(grid.bounds.start)] += 1
    assert (num_blocks == 1).all()
    for before, after in itertools.pairwise(grid):
        assert sum(abs(a - b) for a, b in zip(before, after, strict=True)) == 1


@pytest.mark.parametrize("grid", GRIDS)
def test_numbers_and_indices_of_blocks_convert_to_each_other(grid):
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
def test_the_blocks_that_overlap_a_box_are_found(grid):
    rng = np.random.default_rng(0)
    for _ in range(20):
        box = Box.at(rng.integers(-3, 12, 3), rng.integers(0, 12, 3))
        assert list(grid.overlapping(box)) == sorted(index for index in grid if grid.box(index).overlaps(box))


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("ends", [1, 2])
def test_representative_blocks_add_up_to_all_blocks(grid, ends):
    blocks = list(grid.representative_blocks(ends))
    assert sum(number for number, _ in blocks) == len(grid)
    assert sum(number * box.num_voxels for number, box in blocks) == grid.bounds.num_voxels


def test_a_grid_of_trillions_of_blocks_needs_no_memory():
    grid = BlockGrid(Box.at((0, 0, 0), (10**6, 10**6, 10**6)), (64, 64, 64))
    assert len(grid) == 15625**3
    assert grid.index(grid[10**12 + 3]) == 10**12 + 3


def test_names_and_indices_of_blocks_convert_to_each_other():
    assert block_name((0, 12, 7)) == "0_12_7"
    assert block_index("0_12_7") == (0, 12, 7)
    for wrong in ("0_12", "0_12_7.blank", "0_-1_7", ""):
        with pytest.raises(ValueError, match="is not the name of a block"):
            block_index(wrong)

"""A plan adds up."""

import math

import pytest

from kasthuri_ray.geometry import Box
from kasthuri_ray.inference.tiling import plan_tiles
from kasthuri_ray.output.block_grid import BlockGrid
from kasthuri_ray.segmentation.actor_resources import SAMPLE_VOXELS, sample_blocks
from kasthuri_ray.segmentation.plan import MAX_COMPRESSION, TileTiming, describe_plan, plan_segmentation

KASTHURI = "phantom://em?shape=1850,26624,21504"


@pytest.fixture(scope="module")
def run(tmp_path_factory, write_run):
    return write_run(tmp_path_factory.mktemp("run") / "run")


@pytest.fixture
def plan_of(prepared_for, job_of, run, tmp_path):
    def make(timing=None, done=0, actors=1, gpus=0.0, price=None, copy=None, **segment):
        job = job_of(run, tmp_path / "out.zarr", copy=copy, **segment)
        network = prepared_for(run, image=job.image.uri).network
        return job, plan_segmentation(job, network, done, actors, gpus, price, timing)

    return make


SMALL = {"image": "phantom://em?shape=5,150,210", "box": "1:5,10:150,:", "shard": [2, 32, 32], "block": [2, 64, 96]}


def test_blocks_voxels_and_what_is_computed_twice_are_those_of_all_blocks(plan_of):
    job, plan = plan_of(**SMALL)
    grid = BlockGrid(job.box, job.block)
    blocks = [grid.box(index) for index in grid]
    assert plan.blocks == len(blocks) == 2 * 3 * 3
    assert plan.voxels == sum(block.num_voxels for block in blocks) == 4 * 140 * 210
    how = (job.image.bounds.start, job.reach.margin, job.reach.factors, job.arithmetic.tile)
    computed = sum(tile.input.num_voxels for block in blocks for tile in plan_tiles(block, *how))
    assert plan.computed_twice == pytest.approx(computed / plan.voxels - 1)
    chunks = {
        cell.start
        for block in blocks
        for cell in job.grown(block).grown_to_grid(job.image.chunk, job.image.chunk_origin).cells(job.image.chunk)
    }
    whole = sum(Box.at(start, job.image.chunk).intersect(job.image.bounds).num_voxels for start in chunks)
    assert plan.bytes_read == whole >= plan.voxels
    assert (plan.mvoxels_per_second, plan.hours, plan.gpu_hours, plan.cost) == (None,) * 4


def test_bytes_written_are_those_of_all_levels_as_a_sample_compressed_and_of_a_raw_copy(plan_of):
    job, plan = plan_of(image="phantom://em?shape=2,600,700", save_mask=True)
    voxels = sum(math.prod(level.shape) for level in job.levels)
    assert len(job.levels) == 2
    assert plan.bytes_written == 2 * voxels
    assert "writes at most 2.1 MB" in describe_plan(plan, job)[0]
    _, copied = plan_of(image="phantom://em?shape=2,600,700", save_mask=True, copy="/tmp/copy")
    assert copied.bytes_written == plan.bytes_written + voxels
    for compression in (2.2, 3000.0):
        job, timed = plan_of(TileTiming(1.0, 1000, compression), image="phantom://em?shape=2,600,700")
        assert timed.bytes_written == round(voxels / min(compression, MAX_COMPRESSION))
        assert "writes about " in describe_plan(timed, job)[0]


def test_hours_and_money_follow_from_the_time_of_the_sample(plan_of):
    timing = TileTiming(seconds=2.0, computed=1_000_000, compression=20.0)
    _, plan = plan_of(timing, done=6, actors=4, gpus=0.5, price=3.0, **SMALL)
    assert plan.mvoxels_per_second == pytest.approx(4 * 0.5 / (1 + plan.computed_twice))
    left = plan.voxels * (1 - plan.done / plan.blocks)
    assert plan.hours == pytest.approx(left / (plan.mvoxels_per_second * 1e6) / 3600)
    assert plan.gpu_hours == pytest.approx(4 * 0.5 * plan.hours)
    assert plan.cost == pytest.approx(3.0 * plan.gpu_hours)
    _, on_cpus = plan_of(timing, actors=4, price=3.0, **SMALL)
    assert on_cpus.gpu_hours == 0
    assert on_cpus.cost == pytest.approx(3.0 * 4 * on_cpus.hours)


def test_a_plan_of_all_of_kasthuri_is_made_without_going_through_its_blocks(plan_of):
    job, plan = plan_of(TileTiming(1.0, 1_500_000, 25.0), image=KASTHURI, tile=(1, 1248, 1248))
    assert job.block == (64, 2048, 2048)
    assert plan.blocks == 29 * 13 * 11
    assert plan.voxels == 1850 * 26624 * 21504
    assert plan.voxels <= plan.bytes_read < 1.1 * plan.voxels
    assert plan.computed_twice < 0.2
    lines = "\n".join(describe_plan(plan, job))
    assert "4,147 blocks of 64 x 2048 x 2048" in lines
    assert "reads 1.06 TB" in lines


def test_what_is_said_of_a_plan(plan_of, changed):
    job, plan = plan_of(TileTiming(1.0, 1_000_000, 20.0, halo_error=0.125), actors=2, price=2.0, **SMALL)
    lines = "\n".join(describe_plan(plan, job))
    assert "18 blocks of 2 x 64 x 96 (z,y,x), 0 done; 0.1 Mvoxels" in lines
    assert "with 2 actors: about" in lines
    assert "at the price given for an hour of each actor" in lines
    assert "changes probabilities of a sample by up to 0.125" in lines
    assert "uncompiled" not in lines
    compiled = changed(job, arithmetic=changed(job.arithmetic, compile=True))
    assert "timed uncompiled, compiled it is faster" in "\n".join(describe_plan(plan, compiled))


@pytest.mark.parametrize("tile", [(1, 1264, 1264), (1, 72, 72)])
def test_a_sample_is_a_tile_in_the_middle_that_takes_seconds(run, job_of, tmp_path, tile):
    job = job_of(run, tmp_path / "out.zarr", image=KASTHURI, tile=tile)
    sample = sample_blocks(job)
    assert job.box.contains(sample)
    core = tuple(n - 2 * h for n, h in zip(tile, job.halo, strict=True))
    assert sample.shape == (2, *core[1:])
    how = (job.image.bounds.start, job.reach.margin, job.reach.factors, tile)
    tiles = plan_tiles(sample, *how)
    assert {one.input.shape for one in tiles} == {tile}
    assert sum(one.input.num_voxels for one in tiles) <= SAMPLE_VOXELS["cpu"]


def test_a_sample_in_3d_is_cut_to_what_takes_seconds(write_run, job_of, tmp_path):
    run = write_run(tmp_path / "run3d", dim=3)
    job = job_of(run, tmp_path / "out.zarr", image=KASTHURI, tile=(128, 512, 256))
    sample = sample_blocks(job)
    how = (job.image.bounds.start, job.reach.margin, job.reach.factors, job.arithmetic.tile)
    computed = sum(one.input.num_voxels for one in plan_tiles(sample, *how))
    assert SAMPLE_VOXELS["cpu"] / 3 < computed <= SAMPLE_VOXELS["cpu"] * 1.1

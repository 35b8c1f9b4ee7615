"""The plan of a segmentation adds up."""

import dataclasses
import math

import pytest

from kasthuri_ray.geometry import Box
from kasthuri_ray.inference.tiling import plan_tiles
from kasthuri_ray.output.block_grid import BlockGrid
from kasthuri_ray.segmentation.io_rates import WRITING_MVOXELS_PER_S, reading_rate
from kasthuri_ray.segmentation.plan import (
    JOIN_BYTES,
    MAX_COMPRESSION,
    ObjectTiming,
    TileTiming,
    describe_plan,
    plan_segmentation,
    read_voxels,
    stage_rates,
)
from kasthuri_ray.segmentation.trained_network import build_trained_network

KASTHURI = "phantom://em?shape=1850,26624,21504"
SMALL = {"image": "phantom://em?shape=5,150,210", "box": "1:5,10:150,:", "shard": [2, 32, 32], "block": [2, 64, 96]}


@pytest.fixture
def make_plan(make_job, run, tmp_path):
    """Return `make_plan(timing, ..., **segment)`: a job and its plan."""

    def make(timing=None, num_done=0, num_actors=1, gpus=0.0, price=None, copy=None, **segment):
        job = make_job(run, tmp_path / "out.zarr", copy=copy, price_per_hour=price, **segment)
        network = build_trained_network(job.settings, job.trained)
        return job, plan_segmentation(job, network, num_done, num_actors, gpus, timing)

    return make


def test_blocks_voxels_and_voxels_computed_twice_are_the_sums_over_all_blocks(make_plan):
    job, plan = make_plan(**SMALL)
    grid = BlockGrid(job.box, job.block)
    blocks = [grid.box(index) for index in grid]
    assert plan.blocks == len(blocks) == 2 * 3 * 3
    assert plan.voxels == sum(block.num_voxels for block in blocks) == 4 * 140 * 210
    tiling = (job.image.bounds.start, job.receptive_field.margin, job.receptive_field.factors, job.inference.tile)
    computed = sum(tile.input.num_voxels for block in blocks for tile in plan_tiles(block, *tiling))
    assert plan.computed_twice == pytest.approx(computed / plan.voxels - 1)
    chunks = {
        cell.start
        for block in blocks
        for cell in job.with_halo(block).grown_to_grid(job.image.chunk, job.image.chunk_origin).cells(job.image.chunk)
    }
    read = sum(Box.at(start, job.image.chunk).intersect(job.image.bounds).num_voxels for start in chunks)
    assert plan.bytes_read == read >= plan.voxels
    assert (plan.mvoxels_per_second, plan.hours, plan.gpu_hours, plan.cost) == (None,) * 4


def test_bytes_written_are_of_all_levels_compressed_like_a_sample_and_of_an_uncompressed_copy(make_plan):
    job, plan = make_plan(image="phantom://em?shape=2,600,700", save_mask=True)
    voxels = sum(math.prod(level.shape) for level in job.levels)
    assert len(job.levels) == 2
    assert plan.bytes_written == 2 * voxels
    assert "writes at most 2.1 MB" in describe_plan(plan, job)[0]
    _, with_copy = make_plan(image="phantom://em?shape=2,600,700", save_mask=True, copy="/tmp/copy")
    assert with_copy.bytes_written == plan.bytes_written + voxels
    for compression in (2.2, 3000.0):
        job, timed = make_plan(TileTiming(1.0, 1000, compression), image="phantom://em?shape=2,600,700")
        assert timed.bytes_written == round(voxels / min(compression, MAX_COMPRESSION))
        assert "writes about " in describe_plan(timed, job)[0]


def test_hours_and_cost_follow_from_the_time_of_the_sample(make_plan):
    timing = TileTiming(seconds=2.0, computed_voxels=1_000_000, compression=20.0)
    _, plan = make_plan(timing, num_done=6, num_actors=4, gpus=0.5, price=3.0, **SMALL)
    assert plan.stages.computing == pytest.approx(4 * 0.5 / (1 + plan.computed_twice))
    assert plan.mvoxels_per_second == pytest.approx(plan.stages.mvoxels_per_second)
    left = plan.voxels * (1 - plan.done / plan.blocks)
    assert plan.hours == pytest.approx(left / (plan.mvoxels_per_second * 1e6) / 3600)
    assert plan.gpu_hours == pytest.approx(4 * 0.5 * plan.hours)
    assert plan.cost == pytest.approx(3.0 * plan.gpu_hours)
    assert plan.cost_per_teravoxel == pytest.approx(plan.cost / left * 1e12)
    _, on_cpus = make_plan(timing, num_actors=4, price=3.0, **SMALL)
    assert on_cpus.gpu_hours == 0
    assert on_cpus.cost == pytest.approx(3.0 * 4 * on_cpus.hours)
    assert on_cpus.cost_per_teravoxel == pytest.approx(on_cpus.cost / on_cpus.voxels * 1e12)


def test_stages_follow_from_the_measured_rates_and_from_the_chunks_that_blocks_meet(make_plan, changed):
    timing = TileTiming(2.0, 1_000_000, 20.0, read_seconds=0.5, read_voxels=1_000_000)
    job, plan = make_plan(timing, num_actors=4, **SMALL)
    assert (plan.stages.network, plan.stages.decoding) == (None, None)  # a phantom is neither remote nor decoded
    assert plan.stages.writing == pytest.approx(4 * job.inference.threads * WRITING_MVOXELS_PER_S)
    assert plan.waits_for == "computing"
    remote = changed(job, image=dataclasses.replace(job.image, remote=True, format="BossDB"))
    rates = stage_rates(remote, timing, 4, 16.0)
    assert rates.network == pytest.approx(4 * 2.0 * plan.voxels / read_voxels(job))
    blocks = [job.grid.box(index) for index in job.grid]
    decoded = sum(job.chunks_around(block).num_voxels for block in blocks)
    assert rates.decoding == pytest.approx(16 * reading_rate("BossDB") * plan.voxels / decoded)
    assert plan.to_json()["stages"]["computing"] == plan.stages.computing


def test_objects_take_time_of_the_actors_and_memory_of_the_process_that_joins_them(make_plan):
    objects = ObjectTiming(seconds=3.0, voxels=1_000_000, num_components=40, compression=50.0)
    timing = TileTiming(2.0, 1_000_000, 20.0, objects=objects)
    job, plan = make_plan(timing, num_actors=4, objects=True, **SMALL)
    assert plan.object_hours == pytest.approx(3.0 * plan.voxels / 1e6 / 4 / 3600)
    assert plan.object_memory_bytes == round(JOIN_BYTES * 40 * plan.voxels / 1e6)
    assert any(line.startswith("objects: about ") for line in describe_plan(plan, job))
    _, saved = make_plan(timing, num_actors=4, save_objects=True, **SMALL)
    assert saved.object_hours == pytest.approx(2 * plan.object_hours)
    voxels = sum(math.prod(level.shape) for level in job.levels)
    assert saved.bytes_written == plan.bytes_written + round(4 * voxels / 50)
    assert make_plan(TileTiming(2.0, 1_000_000, 20.0), **SMALL)[1].object_hours is None


def test_all_of_the_kasthuri_volume_is_planned_without_a_loop_over_its_blocks(make_plan):
    job, plan = make_plan(TileTiming(1.0, 1_500_000, 25.0), image=KASTHURI, tile=(1, 1248, 1248))
    assert job.block == (64, 2048, 2048)
    assert plan.blocks == 29 * 13 * 11
    assert plan.voxels == 1850 * 26624 * 21504
    assert plan.voxels <= plan.bytes_read < 1.1 * plan.voxels
    assert plan.computed_twice < 0.2
    lines = "\n".join(describe_plan(plan, job))
    assert "4,147 blocks of 64 x 2048 x 2048" in lines
    assert "reads 1.06 TB" in lines


def test_the_plan_is_described_in_a_few_lines(make_plan, changed):
    job, plan = make_plan(TileTiming(1.0, 1_000_000, 20.0, halo_error=0.125), num_actors=2, price=2.0, **SMALL)
    lines = "\n".join(describe_plan(plan, job))
    assert "18 blocks of 2 x 64 x 96 (z,y,x), 0 done; 0.1 Mvoxels" in lines
    assert "with 2 actors: about" in lines
    assert "at the given price per actor-hour" in lines
    assert " a teravoxel)" in lines
    assert "it will wait for computing: computing " in lines
    assert "changes probabilities of a sample by up to 0.125" in lines
    assert "without compilation" not in lines
    compiled = changed(job, inference=changed(job.inference, compile=True))
    assert "measured without torch.compile; the job itself will be faster" in "\n".join(describe_plan(plan, compiled))

"""Tiles that Ray Data reads ahead: their order, errors of reading, and the time that a caller waits."""

import threading
import time

import numpy as np
import pytest

from kasthuri_ray.labels import IGNORE_LABEL
from kasthuri_ray.tiles.sampling import GridTiles, TileSource, TrainTiles, read_tile
from kasthuri_ray.tiles.streaming import (
    FIRST_PORTION_TILES,
    TileStream,
    plan_grid_tiles,
    plan_training_tiles,
    rank_share,
)

TILE = (1, 16, 16)


@pytest.fixture
def source(array_volume):
    """`source(**more)`: a source whose image and annotation are noise."""
    rng = np.random.default_rng(0)
    image = rng.integers(1, 256, (6, 50, 70), dtype=np.uint8)
    labels = (rng.random(image.shape) < 0.01).astype(np.uint8)

    def make(labels: np.ndarray = labels, image: np.ndarray = image, **more) -> TileSource:
        em = array_volume(image, **more)
        return TileSource(em, array_volume(labels, uri="array://labels"), em.bounds)

    return make


def next_epoch(stream: TileStream) -> list:
    return list(stream.batches())


def prefetch_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "tiles"]


@pytest.mark.parametrize(("batch_size", "world_size"), [(8, 1), (8, 2), (8, 3), (7, 4), (5, 5)])
def test_ranks_share_a_batch_and_differ_by_at_most_one_tile(batch_size, world_size):
    shares = [rank_share(batch_size, rank, world_size) for rank in range(world_size)]
    assert [position for share in shares for position in share] == list(range(batch_size))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_batch_smaller_than_the_workers_is_refused():
    with pytest.raises(ValueError, match=r"network\.batch_size 2 is smaller than the 3 workers that share it"):
        rank_share(2, 0, 3)


@pytest.mark.parametrize("world_size", [2, 3])
def test_any_number_of_ranks_reads_the_same_tiles_in_every_step(source, world_size):
    tiles = TrainTiles((source(),), TILE, 0, 0.5, 24)
    alone = plan_training_tiles(tiles, 1, 8, 0, 1)
    plans = [plan_training_tiles(tiles, 1, 8, rank, world_size) for rank in range(world_size)]
    for step in range(3):
        together = [
            plan.address(n) for plan in plans for n in list(plan.numbers)[step * plan.batch_size :][: plan.batch_size]
        ]
        assert together == [alone.address(n) for n in alone.numbers[step * 8 : step * 8 + 8]]
    assert {len(plan.numbers) // plan.batch_size for plan in plans} == {3}


def test_ranks_read_each_tile_of_a_grid_once(source):
    grid = GridTiles((source(),), TILE)
    plans = [plan_grid_tiles(grid, 4, rank, 3) for rank in range(3)]
    assert sorted(number for plan in plans for number in plan.numbers) == list(range(len(grid)))


def test_a_stream_returns_the_tiles_of_its_plans_in_order(local_ray, source):
    tiles = TrainTiles((source(),), TILE, 5, 0.5, 8 * FIRST_PORTION_TILES)
    stream = TileStream(plan_training_tiles(tiles, epoch, 8, 0, 1) for epoch in (3, 4))
    for epoch in (3, 4):
        batches = next_epoch(stream)
        assert [len(batch.number) for batch in batches] == [8] * 16
        assert np.concatenate([batch.number for batch in batches]).tolist() == list(range(8 * FIRST_PORTION_TILES))
        for batch in batches:
            assert (batch.image.dtype, batch.label.dtype) == (np.uint8, np.uint8)
            for number, image, label in zip(batch.number, batch.image, batch.label, strict=True):
                direct = read_tile(tiles.sources, tiles.address(epoch, int(number)))
                assert (image == direct[0]).all()
                assert (label == direct[1]).all()
    with pytest.raises(ValueError, match="the stream has no plan left"):
        next_epoch(stream)


def test_three_ranks_count_every_voxel_of_a_grid_once_and_name_its_blank_chunks(local_ray, source):
    image = np.full((2, 50, 70), 7, np.uint8)
    image[1, 16:32, 32:48] = 0
    grid = GridTiles((source(np.zeros(image.shape, np.uint8), image),), TILE)
    counts, numbers, blank_chunks = np.zeros(image.shape, int), [], set()
    for rank in range(3):
        stream = TileStream(iter([plan_grid_tiles(grid, 4, rank, 3)]))
        for batch in next_epoch(stream):
            for number, label in zip(batch.number, batch.label, strict=True):
                numbers.append(int(number))
                counts[grid.address(int(number)).box.slices()] += label != IGNORE_LABEL
        blank_chunks |= stream.blank_chunks
    assert sorted(numbers) == list(range(len(grid)))
    assert (counts == 1).all()
    assert blank_chunks == {"array://em 1:2,16:32,32:48"}


def test_an_error_of_reading_reaches_the_caller_with_its_message(local_ray, source):
    grid = GridTiles((source(np.full((6, 50, 70), 9, np.uint8)),), TILE)
    stream = TileStream(iter([plan_grid_tiles(grid, 4, 0, 1)]))
    with pytest.raises(
        Exception,
        match=r"array://labels 0:1,0:16,0:16: the .* holds 9 \(100.00%\) among .*; allowed are 0 to 1",
    ):
        next_epoch(stream)
    stream.close()


def test_time_that_the_caller_waits_for_a_slow_source_is_counted_and_its_computing_is_not(local_ray, source):
    def measure(read_seconds: float, step_seconds: float) -> tuple[float, float]:
        tiles = TrainTiles((source(seconds=read_seconds),), TILE, 0, 0.0, 32)
        stream = TileStream(iter([plan_training_tiles(tiles, 0, 8, 0, 1)]))
        start = time.perf_counter()
        for _ in stream.batches():
            time.sleep(step_seconds)
        return stream.waited_seconds, time.perf_counter() - start

    waited, total = measure(0.1, 0.0)
    assert waited > 0.9 * total > 0.5
    waited, total = measure(0.0, 0.5)
    assert waited < total - 1.75


def test_closing_a_stream_ends_the_threads_that_read_ahead(local_ray, source):
    tiles = TrainTiles((source(seconds=0.05),), TILE, 0, 0.0, 512)
    stream = TileStream(plan_training_tiles(tiles, epoch, 8, 0, 1) for epoch in range(100))
    batches = stream.batches()
    next(batches)
    assert len(prefetch_threads()) == 2
    batches.close()
    stream.close()
    deadline = time.monotonic() + 30
    while prefetch_threads() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert prefetch_threads() == []

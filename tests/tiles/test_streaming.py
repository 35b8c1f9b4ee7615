"""Tiles through Ray Data: in order, each once, what reading raises, and what waiting costs."""

import threading
import time

import numpy as np
import pytest

from kasthuri_ray.labels import IGNORE_LABEL
from kasthuri_ray.tiles.sampling import GridTiles, TileSource, TrainTiles, read_tile
from kasthuri_ray.tiles.streaming import FIRST_TILES, TileStream, plan_grid_tiles, plan_training_tiles, rank_share

TILE = (1, 16, 16)


@pytest.fixture
def source(array_volume):
    """`source(**more)`: a box of an image of noise, with an annotation of noise."""
    rng = np.random.default_rng(0)
    image = rng.integers(1, 256, (6, 50, 70), dtype=np.uint8)
    labels = (rng.random(image.shape) < 0.01).astype(np.uint8)

    def make(labels: np.ndarray = labels, image: np.ndarray = image, **more) -> TileSource:
        em = array_volume(image, **more)
        return TileSource(em, array_volume(labels, uri="array://labels"), em.bounds)

    return make


def run(stream: TileStream) -> list:
    return list(stream.batches())


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "tiles"]


@pytest.mark.parametrize(("batch_size", "world_size"), [(8, 1), (8, 2), (8, 3), (7, 4), (5, 5)])
def test_ranks_share_a_batch_to_within_one_tile(batch_size, world_size):
    shares = [rank_share(batch_size, rank, world_size) for rank in range(world_size)]
    assert [place for share in shares for place in share] == list(range(batch_size))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_batch_smaller_than_the_workers_is_refused():
    with pytest.raises(ValueError, match=r"network\.batch_size 2 is smaller than the 3 workers that share it"):
        rank_share(2, 0, 3)


@pytest.mark.parametrize("world_size", [2, 3])
def test_any_number_of_ranks_draw_the_same_tiles_in_every_step(source, world_size):
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


def test_a_stream_gives_the_tiles_of_its_plans_in_order(ray_here, source):
    tiles = TrainTiles((source(),), TILE, 5, 0.5, 8 * FIRST_TILES)
    stream = TileStream(plan_training_tiles(tiles, epoch, 8, 0, 1) for epoch in (3, 4))
    for epoch in (3, 4):
        batches = run(stream)
        assert [len(batch.number) for batch in batches] == [8] * 16
        assert np.concatenate([batch.number for batch in batches]).tolist() == list(range(8 * FIRST_TILES))
        for batch in batches:
            assert (batch.image.dtype, batch.label.dtype) == (np.uint8, np.uint8)
            for number, image, label in zip(batch.number, batch.image, batch.label, strict=True):
                direct = read_tile(tiles.sources, tiles.address(epoch, int(number)))
                assert (image == direct[0]).all()
                assert (label == direct[1]).all()
    with pytest.raises(ValueError, match="the stream has no plan left"):
        run(stream)


def test_a_grid_over_three_ranks_counts_every_voxel_once_and_its_missing_chunks(ray_here, source):
    image = np.full((2, 50, 70), 7, np.uint8)
    image[1, 16:32, 32:48] = 0
    here = source(np.zeros(image.shape, np.uint8), image)
    grid = GridTiles((here,), TILE)
    seen, numbers, blank = np.zeros(image.shape, int), [], set()
    for rank in range(3):
        stream = TileStream(iter([plan_grid_tiles(grid, 4, rank, 3)]))
        for batch in run(stream):
            for number, label in zip(batch.number, batch.label, strict=True):
                numbers.append(int(number))
                seen[grid.address(int(number)).box.slices()] += label != IGNORE_LABEL
        blank |= stream.blank_chunks
    assert sorted(numbers) == list(range(len(grid)))
    assert (seen == 1).all()
    assert blank == {"array://em 1:2,16:32,32:48"}


def test_what_reading_raises_reaches_the_caller_in_its_words(ray_here, source):
    grid = GridTiles((source(np.full((6, 50, 70), 9, np.uint8)),), TILE)
    stream = TileStream(iter([plan_grid_tiles(grid, 4, 0, 1)]))
    with pytest.raises(Exception, match=r"array://labels 0:1,0:16,0:16: the annotation holds 9; allowed are 0 to 1"):
        run(stream)
    stream.close()


def test_waiting_for_a_slow_source_is_counted_and_computing_is_not(ray_here, source):
    def waited(seconds_a_read: float, seconds_a_step: float) -> tuple[float, float]:
        tiles = TrainTiles((source(seconds=seconds_a_read),), TILE, 0, 0.0, 32)
        stream = TileStream(iter([plan_training_tiles(tiles, 0, 8, 0, 1)]))
        start = time.perf_counter()
        for _ in stream.batches():
            time.sleep(seconds_a_step)
        return stream.waited_seconds, time.perf_counter() - start

    slow, total = waited(0.2, 0.0)
    assert slow > 0.9 * total > 1.0
    quick, total = waited(0.0, 1.0)
    assert quick < total - 3.5


def test_closing_ends_what_reads_ahead(ray_here, source):
    tiles = TrainTiles((source(seconds=0.05),), TILE, 0, 0.0, 512)
    stream = TileStream(plan_training_tiles(tiles, epoch, 8, 0, 1) for epoch in range(100))
    batches = stream.batches()
    next(batches)
    assert len(threads()) == 2
    batches.close()
    stream.close()
    deadline = time.monotonic() + 30
    while threads() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert threads() == []

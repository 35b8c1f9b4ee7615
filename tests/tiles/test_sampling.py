"""Positions of tiles, the search for foreground, and the voxels that are read for a tile."""

import time
import tracemalloc

import numpy as np
import pytest

from kasthuri_ray.geometry import Box
from kasthuri_ray.labels import IGNORE_LABEL, LabelRule
from kasthuri_ray.tiles.label_census import take_census
from kasthuri_ray.tiles.sampling import GridTiles, TileAddress, TileSource, TrainTiles, read_tile
from kasthuri_ray.volumes.opening import open_volume

TILE = (1, 24, 32)


@pytest.fixture
def source(array_volume):
    """`source(labels, ...)`: a source whose image is noise, with these labels."""

    def make(labels: np.ndarray, box: Box | None = None, image: np.ndarray | None = None, **more) -> TileSource:
        if image is None:
            image = np.random.default_rng(0).integers(1, 256, labels.shape, dtype=np.uint8)
        em, annotation = array_volume(image), array_volume(labels, uri="array://labels", chunk=(4, 16, 16))
        return TileSource(em, annotation, box or em.bounds, **more)

    return make


def one_voxel(shape=(8, 80, 96), at=(3, 41, 50)) -> np.ndarray:
    labels = np.zeros(shape, np.uint8)
    labels[at] = 1
    return labels


def holds_foreground(tiles: TrainTiles, address: TileAddress) -> bool:
    labels = tiles.sources[address.source].read_labels(address.box)
    return bool(((labels != 0) & (labels != IGNORE_LABEL)).any())


@pytest.mark.parametrize("tile", [(1, 24, 32), (4, 16, 16), (8, 80, 96)])
def test_random_tiles_are_inside_the_box(source, tile):
    labels = np.random.default_rng(1).random((12, 100, 120)) < 0.001
    tiles = TrainTiles((source(labels.astype(np.uint8), Box((2, 10, 20), (10, 90, 116))),), tile, 0, 0.5, 64)
    for index in range(64):
        address = tiles.address(0, index)
        assert address.box.shape == tile
        assert address.own == address.box
        assert tiles.sources[0].box.contains(address.box)


def test_random_tiles_reach_every_position_about_equally_often(source):
    tiles = TrainTiles((source(np.zeros((4, 26, 34), np.uint8)),), TILE, 0, 0.0, 600)
    starts = [tiles.address(0, index).box.start for index in range(600)]
    _, counts = np.unique(starts, axis=0, return_counts=True)
    assert len(counts) == 4 * 3 * 3
    assert counts.min() > 5


def test_a_tile_depends_on_seed_epoch_and_index_and_not_on_the_order_of_drawing(source):
    labels = (np.random.default_rng(2).random((8, 80, 96)) < 0.001).astype(np.uint8)

    def tiles(seed: int) -> TrainTiles:
        return TrainTiles((source(labels), source(labels[:4])), TILE, seed, 0.5, 32)

    draws = [(epoch, index) for epoch in range(2) for index in range(32)]
    forward = {draw: tiles(3).address(*draw) for draw in draws}
    again = tiles(3)
    assert {draw: again.address(*draw) for draw in reversed(draws)} == forward
    assert len({(a.source, a.box) for a in forward.values()}) > 60
    other = [tiles(4).address(*draw) for draw in draws]
    assert sum(a == b for a, b in zip(other, forward.values(), strict=True)) < 4


def test_volumes_are_drawn_in_proportion_to_their_size(source):
    tiles = TrainTiles((source(np.zeros((2, 48, 64))), source(np.zeros((6, 48, 64)))), TILE, 0, 0.0, 400)
    drawn = [tiles.address(0, index).source for index in range(400)]
    assert 260 < sum(drawn) < 340


@pytest.mark.parametrize(
    ("share", "num_tiles"), [(0.5, 32), (0.5, 7), (0.3, 8), (0.1, 30), (0.29, 100), (0.7, 10), (1.0, 9), (1 / 3, 24)]
)
def test_every_epoch_has_the_requested_share_of_tiles_with_foreground(source, share, num_tiles):
    tiles = TrainTiles((source(one_voxel((16, 80, 96))),), TILE, 0, share, num_tiles)
    for epoch in range(2):
        found = sum(holds_foreground(tiles, tiles.address(epoch, index)) for index in range(num_tiles))
        # About one random tile in a hundred holds the single foreground voxel, too.
        assert share * num_tiles <= found < share * num_tiles + 1 + 0.05 * num_tiles


def test_tiles_with_foreground_are_spread_evenly_over_the_batches(source):
    tiles = TrainTiles((source(one_voxel((16, 80, 96))),), TILE, 0, 0.5, 32)
    found = [holds_foreground(tiles, tiles.address(0, index)) for index in range(32)]
    assert [sum(found[i : i + 8]) for i in range(0, 32, 8)] == [4, 4, 4, 4]


def test_the_foreground_voxel_can_be_anywhere_in_its_tile(source):
    tiles = TrainTiles((source(one_voxel()),), TILE, 0, 1.0, 200)
    starts = np.array([tiles.address(0, index).box.start for index in range(200)])
    assert set(starts[:, 0]) == {3}
    assert set(starts[:, 1]) == set(range(41 - 23, 42))
    assert set(starts[:, 2]) == set(range(50 - 31, 51))


def test_ignored_labels_are_not_foreground(source):
    labels = one_voxel()
    labels[:, :, 70:] = 9
    tiles = TrainTiles((source(labels, label_rule=LabelRule(0, 2, ignored=(9,))),), TILE, 0, 1.0, 20)
    for index in range(20):
        assert tiles.address(0, index).box.contains(Box((3, 41, 50), (4, 42, 51)))


def test_background_labels_are_not_foreground(source):
    labels = np.where(one_voxel(), 0, 2**64 - 1).astype(np.uint64)
    labels[:, :, 70:] = 2**64 - 3  # outside, of CREMI
    tiles = TrainTiles((source(labels, label_rule=LabelRule(0, 2, (), (2**64 - 1,))),), TILE, 0, 1.0, 20)
    for index in range(20):
        assert tiles.address(0, index).box.contains(Box((3, 41, 50), (4, 42, 51)))
    labels[labels == 0] = 2**64 - 1
    with pytest.raises(ValueError, match=r"annotation without foreground.*check the boxes and task.background"):
        take_census(tiles.sources, TILE, 0, 2)


def test_the_search_reads_boxes_of_a_tile_if_chunks_are_very_large(array_volume):
    labels = np.broadcast_to(np.uint8(0), (64, 1024, 1024))
    volume = array_volume(labels, chunk=labels.shape)
    tiles = TrainTiles((TileSource(volume, volume, volume.bounds),), (1, 256, 256), 0, 1.0, 8)
    tiles.address(0, 0)
    assert {read.shape for read in volume.reads} == {(1, 256, 256)}


def empty_source(array_volume, shape=(200, 1024, 1024)) -> TileSource:
    volume = array_volume(np.broadcast_to(np.uint8(0), shape), chunk=(4, 512, 512), uri="array://nothing")
    return TileSource(volume, volume, volume.bounds)


def test_a_tile_is_a_random_one_if_foreground_is_too_rare_to_find(array_volume):
    tiles = TrainTiles((empty_source(array_volume),), (1, 256, 256), 0, 1.0, 8)
    plain = TrainTiles((empty_source(array_volume),), (1, 256, 256), 0, 0.0, 8)
    assert tiles.address(1, 5) == plain.address(1, 5)
    assert sum(box.num_voxels for box in tiles.sources[0].annotation.reads) <= 16_000_000


def test_drawing_tiles_of_a_very_large_volume_takes_neither_time_nor_memory():
    shape = "1850,26624,21504"
    em, synapses = (open_volume(f"phantom://{channel}?shape={shape}") for channel in ("em", "synapse"))
    tiles = TrainTiles((TileSource(em, synapses, em.bounds),), (1, 256, 256), 0, 0.0, 4096)
    tracemalloc.start()
    start = time.perf_counter()
    for index in range(100):
        tiles.address(0, index)
    assert time.perf_counter() - start < 1
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()
    assert len(GridTiles(tiles.sources, tiles.tile)) == 1850 * 104 * 84
    assert GridTiles(tiles.sources, tiles.tile).address(1850 * 104 * 84 - 1).box.stop == (1850, 26624, 21504)


def test_every_voxel_of_every_volume_counts_in_one_tile_of_the_grid(source):
    labels = np.random.default_rng(3).integers(0, 2, (3, 50, 70), dtype=np.uint8)
    boxes = [Box((0, 0, 0), (3, 50, 70)), Box((1, 7, 9), (3, 45, 60))]
    grid = GridTiles(tuple(source(labels, box) for box in boxes), (2, 24, 32))
    counts = [np.zeros(labels.shape, int) for _ in boxes]
    for number in range(len(grid)):
        address = grid.address(number)
        _, tile_labels, _ = read_tile(grid.sources, address)
        voxels = np.argwhere(tile_labels != IGNORE_LABEL) + address.box.start
        counts[address.source][tuple(voxels.T)] += 1
        truth = labels[address.box.slices()]
        assert (tile_labels[tile_labels != IGNORE_LABEL] == truth[tile_labels != IGNORE_LABEL]).all()
    for count, box in zip(counts, boxes, strict=True):
        expected = np.zeros(labels.shape, int)
        expected[box.slices()] = 1
        assert (count == expected).all()
    with pytest.raises(IndexError, match=f"the grid has {len(grid)} tiles"):
        grid.address(len(grid))


def test_images_and_annotations_of_wide_types_become_uint8(source):
    rng = np.random.default_rng(4)
    image = rng.integers(1000, 3000, (2, 24, 32), dtype=np.uint16)
    ids = rng.integers(0, 2, (2, 24, 32), dtype=np.uint64) * np.uint64(2**60 + 1)
    wide = source(ids, image=image, intensity=(1000.0, 2000.0), label_rule=LabelRule(0.1, 2))
    box = Box((1, 0, 0), (2, 24, 32))
    grey, labels, blank_chunks = read_tile((wide,), TileAddress(0, box, box))
    assert (grey.dtype, labels.dtype) == (np.uint8, np.uint8)
    expected = np.clip((image[1:].astype(float) - 1000) / 1000 * 255, 0, 255)
    assert np.abs(grey - expected).max() <= 0.5001
    assert (labels == (ids[1:] > 0)).all()
    assert blank_chunks == []


def test_object_ids_without_a_threshold_are_refused_with_volume_and_box(source):
    ids = source(np.full((2, 24, 32), 7, np.uint64))
    box = Box((1, 0, 0), (2, 24, 32))
    message = r"array://labels 1:2,0:24,0:32: the annotation holds 7 \(100.00%\) among the .*; allowed are 0 to 1"
    with pytest.raises(ValueError, match=message):
        read_tile((ids,), TileAddress(0, box, box))


def test_without_an_annotation_all_labels_are_ignored(source):
    unlabelled = TileSource(source(one_voxel()).image, None, Box((0, 0, 0), (8, 80, 96)))
    box = Box((3, 40, 40), (4, 64, 72))
    image, labels, _ = read_tile((unlabelled,), TileAddress(0, box, box))
    assert (labels == IGNORE_LABEL).all()
    assert (image == unlabelled.image.array[box.slices()]).all()


def test_only_chunks_that_hold_nothing_but_zeros_are_blank(array_volume):
    image = np.full((8, 64, 64), 9, np.uint8)
    image[:4, 32:64, 0:32] = 0  # a whole chunk
    image[4:, 0:30, 0:30] = 0  # most of another
    em = array_volume(image, chunk=(4, 32, 32))
    partly_blank = TileSource(em, None, em.bounds)

    def blank_chunks_and_reads(*ranges: tuple[int, int]) -> tuple[list[str], int]:
        box = Box(*zip(*ranges, strict=True))
        em.reads.clear()
        return read_tile((partly_blank,), TileAddress(0, box, box))[2], len(em.reads)

    blank = ["array://em 0:4,32:64,0:32"]
    assert blank_chunks_and_reads((0, 1), (20, 60), (10, 50)) == (blank, 2)
    assert blank_chunks_and_reads((0, 4), (32, 64), (0, 32)) == (blank, 1)
    assert blank_chunks_and_reads((5, 6), (5, 25), (5, 25)) == ([], 2)
    assert blank_chunks_and_reads((5, 6), (5, 32), (5, 32)) == ([], 1)
    assert blank_chunks_and_reads((0, 1), (0, 32), (0, 64)) == ([], 1)


def test_voxels_below_the_range_of_grey_levels_are_black_and_not_blank(array_volume):
    em = array_volume(np.full((1, 32, 32), 5, np.uint16), chunk=(1, 32, 32))
    dark = TileSource(em, None, em.bounds, intensity=(100.0, 200.0))
    image, _, blank_chunks = read_tile((dark,), TileAddress(0, em.bounds, em.bounds))
    assert (image == 0).all()
    assert blank_chunks == []


def test_tiles_of_a_grid_with_context_have_one_shape_and_count_the_same_voxels(source):
    labels = np.random.default_rng(3).integers(0, 2, (3, 60, 120), dtype=np.uint8)
    plain = GridTiles((source(labels, Box((1, 0, 16), (3, 60, 100))),), (1, 24, 32))
    grid = GridTiles(plain.sources, plain.tile, context=(0, 8, 16))
    assert len(grid) == len(plain)
    for number in range(len(grid)):
        alone, address = plain.address(number), grid.address(number)
        assert grid.without_context(number) == alone
        assert address.own == alone.own
        assert address.box.shape == (1, 40, 64)
        assert address.box.contains(alone.box)
        assert plain.sources[0].image.bounds.contains(address.box)
        image, counted, _ = read_tile(grid.sources, address)
        assert (image == plain.sources[0].image.read(address.box)).all()
        assert (counted != IGNORE_LABEL).sum() == alone.own.num_voxels
        assert (counted[alone.own.slices(address.box.start)] == labels[alone.own.slices()]).all()
    assert grid.address(0).box == Box((1, 0, 0), (2, 40, 64))  # at an end of the image it extends inward

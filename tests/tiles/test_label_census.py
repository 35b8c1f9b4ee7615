"""The labels of the training boxes, counted before any work, and the tiles that are drawn where they are sparse."""

import itertools

import numpy as np
import pytest

from kasthuri_ray.errors import InputError
from kasthuri_ray.geometry import Box
from kasthuri_ray.labels import IGNORE_LABEL, LabelRule
from kasthuri_ray.tiles import label_census
from kasthuri_ray.tiles.label_census import take_census
from kasthuri_ray.tiles.sampling import TileSource, TrainTiles, read_tile

TILE = (1, 24, 32)
SPARSE = LabelRule(num_classes=3, ignored=(255,))


@pytest.fixture
def source(array_volume):
    """`source(labels, ...)`: a source whose image is noise, with these labels."""

    def make(labels, box=None, image=None, rule=SPARSE):
        if image is None:
            image = np.random.default_rng(0).integers(1, 256, labels.shape, dtype=np.uint8)
        em, annotation = array_volume(image), array_volume(labels, uri="array://labels", chunk=(4, 16, 16))
        return TileSource(em, annotation, box or em.bounds, label_rule=rule)

    return make


def patches(shape=(8, 240, 320), number=4, size=10, seed=0) -> np.ndarray:
    """Return labels of which a few small patches are labelled."""
    rng, labels = np.random.default_rng(seed), np.full(shape, 255, np.uint8)
    for _ in range(number):
        z, y, x = (rng.integers(0, n - m + 1) for n, m in zip(shape, (1, size, size), strict=True))
        labels[z, y : y + size, x : x + size] = rng.integers(0, 3, (size, size))
    return labels


def make_tiles(sources, share=0.0, seed=0, num_tiles=64) -> TrainTiles:
    _, blocks = take_census(sources, TILE, seed, 3)
    return TrainTiles(tuple(sources), TILE, seed, share, num_tiles, blocks)


def labels_of(tiles, address):
    return read_tile(tiles.sources, address)[1]


def test_labelled_voxels_and_tiles_are_counted_by_class(source):
    labels, box = patches(), Box((1, 30, 50), (8, 229, 301))
    census, blocks = take_census([source(labels, box), source(labels)], TILE, 0, 3)
    inside = labels[box.slices()]
    expected = [np.bincount(each.ravel(), minlength=256)[:3] for each in (inside, labels)]
    assert census.counts == tuple(np.sum(expected, axis=0))
    assert census.num_read == census.num_voxels == inside.size + labels.size
    tiles = 0
    for each in (inside, labels):
        tiles += len({tuple(at // TILE) for at in np.argwhere(each != 255)})
    assert census.num_labelled_tiles == tiles
    assert blocks.is_whole
    assert not census.is_complete
    assert census.labelled_voxels() == {"labelled": sum(census.counts), "voxels": census.num_voxels}


@pytest.mark.parametrize("share", [0.0, 0.5])
@pytest.mark.parametrize("number", [1, 30])
def test_every_tile_that_is_drawn_holds_a_labelled_voxel(source, share, number):
    tiles = make_tiles([source(patches(number=number)), source(np.full((4, 60, 70), 255, np.uint8))], share)
    for epoch, index in itertools.product(range(2), range(48)):
        address = tiles.address(epoch, index)
        labels = labels_of(tiles, address)
        assert address.box.shape == TILE
        assert tiles.sources[address.source].box.contains(address.box)
        assert (labels != IGNORE_LABEL).any()
        if share and index % 2 == 0:
            assert ((labels != IGNORE_LABEL) & (labels > 0)).any()


def test_a_tile_follows_from_seed_epoch_and_index_however_it_was_found(source):
    labels = patches(number=3)
    draws = [(epoch, index) for epoch in range(2) for index in range(32)]
    first = {draw: make_tiles([source(labels)]).address(*draw) for draw in draws}
    again = make_tiles([source(labels)])
    assert {draw: again.address(*draw) for draw in reversed(draws)} == first
    assert len(set(first.values())) > 50
    assert make_tiles([source(labels)], seed=1).address(0, 0) != first[0, 0]


def test_tiles_of_complete_labels_are_those_that_are_drawn_without_a_census(source):
    labels = np.random.default_rng(1).integers(0, 3, (4, 80, 96), dtype=np.uint8)
    for rule in (SPARSE, LabelRule(num_classes=3)):
        complete = source(labels, rule=rule)
        census, blocks = take_census([complete], TILE, 0, 3)
        assert blocks is None
        assert census.is_complete
        assert census.labelled_voxels() == {"labelled": labels.size, "voxels": labels.size}


def test_where_most_tiles_hold_labels_they_are_drawn_as_without_a_census(source):
    labels = np.random.default_rng(1).integers(0, 3, (4, 80, 96), dtype=np.uint8)
    labels[0, 0, :5] = 255
    sparse = source(labels)
    tiles, plain = make_tiles([sparse]), TrainTiles((sparse,), TILE, 0, 0.0, 64)
    assert tiles.labelled is not None
    assert [tiles.address(0, index) for index in range(64)] == [plain.address(0, index) for index in range(64)]


def test_a_labelled_voxel_is_found_where_no_random_tile_holds_one(source):
    labels = np.full((40, 400, 400), 255, np.uint8)
    labels[33, 200, 7] = 1
    tiles = make_tiles([source(labels)])
    starts = {tiles.address(0, index).box.start for index in range(64)}
    assert {start[0] for start in starts} == {33}
    assert len(starts) > 20


def test_where_the_image_is_nan_nothing_is_labelled(source):
    labels = np.random.default_rng(1).integers(0, 3, (4, 80, 96), dtype=np.uint8)
    image = np.full(labels.shape, np.nan, np.float32)
    image[2, 40:60, 50:70] = 0.5
    tiles = make_tiles([source(labels, image=image, rule=LabelRule(num_classes=3))])
    assert all((labels_of(tiles, tiles.address(0, index)) != IGNORE_LABEL).any() for index in range(32))
    whole = source(labels, image=np.zeros(labels.shape, np.float32), rule=LabelRule(num_classes=3))
    assert take_census([whole], TILE, 0, 3)[1] is None


def test_boxes_without_a_labelled_voxel_are_refused_with_what_is_ignored(source):
    with pytest.raises(InputError, match=r"without a labelled voxel: none .* 0:4,0:50,0:70, after .* ignored \(255\)"):
        take_census([source(np.full((4, 50, 70), 255, np.uint8))], TILE, 0, 3)
    with pytest.raises(InputError, match=r"annotation without foreground: none was found .*task.ignore_label"):
        take_census([source(np.zeros((4, 50, 70), np.uint8))], TILE, 0, 3)
    one = np.full((4, 50, 70), 255, np.uint8)
    one[1, 2, 3] = 1
    assert take_census([source(one), source(one * 0 + 255)], TILE, 0, 3)[0].counts == (0, 1, 0)


def test_the_count_reads_whole_chunks_and_each_voxel_once(source):
    searched = source(patches((8, 800, 900)), Box((1, 10, 5), (7, 775, 890)))
    take_census([searched], TILE, 0, 3)
    num_reads = np.zeros((8, 800, 900), int)
    for box in searched.annotation.reads:
        num_reads[box.slices()] += 1
        grown = box.grown_to_grid((4, 32, 32))
        assert box == grown.intersect(searched.box)
    assert (num_reads[searched.box.slices()] == 1).all()
    assert num_reads.sum() == searched.box.num_voxels


def test_complete_labels_are_read_until_every_class_was_seen(array_volume):
    labels = np.zeros((400, 1024, 1024), np.uint8)
    labels[:, ::7] = 1
    volume = array_volume(labels, chunk=(4, 512, 512))
    census, _ = take_census([TileSource(volume, volume, volume.bounds)], (1, 256, 256), 0, 2)
    assert census.num_read <= label_census.MIN_COMPLETE_VOXELS + 2_000_000 * label_census.BLOCKS_AT_ONCE
    assert not census.is_sample


@pytest.mark.parametrize("num_sources", [1, 3])
def test_an_annotation_without_foreground_is_refused_after_64_million_voxels(array_volume, num_sources):
    def empty_source():
        volume = array_volume(np.broadcast_to(np.uint8(0), (200, 1024, 1024)), chunk=(4, 512, 512), uri="array://no")
        return TileSource(volume, volume, volume.bounds)

    sources = [empty_source() for _ in range(num_sources)]
    with pytest.raises(InputError, match=r"array://no 0:200,0:1024,0:1024.*, after a search of 6\d(\.\d)? million"):
        take_census(sources, (1, 256, 256), 0, 2)
    read = [sum(box.num_voxels for box in source.annotation.reads) for source in sources]
    assert 60_000_000 < sum(read) <= 64_000_000
    assert min(read) > sum(read) / num_sources - 2_000_000


def test_of_very_large_boxes_a_sample_is_counted_and_tiles_from_all_of_them_are_drawn(array_volume, monkeypatch):
    monkeypatch.setattr(label_census, "MAX_SPARSE_VOXELS", 4_000_000)
    labels = np.full((40, 512, 512), 255, np.uint8)
    labels[:, 100:300, 100:300] = 1
    volume = array_volume(labels, chunk=(1, 256, 256))
    sparse = TileSource(volume, volume, volume.bounds, label_rule=SPARSE)
    census, blocks = take_census([sparse], (1, 64, 64), 0, 3)
    assert 3_000_000 < census.num_read <= 4_000_000
    assert census.is_sample
    assert not blocks.is_whole
    assert census.labelled_voxels()["sampled_from"] == labels.size
    assert census.train_name.startswith("train (a sample of 3,")
    grid = len({tuple(at // (1, 64, 64)) for at in np.argwhere(labels != 255)})
    assert census.num_labelled_tiles == pytest.approx(grid, rel=0.3)
    tiles = TrainTiles((sparse,), (1, 64, 64), 0, 0.0, 64, blocks)
    drawn = {tiles.address(epoch, index).box.start[0] for epoch in range(4) for index in range(64)}
    assert len(drawn) > 35

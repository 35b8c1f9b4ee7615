"""A sample of a box: where its cutouts lie, what they cost to read, and what happens to chunks that cannot be read."""

from collections import Counter

import numpy as np
import pytest

from kasthuri_ray.errors import VolumeError
from kasthuri_ray.geometry import Box
from kasthuri_ray.volumes.cutout_sample import CUTOUT, NUM_CUTOUTS, read_sample, sample_boxes, spread_cutouts


@pytest.fixture
def large(array_volume):
    """Return `large(shape, chunk)`: a volume without memory, whose bounds do not start at 0."""

    def make(shape, chunk, dtype=np.uint8, **more):
        return array_volume(np.broadcast_to(dtype(7), shape), chunk=chunk, offset=(-3, 100, 20), **more)

    return make


@pytest.mark.parametrize("shape", [(400, 4000, 4000), (1, 9000, 9000), (8000, 300, 300), (64, 512, 20_000)])
def test_cutouts_of_a_large_box_lie_in_as_many_chunks_and_in_every_part_of_it(large, shape):
    volume = large(shape, (16, 64, 64))
    box = Box.at(volume.bounds.start, shape)
    cutouts = [cutout for group in spread_cutouts(volume, box) for cutout in group]
    assert len(cutouts) == NUM_CUTOUTS
    for cutout in cutouts:
        assert box.contains(cutout)
        assert cutout.grown_to_grid(volume.chunk, volume.chunk_origin).num_voxels == 16 * 64 * 64
    assert len({cutout.grown_to_grid(volume.chunk, volume.chunk_origin) for cutout in cutouts}) == NUM_CUTOUTS
    full = [cutout for cutout in cutouts if cutout.shape == tuple(map(min, CUTOUT, shape))]
    assert len(full) > 0.5 * NUM_CUTOUTS  # the others are cut at an end of the box
    for axis in range(3):
        length = shape[axis] / 4
        if length < 200:
            continue
        quarters = Counter(int((cutout.start[axis] - box.start[axis]) / length) for cutout in cutouts)
        assert min(quarters[quarter] for quarter in range(4)) >= 4, (axis, quarters)


def test_cutouts_lie_inside_a_box_that_cuts_chunks_and_are_the_same_each_time(large):
    volume = large((60, 900, 900), (32, 256, 256))
    box = Box((7, 333, 57), (19, 812, 701))
    groups = spread_cutouts(volume, box)
    assert len(groups) == 1 * 3 * 3  # all chunks that it meets
    assert sum(map(len, groups)) >= NUM_CUTOUTS
    assert all(box.contains(cutout) for group in groups for cutout in group)
    assert groups == spread_cutouts(volume, box)


@pytest.mark.parametrize("chunk", [(1, 16, 16), (4, 64, 64), (64, 512, 512)])
def test_a_small_box_is_read_as_a_whole(array_volume, chunk):
    voxels = np.random.default_rng(0).integers(0, 60_000, (6, 150, 200), np.uint16)
    volume, box = array_volume(voxels, chunk=chunk), Box((1, 20, 0), (6, 150, 190))
    np.testing.assert_array_equal(np.sort(read_sample(volume, box)), np.sort(voxels[box.slices()], None))


@pytest.mark.parametrize(("dtype", "num_sections"), [(np.uint8, 5), (np.uint64, 2)])
def test_few_sections_that_are_decoded_as_a_whole_are_read(large, dtype, num_sections):
    volume = large((500, 16_000, 12_000), (1, 256, 256), dtype, decode_shape=(1, 16_000, 12_000))
    groups = spread_cutouts(volume, volume.bounds)
    assert len(groups) == num_sections
    assert all(len({cutout.start[0] for cutout in group}) == 1 for group in groups)
    assert sum(map(len, groups)) >= NUM_CUTOUTS


def test_several_boxes_share_the_cutouts(large):
    volume = large((100, 2000, 2000), (16, 64, 64))
    boxes = [Box((10 * n, 200, 200), (10 * n + 8, 1500, 1500)) for n in range(8)]
    assert sample_boxes(volume, boxes).size > 0.8 * NUM_CUTOUTS * np.prod(CUTOUT)
    assert all(sum(box.contains(read) for read in volume.reads) == 4 for box in boxes)


def test_a_chunk_that_cannot_be_read_is_left_out_and_a_source_that_fails_is_an_error(array_volume, monkeypatch):
    volume, damaged = array_volume(np.arange(8, dtype=np.uint8).repeat(4096).reshape(8, 64, 64), chunk=(2, 64, 64)), [4]

    plain = volume.read

    def read(box):
        if box.start[0] in damaged:
            raise VolumeError(f"damaged: {box}")
        return plain(box)

    monkeypatch.setattr(volume, "read", read)
    assert set(read_sample(volume, volume.bounds)) == {0, 1, 2, 3, 6, 7}
    damaged += [0, 2]
    with pytest.raises(VolumeError, match="damaged: "):
        read_sample(volume, volume.bounds)

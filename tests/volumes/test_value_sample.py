"""Samples of values: exact for small volumes, bounded and spread for large ones, and found in sparse ones."""

import numpy as np
import pytest
import zarr

from kasthuri_ray.geometry import Box
from kasthuri_ray.volumes.opening import open_volume
from kasthuri_ray.volumes.value_sample import ValueCounts, best_cutout, cutout_around, sample_values, split_sections


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint64", "float32", "bool"])
def test_counts_of_parts_are_those_of_the_whole(dtype):
    voxels = np.random.default_rng(0).integers(0, 2 if dtype == "bool" else 40, (6, 50, 60)).astype(dtype)
    if dtype == "float32":
        voxels[0, :5] = np.nan
    known = voxels[~np.isnan(voxels)] if dtype == "float32" else voxels.ravel()
    counts = ValueCounts.merge([ValueCounts.of(section) for section in voxels])
    assert (counts.num_voxels, counts.num_nan) == (voxels.size, voxels.size - known.size)
    assert counts.values.dtype == dtype
    assert dict(zip(counts.values.tolist(), counts.counts.tolist(), strict=True)) == {
        value: int((known == value).sum()) for value in np.unique(known).tolist()
    }
    expected = np.percentile(known.astype(np.float64), (0, 1, 50, 99, 100), method="inverted_cdf")
    np.testing.assert_array_equal(np.array(counts.percentiles((0, 1, 50, 99, 100)), np.float64), expected)
    assert counts.share(counts.values > 0) == pytest.approx((known > 0).sum() / voxels.size)
    assert counts.share(counts.values == 1, among=counts.values > 0) == pytest.approx(
        (known == 1).sum() / (known > 0).sum()
    )


def test_labels_above_2_to_the_53_are_kept_exactly():
    labels = np.array([[2**64 - 1, 2**64 - 2, 5, 5]], np.uint64)
    counts = ValueCounts.of(labels)
    assert counts.values.tolist() == [5, 2**64 - 2, 2**64 - 1]
    assert counts.percentiles((50, 100)) == [5, 2**64 - 1]


def test_a_volume_of_nan_alone_has_no_values():
    counts = ValueCounts.of(np.full((2, 3), np.nan, np.float32))
    assert (counts.num_voxels, counts.num_nan, counts.percentiles((50,))) == (6, 6, [])


def test_a_small_volume_is_read_whole_and_counted_section_by_section(array_volume):
    voxels = np.random.default_rng(0).integers(0, 9, (10, 40, 50), np.uint8)
    volume = array_volume(voxels, chunk=(4, 16, 16), offset=(2, 0, 5))
    sample = sample_values(volume)
    assert sample.is_whole
    assert [box.start[0] for box, _ in sample.cutouts] == list(range(2, 12))
    for box, counts in sample.cutouts:
        np.testing.assert_array_equal(counts.counts, np.unique(voxels[box.slices((2, 0, 5))], return_counts=True)[1])
    assert len(volume.reads) == 3  # no chunk is read twice


@pytest.mark.parametrize(
    ("shape", "chunk", "most_decoded"),
    [
        ((5000, 4000, 3000), (16, 256, 256), 32 * 16 * 512 * 512),
        ((2000, 3000, 3000), (512, 512, 512), 1 << 30),
        ((4, 30000, 30000), (1, 64, 64), 32 * 512 * 512),
        ((100_000, 64, 64), (64, 64, 64), 32 * 128 * 64 * 64),
    ],
)
def test_of_a_large_volume_few_cutouts_are_read_that_are_spread_over_it(array_volume, shape, chunk, most_decoded):
    volume = array_volume(np.broadcast_to(np.uint8(7), shape), chunk=chunk)
    sample = sample_values(volume)
    assert not sample.is_whole
    assert sample.total.values.tolist() == [7]
    assert sum(box.num_voxels for box in volume.reads) <= 32 * 512 * 512
    chunks = {cell for box in volume.reads for cell in box.grown_to_grid(chunk).cells(chunk)}
    assert sum(cell.num_voxels for cell in chunks) <= most_decoded
    thirds = split_sections(volume.bounds, 3)
    assert all(any(third.overlaps(box) for box in volume.reads) for third in thirds)


def test_of_sections_that_are_decoded_whole_only_few_are_read(array_volume):
    shape = (300, 20_000, 20_000)
    volume = array_volume(np.broadcast_to(np.uint8(7), shape), chunk=(1, 512, 512), decode_shape=(1, *shape[1:]))
    sample_values(volume)
    assert len({box.start[0] for box in volume.reads}) <= 3


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_what_is_stored_of_a_sparse_volume_is_found(tmp_path, zarr_format):
    stored = zarr.create_array(
        tmp_path / "x.zarr", shape=(20_000,) * 3, chunks=(64,) * 3, dtype="u1", fill_value=0, zarr_format=zarr_format
    )
    stored[10_048:10_112, 5000:5100, 7000:7100] = 9
    volume = open_volume(str(tmp_path / "x.zarr"))
    found = volume.find_stored(volume.bounds)
    assert found is not None
    assert found.shape == (64, 64, 64)
    assert found.overlaps(Box((10_048, 5000, 7000), (10_112, 5100, 7100)))
    assert volume.find_stored(Box((0, 0, 0), (10_048, 20_000, 20_000))) is None
    sample = sample_values(volume)
    assert sample.is_stored_part
    assert sample.total.values.tolist() == [0, 9]
    assert sample.total.num_voxels <= 512 * 512


def test_what_is_stored_of_an_n5_is_found_in_its_own_order_of_axes(tmp_path):
    import tensorstore as ts

    spec = {"driver": "n5", "kvstore": {"driver": "file", "path": str(tmp_path / "x.n5")}}
    metadata = {"dimensions": [9000, 8000, 7000], "blockSize": [64, 32, 16], "dataType": "uint8"}
    spec["metadata"] = {**metadata, "compression": {"type": "gzip"}}
    store = ts.open(spec, create=True).result()
    store[8000:8010, 100:110, 6000:6010].write(np.full((10, 10, 10), 3, np.uint8)).result()
    found = open_volume(str(tmp_path / "x.n5")).find_stored(Box((0, 0, 0), (7000, 8000, 9000)))
    assert found is not None
    assert found.contains(Box((6000, 100, 8000), (6001, 101, 8001)))


def test_the_best_cutout_of_a_part_has_the_highest_score_and_none_has_no_score(array_volume):
    voxels = np.zeros((9, 20, 20), np.uint8)
    voxels[4, :, :3], voxels[5, :, :2] = 1, 1
    sample = sample_values(array_volume(voxels, chunk=(3, 20, 20)))

    def share(counts: ValueCounts) -> float:
        return counts.share(counts.values > 0)

    first, middle, last = split_sections(Box((0, 0, 0), voxels.shape), 3)
    assert best_cutout(sample, first, share) is None
    assert best_cutout(sample, middle, share) == Box((4, 0, 0), (5, 20, 20))
    assert best_cutout(sample, last, lambda counts: 1.0) == Box((7, 0, 0), (8, 20, 20))  # the middle one of equal ones


def test_a_cutout_lies_in_the_volume_and_holds_the_middle_of_the_box(array_volume):
    volume = array_volume(np.broadcast_to(np.uint8(0), (50, 3000, 2000)), chunk=(1, 700, 300), offset=(0, -100, 0))
    for box in (Box((3, -100, 0), (4, -99, 1)), Box((49, 2890, 1999), (50, 2900, 2000)), volume.bounds):
        cutout = cutout_around(volume, box)
        assert volume.bounds.contains(cutout)
        assert cutout.shape == (1, 512, 512)
        middle = tuple((a + b) // 2 for a, b in zip(box.start, box.stop, strict=True))
        assert cutout.contains(Box.at(middle, (1, 1, 1)))

"""Arrays are divided into shards and chunks that fit them."""

import pytest

from kasthuri_ray.output.layout import ArrayLayout, fit_layout, plan_layout

KASTHURI = (1850, 26624, 21504)


def test_a_large_array_has_the_default_layout_and_a_small_one_a_smaller_layout():
    assert plan_layout(KASTHURI) == ArrayLayout((64, 1024, 1024), (64, 256, 256))
    assert plan_layout((20, 165, 768)) == ArrayLayout((20, 165, 768), (20, 165, 256))
    assert plan_layout((100, 1100, 600)) == ArrayLayout((64, 1024, 768), (64, 256, 256))


@pytest.mark.parametrize("shape", [(1, 1, 1), (20, 165, 768), (100, 1100, 600), (65, 257, 1025), KASTHURI])
@pytest.mark.parametrize(
    "requested", [(None, None), ((32, 512, 512), None), (None, (16, 128, 100)), ((8, 90, 96), (4, 45, 32))]
)
def test_chunks_divide_shards_and_neither_is_longer_than_the_array_needs(shape, requested):
    layout = plan_layout(shape, *requested)
    for n, shard, chunk in zip(shape, layout.shard, layout.chunk, strict=True):
        assert shard % chunk == 0
        assert chunk <= n
        assert shard < n + chunk
    assert fit_layout(layout, shape) == layout


def test_the_chunk_follows_from_a_shard_and_the_shard_from_a_chunk():
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

"""The phantom as a volume: the same voxels in every box, its metadata and its errors."""

import pickle

import numpy as np
import pytest

from kasthuri_ray.geometry import Box
from kasthuri_ray.volumes import phantom_volume
from kasthuri_ray.volumes.chunk_cache import open_cache
from kasthuri_ray.volumes.phantom_volume import MAX_SHAPE, open_phantom

CHANNELS = ("em", "membrane", "synapse")


@pytest.mark.parametrize("channel", CHANNELS)
@pytest.mark.parametrize("seed", [0, 7, 4294967295])
def test_every_box_shows_the_same_voxels(channel, seed):
    volume = open_phantom(f"phantom://{channel}?shape=5,300,333&seed={seed}")
    whole = volume.read(volume.bounds)
    rng = np.random.default_rng(seed)
    boxes = [Box((0, 127, 127), (5, 129, 129)), Box((4, 299, 332), (5, 300, 333)), Box((2, 128, 0), (3, 129, 1))]
    for _ in range(40):
        start = [int(rng.integers(0, n)) for n in volume.bounds.shape]
        shape = [int(rng.integers(0, n - a)) + 1 for a, n in zip(start, volume.bounds.shape, strict=True)]
        boxes += [Box.at(start, shape), Box.at(start, (1, 1, 1))]
    for box in boxes:
        assert np.array_equal(volume.read(box), whole[box.slices()]), box


def test_a_larger_volume_of_the_same_seed_contains_the_smaller_one():
    small = open_phantom("phantom://em?shape=2,200,200&seed=3")
    large = open_phantom("phantom://em?shape=1850,26624,21504&seed=3")
    assert np.array_equal(small.read(small.bounds), large.read(small.bounds))


def test_a_pickled_phantom_reads_the_same():
    volume = open_phantom("phantom://em?shape=2,90,90&seed=1")
    assert np.array_equal(pickle.loads(pickle.dumps(volume)).read(volume.bounds), volume.read(volume.bounds))


def test_squares_are_painted_once_for_all_processes(tmp_path, monkeypatch):
    cache = open_cache(str(tmp_path), "1GB")
    read = {
        channel: open_phantom(f"phantom://{channel}?shape=2,200,300&seed=5", cache=cache).read(
            Box((0, 0, 0), (2, 200, 300))
        )
        for channel in CHANNELS
    }
    assert len(list(tmp_path.rglob("*.chunk"))) == 2 * 2 * 3

    phantom_volume.find_square.cache_clear()  # as another process
    monkeypatch.setattr(phantom_volume, "paint_section", lambda *place: pytest.fail(f"{place} is painted again"))
    for channel, voxels in read.items():
        again = open_phantom(f"phantom://{channel}?shape=2,200,300&seed=5", cache=cache)
        assert np.array_equal(again.read(again.bounds), voxels)
        without = open_phantom(f"phantom://{channel}?shape=2,200,300&seed=6")
        with pytest.raises(pytest.fail.Exception, match="painted again"):
            without.read(Box((0, 0, 0), (1, 1, 1)))


def test_a_damaged_square_in_the_cache_is_painted_again(tmp_path):
    volume = open_phantom("phantom://em?shape=1,128,128&seed=5", cache=open_cache(str(tmp_path), "1GB"))
    voxels = volume.read(volume.bounds)
    (stored,) = tmp_path.rglob("*.chunk")
    content = bytearray(stored.read_bytes())
    content[-1] ^= 1
    stored.write_bytes(content)
    phantom_volume.find_square.cache_clear()
    assert np.array_equal(volume.read(volume.bounds), voxels)


def test_a_phantom_has_the_voxel_size_and_default_shape_of_its_documentation():
    volume = open_phantom("phantom://synapse")
    assert volume.bounds == Box((0, 0, 0), (100, 1024, 1024))
    assert volume.voxel_size_nm == (30, 6, 6)
    assert volume.dtype == np.uint8
    assert not volume.remote
    assert volume.uri == "phantom://synapse?shape=100,1024,1024&seed=0"


def test_the_last_corner_of_the_whole_kasthuri_volume_can_be_read():
    corner = Box.at([n - 40 for n in MAX_SHAPE], (1, 40, 40))
    tile = {c: open_phantom(f"phantom://{c}?shape=1850,26624,21504").read(corner) for c in CHANNELS}
    assert tile["em"].std() > 15
    assert set(np.unique(tile["membrane"])) == {0, 1}


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("phantom://axon", "em, membrane, synapse"),
        ("phantom://em?shape=1,2", "three sizes"),
        ("phantom://em?shape=0,64,64", "between 1,1,1 and 1850,26624,21504"),
        ("phantom://em?shape=9999,64,64", "between 1,1,1 and 1850,26624,21504"),
        ("phantom://em?shape=a,b,c", "three sizes"),
        ("phantom://em?seed=-1", "whole number from 0"),
        ("phantom://em?seed=x", "whole number from 0"),
        ("phantom://em?size=3", "it has shape and seed"),
        ("phantom://em?seed=1&seed=2", "twice"),
    ],
)
def test_malformed_uris_are_refused_with_what_is_allowed(uri, message):
    with pytest.raises(ValueError, match=message):
        open_phantom(uri)


def test_a_phantom_has_one_resolution():
    assert open_phantom("phantom://em", mip=0).uri == open_phantom("phantom://em").uri
    with pytest.raises(ValueError, match="one resolution, 0"):
        open_phantom("phantom://em", mip=1)


def test_a_box_outside_is_refused_with_the_bounds():
    with pytest.raises(ValueError, match="0:2,0:64,0:64"):
        open_phantom("phantom://em?shape=2,64,64").read(Box((0, 0, 0), (3, 64, 64)))

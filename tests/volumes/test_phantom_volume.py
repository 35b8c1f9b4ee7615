"""The synthetic cortex: the same voxels whatever box asks, and what is in them."""

import pickle

import numpy as np
import pytest

from kasthuri_ray.geometry import Box
from kasthuri_ray.volumes.phantom_volume import LARGEST, open_phantom

CHANNELS = ("em", "membrane", "synapse")


@pytest.mark.parametrize("channel", CHANNELS)
@pytest.mark.parametrize("seed", [0, 7, 4294967295])
def test_any_box_shows_the_same_voxels(channel, seed):
    whole = open_phantom(f"phantom://{channel}?shape=5,300,333&seed={seed}")
    everything = whole.read(whole.bounds)
    rng = np.random.default_rng(seed)
    boxes = [Box((0, 127, 127), (5, 129, 129)), Box((4, 299, 332), (5, 300, 333)), Box((2, 128, 0), (3, 129, 1))]
    for _ in range(40):
        start = [int(rng.integers(0, n)) for n in whole.bounds.shape]
        shape = [int(rng.integers(0, n - a)) + 1 for a, n in zip(start, whole.bounds.shape, strict=True)]
        boxes += [Box.at(start, shape), Box.at(start, (1, 1, 1))]
    for box in boxes:
        assert np.array_equal(whole.read(box), everything[box.slices()]), box


def test_a_larger_volume_of_the_same_seed_holds_the_smaller_one():
    small = open_phantom("phantom://em?shape=2,200,200&seed=3")
    large = open_phantom("phantom://em?shape=1850,26624,21504&seed=3")
    assert np.array_equal(small.read(small.bounds), large.read(small.bounds))


def test_a_pickled_phantom_reads_the_same():
    volume = open_phantom("phantom://em?shape=2,90,90&seed=1")
    assert np.array_equal(pickle.loads(pickle.dumps(volume)).read(volume.bounds), volume.read(volume.bounds))


def test_metadata():
    volume = open_phantom("phantom://synapse")
    assert volume.bounds == Box((0, 0, 0), (100, 1024, 1024))
    assert volume.voxel_size_nm == (30, 6, 6)
    assert volume.dtype == np.uint8
    assert not volume.remote
    assert volume.uri == "phantom://synapse?shape=100,1024,1024&seed=0"


def test_the_far_corner_of_the_whole_kasthuri_volume():
    corner = Box.at([n - 40 for n in LARGEST], (1, 40, 40))
    tile = {c: open_phantom(f"phantom://{c}?shape=1850,26624,21504").read(corner) for c in CHANNELS}
    assert tile["em"].std() > 15
    assert set(np.unique(tile["membrane"])) == {0, 1}


@pytest.mark.parametrize(
    ("uri", "words"),
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
def test_what_it_refuses(uri, words):
    with pytest.raises(ValueError, match=words):
        open_phantom(uri)


def test_it_has_one_resolution():
    assert open_phantom("phantom://em", mip=0).uri == open_phantom("phantom://em").uri
    with pytest.raises(ValueError, match="one resolution, 0"):
        open_phantom("phantom://em", mip=1)


def test_a_box_outside_shows_the_bounds():
    with pytest.raises(ValueError, match="0:2,0:64,0:64"):
        open_phantom("phantom://em?shape=2,64,64").read(Box((0, 0, 0), (3, 64, 64)))


def read_all(shape: str, seed: int) -> dict[str, np.ndarray]:
    volumes = {c: open_phantom(f"phantom://{c}?shape={shape}&seed={seed}") for c in CHANNELS}
    return {c: volume.read(volume.bounds) for c, volume in volumes.items()}


@pytest.mark.parametrize("seed", [0, 7])
def test_membranes_and_synapses_have_their_shares(seed):
    sections = [Box((z, 0, 0), (z + 1, 768, 768)) for z in (2, 11, 20)]
    share = {
        c: np.mean([open_phantom(f"phantom://{c}?shape=24,768,768&seed={seed}").read(b) for b in sections])
        for c in ("membrane", "synapse")
    }
    assert 0.15 < share["membrane"] < 0.25
    assert 0.003 < share["synapse"] < 0.015


def test_what_is_annotated_is_seen():
    seen = read_all("3,384,384", 7)
    em, membrane, synapse = seen["em"], seen["membrane"] > 0, seen["synapse"] > 0
    assert em[membrane].mean() < em[~membrane].mean() - 40
    assert em[synapse].mean() < em[membrane].mean()
    assert em.dtype == seen["membrane"].dtype == seen["synapse"].dtype == np.uint8
    assert (membrane & synapse).sum() > 0.2 * synapse.sum()  # a synapse lies on a border between cells


def test_sections_shift_and_go_on():
    volume = open_phantom("phantom://membrane?shape=12,384,384&seed=3")
    membrane = {z: volume.read(Box.at((z, 0, 0), (1, 384, 384))).ravel() for z in (0, 1, 11)}
    correlation = {z: np.corrcoef(membrane[0], membrane[z])[0, 1] for z in (1, 11)}
    assert 0.3 < correlation[1] < 0.95
    assert correlation[11] < 0.2


def test_sections_differ_in_brightness_and_squares_have_no_seams():
    em = read_all("6,384,384", 5)["em"].astype(float)
    assert em.mean(axis=(1, 2)).std() > 2
    for steps in (np.abs(np.diff(em, axis=1)).mean(axis=(0, 2)), np.abs(np.diff(em, axis=2)).mean(axis=(0, 1))):
        assert steps[[127, 255]].max() < steps.max() * 1.05
        assert steps[[127, 255]].mean() < steps.mean() * 1.1


def test_another_seed_is_another_piece():
    one, two = read_all("1,200,200", 0), read_all("1,200,200", 1)
    assert np.mean(one["membrane"] == two["membrane"]) < 0.8

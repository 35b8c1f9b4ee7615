"""The painted tissue: its statistics, and voxels that never change."""

import hashlib

import numpy as np
import pytest

from kasthuri_ray.geometry import Box
from kasthuri_ray.phantom.section import CHANNELS, SQUARE, paint_section
from kasthuri_ray.volumes.phantom_volume import open_phantom


def test_the_voxels_of_a_square_never_change():
    squares = [paint_section(seed, z, row, column) for seed, z, row, column in ((0, 0, 0, 0), (7, 1849, 207, 167))]
    assert {square.shape for square in squares} == {(len(CHANNELS), SQUARE, SQUARE)}
    digests = [hashlib.sha256(square.tobytes()).hexdigest()[:16] for square in squares]
    assert digests == ["049161cb07db1c27", "5eeee5c7f2ac117f"]


def read_channels(shape: str, seed: int) -> dict[str, np.ndarray]:
    volumes = {c: open_phantom(f"phantom://{c}?shape={shape}&seed={seed}") for c in CHANNELS}
    return {c: volume.read(volume.bounds) for c, volume in volumes.items()}


@pytest.mark.parametrize("seed", [0, 7])
def test_membranes_and_synapses_fill_realistic_fractions_of_the_volume(seed):
    sections = [Box((z, 0, 0), (z + 1, 768, 768)) for z in (2, 11, 20)]
    fraction = {
        c: np.mean([open_phantom(f"phantom://{c}?shape=24,768,768&seed={seed}").read(b) for b in sections])
        for c in ("membrane", "synapse")
    }
    assert 0.15 < fraction["membrane"] < 0.25
    assert 0.003 < fraction["synapse"] < 0.015


def test_annotated_membranes_and_synapses_are_dark_in_the_image():
    channels = read_channels("3,384,384", 7)
    em, membrane, synapse = channels["em"], channels["membrane"] > 0, channels["synapse"] > 0
    assert em[membrane].mean() < em[~membrane].mean() - 40
    assert em[synapse].mean() < em[membrane].mean()
    assert em.dtype == channels["membrane"].dtype == channels["synapse"].dtype == np.uint8
    assert (membrane & synapse).sum() > 0.2 * synapse.sum()  # a synapse is on a border between cells


def test_neighboring_sections_are_similar_and_distant_ones_are_not():
    volume = open_phantom("phantom://membrane?shape=12,384,384&seed=3")
    membrane = {z: volume.read(Box.at((z, 0, 0), (1, 384, 384))).ravel() for z in (0, 1, 11)}
    correlation = {z: np.corrcoef(membrane[0], membrane[z])[0, 1] for z in (1, 11)}
    assert 0.3 < correlation[1] < 0.95
    assert correlation[11] < 0.2


def test_sections_differ_in_brightness_and_squares_have_no_seams():
    em = read_channels("6,384,384", 5)["em"].astype(float)
    assert em.mean(axis=(1, 2)).std() > 2
    for steps in (np.abs(np.diff(em, axis=1)).mean(axis=(0, 2)), np.abs(np.diff(em, axis=2)).mean(axis=(0, 1))):
        assert steps[[127, 255]].max() < steps.max() * 1.05
        assert steps[[127, 255]].mean() < steps.mean() * 1.1


def test_another_seed_is_another_tissue():
    one, two = read_channels("1,200,200", 0), read_channels("1,200,200", 1)
    assert np.mean(one["membrane"] == two["membrane"]) < 0.8

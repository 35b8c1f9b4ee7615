"""Scores that mean nothing are named in a sentence; ordinary ones are not."""

import numpy as np
import pytest

from kasthuri_ray.metrics import sanity
from kasthuri_ray.metrics.intervals import TileSample, tile_counts
from kasthuri_ray.metrics.thresholds import best_threshold, outcomes_at
from kasthuri_ray.metrics.voxel_scores import average_precision


@pytest.mark.parametrize(
    ("num_foreground", "start"),
    [
        (950, "95.0% of the labelled voxels of the test box are foreground, more than 90%"),
        (900, ""),
        (100, ""),
        (0, ""),
    ],
)
def test_nearly_everything_foreground_is_named(num_foreground, start):
    warning = sanity.share_warning(num_foreground, 1000, "the test box")
    assert bool(warning) == bool(start)
    assert warning.startswith(start)


def test_nearly_nothing_foreground_is_named():
    assert sanity.share_warning(9, 100_000, "val").startswith("Only 9 of 100,000 labelled voxels of val are foreground")
    assert sanity.share_warning(10, 100_000, "val") == ""


def test_a_class_without_a_voxel_is_named_with_its_split():
    voxels = {
        "train": {"background": 10, "membrane": 5, "synapse": 1},
        "val": {"background": 10, "membrane": 0, "synapse": 0},
        "test": {"background": 0, "membrane": 0, "synapse": 0},
    }
    assert sanity.missing_class_warnings(voxels) == [
        "No voxel of val is membrane or synapse: its scores say nothing about that.",
        "No voxel of test is labelled.",
    ]


def chance_of(probability, labels, tile=100):
    """Return the warning about a prediction whose tiles are runs of voxels."""
    from kasthuri_ray.metrics.voxel_counts import VoxelCounts

    tiles = []
    for start in range(0, len(labels), tile):
        counts = VoxelCounts.zeros()
        part = slice(start, start + tile)
        counts.add(probability[None, part], probability[part] >= 0.5, labels[part])
        tiles.append(counts)
    (counts,) = sum(tiles, VoxelCounts.zeros()).by_class
    threshold, _ = best_threshold(counts)
    sample = TileSample.of([tile_counts(each, [threshold]) for each in tiles])
    whole = outcomes_at(counts, threshold)
    return sanity.chance_warning(
        counts, whole, sample.average_precision_interval([average_precision(counts)]), "synapse"
    )


def test_a_random_prediction_is_named_and_a_weak_but_real_one_is_not():
    rng = np.random.default_rng(0)
    labels = (rng.random(20_000) < 0.1).astype(np.uint8)
    assert "chance" in (warning := chance_of(rng.random(20_000), labels)) or "hardly better" in warning
    assert chance_of(np.clip(rng.random(20_000) * 0.6 + 0.3 * labels, 0, 1), labels) == ""
    assert "no better than that of marking every voxel as synapse, 0.1" in chance_of(np.full(20_000, 0.25), labels)


def test_a_prediction_that_leaves_out_a_few_voxels_shows_no_more_skill_than_one_that_marks_all():
    labels = np.tile([0, 0, 0, 1], 5000).astype(np.uint8)
    probability = np.where(np.arange(20_000) < 40, np.where(labels, 0.9, 0.1), 0.9)
    assert "hardly better than that of marking every voxel as synapse, 0.400" in chance_of(probability, labels)


def test_a_prediction_that_is_the_same_everywhere_is_named(count_voxels):
    labels = np.array([0, 0, 1, 1])
    (same,) = count_voxels(np.full((1, 4), 0.7), labels, labels).by_class
    (different,) = count_voxels(np.array([[0.1, 0.1, 0.1, 0.9]]), labels, labels).by_class
    assert sanity.constant_warning(same, "synapse").startswith("The probability of synapse is the same in all 4 voxels")
    assert sanity.constant_warning(different, "synapse") == ""


@pytest.mark.parametrize(
    ("val", "test", "differs"), [(0.8, 0.4, True), (0.3, 0.7, True), (0.8, 0.41, False), (0.0, 0.0, False)]
)
def test_val_and_test_that_differ_by_a_factor_of_two_are_named(val, test, differs):
    assert bool(sanity.difference_warning(val, test)) == differs


@pytest.mark.parametrize(
    ("threshold", "start"),
    [(0.9, "The prediction marks none of 1,000 voxels as synapse"), (0.05, "F1 0.182 is no better")],
)
def test_a_threshold_that_does_not_fit_is_named_with_one_that_does(count_voxels, threshold, start):
    labels = np.arange(1000) % 10 == 0
    probability = np.where(labels, 0.5, 0.25)
    (counts,) = count_voxels(probability[None], probability >= threshold, labels.astype(np.uint8)).by_class
    warning = sanity.chance_warning(counts, outcomes_at(counts, threshold), (0.9, 1.0), "synapse")
    assert warning.startswith(start)
    assert " its F1 would be 1.000: the threshold does not fit." in warning
    assert "Try a loss" not in warning

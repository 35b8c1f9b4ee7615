"""Bootstrap intervals hold the score, widen where there are few tiles, and do not depend on how tiles are grouped."""

import numpy as np
import pytest
from sklearn import metrics as sk

from kasthuri_ray.metrics import intervals, voxel_scores
from kasthuri_ray.metrics.thresholds import outcomes_at
from kasthuri_ray.metrics.voxel_counts import VoxelCounts

THRESHOLD = 0.5


@pytest.fixture
def tiles(random_voxels, count_voxels):
    """`tiles(num)` returns the counts of tiles of 500 voxels."""
    return lambda num: [count_voxels(*random_voxels(num=500, seed=seed)) for seed in range(num)]


def sample_of(tiles):
    return intervals.TileSample.of([intervals.tile_counts(tile, [THRESHOLD]) for tile in tiles])


def test_the_intervals_hold_the_scores_and_narrow_with_more_tiles(tiles):
    widths = []
    for num in (10, 160):
        whole = sum(tiles(num), VoxelCounts.zeros())
        sample = sample_of(tiles(num))
        exact = voxel_scores.mean_average_precision(whole)
        low, high = sample.average_precision_interval([exact])
        assert low < exact < high
        low_f1, high_f1 = sample.f1_interval()
        assert low_f1 < outcomes_at(whole.by_class[0], THRESHOLD).f1 < high_f1
        widths.append(high - low)
    assert 2 < widths[0] / widths[1] < 8  # the square root of 16, by chance a little more or less


def test_tiles_that_do_not_count_and_resamples_without_the_class_change_no_interval(tiles, count_voxels):
    few = tiles(6)
    for tile in few[1:]:
        tile.histograms[:, 1] = 0  # the class occurs in one tile of six
    exact = [voxel_scores.average_precision(sum(few, VoxelCounts.zeros()).by_class[0])]
    low, high = sample_of(few).average_precision_interval(exact)
    assert 0.02 < low <= exact[0] <= high
    with_empty = sample_of([*few, *(VoxelCounts.zeros() for _ in range(30))])
    assert with_empty.average_precision_interval(exact) == (low, high)
    assert with_empty.f1_interval() == sample_of(few).f1_interval()


def test_intervals_hold_the_score_of_probabilities_that_crowd_in_one_bin(random_voxels, count_voxels):
    counts = []
    for seed in range(12):
        probability, predicted, labels = random_voxels(num=500, seed=seed)
        counts.append(count_voxels(probability / 60, predicted, labels))
    exact = voxel_scores.average_precision(sum(counts, VoxelCounts.zeros()).by_class[0])
    low, high = sample_of(counts).average_precision_interval([exact])
    assert low < exact < high


def test_more_tiles_than_units_are_added_up_to_groups_of_neighbours(tiles, monkeypatch):
    all_tiles = tiles(40)
    monkeypatch.setattr(intervals, "MAX_UNITS", 7)
    sample = sample_of(all_tiles)
    assert len(sample.outcomes) == len(sample.histograms) == 7
    assert sample.histograms.sum() == sum(tile.num_voxels for tile in all_tiles)


def test_average_precisions_of_coarse_histograms_are_close_to_those_of_the_voxels(random_voxels, count_voxels):
    voxels = [random_voxels(num=3000, seed=seed) for seed in range(5)]
    histograms = np.stack([intervals.tile_counts(count_voxels(*each), [THRESHOLD])[1] for each in voxels])
    found = intervals.average_precisions(histograms)[:, 0]
    for (probability, _, labels), score in zip(voxels, found, strict=True):
        kept = labels != 255
        assert score == pytest.approx(sk.average_precision_score(labels[kept], probability[0, kept]), abs=0.01)
    assert intervals.average_precisions(np.zeros((1, 2, 8))) == 0


def test_a_class_that_occurs_nowhere_is_left_out_as_in_the_mean_score_itself(tiles):
    one = [intervals.tile_counts(tile, [THRESHOLD]) for tile in tiles(12)]
    absent = [(np.zeros((1, 3), np.int64), np.stack([rows.sum(1), 0 * rows[:, 1]], 1)) for _, rows in one]
    both = [tuple(map(np.concatenate, zip(*pair, strict=True))) for pair in zip(one, absent, strict=True)]
    of_one, of_both = intervals.TileSample.of(one), intervals.TileSample.of(both)
    exact = voxel_scores.mean_average_precision(sum(tiles(12), VoxelCounts.zeros()))
    assert of_both.f1_interval() == pytest.approx(of_one.f1_interval())
    assert of_both.average_precision_interval([exact, 0.0]) == pytest.approx(of_one.average_precision_interval([exact]))
    for name, interval in of_both.outcome_intervals().items():
        assert interval == pytest.approx(of_one.outcome_intervals()[name])

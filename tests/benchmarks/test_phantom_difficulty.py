"""Simple methods do not find the phantom's synapses."""

import numpy as np
import pytest

from kasthuri_ray.benchmarks.phantom_difficulty import best_f1, run_phantom_difficulty


def test_best_f1_is_the_highest_over_all_thresholds():
    score, truth = np.array([0.9, 0.8, 0.8, 0.3, 0.1]), np.array([1, 1, 0, 1, 0])
    by_hand = [2 * found / (predicted + 3) for predicted, found in ((1, 1), (3, 2), (4, 3), (5, 3))]
    assert best_f1(score, truth) == pytest.approx(max(by_hand))
    assert best_f1(truth.astype(float), truth) == 1


def test_neither_a_threshold_nor_a_forest_finds_synapses(capsys):
    figures = run_phantom_difficulty(seed=3, shape=(16, 512, 512), num_held_out=4, num_trees=20, num_samples=8_000)
    assert 0.05 < figures["threshold_f1"] < 0.5
    assert 0.05 < figures["forest_f1"] < 0.5
    assert figures["held_out_share"] > 0.005
    assert 0.15 < figures["membrane_share"] < 0.25

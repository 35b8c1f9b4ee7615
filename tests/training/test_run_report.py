"""The end of a run: the tiles that its page shows, and the metrics that it writes."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from kasthuri_ray.config.loading import GivenSettings, resolve_settings
from kasthuri_ray.metrics.class_map import classes_at
from kasthuri_ray.metrics.intervals import tile_counts
from kasthuri_ray.metrics.voxel_counts import BINS, VoxelCounts
from kasthuri_ray.training.run_report import TileResults, TileScore, _final_metrics, _warnings, choose_example_tiles
from kasthuri_ray.training.training_state import TrainingProgress

VAL = {"foreground_f1": 0.5, "confusion": [[90, 5], [5, 10]]}


def score(number, found, missed, wrong):
    counts = VoxelCounts(np.array([[50, wrong], [missed, found]]), np.zeros((1, 2, BINS), np.int64))
    return TileScore(number, counts.confusion, tile_counts(counts, [0.5]))


def test_the_examples_are_the_best_tile_the_worst_and_some_between():
    scores = [score(number, number, 20 - number, 0) for number in range(20)]
    scores += [score(number, 0, 0, 5) for number in range(20, 40)]
    shown = choose_example_tiles(scores)
    assert len(shown) == 6
    assert (shown[0], shown[-1]) == (0, 19)
    assert all(2 <= b - a <= 5 for a, b in itertools.pairwise(shown))


def test_without_foreground_the_examples_are_spread_over_the_box():
    assert choose_example_tiles([score(number, 0, 0, 0) for number in range(11)], 3) == [0, 5, 10]
    assert choose_example_tiles([score(7, 0, 0, 0)]) == [7]
    assert choose_example_tiles([score(n, 1, 0, 0) for n in range(3)]) == [0, 1, 2]
    assert choose_example_tiles([]) == []


def job_with_test(test: object) -> SimpleNamespace:
    """Return the parts of a job that metrics and warnings depend on."""
    tiles = SimpleNamespace(test=test, train=SimpleNamespace(tiles_per_epoch=12), absent_chunks={})
    settings = resolve_settings(GivenSettings("phantom_synapse"))
    return SimpleNamespace(tiles=tiles, settings=settings)


def results_of(*voxels):
    """Return the results of tiles, each of which is (probability, labels)."""
    total, scores = VoxelCounts.zeros(), []
    for number, (probability, labels) in enumerate(voxels):
        counts, probability = VoxelCounts.zeros(), np.array([probability])
        counts.add(probability, classes_at(probability, [0.25]), np.array(labels))
        scores.append(TileScore(number, counts.confusion, tile_counts(counts, [0.25])))
        total += counts
    return TileResults(None, total, scores)


@pytest.fixture
def progress() -> TrainingProgress:
    history = [{"training_seconds": 4.0, "seconds": 5.0}] * 2
    best = {"epoch": 1, "average_precision": 0.5, "threshold": 0.25, "val": VAL}
    return TrainingProgress(epoch=2, history=history, best=best, waited=0.4, blank_chunks=["array://em 0:1,0:2,0:3"])


def test_a_finished_run_has_these_metrics_and_warnings(progress):
    results, job = results_of(([0.1, 0.9], [0, 1]), ([0.2, 0.8, 0.1], [0, 1, 0])), job_with_test(object())
    metrics = _final_metrics(job, progress, results)
    assert metrics["test"]["foreground_f1"] == 1.0
    assert metrics["test"]["threshold"] == 0.25
    assert metrics["test"]["foreground_f1_interval"] == [1.0, 1.0]
    assert metrics["test"]["average_precision_interval"] == [1.0, 1.0]
    assert (metrics["val"], metrics["best_epoch"], metrics["epochs"]) == (VAL, 1, 2)
    assert (metrics["tiles_per_second"], metrics["wait_share"], metrics["seconds"]) == (3.0, 0.05, 10.0)
    assert metrics["blank_chunks"] == 1
    assert _warnings(job, progress, results.counts) == [
        "Image chunks that hold nothing but zeros and may be missing at the source: 1, for instance array://em "
        "0:1,0:2,0:3."
    ]


@pytest.mark.parametrize("test", [None, object()])
def test_without_an_annotation_for_test_there_are_no_test_metrics(progress, test):
    job = job_with_test(test)
    results = results_of(([0.1], [0])) if test is None else results_of()  # of the validation box
    assert _final_metrics(job, progress, results)["test"] is None
    assert _warnings(job, progress, results.counts)[0].startswith(
        "There is no annotation for test: the metrics are those of the val"
    )


def test_scores_that_mean_nothing_are_warnings(progress):
    job, rng = job_with_test(object()), np.random.default_rng(0)
    tiles = [(rng.random(50), rng.random(50) < 0.2) for _ in range(40)]
    (warning,) = _final_metrics(job, progress, results_of(*tiles))["warnings"]
    assert "95% interval" in warning or "no better than" in warning
    no_foreground = results_of(*[([0.1, 0.2], [0, 0])] * 3)
    assert "No voxel of test is synapse" in " ".join(_final_metrics(job, progress, no_foreground)["warnings"])
    constant = results_of(*[([0.9, 0.9], [0, 1])] * 3)
    assert "is the same in all 6 voxels" in " ".join(_final_metrics(job, progress, constant)["warnings"])
    good = results_of(*[([0.1, 0.9, 0.2, 0.1], [0, 1, 0, 0])] * 9)
    (warning,) = _final_metrics(job, progress, good)["warnings"]
    assert warning.startswith("F1 is 0.500 on val and 1.000 on test. They differ by a factor of two or more")

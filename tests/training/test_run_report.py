"""The end of a run: the tiles that its page shows, and the metrics that it writes."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from kasthuri_ray.metrics.voxel_counts import VoxelCounts
from kasthuri_ray.training.run_report import TileScore, _final_metrics, _warnings, choose_example_tiles
from kasthuri_ray.training.training_state import TrainingProgress


def test_the_examples_are_the_best_tile_the_worst_and_some_between():
    scores = [
        TileScore(number, true_positives=number, false_negatives=20 - number, false_positives=0) for number in range(20)
    ]
    scores += [TileScore(number, true_positives=0, false_negatives=0, false_positives=5) for number in range(20, 40)]
    shown = choose_example_tiles(scores)
    assert len(shown) == 6
    assert (shown[0], shown[-1]) == (0, 19)
    assert all(2 <= b - a <= 5 for a, b in itertools.pairwise(shown))


def test_without_foreground_the_examples_are_spread_over_the_box():
    assert choose_example_tiles([TileScore(number, 0, 0, 0) for number in range(11)], 3) == [0, 5, 10]
    assert choose_example_tiles([TileScore(7, 0, 0, 0)]) == [7]
    assert choose_example_tiles([TileScore(n, 1, 0, 0) for n in range(3)]) == [0, 1, 2]
    assert choose_example_tiles([]) == []


def job_with_test(test: object) -> SimpleNamespace:
    """Return the parts of a job that metrics and warnings depend on."""
    tiles = SimpleNamespace(test=test, train=SimpleNamespace(tiles_per_epoch=12), absent_chunks={})
    return SimpleNamespace(tiles=tiles)


@pytest.fixture
def progress() -> TrainingProgress:
    history = [{"training_seconds": 4.0, "seconds": 5.0}] * 2
    best = {"epoch": 1, "average_precision": 0.5, "threshold": 0.25, "val": {"foreground_f1": 0.5}}
    return TrainingProgress(epoch=2, history=history, best=best, waited=0.4, blank_chunks=["array://em 0:1,0:2,0:3"])


def test_a_finished_run_has_these_metrics_and_warnings(progress):
    counts = VoxelCounts.zeros()
    counts.add(np.array([0.1, 0.9]), np.array([0, 1]), np.array([0, 1]))
    job = job_with_test(object())
    metrics = _final_metrics(job, progress, counts)
    assert metrics["test"]["foreground_f1"] == 1.0
    assert metrics["test"]["threshold"] == 0.25
    assert (metrics["val"], metrics["best_epoch"], metrics["epochs"]) == ({"foreground_f1": 0.5}, 1, 2)
    assert (metrics["tiles_per_second"], metrics["wait_share"], metrics["seconds"]) == (3.0, 0.05, 10.0)
    assert metrics["blank_chunks"] == 1
    assert _warnings(job, progress, counts) == [
        "Image chunks that hold nothing but zeros and may be missing at the source: 1, for instance array://em "
        "0:1,0:2,0:3."
    ]


@pytest.mark.parametrize("test", [None, object()])
def test_without_an_annotation_for_test_there_are_no_test_metrics(progress, test):
    job = job_with_test(test)
    counts = VoxelCounts.zeros()
    if test is None:
        counts.add(np.array([0.1]), np.array([0]), np.array([0]))  # of the validation box
    assert _final_metrics(job, progress, counts)["test"] is None
    assert _warnings(job, progress, counts)[0].startswith(
        "There is no annotation for test: the metrics are those of the val"
    )

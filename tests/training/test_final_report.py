"""Which tiles the page shows, and which figures a run ends with."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from kasthuri_ray.metrics.voxel_counts import VoxelCounts
from kasthuri_ray.training.final_report import TileScore, _all_metrics, _warnings, choose_tiles
from kasthuri_ray.training.training_job import TrainingProgress


def test_the_gallery_holds_the_best_the_worst_and_what_lies_between():
    scores = [TileScore(number, found=number, missed=20 - number, wrong=0) for number in range(20)]
    scores += [TileScore(number, found=0, missed=0, wrong=5) for number in range(20, 40)]
    shown = choose_tiles(scores)
    assert len(shown) == 6
    assert (shown[0], shown[-1]) == (0, 19)
    assert all(2 <= b - a <= 5 for a, b in itertools.pairwise(shown))


def test_without_foreground_the_gallery_spreads_over_the_box():
    assert choose_tiles([TileScore(number, 0, 0, 0) for number in range(11)], 3) == [0, 5, 10]
    assert choose_tiles([TileScore(7, 0, 0, 0)]) == [7]
    assert choose_tiles([TileScore(n, 1, 0, 0) for n in range(3)]) == [0, 1, 2]
    assert choose_tiles([]) == []


@pytest.fixture
def progress() -> TrainingProgress:
    history = [{"training_seconds": 4.0, "seconds": 5.0}] * 2
    best = {"epoch": 1, "average_precision": 0.5, "threshold": 0.25, "val": {"foreground_f1": 0.5}}
    return TrainingProgress(epoch=2, history=history, best=best, waited=0.4, blank_chunks=["array://em 0:1,0:2,0:3"])


def test_a_run_ends_with_these_figures(progress):
    counts = VoxelCounts.zeros()
    counts.add(np.array([0.1, 0.9]), np.array([0, 1]), np.array([0, 1]))
    job = SimpleNamespace(test=object(), train=SimpleNamespace(tiles_per_epoch=12))
    found = _all_metrics(job, progress, counts)
    assert found["test"]["foreground_f1"] == 1.0
    assert found["test"]["threshold"] == 0.25
    assert (found["val"], found["best_epoch"], found["epochs"]) == ({"foreground_f1": 0.5}, 1, 2)
    assert (found["tiles_per_second"], found["wait_share"], found["seconds"]) == (3.0, 0.05, 10.0)
    assert found["blank_chunks"] == 1
    assert _warnings(job, progress, counts) == [
        "Chunks of the image that hold nothing but zeros and may be missing at the source: 1, for instance array://em "
        "0:1,0:2,0:3."
    ]


@pytest.mark.parametrize("test", [None, object()])
def test_without_an_annotation_for_test_there_are_no_test_figures(progress, test):
    job = SimpleNamespace(test=test, train=SimpleNamespace(tiles_per_epoch=12))
    counts = VoxelCounts.zeros()
    if test is None:
        counts.add(np.array([0.1]), np.array([0]), np.array([0]))  # of the validation box
    assert _all_metrics(job, progress, counts)["test"] is None
    assert _warnings(job, progress, counts)[0].startswith(
        "There is no annotation for test: the figures are those of the val"
    )

"""The end of a run: the tiles that its page shows, and the metrics that it writes."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from kasthuri_ray.config.loading import GivenSettings, resolve_settings
from kasthuri_ray.metrics.class_map import classes_at
from kasthuri_ray.metrics.intervals import tile_counts
from kasthuri_ray.metrics.voxel_counts import BINS, VoxelCounts
from kasthuri_ray.tiles.label_census import LabelCensus
from kasthuri_ray.training.final_metrics import final_metrics
from kasthuri_ray.training.learning_history import LearningHistory
from kasthuri_ray.training.run_report import choose_example_tiles, run_notes
from kasthuri_ray.training.tile_results import TileResults, TileScore
from kasthuri_ray.training.training_state import TrainingProgress
from kasthuri_ray.volumes.learnt_from import LearntFrom

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


GRID = SimpleNamespace(sources=[SimpleNamespace(annotation="labels", box=SimpleNamespace(num_voxels=200))])
UNANNOTATED = SimpleNamespace(sources=[SimpleNamespace(annotation=None, box=SimpleNamespace(num_voxels=200))])


def job_with_test(test: object, census: LabelCensus | None = None) -> SimpleNamespace:
    """Return the parts of a job that metrics and warnings depend on."""
    train = SimpleNamespace(tiles_per_epoch=12)
    tiles = SimpleNamespace(test=test, val=GRID, train=train, absent_chunks={}, census=census)
    settings = resolve_settings(GivenSettings("phantom_synapse"))
    return SimpleNamespace(tiles=tiles, settings=settings, history=LearningHistory(LearntFrom(is_complete=True)))


def results_of(*voxels, tiles=GRID):
    """Return the results of tiles, each of which is (probability, labels)."""
    total, scores = VoxelCounts.zeros(), []
    for number, (probability, labels) in enumerate(voxels):
        counts, probability = VoxelCounts.zeros(), np.array([probability])
        counts.add(probability, classes_at(probability, [0.25]), np.array(labels))
        scores.append(TileScore(number, counts.confusion, tile_counts(counts, [0.25])))
        total += counts
    return TileResults(tiles, total, scores)


@pytest.fixture
def progress() -> TrainingProgress:
    history = [{"training_seconds": 4.0, "seconds": 5.0}] * 2
    best = {"epoch": 1, "average_precision": 0.5, "threshold": 0.25, "val": VAL}
    return TrainingProgress(epoch=2, history=history, best=best, waited=0.4, blank_chunks=["array://em 0:1,0:2,0:3"])


def test_a_finished_run_has_these_metrics_and_warnings(progress):
    tiles = [([0.1, 0.9], [0, 1])] * 4
    results, job = results_of(*tiles, ([0.2, 0.8, 0.1], [0, 1, 0])), job_with_test(GRID)
    metrics = final_metrics(job, progress, results)
    assert metrics["test"]["foreground_f1"] == 1.0
    assert metrics["test"]["threshold"] == 0.25
    assert metrics["test"]["foreground_f1_interval"] == [1.0, 1.0]
    assert metrics["test"]["average_precision_interval"] == [1.0, 1.0]
    assert metrics["test"]["recall_interval"] == metrics["test"]["foreground_iou_interval"] == [1.0, 1.0]
    assert metrics["labelled_voxels"] == {
        "val": {"labelled": 110, "voxels": 200},
        "test": {"labelled": 11, "voxels": 200},
    }
    assert (metrics["val"], metrics["best_epoch"], metrics["epochs"]) == (VAL, 1, 2)
    assert (metrics["tiles_per_second"], metrics["wait_share"], metrics["seconds"]) == (3.0, 0.05, 10.0)
    assert metrics["blank_chunks"] == 1
    assert run_notes(job, progress, results.counts) == [
        "Image chunks that hold nothing but zeros and may be missing at the source: 1, for instance array://em "
        "0:1,0:2,0:3."
    ]


@pytest.mark.parametrize("test", [None, UNANNOTATED])
def test_without_an_annotation_for_test_there_are_no_test_metrics(progress, test):
    job = job_with_test(test)
    results = results_of(([0.1], [0])) if test is None else results_of(tiles=test)  # of the validation box
    metrics = final_metrics(job, progress, results)
    assert metrics["test"] is None
    assert not any("test is labelled" in warning for warning in metrics["warnings"])
    assert run_notes(job, progress, results.counts)[0].startswith(
        "There is no annotation for test: the metrics are those of the val"
    )


def test_scores_that_mean_nothing_are_warnings(progress):
    job, rng = job_with_test(GRID), np.random.default_rng(0)
    tiles = [(rng.random(50), rng.random(50) < 0.2) for _ in range(40)]
    (warning,) = final_metrics(job, progress, results_of(*tiles))["warnings"]
    assert "95% interval" in warning or "no better than" in warning
    no_foreground = results_of(*[([0.1, 0.2], [0, 0])] * 3)
    assert "No voxel of test is synapse" in " ".join(final_metrics(job, progress, no_foreground)["warnings"])
    constant = results_of(*[([0.9, 0.9], [0, 1])] * 3)
    assert "is the same in all 6 voxels" in " ".join(final_metrics(job, progress, constant)["warnings"])
    good = results_of(*[([0.1, 0.9, 0.2, 0.1], [0, 1, 0, 0])] * 9)
    (warning,) = final_metrics(job, progress, good)["warnings"]
    assert warning.startswith("F1 is 0.500 on val and 1.000 on test. They differ by a factor of two or more")


def test_a_class_that_the_training_boxes_lack_is_a_warning(progress):
    census = LabelCensus((40, 0), num_read=100, num_voxels=100, is_complete=False, num_labelled_tiles=3)
    results = results_of(([0.1, 0.9], [0, 1]), ([0.2, 0.8], [0, 1]))
    metrics = final_metrics(job_with_test(GRID, census), progress, results)
    assert "No voxel of train is synapse: a network cannot learn that." in metrics["warnings"]
    assert metrics["labelled_voxels"]["train"] == {"labelled": 40, "voxels": 100}
    sample = LabelCensus((40, 0), num_read=100, num_voxels=5000, is_complete=False, num_labelled_tiles=3)
    metrics = final_metrics(job_with_test(GRID, sample), progress, results)
    assert any("No voxel of train (a sample of 100 of 5,000 voxels) is" in text for text in metrics["warnings"])
    assert metrics["labelled_voxels"]["train"] == {"labelled": 40, "voxels": 100, "sampled_from": 5000}


def test_tiles_without_a_labelled_voxel_are_neither_shown_nor_drawn_for_intervals(progress):
    ignored = ([0.5, 0.5], [255, 255])
    right = ([0.1, 0.9], [0, 1])
    results = results_of(ignored, right, ignored, ([0.9, 0.8], [0, 1]), right, right, right)
    assert [score.number for score in results.labelled] == [1, 3, 4, 5, 6]
    assert results.sample().num_tiles == 5
    one = results_of(ignored, right, right, right, right)
    assert not [key for key in final_metrics(job_with_test(GRID), progress, one)["test"] if "interval" in key]
    val = final_metrics(job_with_test(None), progress, results)["val"]
    assert val["foreground_f1_interval"][0] < 1

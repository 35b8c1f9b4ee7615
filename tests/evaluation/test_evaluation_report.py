"""The summary line of an evaluation, and its warnings at extreme thresholds and of noise."""

import numpy as np
import pytest

from kasthuri_ray.config.settings import EvaluateSettings
from kasthuri_ray.evaluation.evaluation_report import NOTHING_COMPARED, evaluation_summary

SHAPE = (4, 64, 64)


def test_the_summary_begins_with_the_f1(synapses, compare):
    result, _ = compare(synapses.settings)
    assert evaluation_summary(result).startswith("F1 0.")
    assert result["warnings"] == []


@pytest.fixture
def evaluate_floats(tmp_path, write_volume, compare):
    """Return `evaluate_floats(probability, labels, threshold)`: the result for a prediction of another tool."""

    def evaluate(probability, labels, threshold, **task):
        prediction = write_volume(tmp_path / "p.zarr", probability)
        annotation = write_volume(tmp_path / "a.zarr", labels)
        settings = EvaluateSettings(
            prediction=prediction, annotation=annotation, task="synapse", threshold=threshold, cache="none"
        )
        return compare(settings, task=task)[0]

    return evaluate


def make_labels():
    labels = np.zeros(SHAPE, np.uint8)
    labels[:, 20:30, 20:30] = 1
    return labels


def test_at_threshold_1_a_probability_of_nearly_1_marks_nothing_and_every_figure_says_so(evaluate_floats):
    labels = make_labels()
    result = evaluate_floats((0.9997 * labels).astype(np.float32), labels, 1.0)
    assert (result["foreground_f1"], result["recall"], result["objects"]["num_predicted"]) == (0.0, 0.0, 0)
    assert result["warnings"][0].startswith("The prediction marks none of 16,384 voxels as synapse")


def test_at_threshold_0_everything_is_marked_and_that_is_no_skill(evaluate_floats):
    labels = make_labels()
    result = evaluate_floats((0.9 * labels).astype(np.float32), labels, 0.0)
    assert result["recall"] == 1.0
    assert "is no better than that of marking every voxel as synapse" in result["warnings"][0]


def test_specks_all_over_the_volume_are_two_warnings(evaluate_floats):
    probability, labels = np.zeros(SHAPE, np.float32), make_labels()
    probability[:, 20:30, 20:30] = 0.9
    probability[0, ::6, ::6] = 0.9
    warnings = " ".join(evaluate_floats(probability, labels, 0.5)["warnings"])
    assert "marked objects of the class synapse are specks" in warnings
    assert "over 5 times as many as in the annotation, " in warnings


def test_where_every_voxel_is_ignored_the_warning_says_so(evaluate_floats):
    labels = np.full(SHAPE, 7, np.uint8)
    result = evaluate_floats(np.zeros(SHAPE, np.float32), labels, 0.5, ignore_label=7)
    assert result["warnings"] == [NOTHING_COMPARED]


@pytest.mark.parametrize(("shape", "has_intervals"), [((4, 64, 64), False), ((2, 512, 300), True)])
def test_intervals_are_drawn_from_tiles_and_missing_where_these_are_few(evaluate_floats, shape, has_intervals):
    rng, labels = np.random.default_rng(0), np.zeros(shape, np.uint8)
    labels[:, 20::40, 10:60] = 1
    probability = np.where(rng.random(shape) < 0.8, labels, rng.random(shape)).astype(np.float32)
    result = evaluate_floats(probability, labels, 0.5)
    assert ("foreground_f1_interval" in result, "average_precision_interval" in result) == (has_intervals,) * 2
    if has_intervals:
        low, high = result["foreground_f1_interval"]
        assert low < result["foreground_f1"] < high, "8 tiles, of which a section of 1024 x 1024 would be one"

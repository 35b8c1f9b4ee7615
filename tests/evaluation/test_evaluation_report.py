"""The summary line of an evaluation."""

from kasthuri_ray.evaluation.evaluation_report import evaluation_summary


def test_the_summary_begins_with_the_f1(synapses, compare):
    result, _ = compare(synapses.settings)
    assert evaluation_summary(result).startswith("F1 0.")

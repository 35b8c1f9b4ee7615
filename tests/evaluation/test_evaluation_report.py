"""The summary line of an evaluation."""

from kasthuri_ray.evaluation.evaluation_report import evaluation_summary


def test_the_summary_of_a_fully_ignored_box_shows_no_f1(synapses, compare):
    result, _ = compare(synapses.settings)
    assert evaluation_summary(result).startswith("F1 0.")
    assert evaluation_summary(result | {"voxels": 0}) == "Nothing was compared: every voxel is ignored."

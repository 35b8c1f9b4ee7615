"""Objects are matched by overlap, by IoU and by the distance of their centroids, and scored side by side."""

import cc3d
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from kasthuri_ray.geometry import Box
from kasthuri_ray.metrics.components import label_block_components
from kasthuri_ray.metrics.matching import count_label_pairs
from kasthuri_ray.metrics.object_criteria import ObjectCriteria
from kasthuri_ray.metrics.object_outcomes import object_metrics, pool_outcomes
from kasthuri_ray.metrics.objects import join_objects

SIZE_NM = (40.0, 8.0, 8.0)


def make_objects(seed, shape=(12, 60, 60), noise=0.5):
    """Return blobs as masks of annotation and prediction, and the probability of the prediction."""
    rng = np.random.default_rng(seed)
    field = gaussian_filter(rng.normal(size=shape), 2)
    other = field + noise * gaussian_filter(rng.normal(size=shape), 2)
    probability = np.clip(128 + 1200 * (other - 0.09), 0, 255).astype(np.uint8)
    return field > 0.09, probability >= 128, probability


def judge(true, predicted, probability, voxel_size_nm=SIZE_NM, **criteria):
    box = Box((0, 0, 0), true.shape)
    sides = [label_block_components(mask, box, probability) for mask in (true, predicted)]
    tables = [join_objects([components]) for components, _ in sides]
    numbered = [np.append(0, table.object_ids)[labels] for table, (_, labels) in zip(tables, sides, strict=True)]
    return ObjectCriteria(box, voxel_size_nm, **criteria).judge(*tables, count_label_pairs(*numbered))


def dense_tables(true, predicted):
    """Return shared voxels, IoU and centroid distances of all pairs, from cc3d and whole arrays."""
    labels = [cc3d.connected_components(mask, connectivity=26) for mask in (true, predicted)]
    shared = np.zeros([array.max() + 1 for array in labels], int)
    np.add.at(shared, tuple(array.ravel() for array in labels), 1)
    sizes = [np.bincount(array.ravel()) for array in labels]
    shared = shared[1:, 1:]
    iou = shared / (sizes[0][1:, None] + sizes[1][None, 1:] - shared)
    centroids = [
        np.array([np.argwhere(array == n).mean(0) for n in range(1, array.max() + 1)]) * SIZE_NM for array in labels
    ]
    return shared, iou, cdist(*centroids)


@pytest.mark.parametrize("seed", range(8))
def test_each_criterion_equals_a_dense_assignment_of_its_candidates(seed):
    true, predicted, probability = make_objects(seed)
    metrics = object_metrics(judge(true, predicted, probability, centroid_radius_nm=60.0))
    shared, iou, distance = dense_tables(true, predicted)
    for name, candidates in {"overlap": shared > 0, "iou": iou > 0.5, "centroid": distance <= 60}.items():
        pairs = candidates[linear_sum_assignment(~candidates)].sum()
        found = metrics["by"][name]
        assert (metrics["num_true"], metrics["num_predicted"]) == shared.shape
        assert found["true_positives"] == pairs > 0
        assert found["recall"] == pairs / shared.shape[0]
        assert found["precision"] == pairs / shared.shape[1]
        assert found["f1"] == 2 * pairs / sum(shared.shape)
        for score in ("precision", "recall", "f1"):
            low, high = found[f"{score}_interval"]
            assert low <= found[score] <= high
    assert {key: metrics[key] for key in ("precision", "recall", "f1")} == {
        key: metrics["by"]["iou"][key] for key in ("precision", "recall", "f1")
    }
    assert len({metrics["by"][name]["f1"] for name in metrics["by"]}) > 1


def test_a_centroid_at_the_radius_is_a_match_and_one_beyond_it_is_none():
    true, predicted = np.zeros((2, 3, 9, 30), bool)
    true[1, 4, 2], predicted[1, 4, 12] = True, True  # 80 nm apart
    probability = np.full(true.shape, 200, np.uint8)
    at, beyond = (
        object_metrics(judge(true, predicted, probability, centroid_radius_nm=radius))["by"]["centroid"]
        for radius in (80.0, 79.9)
    )
    assert (at["f1"], beyond["f1"], at["radius_nm"]) == (1.0, 0.0, 80.0)


def test_without_a_voxel_size_there_is_no_score_by_centroids():
    metrics = object_metrics(judge(*make_objects(0), voxel_size_nm=None))
    assert metrics["by"]["centroid"] is None
    assert metrics["whole"]["by"]["centroid"] is None


@pytest.mark.parametrize("seed", range(6))
def test_the_average_precision_is_that_of_the_matchings_at_every_cut_of_the_score(seed):
    true, predicted, probability = make_objects(seed, noise=0.9)
    metrics = object_metrics(judge(true, predicted, probability))
    labels = cc3d.connected_components(predicted, connectivity=26)
    scores = np.bincount(labels.ravel(), probability.ravel() / 255)[1:] / np.bincount(labels.ravel())[1:]
    shared, _, _ = dense_tables(true, predicted)
    expected, recall_before = 0.0, 0.0
    for cut in np.unique(scores)[::-1]:
        candidates = shared[:, scores >= cut] > 0
        pairs = candidates[linear_sum_assignment(~candidates)].sum()
        precision, recall = pairs / candidates.shape[1], pairs / candidates.shape[0]
        expected, recall_before = expected + precision * (recall - recall_before), recall
    assert metrics["average_precision"] == pytest.approx(expected)
    low, high = metrics["average_precision_interval"]
    assert 0 <= low < metrics["average_precision"] < high <= 1


def test_whole_objects_are_those_that_touch_no_face():
    true, predicted, probability = make_objects(3, (16, 70, 70))
    outcomes = judge(true, predicted, probability)
    whole = object_metrics(outcomes)["whole"]
    counts = []
    for mask in (true, predicted):
        labels = cc3d.connected_components(mask, connectivity=26)
        faces = [np.take(labels, end, axis).ravel() for axis in range(3) for end in (0, -1)]
        touching = np.unique(np.concatenate(faces))
        counts.append(labels.max() - np.count_nonzero(touching))
    assert [whole["num_true"], whole["num_predicted"]] == counts
    assert 0 < whole["num_true"] < outcomes.true_is_cut.size
    found = (outcomes.is_found("overlap") & ~outcomes.true_is_cut).sum()
    right = (outcomes.is_right("overlap") & ~outcomes.predicted_is_cut).sum()
    assert whole["by"]["overlap"]["recall"] == found / counts[0]
    assert whole["by"]["overlap"]["precision"] == right / counts[1]


def test_pooled_outcomes_score_like_the_sums_of_the_parts():
    parts = [judge(*make_objects(seed)) for seed in (0, 1)]
    pooled = object_metrics(pool_outcomes(parts))
    each = [object_metrics(part) for part in parts]
    for name in ("overlap", "iou", "centroid"):
        pairs = sum(part["by"][name]["true_positives"] for part in each)
        assert pooled["by"][name]["true_positives"] == pairs
        assert pooled["by"][name]["recall"] == pairs / sum(part["num_true"] for part in each)
    assert pooled["num_small"] == sum(part["num_small"] for part in each)
    assert pooled["whole"]["num_true"] == sum(part["whole"]["num_true"] for part in each)


def test_intervals_narrow_with_the_number_of_objects():
    part = judge(*make_objects(0))
    low, high = object_metrics(part)["by"]["overlap"]["f1_interval"]
    narrow_low, narrow_high = object_metrics(pool_outcomes([part] * 16))["by"]["overlap"]["f1_interval"]
    assert narrow_high - narrow_low == pytest.approx((high - low) / 4, rel=0.3)


def test_scores_without_objects_are_zero():
    nothing = np.zeros((3, 8, 8), bool)
    metrics = object_metrics(judge(nothing, nothing, nothing.astype(np.uint8)))
    for key in ("precision", "recall", "f1", "average_precision", "num_true", "num_predicted", "num_small"):
        assert metrics[key] == 0
    assert metrics["by"]["overlap"]["f1_interval"] == [0.0, 0.0]


def test_one_object_over_everything_finds_one_by_overlap_and_none_by_iou():
    true = np.zeros((3, 20, 20), bool)
    true[1, 2:4, 2:4] = true[1, 2:4, 9:11] = true[1, 12:14, 2:4] = True
    metrics = object_metrics(judge(true, np.ones_like(true), np.full(true.shape, 255, np.uint8)))
    assert metrics["by"]["overlap"]["true_positives"] == 1
    assert metrics["by"]["overlap"]["recall"] == 1 / 3
    assert metrics["f1"] == 0.0

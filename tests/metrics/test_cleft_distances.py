"""CREMI's distances between clefts, measured block by block, are those of a distance transform of the whole."""

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt, gaussian_filter

from kasthuri_ray.geometry import Box
from kasthuri_ray.labels import IGNORE_LABEL
from kasthuri_ray.metrics.cleft_distances import STEP_NM, measure_cleft_distances, pack_class_masks, surface_of

SIZE_NM = (40.0, 4.0, 4.0)
START = (3, -5, 7)


def make_masks(seed, shape=(9, 50, 44), share=0.02):
    rng = np.random.default_rng(seed)
    fields = [gaussian_filter(rng.normal(size=shape), (1, 3, 3)) for _ in range(2)]
    return [field > np.quantile(field, 1 - share) for field in fields]


def measure(true, predicted, block, ignored=None):
    truth = true.astype(np.uint8)
    if ignored is not None:
        truth[ignored] = IGNORE_LABEL
    box = Box.at(START, true.shape)
    blocks = [
        pack_class_masks(predicted[cell.slices(START)].astype(np.uint8), truth[cell.slices(START)], cell, [1])[1]
        for cell in box.cells(block, START)
    ]
    return measure_cleft_distances(blocks, SIZE_NM)


@pytest.mark.parametrize("block", [(9, 50, 44), (4, 16, 16), (1, 7, 50), (2, 50, 3)])
@pytest.mark.parametrize(("seed", "share"), [(0, 0.02), (1, 0.3), (2, 0.002)])
def test_distances_equal_those_of_a_distance_transform(block, seed, share):
    true, predicted = make_masks(seed, share=share)
    found = measure(true, predicted, block).metrics()
    adgt = distance_transform_edt(~true, sampling=SIZE_NM)[predicted].mean()
    adf = distance_transform_edt(~predicted, sampling=SIZE_NM)[true].mean()
    assert found["adgt_nm"] == pytest.approx(adgt, abs=STEP_NM / 2)
    assert found["adf_nm"] == pytest.approx(adf, abs=STEP_NM / 2)
    assert found["cremi_score_nm"] == pytest.approx((adgt + adf) / 2, abs=STEP_NM / 2)
    assert adgt != pytest.approx(adf)
    assert measure(true, predicted, block) == measure(true, predicted, true.shape)


def test_false_positives_raise_the_distance_to_the_ground_truth_alone():
    true = np.zeros((3, 9, 9), bool)
    true[1, 4, 4] = True
    predicted = true.copy()
    predicted[1, 4, 7] = True  # 12 nm away
    assert measure(true, predicted, (3, 9, 9)).metrics() == {"adgt_nm": 6.0, "adf_nm": 0.0, "cremi_score_nm": 3.0}
    assert measure(predicted, true, (3, 9, 9)).metrics() == {"adgt_nm": 0.0, "adf_nm": 6.0, "cremi_score_nm": 3.0}


def test_ignored_voxels_count_nowhere():
    true, predicted = make_masks(4, share=0.1)
    ignored = np.zeros(true.shape, bool)
    ignored[:, :20] = True
    alone = measure(true & ~ignored, predicted & ~ignored, (4, 16, 16))
    assert measure(true, predicted, (4, 16, 16), ignored) == alone


def test_without_voxels_on_a_side_there_is_no_distance():
    true, _ = make_masks(5)
    nothing = np.zeros_like(true)
    unknown = {"adgt_nm": None, "adf_nm": None, "cremi_score_nm": None}
    assert measure(true, nothing, (4, 16, 16)).metrics() == unknown
    assert measure(nothing, true, (4, 16, 16)).metrics() == unknown
    assert measure(nothing, nothing, (4, 16, 16)).metrics() == unknown


def test_distances_of_several_boxes_are_means_over_all_voxels():
    parts = [measure(*make_masks(seed), (9, 50, 44)) for seed in (0, 1)]
    pooled = parts[0] + parts[1]
    total = sum(part.metrics()["adgt_nm"] * part.num_predicted for part in parts)
    assert pooled.metrics()["adgt_nm"] == pytest.approx(total / sum(part.num_predicted for part in parts))


def test_inner_voxels_are_no_surface():
    mask = np.zeros((7, 9, 9), bool)
    mask[1:6, 2:7, 2:7] = True
    surface = surface_of(mask)
    assert surface.sum() == 5**3 - 3**3
    assert not surface[2:5, 3:6, 3:6].any()

"""A comparison by blocks has the same result as scikit-learn, scikit-image and cc3d on whole arrays."""

import cc3d
import numpy as np
import pytest
from skimage import metrics as skimage_metrics
from skimage.measure import label
from sklearn import metrics as sklearn_metrics


def test_voxel_metrics_equal_scikit_learn_on_whole_arrays(synapses, compare, expected_metrics):
    truth, probability, (result, _) = synapses.truth, synapses.probability, compare(synapses.settings)
    assert result["threshold"] == 0.4
    expected = expected_metrics(truth, probability, 0.4)
    assert 0.3 < expected["foreground_f1"] < 0.95
    assert {name: result[name] for name in expected} == pytest.approx(expected, abs=1e-9)
    counted = truth != synapses.ignore_label
    precision, recall, _ = sklearn_metrics.precision_recall_curve(truth[counted] > 0, probability[counted])
    highest = (2 * precision * recall / (precision + recall + 1e-12)).max()
    assert result["best_foreground_f1"] == pytest.approx(highest)
    predicted = probability[counted] / 255 >= result["best_threshold"]
    assert sklearn_metrics.f1_score(truth[counted] > 0, predicted) == pytest.approx(highest)
    sections = [
        {
            "z": synapses.start[0] + z,
            "foreground_f1": sklearn_metrics.f1_score(t[c] > 0, p[c] / 255 >= 0.4, zero_division=0),
        }
        for z, (t, p, c) in enumerate(zip(truth, probability, counted, strict=True))
    ]
    assert result["sections"] == [pytest.approx(section) for section in sections]


def test_objects_equal_components_of_cc3d_matched_by_intersection_over_union(synapses, compare):
    truth, probability, objects = synapses.truth, synapses.probability, compare(synapses.settings)[0]["objects"]
    foreground = (probability / 255 >= 0.4) & (truth != synapses.ignore_label)
    true = cc3d.connected_components(truth == 1, connectivity=26)
    predicted = cc3d.connected_components(foreground, connectivity=26)
    assert (objects["num_true"], objects["num_predicted"]) == (true.max(), predicted.max())
    true_sizes, predicted_sizes = np.bincount(true.ravel()), np.bincount(predicted.ravel())
    both = (true > 0) & (predicted > 0)
    (one, other), shared = np.unique(np.stack([true[both], predicted[both]]), axis=1, return_counts=True)
    iou = shared / (true_sizes[one] + predicted_sizes[other] - shared)
    num_matched = int((iou > 0.5).sum())
    assert num_matched < len(set(one)), "some overlap too little"
    assert 3 < num_matched < predicted.max()
    assert objects["recall"] == num_matched / true.max()
    assert objects["precision"] == num_matched / predicted.max()
    assert objects["f1"] == 2 * num_matched / (true.max() + predicted.max())


OBJECTS = {"seed": [0.9], "extent": [0.3], "min_size": [20 * 1080.0], "is_nm3": True, "min_sections": 2}


def test_objects_are_found_by_the_settings_that_the_prediction_records(synapses, compare, write_prediction, tmp_path):
    truth, probability = synapses.truth, synapses.probability
    path = write_prediction(tmp_path / "objects.zarr", probability, objects=OBJECTS)
    settings = synapses.settings.model_copy(update={"prediction": path})
    labels = cc3d.connected_components((probability / 255 >= 0.3) & (truth != synapses.ignore_label), connectivity=26)
    num_kept = 0
    for number in range(1, labels.max() + 1):
        voxels = np.argwhere(labels == number)
        is_cut = (voxels == 0).any() or (voxels == np.array(labels.shape) - 1).any()
        is_large = len(voxels) >= 20 and np.ptp(voxels[:, 0]) >= 1
        num_kept += (is_cut or is_large) and probability[labels == number].max() / 255 >= 0.9
    result = compare(settings)[0]
    assert result["objects"]["num_predicted"] == num_kept > 5
    assert num_kept < compare(synapses.settings)[0]["objects"]["num_predicted"]
    assert result["foreground_f1"] == compare(synapses.settings)[0]["foreground_f1"], "the threshold is that of voxels"


def test_bridged_objects_do_not_depend_on_the_shape_of_the_blocks(synapses, compare, write_prediction, tmp_path):
    probability = synapses.probability.copy()
    probability[4] = 0
    found = []
    for name, bridge in (("bridged", 2), ("apart", 0)):
        path = write_prediction(tmp_path / name, probability, objects=OBJECTS | {"bridge_sections": bridge})
        settings = synapses.settings.model_copy(update={"prediction": path})
        found.append(compare(settings)[0])
        for block_shape in [(1, 300, 300), (2, 64, 90), (5, 50, 256)]:
            assert compare(settings, block_shape)[0] == found[-1]
    assert found[0]["objects"]["num_predicted"] != found[1]["objects"]["num_predicted"]


@pytest.mark.parametrize("block_shape", [None, (3, 50, 64)])
def test_one_object_that_covers_everything_matches_no_synapse(
    synapses, compare, write_prediction, tmp_path, block_shape
):
    everything = write_prediction(tmp_path / "all.zarr", np.full(synapses.truth.shape, 255, np.uint8))
    result = compare(synapses.settings.model_copy(update={"prediction": everything}), block_shape)[0]
    assert result["recall"] == 1, "of voxels"
    assert (result["objects"]["num_predicted"], result["objects"]["num_true"] > 5) == (1, True)
    assert (result["objects"]["recall"], result["objects"]["precision"], result["objects"]["f1"]) == (0, 0, 0)


@pytest.mark.parametrize("block_shape", [(1, 300, 300), (12, 64, 90), (9, 1, 300), (3, 50, 256), (5, 128, 90)])
def test_the_result_does_not_depend_on_the_shape_of_the_blocks(synapses, compare, block_shape):
    assert compare(synapses.settings, block_shape) == compare(synapses.settings)


@pytest.mark.parametrize("block_shape", [None, (2, 77, 100)])
def test_cell_metrics_equal_scikit_image_on_whole_arrays(membranes, compare, expected_metrics, block_shape):
    truth, probability, instances = membranes.truth, membranes.probability, membranes.instances
    result, _ = compare(membranes.settings, block_shape)
    inside = probability / 255 < 0.35
    cells = np.stack([label(section, connectivity=1) + 10_000 * z for z, section in enumerate(inside)])
    true = np.where(instances > 0, (instances % 2**40).astype(int) + 10_000 * np.arange(5)[:, None, None], 0)
    true[~inside | (truth == membranes.ignore_label)] = 0
    assert result["arand"] == pytest.approx(skimage_metrics.adapted_rand_error(true, cells)[0])
    assert 0.01 < result["arand"] < 0.95
    voi = skimage_metrics.variation_of_information(true, cells, ignore_labels=(0,))
    assert [result["voi_split"], result["voi_merge"]] == pytest.approx(list(voi))
    expected = expected_metrics(truth, probability, 0.35)
    assert (result["foreground_f1"], result["iou"]) == pytest.approx((expected["foreground_f1"], expected["iou"]))
    assert "objects" not in result

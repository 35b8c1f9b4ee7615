"""Every object of an evaluation is listed with its verdict, and the most confident mistakes are shown."""

import csv

import cc3d
import numpy as np
import pytest

from kasthuri_ray.evaluation.block_comparison import ComparisonTotals, compare_block
from kasthuri_ray.evaluation.comparison_inputs import prepare_comparison
from kasthuri_ray.evaluation.object_crops import CROP, choose_objects, count_verdicts, crop_box, read_object_crop
from kasthuri_ray.evaluation.object_list import matches_csv
from kasthuri_ray.geometry import Box


@pytest.fixture(scope="module")
def compared(synapses):
    """Return the inputs and the totals of the example, compared in several blocks."""
    return compare_in_blocks(synapses.settings)


def compare_in_blocks(settings):
    inputs = prepare_comparison(settings)
    totals = ComparisonTotals(inputs.comparison)
    for block in inputs.comparison.blocks((5, 128, 90)):
        totals.add(compare_block(inputs.comparison, block))
    return inputs, totals.whole


@pytest.fixture(scope="module")
def labels(synapses, compared):
    """Return the labelled objects of annotation and prediction, and the probability, over the whole box."""
    kept = synapses.truth != synapses.ignore_label
    true = cc3d.connected_components((synapses.truth > 0) & kept, connectivity=26)
    threshold = compared[0].comparison.thresholds[0]
    predicted = cc3d.connected_components((synapses.probability / 255 >= threshold) & kept, connectivity=26)
    return true, predicted, synapses.probability


def read_rows(compared):
    inputs, totals = compared
    lines = matches_csv(
        totals.objects, inputs.comparison.class_names, inputs.comparison.voxel_size_nm, (1000.0, 0.0, 0.0)
    )
    return list(csv.DictReader(lines))


def test_the_list_holds_every_object_with_size_score_and_centroid(compared, labels):
    rows, start = read_rows(compared), np.array(compared[0].comparison.box.start)
    size = np.array(compared[0].comparison.voxel_size_nm)
    for kind, array in zip(("true", "predicted"), labels, strict=False):
        own = [row for row in rows if row["kind"] == kind]
        assert [int(row["id"]) for row in own] == list(range(1, array.max() + 1))
        expected = {}
        for number in range(1, array.max() + 1):
            voxels = np.argwhere(array == number)
            box = np.stack([voxels.min(0) + start, voxels.max(0) + 1 + start], 1).ravel().tolist()
            expected[tuple(box)] = (voxels.mean(0) + start) * size + (1000, 0, 0), len(voxels), number
        for row in own:
            box = tuple(int(row[f"{axis}_{end}"]) for axis in "zyx" for end in ("start", "stop"))
            centroid, num_voxels, number = expected[box]
            assert int(row["size_voxels"]) == num_voxels
            assert [float(row[f"centroid_{axis}_nm"]) for axis in "zyx"] == pytest.approx(centroid, abs=1e-3)
            mean = labels[2][array == number].mean() / 255
            assert float(row["score"]) == pytest.approx(mean, abs=1e-6)
            touches = any(
                low == bound or high == end
                for low, high, bound, end in zip(
                    box[::2], box[1::2], compared[0].comparison.box.start, compared[0].comparison.box.stop, strict=True
                )
            )
            assert int(row["cut"]) == touches


def test_verdicts_add_up_to_the_scores_and_partners_name_each_other(compared):
    rows, outcomes = read_rows(compared), next(iter(compared[1].outcomes.values()))
    for criterion, suffix in (("overlap", ""), ("iou", "_iou"), ("centroid", "_centroid")):
        verdicts = [row[f"verdict{suffix}"] for row in rows]
        pairs = outcomes.is_found(criterion).sum()
        assert verdicts.count("found") == verdicts.count("right") == pairs > 0
        assert verdicts.count("missed") == len(outcomes.true_is_cut) - pairs
        assert verdicts.count("wrong") == len(outcomes.scores) - pairs
        partners = {(row["kind"], row["id"]): row[f"partner{suffix}"] for row in rows}
        for (kind, number), partner in partners.items():
            other = "predicted" if kind == "true" else "true"
            assert not partner or partners[other, partner] == number


def test_the_most_confident_mistakes_are_chosen_and_shares_that_are_not_needed_pass_on(compared):
    objects = compared[1].objects
    totals = count_verdicts(objects)
    chosen = choose_objects(objects, {"wrong": 3, "missed": 2, "found": 4})
    rows = read_rows(compared)
    wrong = sorted((row for row in rows if row["verdict"] == "wrong"), key=lambda row: -float(row["score"]))
    missed = sorted((row for row in rows if row["verdict"] == "missed"), key=lambda row: float(row["score"]))
    assert [each.score for each in chosen["wrong"]] == pytest.approx(
        [float(row["score"]) for row in wrong[:3]], abs=1e-6
    )
    assert [each.score for each in chosen["missed"]] == pytest.approx(
        [float(row["score"]) for row in missed[:2]], abs=1e-6
    )
    assert {each.verdict() for each in chosen["found"]} == {"right"}
    assert sum(map(len, chosen.values())) == min(9, sum(totals.values()))
    assert totals == {"wrong": len(wrong), "missed": len(missed), "found": sum(r["verdict"] == "found" for r in rows)}
    more = choose_objects(objects, {"wrong": totals["wrong"] + 2, "missed": 1, "found": 0})
    assert len(more["missed"]) == min(3, totals["missed"])


def test_a_crop_shows_the_section_in_which_the_object_is_largest(compared, labels):
    inputs, totals = compared
    start = np.array(inputs.comparison.box.start)
    for verdict, listed in choose_objects(totals.objects).items():
        array = labels[0] if verdict == "missed" else labels[1]
        for each in listed[:3]:
            crop = read_object_crop(inputs, totals, each, verdict)
            sizes = (array == array[tuple(_first_voxel(array, each, start))]).sum((1, 2))
            assert sizes.sum() == each.size_voxels
            assert crop.z == sizes.argmax() + start[0]
            assert crop.own.sum() == sizes.max()
            assert (crop.own <= (crop.truth if verdict == "missed" else crop.predicted)).all()
            assert crop.image.shape == crop.truth.shape == crop.own.shape


@pytest.mark.parametrize("extent", [0.25, 0.8])
def test_a_crop_shows_the_extent_of_objects_and_not_the_threshold(synapses, write_prediction, tmp_path, extent):
    objects = {"seed": [0.9], "extent": [extent], "min_size": [0.0]}
    path = write_prediction(tmp_path / "objects.zarr", synapses.probability, objects=objects)
    inputs, totals = compare_in_blocks(synapses.settings.model_copy(update={"prediction": path}))
    mask = (synapses.probability >= np.ceil(255 * extent)) & (synapses.truth != synapses.ignore_label)
    array, start = cc3d.connected_components(mask, connectivity=26), np.array(inputs.comparison.box.start)
    chosen = choose_objects(totals.objects)
    for each in [*chosen["wrong"][:3], *chosen["found"][:3]]:
        crop = read_object_crop(inputs, totals, each, "")
        sizes = (array == array[tuple(_first_voxel(array, each, start))]).sum((1, 2))
        assert (crop.z, crop.own.sum()) == (sizes.argmax() + start[0], sizes.max())
        assert (crop.own <= crop.predicted).all()


def _first_voxel(array, listed, start):
    low = np.array(listed.box.start) - start
    high = np.array(listed.box.stop) - start
    inside = array[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    numbers, counts = np.unique(inside[inside > 0], return_counts=True)
    number = numbers[counts == listed.size_voxels][0]
    return np.argwhere(array == number)[0]


def test_a_crop_is_a_square_inside_of_the_box():
    bounds = Box((0, 10, 10), (5, 410, 1010))
    assert crop_box(Box((2, 10, 500), (3, 14, 508)), bounds) == Box(
        (2, 10, 504 - CROP // 2), (3, 10 + CROP, 504 + CROP // 2)
    )
    assert crop_box(Box((2, 10, 10), (3, 410, 1010)), bounds).shape == (1, 400, 768)

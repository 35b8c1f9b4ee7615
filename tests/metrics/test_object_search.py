"""The settings that are found are the best that a plain search finds, and mend specks and touching pairs."""

from functools import partial
from itertools import product

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from kasthuri_ray.geometry import Box
from kasthuri_ray.metrics.block_objects import find_block_objects
from kasthuri_ray.metrics.object_choice import ClassChoice, ObjectChoice
from kasthuri_ray.metrics.object_comparison import ObjectComparison
from kasthuri_ray.metrics.object_detection import find_extent, find_objects, select_objects
from kasthuri_ray.metrics.object_search import (
    MIN_GAIN,
    SIZE_SHARES,
    BoxObjects,
    highest_seed_of_all,
    judge_objects,
    search_extents,
    search_object_settings,
    seeds_from,
)
from kasthuri_ray.metrics.object_settings import ObjectSettings

SHAPE = (10, 90, 90)
BOUNDS = Box((0, 0, 0), SHAPE)


def synapses(seed=0):
    """Return probabilities of balls with specks, of pairs that touch at low probability, and the true balls."""
    rng = np.random.default_rng(seed)
    truth, core = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE)
    for y, x in product(range(8, 90, 18), range(8, 90, 18)):
        z = int(rng.integers(3, 7))
        truth[z - 1 : z + 2, y - 3 : y + 4, x - 3 : x + 4] = 1
        core[z - 1 : z + 2, y - 3 : y + 4, x - 3 : x + 4] = 1
    probability = 0.95 * gaussian_filter(core, (0, 1, 1))
    probability[5, 8, 11:27] = np.maximum(probability[5, 8, 11:27], 0.45)  # two balls touch, below 0.5
    specks = rng.random(SHAPE) < 0.004
    probability[specks & (truth == 0)] = 0.75
    return (probability * 255).astype(np.uint8)[None], truth


def compare(probability, truth, settings, select=True):
    extent = find_extent(probability, settings)
    objects = ObjectComparison(partial(select_objects, settings=settings, bounds=BOUNDS) if select else None)
    objects.add(find_block_objects(extent.classes, truth, BOUNDS, [1], extent.probability))
    return objects.joined()


def plain_f1(probability, truth, settings):
    """Return the object F1 by overlap; where pairs are one to one by themselves."""
    labels, table = find_objects(probability, settings)
    true, true_table = find_objects(truth[None] * 255, ObjectSettings.of_thresholds([0.5]))
    pairs = np.unique(np.stack([labels, true])[:, (labels > 0) & (true > 0)], axis=1)
    matched = min(len(np.unique(pairs[0])), len(np.unique(pairs[1])))
    return 2 * matched / (len(table) + len(true_table))


@pytest.fixture(scope="module")
def searched():
    probability, truth = synapses()
    boxes = {
        extent: [BoxObjects(compare(probability, truth, ObjectSettings.of_thresholds([extent]), False), BOUNDS)]
        for extent in search_extents(0.4)
    }
    return probability, truth, boxes


def test_the_best_of_all_settings_is_found_and_has_no_specks(searched):
    probability, truth, boxes = searched
    found = search_object_settings(boxes, 0.4)
    best = ObjectSettings((found.seed,), (found.extent,), (found.min_voxels,))
    assert found.f1 == pytest.approx(plain_f1(probability, truth, best))
    median = np.median(find_objects(truth[None] * 255, ObjectSettings.of_thresholds([0.5]))[1].size_voxels)
    for extent, share in product(search_extents(0.4), SIZE_SHARES[::3]):
        for seed in seeds_from(extent)[::5]:
            other = ObjectSettings((seed,), (extent,), (float(np.floor(share * median)),))
            gain = 0 if extent == found.extent else MIN_GAIN
            assert plain_f1(probability, truth, other) <= found.f1 + gain + 1e-9
    before = plain_f1(probability, truth, ObjectSettings.of_thresholds([0.4]))
    assert before < 0.3, "specks and a pair that touches"
    assert found.f1 > 0.9
    assert found.seed > 0.75
    assert len(find_objects(probability, ObjectSettings.of_thresholds([0.4]))[1]) > 150


def test_of_equal_settings_the_middle_ones_are_taken(searched):
    _, _, boxes = searched
    true = boxes[0.4][0].joined.true.size_voxels
    sizes, seeds = [float(np.floor(share * np.median(true))) for share in SIZE_SHARES], seeds_from(0.4)
    f1 = np.zeros((len(seeds), len(sizes)))
    for s, m in np.ndindex(f1.shape):
        _, verdicts = judge_objects([boxes[0.4][0].at(seeds[s], sizes[m])])
        f1[s, m] = 2 * sum(verdicts) / (len(verdicts) + len(true))
    best = np.argwhere(f1.round(9) == f1.max().round(9))
    assert len(best) > 3, "there is a choice"
    found = search_object_settings(boxes, 0.4)
    assert (found.extent, found.f1) == (0.4, pytest.approx(f1.max()))
    distances = np.abs(best - np.median(best, 0)).sum(1)
    taken = [(seeds[s], sizes[m]) for s, m in best[distances == distances.min()]]
    assert (found.seed, found.min_voxels) in taken


def test_another_extent_than_the_threshold_is_taken_if_it_parts_many_pairs():
    probability, truth = synapses()
    probability[:, 5, 8:-8:18, 11:79] = np.maximum(probability[:, 5, 8:-8:18, 11:79], 115)  # all rows touch
    boxes = {
        extent: [BoxObjects(compare(probability, truth, ObjectSettings.of_thresholds([extent]), False), BOUNDS)]
        for extent in search_extents(0.4)
    }
    found = search_object_settings(boxes, 0.4)
    assert found.extent > 0.45
    assert found.f1 > 0.9


def test_the_highest_seed_that_loses_no_object_is_the_lowest_of_their_highest_probabilities(searched):
    probability, truth, boxes = searched
    labels, table = find_objects(truth[None] * 255, ObjectSettings.of_thresholds([0.5]))
    highest = [probability[0][labels == number].max() / 255 for number in range(1, len(table) + 1)]
    seed = highest_seed_of_all(boxes[0.4], 0.4, 0)
    assert seed == max(each for each in seeds_from(0.4) if np.rint(255 * each) <= 255 * min(highest))


def test_without_true_objects_there_is_nothing_to_search(searched):
    probability, truth, _ = searched
    none = compare(probability, np.zeros_like(truth), ObjectSettings.of_thresholds([0.4]), False)
    assert search_object_settings({0.4: [BoxObjects(none, BOUNDS)]}, 0.4) is None


CHOICE = ClassChoice(
    "val", num_true=5, scores=(0.5, 0.9, 0.8, 0.8, 0.6, 0.3), verdicts=(True, True, True, False, True, False)
)


def test_the_score_cut_is_the_lowest_one_that_reaches_a_precision():
    for precision in np.linspace(0, 1, 21):
        reached = []
        for cut in set(CHOICE.scores):
            kept = [verdict for score, verdict in zip(CHOICE.scores, CHOICE.verdicts, strict=True) if score >= cut]
            if sum(kept) >= precision * len(kept):
                reached.append((cut, sum(kept) / len(kept), sum(kept) / 5))
        found = CHOICE.cut_at(precision)
        assert (found["min_score"], found["precision"], found["recall"]) == min(reached)
    assert CHOICE.outcome == {"precision": 4 / 6, "recall": 4 / 5, "f1": 8 / 11}


def test_a_precision_that_no_score_reaches_is_refused():
    settings = ObjectSettings.of_thresholds([0.4])
    wrong_first = ClassChoice("val", 3, scores=(0.9, 0.8), verdicts=(False, True))
    choice = ObjectChoice(settings, {"synapse": wrong_first}, {"synapse": 1})
    assert choice.at_precision(0.5).min_score == (0.8,)
    with pytest.raises(
        ValueError, match=r"2 objects of the class synapse that were found in val reach at most a .* 0.5"
    ):
        choice.at_precision(0.6)
    with pytest.raises(ValueError, match="the 0 objects"):
        ObjectChoice(settings, {"synapse": ClassChoice("threshold", 0)}, {"synapse": 1}).at_precision(0.1)


def test_a_choice_survives_a_checkpoint():
    settings = ObjectSettings((0.7, 0.5), (0.4, 0.5), (800.0, 0.0), is_nm3=True)
    choice = ObjectChoice(settings, {"synapse": CHOICE}, {"synapse": 1}, (40.0, 4.0, 5.0))
    read = ObjectChoice.from_plain(choice.to_plain())
    assert read.to_plain() == choice.to_plain()
    assert read.settings == settings
    assert read.at_precision(0.75).min_score == (0.5, 0.0)
    row = choice.to_metrics()["synapse"]
    assert (row["seed"], row["min_size_nm3"], row["chosen_from"], row["num_val"]) == (0.7, 800.0, "val", 5)
    assert row["at_precision"]["0.8"] == CHOICE.cut_at(0.8)

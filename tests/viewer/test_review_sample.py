"""Objects that are drawn for a review: at random, within strata of score and size."""

import numpy as np
import pytest

from kasthuri_ray.errors import InputError
from kasthuri_ray.viewer.review_sample import check_sample, draw_objects, ranked_parts, share_out


def make_rows(number, seed=0):
    rng = np.random.default_rng(seed)
    return [
        {"id": n + 1, "mean_probability": float(rng.random()), "size_voxels": int(rng.integers(1, 10**4))}
        for n in range(number)
    ]


def test_a_draw_is_repeatable_and_names_the_size_of_each_stratum():
    rows = make_rows(1000)
    drawn = draw_objects(rows, 200)
    assert drawn == draw_objects(rows, 200)
    assert len({each.id for each in drawn}) == 200
    sizes = {each.stratum: each.stratum_size for each in drawn}
    assert len(sizes) == 9
    assert sum(sizes.values()) == 1000
    counts = [sum(each.stratum == name for each in drawn) for name in sizes]
    assert max(counts) - min(counts) <= 1
    first = {each.stratum for each in drawn[:60]}
    assert len(first) == 9  # the order is random too


def test_strata_divide_the_scores_and_then_the_sizes():
    rows = make_rows(900)
    for each in draw_objects(rows, 300):
        third = sorted(row["mean_probability"] for row in rows)[int(each.stratum[6]) * 300 - 300 :][:300]
        assert third[0] <= each.mean_probability <= third[-1]


@pytest.mark.parametrize(("number", "strata"), [(1, 1), (27, 1), (28, 4), (62, 4), (63, 9)])
def test_few_objects_are_drawn_from_few_strata(number, strata):
    drawn = draw_objects(make_rows(400), number)
    assert len(drawn) == number
    sizes = {each.stratum: each.stratum_size for each in drawn}
    assert len(sizes) == strata
    assert sum(sizes.values()) == 400


def test_all_objects_are_drawn_if_there_are_fewer():
    assert sorted(each.id for each in draw_objects(make_rows(30), 200)) == list(range(1, 31))
    assert share_out(10, [2, 100, 1]) == [2, 7, 1]
    assert ranked_parts(np.array([3.0, 3.0, 1.0, 2.0]), 2).tolist() == [1, 1, 0, 0]


def test_a_file_of_another_output_is_refused():
    rows = make_rows(50)
    check_sample(draw_objects(rows, 10), rows, "a.csv")
    with pytest.raises(InputError, match=r"a\.csv is not of this output"):
        check_sample(draw_objects(rows, 10), make_rows(50, seed=1), "a.csv")
